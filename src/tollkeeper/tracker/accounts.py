"""A ledger and its prices for the library: opened at the first use, closed once, safe for several threads.

Prices and ledger open apart: what only computes a price leaves no file behind. There is no background task: whoever uses
the ledger first in a second books the holds past their deadline, first in an hour prunes (never at once: a script that only
looks in drops nothing).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

import msgspec

from tollkeeper.clock import MICROS, Clock
from tollkeeper.config import Config, load
from tollkeeper.config.providers import presets
from tollkeeper.config.settings import PREFIX
from tollkeeper.errors import ConfigError, StoreError, StoreUnavailable
from tollkeeper.money import to_usd
from tollkeeper.prices import PriceBook
from tollkeeper.stores import Booked, Store
from tollkeeper.stores.opening import check_url, open_store
from tollkeeper.values import ChargeStatus, Entry, Provider

log = logging.getLogger("tollkeeper")

EXPIRE_EVERY_US: Final = 1 * MICROS
PRUNE_EVERY_US: Final = 3600 * MICROS
UNKNOWN_PROVIDER: Final = "unknown"


Settings = Config | Mapping[str, Any] | str | os.PathLike[str]


class Recorded(msgspec.Struct, frozen=True):
    """What became of a call: its entry, and whether it was counted now (`booked`), before (`repeated`), corrects an estimate
    (`late`), or not at all because `cost_tracking_enabled` is false (`off`)."""

    entry: Entry
    booked: Booked | Literal["off"]

    @property
    def amount_usd(self) -> Decimal | None:
        """What the call cost; None: it has no price."""
        nanos = self.entry.charge.amount_nanos
        return None if nanos is None else to_usd(nanos)

    @property
    def status(self) -> ChargeStatus:
        """How far the amount is known: priced, partial, estimated or unpriced."""
        return self.entry.charge.status


def named(provider: str) -> str | None:
    """The provider that an entry names, as callers do: None where nobody knew whose the model is."""
    return None if provider == UNKNOWN_PROVIDER else provider


def provider_name(name: str | None, model: str, prices: PriceBook) -> str:
    """What an entry names as its provider: the one given, else the owner of the model in the price data."""
    if name is not None:
        return name
    owner = prices.owner(model)
    return UNKNOWN_PROVIDER if owner is None else owner


class Accounts:
    """Prices and a ledger. A store that is passed in belongs to the caller and is not closed here."""

    def __init__(self, store: str | Store | None, config: Config, clock: Clock) -> None:
        self.config, self.clock = config, clock
        self._url = config.store if store is None else store if isinstance(store, str) else None
        if self._url is not None:
            check_url(self._url)  # a wrong one is told at once
        if self._url is None and not hasattr(store, "settle"):
            raise ConfigError(
                f"store: expected 'sqlite:///path', 'redis://host:6379/0', 'memory:' or a Store, got {store!r}"
            )
        self._store = None if store is None or isinstance(store, str) else store
        self._prices: PriceBook | None = None
        self._opening = Lock()
        self.closed = False
        self._tended_us, self._pruned_us = 0, clock.now_us()
        shipped = {
            name: Provider(name=name, base_url="", dialects=frozenset(), prices=preset.prices, quirks=preset.quirks)
            for name, preset in presets().items()
        }
        self._providers = shipped | config.providers

    async def prices(self) -> PriceBook:
        """The price book, read at the first use. Raises ConfigError for a mistake in the price file."""
        prices = self._prices
        return prices if prices is not None else await asyncio.to_thread(self._read_prices)

    async def store(self) -> Store:
        """The ledger, opened at the first use. Raises ConfigError, StoreOwned, StoreCorrupt, StoreUnavailable."""
        store = self._store
        if store is None or self.closed:
            store = await asyncio.to_thread(self._open_store)
        now_us = self.clock.now_us()
        if now_us - self._tended_us >= EXPIRE_EVERY_US:
            self._tended_us = now_us
            await self._tend(store, now_us)
        return store

    def provider(self, name: str | None) -> Provider | None:
        """A provider by its name: configured, a preset, or one of the price data; None: whoever owns the model."""
        if name is None:
            return None
        known = self._providers.get(name)
        return known if known is not None else Provider(name=name, base_url="", dialects=frozenset(), prices=name)

    async def book(self, entry: Entry) -> Recorded:
        """Book an entry; it is durable when this returns. Raises StoreError."""
        if not self.config.cost_tracking_enabled:
            return Recorded(entry, "off")
        store = await self.store()
        return Recorded(entry, await store.settle(entry))

    async def close(self) -> None:
        """Close the ledger, if it was opened here. Again: nothing happens."""
        with self._opening:
            own = None if self.closed or self._url is None else self._store
            self.closed = True
        if own is not None:
            await own.close()

    def _read_prices(self) -> PriceBook:
        with self._opening:
            if self._prices is None:
                self._prices = PriceBook.load(self.config.prices)
            return self._prices

    def _open_store(self) -> Store:
        with self._opening:
            if self.closed:
                raise StoreUnavailable("the tracker is closed; make a new one")
            if self._store is None:
                assert self._url is not None
                config = self.config
                self._store = open_store(
                    self._url, budgets=config.budgets, scope_cap=config.scope_cap, shared=config.shared(self.clock)
                )
            return self._store

    async def _tend(self, store: Store, now_us: int) -> None:
        """What the gateway's chores do. A ledger that fails says so to the operation that follows."""
        try:
            expired = await store.expire(now_us)
            if expired:
                log.warning("%d holds reached their deadline and were booked at their estimate", expired)
            if now_us - self._pruned_us >= PRUNE_EVERY_US:
                self._pruned_us = now_us
                await store.prune(now_us, self.config.retention)
        except StoreError as error:
            log.error("the ledger's periodic work failed: %s", error)


def configuration(settings: Settings | None) -> Config:
    """The settings of a tracker. The one place where the library reads the process environment.

    A dict is all there is: no variable of ours and no file is read beside it.
    """
    if isinstance(settings, Config):
        return settings
    if isinstance(settings, Mapping):
        return load(
            settings, {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
        )
    return load(None if settings is None else Path(settings), os.environ)
