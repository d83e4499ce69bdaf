"""Where gateways play: servers, and how they are struck. A kind is a context manager: (folder, redis-server) → Ground."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from redis.exceptions import RedisError
from tests.crash import strikes
from tests.crash.rig import Gateways, until
from tests.crash.strikes import Stage, Strike
from tests.disks import SlowDisk, full, small_disk

from tollkeeper.testing.fault_proxy import FaultProxy
from tollkeeper.testing.redis_cluster import Cluster
from tollkeeper.testing.redis_sentinel import NAME, Sentinels
from tollkeeper.testing.redis_server import RedisServer

Struck = Callable[[Gateways, Random], None]


@dataclass
class Ground:
    """The gateways' URL, a client that sees the true Redis, and what strikes in turn."""

    url: str
    strikes: Sequence[Struck]
    direct: Callable[[], Any]
    env: dict[str, str] = field(default_factory=dict)
    journals: Path | None = None


Kind = Callable[[Path, str], AbstractContextManager[Ground]]


def on_server(*faults: Strike, slow: bool = False, **config: str) -> Kind:
    """One server behind a network that may fail; a `slow` disk says what was synced."""

    @contextmanager
    def kind(folder: Path, executable: str) -> Iterator[Ground]:
        disk = SlowDisk(folder.parent) if slow else None
        env = {} if disk is None else disk.env
        settings = {"auto-aof-rewrite-percentage": "0", **config}
        with (
            RedisServer(folder, executable=executable, config=settings, env=env) as server,
            FaultProxy(server.port) as proxy,
        ):
            stage = Stage(server, proxy, disk)
            url = f"redis://127.0.0.1:{proxy.port}/0?timeout=0.3"
            yield Ground(url, [partial(fault, stage) for fault in faults], server.client, env)

    return kind


@contextmanager
def failed_over(folder: Path, executable: str) -> Iterator[Ground]:
    """A replica that has lagged takes over; the old master comes back as its replica."""
    pair = [RedisServer(folder / name, executable=executable) for name in ("first", "second")]

    def strike(gateways: Gateways, random: Random) -> None:
        master, replica = pair
        replica.replica_of(None)  # detached: from here on it lags
        gateways.more(random.randint(1, 300))
        proxy.away()
        proxy.server = replica.port
        master.kill()
        gateways.more(1)
        proxy.pass_all()
        gateways.busy()
        master.start().replica_of(replica)
        pair.reverse()

    with ExitStack() as stack:
        for server in pair:
            stack.enter_context(server)
        pair[1].replica_of(pair[0])
        proxy = stack.enter_context(FaultProxy(pair[0].port))
        yield Ground(f"redis://127.0.0.1:{proxy.port}/0", [strike], lambda: pair[0].client())


@contextmanager
def sentinels(folder: Path, executable: str) -> Iterator[Ground]:
    """Sentinels promote the replica: the master dies, or is swapped though it is well."""

    def strike(gateways: Gateways, random: Random) -> None:
        before = group.master
        if random.random() < 0.5:
            group.fail_over()
        else:
            before.kill()
            until(lambda: group.master is not before, "another master")
            before.start().replica_of(group.master)  # the sentinels would see to it within 10 s
        gateways.busy()
        until(lambda: _follows(group), "a replica of the master")  # whichever is that now

    with Sentinels(folder, executable=executable) as group:
        addresses = ",".join(f"{host}:{port}" for host, port in group.addresses)
        yield Ground(f"redis+sentinel://{addresses}/{NAME}/0", [strike], lambda: group.master.client())


def _follows(group: Sentinels) -> bool:
    master = group.master
    try:
        with (group.second if master is group.first else group.first).client() as client:
            told = client.info("replication")
    except RedisError:  # it ends its connections when it is told
        return False
    return bool(told["role"] == "slave" and told["master_port"] == master.port and told["master_link_status"] == "up")


@contextmanager
def redis_disk_full(folder: Path, executable: str) -> Iterator[Ground]:
    """No room for Redis's append-only file: it refuses to write, and may be killed in that state."""

    def strike(gateways: Gateways, random: Random) -> None:
        with full(small):
            gateways.more(random.choice((1, 60)))
            if died := random.random() < 0.3:
                server.kill()
        if died:
            server.start()
        gateways.busy()

    with small_disk(folder, 512) as small, RedisServer(small, executable=executable) as server:
        yield Ground(server.url, [strike], server.client)


@contextmanager
def journals_disk_full(folder: Path, executable: str) -> Iterator[Ground]:
    """No room for journals: nothing is acknowledged until there is."""

    def strike(gateways: Gateways, random: Random) -> None:
        with full(small):
            time.sleep(random.random() * 0.3)
        gateways.busy()

    with small_disk(folder / "journals", 512) as small, RedisServer(folder / "redis", executable=executable) as server:
        yield Ground(server.url, [strike], server.client, journals=small)


@contextmanager
def cluster(folder: Path, executable: str) -> Iterator[Ground]:
    """Slots move between three masters under load; one of them dies."""

    def moved(gateways: Gateways, random: Random) -> None:
        with group.client() as client:
            tags = sorted({key.partition(b"}")[0] + b"}" for key in client.scan_iter(b"tollkeeper:*", count=1000)})
        key = random.choice(tags).decode() + ":cursor"
        to = random.choice([node for node in group.nodes if node is not group.node_of(key)])
        group.begin_move(key, to)
        while group.move_keys(key, to, 5):
            gateways.more(1)
        group.end_move(key, to)
        gateways.busy()

    def died(gateways: Gateways, random: Random) -> None:
        random.choice(group.nodes).restart(kill=True)
        gateways.busy()
        until(lambda: group.whole, "a cluster that is whole")

    with Cluster(folder, executable=executable) as group:
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in group.nodes)
        yield Ground(f"redis+cluster://{nodes}", [moved, moved, died], group.client)


@contextmanager
def taken_over(folder: Path, executable: str) -> Iterator[Ground]:
    """In a cluster a replica that has lagged takes over a master that is well, and says MOVED from then on."""

    def strike(gateways: Gateways, random: Random) -> None:
        master, replica = pair
        group.leave_behind(replica, master)
        gateways.more(random.randint(1, 300))
        group.take_over(replica, master)
        gateways.busy()
        pair.reverse()

    with Cluster(folder, executable=executable) as group:
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in group.nodes)
        pair = [group.nodes[0], group.replicate(group.nodes[0])]
        yield Ground(f"redis+cluster://{nodes}", [strike], group.client)


KINDS: Final[dict[str, Kind]] = {
    "gateway": on_server(strikes.gateway_dies),
    "redis, everysec": on_server(strikes.redis_dies, appendfsync="everysec"),
    "redis, always": on_server(strikes.redis_dies, appendfsync="always"),
    "redis, no file": on_server(strikes.redis_dies, appendonly="no"),
    "both": on_server(strikes.both_die),
    "both, no file": on_server(strikes.both_die, appendonly="no"),
    "slow sync, power cut": on_server(strikes.power_cut, slow=True),
    "power cut of all": on_server(strikes.all_lose_power, slow=True),
    "lagging replica": failed_over,
    "sentinels": sentinels,
    "FLUSHALL": on_server(strikes.emptied),
    "old copy": on_server(strikes.older, appendonly="no"),
    "partition": on_server(strikes.cut_off, strikes.stalled, strikes.half_open),
    "lost replies": on_server(strikes.reply_lost),
    "redis' disk full": redis_disk_full,
    "journals' disk full": journals_disk_full,
    "cluster": cluster,
    "cluster, taken over": taken_over,
    "paused": on_server(strikes.paused),
    "several": on_server(strikes.several, appendonly="no"),
}
SLICES: Final[dict[str, tuple[Kind, int]]] = {
    "on a file": (on_server(*strikes.ON_A_FILE), len(strikes.ON_A_FILE)),
    "in memory": (on_server(*strikes.IN_MEMORY, appendonly="no"), len(strikes.IN_MEMORY)),
    "power cut": (on_server(strikes.power_cut, strikes.all_lose_power, slow=True), 2),
    "lagging replica": (failed_over, 1),
    "sentinels": (sentinels, 1),
    "redis' disk full": (redis_disk_full, 1),
    "journals' disk full": (journals_disk_full, 1),
    "cluster": (cluster, 2),
    "cluster, taken over": (taken_over, 1),
}
"""The same faults, few of each and as many as fit on one server: what `make test` has time for."""
