"""Prices from genai-prices: which model a name means there, and its sheet at an instant.

The library is imported at the first look-up (a quarter of a second): `PriceBook.warm` does that at start. Its data is
used, its arithmetic is not. What to know about the data (checked against 0.2.3):

* The last entry of a price list whose condition holds counts, else the first. Dates and times of day are UTC.
* Variants (service tier, batch, speed) lay partial prices over it. A variant that is not there, or not yet, is not the
  standard price said aloud: it is reported in `gaps`. Variants of a model borrowed from another provider do not count.
* Context steps are exclusive there (`> start`), inclusive here (`start + 1`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

from tollkeeper.prices.names import PREFERRED, accepts, dashed_date, equal_names, has_pattern, spellings, vendor
from tollkeeper.prices.rates import Price
from tollkeeper.values import us_of, utc

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

VERSION: Final = f"genai-prices/{version('genai-prices')}"
#: Our kind → the library's price keys, first one that is there.
_KEYS: Final = {
    "input": ("input_mtok",),
    "cache_read": ("cache_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok",),
    "output": ("output_mtok",),
    "input_audio": ("input_audio_mtok",),
    "cache_read_audio": ("cache_audio_read_mtok",),
    "output_audio": ("output_audio_mtok",),
    "input_image": ("input_image_mtok",),
    "output_image": ("output_image_mtok",),
    "web_search": ("web_searches_kcount",),
    "file_search": ("storage_searches_kcount",),
    "audio_seconds": ("input_audio_hours", "audio_hours"),
    "reasoning": ("output_reasoning_mtok",),
    "requests": ("requests_kcount",),
}


class Found(NamedTuple):
    """A model of the price data."""

    model: ModelInfo
    provider: str  #: the provider whose price it is
    borrowed: bool  #: priced by another provider than the one that was asked for


class _Shelf:
    """One provider's models: names in full are looked up, only patterns are tried one by one."""

    def __init__(self, provider: Provider) -> None:
        self.id = provider.id
        self.patterns = [model for model in provider.models if has_pattern(model.match)]
        self.lenders = tuple(provider.fallback_model_providers or ())
        self.exact: dict[str, ModelInfo] = {}
        for model in provider.models:
            for name in equal_names(model.match):
                self.exact.setdefault(name, model)
        for model in provider.models:
            if model.is_match(model.id):  # some ids are only the data's own labels
                self.exact.setdefault(model.id.lower(), model)

    def find(self, names: list[str]) -> ModelInfo | None:
        for name in names:
            found = self.exact.get(name) or self.exact.get(dashed_date(name))
            if found is not None:
                return found
        return next((model for name in names for model in self.patterns if accepts(model.match, name)), None)


@cache
def _shelves() -> dict[str, _Shelf]:
    from genai_prices.data import providers

    return {provider.id: _Shelf(provider) for provider in providers}


@cache
def models(provider: str) -> tuple[str, ...]:
    """Names in full of a provider's models (its id in the price data), sorted; patterns have no names."""
    shelf = _shelves().get(vendor(provider))
    return () if shelf is None else tuple(sorted(shelf.exact))


def provider_ids() -> tuple[str, ...]:
    """The ids of every provider in the price data, sorted."""
    return tuple(sorted(_shelves()))


def variants(found: Found) -> list[dict[str, str]]:
    """The contexts for which the data have prices of their own: {"service_tier": "flex"}."""
    if found.borrowed:
        return []
    whens = [dict(variant.when) for variant in found.model.price_variants or ()]
    return [when for number, when in enumerate(whens) if when not in whens[:number]]


@lru_cache(maxsize=4096)
def find(provider: str | None, name: str) -> Found | None:
    """The model that `name` means at a provider (its id in the price data), or anywhere for None. No match: None."""
    shelves = _shelves()
    front, slash, _ = name.partition("/")
    if provider is not None:
        places = [vendor(provider)]
    elif slash and vendor(front) in shelves:
        places = [vendor(front), *shelves]
    else:
        places = [*PREFERRED, *shelves]
    for place in places:
        shelf = shelves.get(place)
        if shelf is None:
            continue
        names = list(spellings(name, {shelf.id, *shelf.lenders}))
        for owner in (shelf.id, *shelf.lenders):
            model = shelves[owner].find(names) if owner in shelves else None
            if model is not None and _has_prices(model):
                return Found(model, owner, borrowed=owner != shelf.id)
    return None


def _has_prices(model: ModelInfo) -> bool:
    prices = model.prices if isinstance(model.prices, list) else [model]
    return any(value is not None for entry in prices for value in entry.prices.__dict__.values())


def sheet(found: Found, at_us: int, context: dict[str, str]) -> tuple[dict[str, Price], tuple[str, ...]]:
    """A model's prices at an instant in a context (service_tier, processing, speed), and the parts of the context that
    the prices do not know, as "service_tier=priority"."""
    at = utc(at_us)
    known: set[str] = set()
    for variant in found.model.price_variants or ():
        active = variant.constraint is None or variant.constraint.active(at)
        if active and not found.borrowed and variant.when.items() <= context.items():
            known.update(variant.when)
    prices = found.model.get_prices(at, {key: context[key] for key in known})
    gaps = tuple(f"{key}={value}" for key, value in context.items() if key not in known)
    return _steps(prices), gaps


def _steps(prices: ModelPrice) -> dict[str, Price]:
    sheet: dict[str, Price] = {}
    for kind, keys in _KEYS.items():
        value = next((prices.__dict__[key] for key in keys if prices.__dict__.get(key) is not None), None)
        if value is None:
            continue
        tiers = getattr(value, "tiers", None)
        if tiers is None:
            sheet[kind] = ((0, value),)
        else:
            sheet[kind] = ((0, value.base), *((tier.start + 1, tier.price) for tier in tiers))
    return sheet


def changes(found: Found, at_us: int) -> Iterator[int]:
    """The instants around `at_us` at which a price of this model may change, in UTC microseconds, in no order."""
    listed = found.model.prices if isinstance(found.model.prices, list) else []
    today = utc(at_us).date()
    for entry in (*listed, *(found.model.price_variants or ())):
        if (day := getattr(entry.constraint, "start_date", None)) is not None:
            yield midnight_us(day)
        for edge in ("start_time", "end_time"):
            if (clock := getattr(entry.constraint, edge, None)) is not None:
                for offset in (-1, 0, 1, 2):
                    yield _instant(today + timedelta(days=offset), clock)


def midnight_us(day: date) -> int:
    """Where a UTC day starts, in microseconds."""
    return _instant(day, time(tzinfo=UTC))


def _instant(day: date, clock: time) -> int:
    return us_of(datetime.combine(day, clock if clock.tzinfo else clock.replace(tzinfo=UTC)))
