"""Periodic work beside the line: expire dead holds, settle what is owed, prune, hear of providers from other gateways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from tollkeeper.clock import MICROS
from tollkeeper.errors import Conflict, StoreError
from tollkeeper.flow import Gate
from tollkeeper.stores import Retention

if TYPE_CHECKING:  # it brings a client of Redis with it
    from tollkeeper.stores.redis.open import Advice

log = logging.getLogger("tollkeeper")

Work = Callable[[], Awaitable[None]]

EXPIRE_EVERY_S: Final = 1.0
ADVISE_EVERY_S: Final = 1.0
RELOAD_EVERY_S: Final = 0.5
PRUNE_EVERY_S: Final = 3600.0


async def expire(gate: Gate) -> None:
    """Settle what the ledger did not take before, then book holds past their deadline at their estimate."""
    while gate.owed:
        try:
            await gate.pay(gate.owed[0])
        except Conflict as error:  # it will never be taken: what is behind it must not wait for it
            log.error("call %s cannot be booked: %s", gate.owed[0].call, error)
        gate.owed.pop(0)
    expired = await gate.store.expire(gate.clock.now_us())
    if expired:
        log.warning("%d holds reached their deadline and were booked at their estimate", expired)


async def prune(gate: Gate, retention: Retention) -> None:
    """Drop what has outlived its retention."""
    await gate.store.prune(gate.clock.now_us(), retention)


async def advise(gate: Gate, advice: Advice) -> None:
    """Tell the other gateways who asked to be left alone, and leave alone who asked them."""
    clock, health = gate.clock, gate.health
    for name, until_us in (await advice.exchange(clock.now_us())).items():
        _, provider, key, _ = name
        if gate.table.has(provider, key):
            health.heed(name, clock.monotonic_s() + (until_us - clock.now_us()) / MICROS)


async def every(name: str, seconds: float, work: Work) -> None:
    """Do `work` every so many seconds until cancelled. A failing ledger is one log line when it begins and one when it ends."""
    failing = False
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except StoreError as error:
            if not failing:
                log.error("%s: %s", name, error)
            failing = True
        except Exception:  # a mistake of ours must not end the chore for good
            log.exception("%s", name)
        else:
            if failing:
                log.warning("%s: works again", name)
            failing = False
