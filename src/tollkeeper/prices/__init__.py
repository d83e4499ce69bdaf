"""What a call costs: usage times prices, and the bound before it.

    price file (overrides)  ─┐
                             ├─ sheet ── compile ── Rates, kept per (provider, model, tier) until the next price change
    genai-prices (dated)    ─┘

Each part of a reading is charged at the model and tier that served it; the whole is one `Decimal` sum with one
rounding. The status says how far the amount is known: `unpriced` (no price: the amount is unknown, not 0), `partial` (a
kind, tier or model without a price of its own: `Charge.missing` names it), `estimated` (the usage was), `priced`; the
worst one wins. What the provider says that it charged stands beside our figure, and counts.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.money import CONTEXT, MAX_NANOS, to_nanos
from tollkeeper.prices import data as price_data
from tollkeeper.prices import file as price_file
from tollkeeper.prices.file import Override
from tollkeeper.prices.names import MAX_NAME, is_form, spellings, vendor
from tollkeeper.prices.rates import ZERO, Price, Rates, call_context, compile_sheet, request_fee
from tollkeeper.values import Charge, ChargeStatus, Provider, Reading, Term

_MAX_TABLES: Final = 4096
_FOREVER: Final = 2**62
_MAX_USD: Final = Decimal(MAX_NANOS // 10**9)


class _Table(msgspec.Struct, frozen=True):
    """Compiled rates and the time for which they are the right ones."""

    from_us: int
    until_us: int
    rates: Rates | None


class PriceBook:
    """Prices of every model that the price data or the overrides know. Pure but for the price file read by `load`."""

    def __init__(self, overrides: tuple[Override, ...] = ()) -> None:
        self.overrides = overrides
        self.version: str = price_data.VERSION + (f"+{price_file.fingerprint(overrides)}" if overrides else "")
        self._tables: dict[tuple[str | None, str | None, str, str | None, str | None, str | None], _Table] = {}

    @classmethod
    def load(cls, path: Path | None) -> PriceBook:
        """A book with a file's prices over the price data. Raises ConfigError, one line per mistake in the file."""
        return cls(() if path is None else price_file.read(path))

    def warm(self, provider: Provider | None, model: str, at_us: int) -> None:
        """Loads the price data and compiles a model's prices, so that its first call does not wait for them."""
        self.rates(provider, model, at_us)

    def owner(self, model: str) -> str | None:
        """Whose model a bare name is: the provider's id in the price data, the vendor's own before a reseller's."""
        found = price_data.find(None, model) if len(model) <= MAX_NAME else None
        return None if found is None else found.provider

    def rates(
        self,
        provider: Provider | None,
        model: str,
        at_us: int,
        *,
        tier: str | None = None,
        speed: str | None = None,
        geo: str | None = None,
    ) -> Rates | None:
        """The rates in force at an instant; None: this name has no price. Without a provider any vendor's will do."""
        name, place = (None, None) if provider is None else (provider.name, provider.prices)
        key = (name, place, model, tier, speed, geo)
        table = self._tables.get(key)
        if table is None or not table.from_us <= at_us < table.until_us:
            if max(len(model), len(tier or ""), len(speed or ""), len(geo or "")) > MAX_NAME:
                return None  # not a name; and no room for it in the cache
            table = self._compile(name, place, model, at_us, call_context(tier, speed, geo))
            if len(self._tables) >= _MAX_TABLES:
                self._tables.clear()
            self._tables[key] = table
        return table.rates

    def charge(
        self, reading: Reading, *, provider: Provider | None, model: str, at_us: int, estimated: bool = False
    ) -> Charge:
        """What a call cost. `model` is the one asked for: it stands in where the reply names none.

        `estimated` says that the usage is. A reading without usage is unpriced, unless the provider reported a cost.
        """
        total, terms, missing, unpriced = ZERO, list[Term](), list[str](), not reading.parts
        for number, part in enumerate(reading.parts):
            served = part.model if part.model is not None else reading.model if reading.model is not None else model
            rates = self.rates(provider, served, at_us, tier=reading.tier, speed=reading.speed, geo=reading.geo)
            if rates is None and served != model and (part.model is None or part.model == reading.model):
                # The price of the asked name: the served one is a form of it, or is said to have a stand-in.
                rates = self.rates(provider, model, at_us, tier=reading.tier, speed=reading.speed, geo=reading.geo)
                if rates is not None and not is_form(served, model):
                    missing.append(f"model={served[:MAX_NAME]}")
            if rates is None:
                unpriced = True
                continue
            if number == 0:
                total = request_fee(rates, served, total, terms)
            total, known = rates.add(part.usage, served, total, terms, missing)
            unpriced = unpriced or not known
            missing += rates.gaps
        computed = None if unpriced else to_nanos(total)
        reported = _reported_nanos(reading.reported_usd)
        return Charge(
            amount_nanos=computed if reported is None else reported,
            status=_status(unpriced, bool(missing), estimated, reported is not None),
            computed_nanos=computed,
            reported_nanos=reported,
            price_version=self.version,
            terms=tuple(terms),
            missing=tuple(dict.fromkeys(missing)),
            estimated=estimated,
        )

    def quote_nanos(
        self,
        provider: Provider | None,
        model: str,
        prompt_tokens: int,
        output_tokens: int,
        at_us: int,
        *,
        tier: str | None = None,
    ) -> int | None:
        """Nanos that no call of at most this many tokens passes, at the standard tier or the one asked; None: unpriced.

        Every prompt token at the dearest input-side kind, every output token at the dearest output kind, at the dearest
        context step that the prompt may reach, and the fee per request; not searches, which no token count bounds.
        """
        bounds: list[Decimal] = []
        for asked in {None, tier}:
            rates = self.rates(provider, model, at_us, tier=asked)
            if rates is None:
                return None
            bound = rates.bound(prompt_tokens, output_tokens)
            if bound is None:
                return None
            bounds.append(bound)
        return to_nanos(max(bounds))

    def _compile(self, name: str | None, place: str | None, model: str, at_us: int, context: dict[str, str]) -> _Table:
        """The rates of a name at an instant, and how long they hold: from the last price change to the next one."""
        found = None if name is not None and place is None else price_data.find(place, model)
        entries = self._entries(name, place, model, found, context)
        edges = [entry.from_us for _, entry in entries if entry.from_us is not None]
        sheet: dict[str, Price] = {}
        asked = gaps = tuple(f"{key}={value}" for key, value in context.items())
        if found is not None:
            edges.extend(price_data.changes(found, at_us))
            sheet, gaps = price_data.sheet(found, at_us, context)
        for entry in price_file.in_force(entries, at_us):
            sheet = entry.over(sheet)
            covered = {f"{key}={value}" for key, value in entry.context}
            gaps = tuple(gap for gap in (asked if entry.whole else gaps) if gap not in covered)
        return _Table(
            from_us=max((edge for edge in edges if edge <= at_us), default=-_FOREVER),
            until_us=min((edge for edge in edges if edge > at_us), default=_FOREVER),
            rates=compile_sheet(sheet, gaps),
        )

    def _entries(
        self,
        name: str | None,
        place: str | None,
        model: str,
        found: price_data.Found | None,
        context: dict[str, str],
    ) -> list[tuple[bool, Override]]:
        """The overrides for a name, at whatever time, each with whether it says the name itself or the undated one."""
        places = self._places(name, place, model, found)
        names = set(spellings(model, places))
        entries: list[tuple[bool, Override]] = []
        for entry in self.overrides:
            if entry.provider is not None and places and vendor(entry.provider) not in places:
                continue
            if not set(entry.context) <= context.items():
                continue
            exact = not names.isdisjoint(entry.models)
            if exact or any(self._is_same(place, found, model, undated) for undated in entry.models):
                entries.append((exact, entry))
        return entries

    def _places(self, name: str | None, place: str | None, model: str, found: price_data.Found | None) -> set[str]:
        """Whose prices a name may have, as overrides name them; empty: nobody was named, anybody's will do."""
        if name is not None:
            return {vendor(known) for known in (name, place) if known is not None}
        front, slash, _ = model.partition("/")
        named = {vendor(entry.provider) for entry in self.overrides if entry.provider is not None}
        places = {vendor(front)} & named if slash else set[str]()
        return places | ({found.provider} if found is not None else set())

    @staticmethod
    def _is_same(place: str | None, found: price_data.Found | None, model: str, undated: str) -> bool:
        """Whether a model is the dated form of an override's name, and the price data agrees that they are one."""
        if found is None or not is_form(model, undated):
            return False
        other = price_data.find(place, undated)
        return other is not None and other.model is found.model


def _reported_nanos(usd: Decimal | None) -> int | None:
    """A provider's own figure; None where it is not an amount at all (negative, not finite, absurd)."""
    if usd is None or not usd.is_finite() or not 0 <= usd <= _MAX_USD:
        return None
    return to_nanos(CONTEXT.plus(usd))


def _status(unpriced: bool, partial: bool, estimated: bool, reported: bool) -> ChargeStatus:
    if reported:  # the amount is the provider's own: what our prices lack does not touch it
        return "estimated" if estimated else "priced"
    if unpriced:
        return "unpriced"
    return "partial" if partial else "estimated" if estimated else "priced"
