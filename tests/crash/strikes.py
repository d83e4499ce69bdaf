"""Ways in which gateways and one Redis server fail. Each strikes once, and returns when all is up and works again.

What the gateways do meanwhile is theirs: `more` waits for records, which those without a hard budget go on to make.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from tests.crash.rig import Gateways, until
from tests.disks import SlowDisk

from tollkeeper.testing.fault_proxy import FaultProxy
from tollkeeper.testing.redis_server import RedisServer


@dataclass
class Stage:
    """A server, and the network before it."""

    server: RedisServer
    proxy: FaultProxy
    disk: SlowDisk | None = None  #: that the server and the gateways write to

    @property
    def dump(self) -> Path:
        return self.server.folder / "dump.rdb"

    @property
    def copy(self) -> Path:
        return self.server.folder / "copy.rdb"

    def keep_copy(self) -> None:
        """Keep what Redis has now."""
        with self.server.client() as client:
            client.save()
        shutil.copy(self.dump, self.copy)

    def flush(self) -> None:
        with self.server.client() as client:
            client.flushall()


Strike = Callable[[Stage, Gateways, Random], None]


def gateway_dies(stage: Stage, gateways: Gateways, random: Random) -> None:
    """kill -9 of one gateway at any moment; another one starts in its place."""
    gateways.kill(random.choice(sorted(gateways.running)))
    gateways.up(gateways.start())


def redis_dies(stage: Stage, gateways: Gateways, random: Random) -> None:
    """kill -9 of Redis, which is down for a moment or for many records."""
    stage.server.kill()
    gateways.more(random.choice((1, 1, 40)))
    stage.server.start()
    gateways.busy()


def both_die(stage: Stage, gateways: Gateways, random: Random) -> None:
    """One gateway and Redis at once, back in any order."""
    steps: list[Callable[[], object]] = [stage.server.kill, lambda: gateways.kill(min(gateways.running))]
    for step in random.sample(steps, 2):
        step()
    steps = [stage.server.start, gateways.start]
    for step in random.sample(steps, 2):
        step()
    gateways.busy()


def emptied(stage: Stage, gateways: Gateways, random: Random) -> None:
    """FLUSHALL under load."""
    stage.flush()
    gateways.busy()


def older(stage: Stage, gateways: Gateways, random: Random) -> None:
    """An older snapshot is put back while Redis is down."""
    stage.keep_copy()
    gateways.more(random.randint(50, 400))
    stage.server.kill()
    shutil.copy(stage.copy, stage.dump)
    gateways.more(random.choice((1, 40)))
    stage.server.start()
    gateways.busy()


def cut_off(stage: Stage, gateways: Gateways, random: Random) -> None:
    """No connection, for a moment or for many records."""
    stage.proxy.away()
    gateways.more(random.choice((1, 60)))
    stage.proxy.pass_all()
    gateways.busy()


def stalled(stage: Stage, gateways: Gateways, random: Random) -> None:
    """Connections stand, but nothing passes one way, or both; then all of it does."""
    stage.proxy.stall(*random.choice(((), ("to_client",), ("to_server",))))
    gateways.more(random.choice((1, 60)))
    stage.proxy.pass_all()
    gateways.busy()


def half_open(stage: Stage, gateways: Gateways, random: Random) -> None:
    """The server's end is gone, and nothing says so."""
    stage.proxy.cut("silence")
    gateways.busy()


def reply_lost(stage: Stage, gateways: Gateways, random: Random) -> None:
    """The connection breaks before a command, before or in the midst of its reply, or after it."""
    struck = stage.proxy.struck
    fault = random.choice(("lose_reply", "lose_reply", "tear_reply", "cut_before_command", "cut_after_reply"))
    getattr(stage.proxy, fault)(random.randint(1, 60))
    until(lambda: stage.proxy.struck > struck, f"{fault} to strike")
    gateways.busy()


def paused(stage: Stage, gateways: Gateways, random: Random) -> None:
    """Redis is stopped for a while, and goes on with all that was sent to it."""
    stage.server.pause()
    gateways.more(random.choice((1, 100)))
    stage.server.resume()
    gateways.busy()


def power_cut(stage: Stage, gateways: Gateways, random: Random) -> None:
    """Redis syncs slowly and is killed; what it had not synced is gone."""
    assert stage.disk is not None
    stage.disk.syncs(ms=random.choice((20, 200)))
    gateways.more(random.randint(20, 300))
    stage.server.kill()
    stage.disk.cut_power(*stage.server.folder.glob("appendonlydir/*.incr.aof"))
    stage.disk.syncs(ms=1)
    stage.server.start()
    gateways.busy()


def all_lose_power(stage: Stage, gateways: Gateways, random: Random) -> None:
    """Gateways and Redis die at once, and each file keeps what was synced."""
    assert stage.disk is not None
    count = len(gateways.running)
    for name in sorted(gateways.running):
        gateways.kill(name)
    stage.server.kill()
    stage.disk.cut_power(*stage.server.folder.glob("appendonlydir/*.incr.aof"), *gateways.journals.glob("*-wal"))
    stage.server.start()
    for name in [gateways.start() for _ in range(count)]:
        gateways.up(name)
    gateways.busy()


def several(stage: Stage, gateways: Gateways, random: Random) -> None:
    """Two faults, or three, before anybody has recovered from the first."""

    def gateway() -> None:
        gateways.kill(random.choice(sorted(gateways.running)))
        gateways.start()

    def back() -> None:
        stage.server.kill()
        shutil.copy(stage.copy, stage.dump)
        stage.server.start()

    faults: list[Callable[[], object]] = [
        gateway, gateway, stage.flush, stage.proxy.cut, lambda: stage.proxy.lose_reply(random.randint(1, 20)), back,
        partial(stage.server.restart, kill=True),
    ]  # fmt: skip
    stage.keep_copy()
    for fault in random.sample(faults, random.randint(2, 3)):
        fault()
        gateways.more(random.choice((0, 0, 1, 30)))
    stage.proxy.pass_all()
    gateways.busy()


ON_A_FILE: Final[tuple[Strike, ...]] = (
    gateway_dies, redis_dies, both_die, emptied, cut_off, stalled, half_open, reply_lost, paused,
)  # fmt: skip
"""Those that fit a server that keeps an append-only file."""
IN_MEMORY: Final[tuple[Strike, ...]] = (redis_dies, both_die, older, several)
"""Those for one that begins with its last snapshot."""
