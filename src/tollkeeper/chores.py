"""Periodic work beside the line: expire dead holds, settle what is owed, prune, take changed budgets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tollkeeper.errors import Conflict, StoreError
from tollkeeper.flow import Gate
from tollkeeper.stores import Retention

log = logging.getLogger("tollkeeper")

Work = Callable[[], Awaitable[None]]

EXPIRE_EVERY_S: Final = 1.0
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
