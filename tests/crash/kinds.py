"""Ways in which Redis and gateways fail: each kind makes its servers and knows how to strike them once.

A kind is a context manager: (folder, executable) → Ground. Its `strike` returns when the fault is over and all is up again; what
the gateways do meanwhile is theirs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from redis.exceptions import RedisError
from tests.crash.rig import Gateways, until
from tests.disks import SlowDisk, full, small_disk

from tollkeeper.testing.fault_proxy import FaultProxy
from tollkeeper.testing.redis_cluster import Cluster
from tollkeeper.testing.redis_sentinel import NAME, Sentinels
from tollkeeper.testing.redis_server import RedisServer

Strike = Callable[[Gateways, Random], None]


@dataclass
class Ground:
    """Where gateways play: their URL, a client that sees the true Redis, and the fault."""

    url: str
    strike: Strike
    direct: Callable[[], Any]
    env: dict[str, str] = field(default_factory=dict)
    journals: Path | None = None


Kind = Callable[[Path, str], Any]


def nothing() -> None:
    """For who has nothing to do in between."""


def gateway_dies(gateways: Gateways, random: Random) -> None:
    """kill -9 of one gateway at any moment; another one starts in its place."""
    gateways.kill(random.choice(sorted(gateways.running)))
    gateways.up(gateways.start())


@contextmanager
def gateway_killed(folder: Path, executable: str) -> Iterator[Ground]:
    with RedisServer(folder, executable=executable) as server:
        yield Ground(server.url, gateway_dies, server.client)


def dies(server: RedisServer, while_down: Callable[[], object], gateways: Gateways, random: Random) -> None:
    """kill -9 of Redis, which is down for a moment or for many records."""
    server.kill()
    while_down()
    gateways.more(random.choice((1, 1, 40)))
    server.start()
    gateways.busy()


@contextmanager
def redis_killed(folder: Path, executable: str, **config: str) -> Iterator[Ground]:
    with RedisServer(folder, executable=executable, config=config) as server:
        yield Ground(server.url, partial(dies, server, nothing), server.client)


@contextmanager
def both_killed(folder: Path, executable: str, **config: str) -> Iterator[Ground]:
    """One gateway and Redis at once, back in any order."""

    def strike(gateways: Gateways, random: Random) -> None:
        steps: list[Callable[[], object]] = [server.kill, lambda: gateways.kill(min(gateways.running))]
        random.shuffle(steps)
        for step in steps:
            step()
        steps = [server.start, gateways.start]
        random.shuffle(steps)
        for step in steps:
            step()
        gateways.busy()

    with RedisServer(folder, executable=executable, config=config) as server:
        yield Ground(server.url, strike, server.client)


@contextmanager
def power_cut(folder: Path, executable: str) -> Iterator[Ground]:
    """Redis syncs slowly and is killed; what it had not synced is gone."""
    disk = SlowDisk(folder.parent)
    config = {"appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}

    def strike(gateways: Gateways, random: Random) -> None:
        disk.syncs(ms=random.choice((20, 200)))
        gateways.more(random.randint(20, 300))
        server.kill()
        disk.cut_power(*server.folder.glob("appendonlydir/*.incr.aof"))
        server.start()
        gateways.busy()

    with RedisServer(folder, executable=executable, config=config, env=disk.env) as server:
        yield Ground(server.url, strike, server.client)


@contextmanager
def flushed(folder: Path, executable: str) -> Iterator[Ground]:
    """FLUSHALL under load."""

    def strike(gateways: Gateways, random: Random) -> None:
        gateways.more(random.randint(1, 200))
        with server.client() as client:
            client.flushall()
        gateways.busy()

    with RedisServer(folder, executable=executable) as server:
        yield Ground(server.url, strike, server.client)


@contextmanager
def old_copy(folder: Path, executable: str) -> Iterator[Ground]:
    """An older snapshot is put back while Redis is down."""
    dump, copy = folder / "dump.rdb", folder / "copy.rdb"

    def strike(gateways: Gateways, random: Random) -> None:
        with server.client() as client:
            client.save()
        shutil.copy(dump, copy)
        gateways.more(random.randint(50, 400))
        dies(server, lambda: shutil.copy(copy, dump), gateways, random)

    with RedisServer(folder, executable=executable, config={"appendonly": "no"}) as server:
        yield Ground(server.url, strike, server.client)


@contextmanager
def failed_over(folder: Path, executable: str) -> Iterator[Ground]:
    """A replica that has lagged takes over; the old master comes back as its replica."""
    pair = [RedisServer(folder / name, executable=executable) for name in ("first", "second")]

    def strike(gateways: Gateways, random: Random) -> None:
        master, replica = pair
        replica.replica_of(None)  # detached: from here on it lags
        gateways.more(random.randint(1, 300))
        proxy.refuse()
        proxy.cut()
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
        yield Ground(f"redis://127.0.0.1:{proxy.port}/0", strike, lambda: pair[0].client())


@contextmanager
def sentinels(folder: Path, executable: str) -> Iterator[Ground]:
    """Sentinels promote the replica: the master dies, or is swapped though it is well."""

    def strike(gateways: Gateways, random: Random) -> None:
        before = group.master
        if random.random() < 0.5:
            after = group.fail_over()
        else:
            before.kill()
            until(lambda: _master(group) not in (None, before), "another master")
            after = group.master
            before.start().replica_of(after)  # the sentinels would see to it within 10 s
        gateways.busy()
        until(lambda: _follows(before, after), "the old master as a replica")

    with Sentinels(folder, executable=executable) as group:
        addresses = ",".join(f"{host}:{port}" for host, port in group.addresses)
        yield Ground(f"redis+sentinel://{addresses}/{NAME}/0", strike, lambda: group.master.client())


def _master(group: Sentinels) -> RedisServer | None:
    """Whom the sentinels agree on, if they do just now."""
    try:
        return group.master
    except RedisError:
        return None


def _follows(server: RedisServer, master: RedisServer) -> bool:
    try:
        with server.client() as client:
            told = client.info("replication")
    except RedisError:  # it ends its connections when it is told
        return False
    return bool(told["role"] == "slave" and told["master_port"] == master.port and told["master_link_status"] == "up")


NETWORK: Final = ("away", "stall", "lose_reply", "tear_reply", "cut_before_command", "cut_after_reply", "silence")


@contextmanager
def partition(folder: Path, executable: str, *faults: str) -> Iterator[Ground]:
    """The network fails: cut off, stalled, half-open; or a reply is lost after the server has done what was asked."""

    def strike(gateways: Gateways, random: Random) -> None:
        fault = random.choice(faults)
        if fault == "away":
            proxy.away()
            gateways.more(random.choice((1, 60)))
            proxy.pass_all()
        elif fault == "stall":
            proxy.stall(*random.choice(((), ("to_client",), ("to_server",))))
            gateways.more(random.choice((1, 60)))
            proxy.pass_all()
        elif fault == "silence":
            proxy.cut("silence")
        else:
            struck = proxy.struck
            getattr(proxy, fault)(random.randint(1, 60))
            until(lambda: proxy.struck > struck, f"{fault} to strike")
        gateways.busy()

    with RedisServer(folder, executable=executable) as server, FaultProxy(server.port) as proxy:
        yield Ground(f"redis://127.0.0.1:{proxy.port}/0?timeout=0.3", strike, server.client)


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
        yield Ground(server.url, strike, server.client)


@contextmanager
def journal_disk_full(folder: Path, executable: str) -> Iterator[Ground]:
    """No room for journals: nothing is acknowledged until there is."""

    def strike(gateways: Gateways, random: Random) -> None:
        with full(small):
            time.sleep(random.random() * 0.3)
        gateways.busy()

    with small_disk(folder / "journals", 512) as small, RedisServer(folder / "redis", executable=executable) as server:
        yield Ground(server.url, strike, server.client, journals=small)


@contextmanager
def cluster(folder: Path, executable: str) -> Iterator[Ground]:
    """Slots move between three masters under load; one of them dies."""

    def strike(gateways: Gateways, random: Random) -> None:
        with group.client() as client:
            tags = sorted({key.partition(b"}")[0] + b"}" for key in client.scan_iter(b"tollkeeper:*", count=1000)})
        if random.random() < 0.3:
            random.choice(group.nodes).restart(kill=True)
        else:
            key = random.choice(tags).decode() + ":cursor"
            others = [node for node in group.nodes if node is not group.node_of(key)]
            to = random.choice(others)
            group.begin_move(key, to)
            while group.move_keys(key, to, 5):
                gateways.more(1)
            group.end_move(key, to)
        gateways.busy()

    with Cluster(folder, executable=executable) as group:
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in group.nodes)
        yield Ground(f"redis+cluster://{nodes}", strike, group.client)


@contextmanager
def paused(folder: Path, executable: str) -> Iterator[Ground]:
    """Redis is stopped for a while, and goes on with all that was sent to it."""

    def strike(gateways: Gateways, random: Random) -> None:
        server.pause()
        gateways.more(random.choice((1, 100)))
        server.resume()
        gateways.busy()

    with RedisServer(folder, executable=executable) as server:
        yield Ground(f"{server.url}?timeout=0.3", strike, server.client)


@contextmanager
def several(folder: Path, executable: str) -> Iterator[Ground]:
    """Two faults, or three, before anybody has recovered from the first."""

    def strike(gateways: Gateways, random: Random) -> None:
        def gateway() -> None:
            gateways.kill(random.choice(sorted(gateways.running)))
            gateways.start()

        def emptied() -> None:
            with server.client() as client:
                client.flushall()

        def lost() -> None:
            proxy.lose_reply(random.randint(1, 20))

        def back() -> None:
            shutil.copy(copy, dump)
            server.restart(kill=True)

        faults = [gateway, gateway, emptied, proxy.cut, lost, back, partial(server.restart, kill=True)]
        with server.client() as client:
            client.save()
        shutil.copy(dump, copy)
        for fault in random.sample(faults, random.randint(2, 3)):
            fault()
            gateways.more(random.choice((0, 0, 1, 30)))
        gateways.busy()
        proxy.pass_all()

    dump, copy = folder / "dump.rdb", folder / "copy.rdb"
    with (
        RedisServer(folder, executable=executable, config={"appendonly": "no"}) as server,
        FaultProxy(server.port) as proxy,
    ):
        yield Ground(f"redis://127.0.0.1:{proxy.port}/0?timeout=0.3", strike, server.client)


KINDS: Final[dict[str, Kind]] = {
    "gateway": gateway_killed,
    "redis, everysec": partial(redis_killed, appendfsync="everysec"),
    "redis, always": partial(redis_killed, appendfsync="always"),
    "redis, no file": partial(redis_killed, appendonly="no"),
    "both": partial(both_killed, appendfsync="everysec"),
    "both, no file": partial(both_killed, appendonly="no"),
    "slow sync, power cut": power_cut,
    "lagging replica": failed_over,
    "sentinels": sentinels,
    "FLUSHALL": flushed,
    "old copy": old_copy,
    "partition": lambda folder, executable: partition(folder, executable, "away", "stall", "silence"),
    "lost replies": lambda folder, executable: partition(
        folder, executable, "lose_reply", "tear_reply", "cut_before_command", "cut_after_reply"
    ),
    "redis' disk full": redis_disk_full,
    "journals' disk full": journal_disk_full,
    "cluster": cluster,
    "paused": paused,
    "several": several,
}
