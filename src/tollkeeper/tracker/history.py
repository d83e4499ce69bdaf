"""Prices what a ledger holds again: what history would have cost, or corrections of what it did.

Entries are read as they stood at the beginning, in batches of bounded size; the corrections of a batch are under way at once,
so that they share commits. Each is whole by itself: whatever ends this, running it again goes on with what is left.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.errors import BadRequest, Conflict, UnknownEntry
from tollkeeper.ledger import FOREVER_US
from tollkeeper.prices import PriceBook
from tollkeeper.repricing import Figures, Repricing, repriced, rows_of
from tollkeeper.stores import Reader, Store
from tollkeeper.tracker import arguments
from tollkeeper.tracker.accounts import Accounts, named
from tollkeeper.values import Entry, Provider, iso_utc

BATCH: Final = 256
"""Entries in memory, and corrections under way, at once."""
MAX_REASON: Final = 200
REASON: Final = "priced again"

#: Told after each batch: how many entries were looked at, how many of them change, and the instant of the last one.
Told = Callable[[int, int, int], None]


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What to price again, and by what."""

    prices: PriceBook
    provider: Callable[[str | None], Provider | None]  #: by an entry's name for it
    from_us: int
    to_us: int
    project: str | None = None
    only_unpriced: bool = False


async def wanted(
    accounts: Accounts,
    from_: object,
    to: object,
    project_id: object,
    prices: PriceBook | str | os.PathLike[str] | None,
    only_unpriced: bool,
) -> Again:
    """From a library's arguments. Raises ValueError, ConfigError."""
    now_us = accounts.clock.now_us()
    from_us = arguments.instant(from_, "from_", now_us)
    to_us = FOREVER_US if to is None else arguments.instant(to, "to", now_us)
    if from_us >= to_us:
        raise ValueError(f"from_: expected an instant before to, got {from_}")
    if prices is None:
        prices = await accounts.prices()
    elif not isinstance(prices, PriceBook):
        prices = await asyncio.to_thread(PriceBook.load, Path(prices))
    return Again(
        prices=prices, provider=accounts.provider, from_us=from_us, to_us=to_us,
        project=arguments.optional(project_id, "project_id"), only_unpriced=only_unpriced,
    )  # fmt: skip


class Signature(msgspec.Struct, frozen=True):
    """Why corrections are booked, and who asked for them."""

    reason: str
    by: str


def signature(reason: object = None, by: object = None) -> Signature:
    """Checked; by default the login name asks. Raises ValueError naming the argument."""
    return Signature(
        arguments.name(REASON if reason is None else reason, "reason", MAX_REASON),
        arguments.name(_login() if by is None else by, "by"),
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no variable and no account of this number, as in a container
        return f"uid {os.getuid()}"


async def what_if(ledger: Reader, again: Again, told: Told | None = None) -> Repricing:
    """What history would have cost; nothing is written. Raises BadRequest where entries of the time are pruned."""
    return await _reprice(ledger, again, told)


async def reprice(store: Store, again: Again, signed: Signature, told: Told | None = None) -> Repricing:
    """Book a correction of every entry that costs something else; each is durable when it is told.

    What somebody else changed meanwhile is left alone. Raises BadRequest as above, StoreUnavailable; what is booked stays.
    """

    async def put(right: Entry) -> bool:
        try:
            await store.correct(structs.replace(right, note=signed.reason, by=signed.by))
        except (Conflict, UnknownEntry):
            return False
        return True

    return await _reprice(store, again, told, put)


async def _reprice(
    ledger: Reader, again: Again, told: Told | None, put: Callable[[Entry], Awaitable[bool]] | None = None
) -> Repricing:
    found: dict[tuple[str, str], Figures] = {}
    entries = changed = overtaken = 0
    async for batch in _batches(ledger, again):
        rights = [repriced(entry, again.prices, again.provider(named(entry.provider))) for entry in batch]
        asked = [right for right, _ in rights if right is not None]
        done = iter([True] * len(asked) if put is None else await asyncio.gather(*map(put, asked)))
        for entry, (right, lost) in zip(batch, rights, strict=True):
            if right is not None and not next(done):
                overtaken += 1
                continue
            name = (entry.provider, entry.served)
            found[name] = found.get(name, Figures()).plus(Figures.of(entry, right, lost))
            changed += right is not None
        entries += len(batch)
        if told is not None:
            told(entries, changed, batch[-1].at_us)
    return Repricing(
        what_if=put is None, price_version=again.prices.version, rows=rows_of(found), overtaken=overtaken
    )  # fmt: skip


async def _batches(ledger: Reader, again: Again) -> AsyncIterator[list[Entry]]:
    kept_us = await ledger.kept_since()
    if again.from_us < kept_us:
        raise BadRequest(
            f"from: entries are kept since {iso_utc(kept_us)}, what is older cannot be priced again; start there"
        )
    batch: list[Entry] = []
    async for entry in ledger.current(again.from_us, again.to_us, again.project):
        if again.only_unpriced and entry.charge.amount_nanos is not None:
            continue
        batch.append(entry)
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
