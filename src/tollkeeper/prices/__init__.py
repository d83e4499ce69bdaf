"""What a call costs: usage times prices, and the bound before it.

    entries of your own (file or settings)  ─┐
    entries shipped here                     ├─ sheet ── compile ── Rates, kept per (provider, model, tier)
    genai-prices (dated)                    ─┘                      until the next price change

Each part of a reading is charged at the model and tier that served it; the whole is one `Decimal` sum with one
rounding. The status says how far the amount is known: `unpriced` (no price: the amount is unknown, not 0), `partial` (a
kind, tier or model without a price of its own: `Charge.missing` names it), `estimated` (the usage was), `priced`; the
worst one wins. What the provider says that it charged stands beside our figure; `Provider.counts` says which counts.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.money import CONTEXT, MAX_NANOS, to_nanos
from tollkeeper.prices import data as price_data
from tollkeeper.prices import file as price_file
from tollkeeper.prices.layers import Asked, Layers
from tollkeeper.prices.names import is_form
from tollkeeper.prices.override import Override, fingerprint
from tollkeeper.prices.rates import ZERO, Rates, call_context, compile_sheet, request_fee
from tollkeeper.values import MAX_MODEL, Charge, ChargeStatus, Provider, Reading, Term

_MAX_TABLES: Final = 4096
_MAX_USD: Final = Decimal(MAX_NANOS // 10**9)
_Way = tuple[str | None, str | None, str | None]
"""How a call is served: tier, speed, place."""
_Name = tuple[str | _Way | None, ...]
"""What a table is kept under: provider, its id in the price data, model, way; key and route where entries name some."""


class _Table(msgspec.Struct, frozen=True):
    """Compiled rates and the time for which they are the right ones."""

    from_us: int
    until_us: int
    rates: Rates | None


class PriceBook:
    """Prices of every model that a layer knows. Pure but for the price file read by `load`."""

    def __init__(self, overrides: tuple[Override, ...] = ()) -> None:
        self.layers = Layers(overrides)
        self.version: str = f"{price_data.VERSION}+{fingerprint(price_file.shipped(), overrides)}"
        self._tables: dict[_Name, _Table] = {}
        self._keys, self._routes = self.layers.keys, self.layers.routes
        self._scoped = bool(self._keys or self._routes)

    @classmethod
    def load(cls, own: Path | tuple[Override, ...] | None) -> PriceBook:
        """A book with prices of one's own, a file's or those of the settings, over the others.

        Raises ConfigError, one line per mistake in the file.
        """
        return cls(price_file.read(own) if isinstance(own, Path) else own or ())

    def warm(self, provider: Provider | None, model: str, at_us: int) -> None:
        """Loads the price data and compiles a model's prices, so that its first call does not wait for them."""
        self.rates(provider, model, at_us)

    def owner(self, model: str) -> str | None:
        """Whose model a bare name is: the provider's id in the price data, the vendor's own before a reseller's."""
        found = price_data.find(None, model) if len(model) <= MAX_MODEL else None
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
        key: str | None = None,
        route: str | None = None,
    ) -> Rates | None:
        """The rates in force at an instant; None: this name has no price. Without a provider any vendor's will do.

        `key` is the virtual key of a call, `route` the name that its client asked for: entries may be for them alone.
        """
        return self._rates(provider, model, at_us, (tier, speed, geo), key, route)

    def _rates(
        self, provider: Provider | None, model: str, at_us: int, way: _Way, key: str | None, route: str | None
    ) -> Rates | None:
        name, place = (None, None) if provider is None else (provider.name, provider.prices)
        asked: _Name = (name, place, model, way)
        if self._scoped:  # only what entries name: the cache does not grow with callers
            key = key if key in self._keys else None
            route = route.lower() if route is not None and route.lower() in self._routes else None
            asked = (name, place, model, way, key, route)
        table = self._tables.get(asked)
        if table is None or not table.from_us <= at_us < table.until_us:
            if max(len(model), *(len(each or "") for each in way)) > MAX_MODEL:
                return None  # not a name; and no room for it in the cache
            stack = self.layers.stack(Asked(name, place, model, call_context(*way), key, route), at_us)
            table = _Table(stack.from_us, stack.until_us, compile_sheet(stack.sheet, stack.gaps))
            if len(self._tables) >= _MAX_TABLES:
                self._tables.clear()
            self._tables[asked] = table
        return table.rates

    def charge(
        self,
        reading: Reading,
        *,
        provider: Provider | None,
        model: str,
        at_us: int,
        estimated: bool = False,
        key: str | None = None,
        route: str | None = None,
    ) -> Charge:
        """What a call cost. `model` is the one asked for: it stands in where the reply names none.

        `estimated` says that the usage is. A reading without usage is unpriced, unless the provider reported a cost.
        `key` and `route` as in `rates`.
        """
        total, terms, missing, unpriced = ZERO, list[Term](), list[str](), not reading.parts
        way = (reading.tier, reading.speed, reading.geo)
        for number, part in enumerate(reading.parts):
            served = part.model if part.model is not None else reading.model if reading.model is not None else model
            served = served[:MAX_MODEL]  # as entries keep it
            rates = self._rates(provider, served, at_us, way, key, route)
            if rates is None and served != model and (part.model is None or part.model == reading.model):
                # The price of the asked name: the served one is a form of it, or is said to have a stand-in.
                rates = self._rates(provider, model, at_us, way, key, route)
                if rates is not None and not is_form(served, model):
                    missing.append(f"model={served}")
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
        theirs = reported is not None and (provider is None or provider.counts == "reported")
        return Charge(
            amount_nanos=reported if theirs else computed,
            status=_status(unpriced, bool(missing), estimated, theirs),
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
        speed: str | None = None,
        geo: str | None = None,
        key: str | None = None,
        route: str | None = None,
    ) -> int | None:
        """Nanos that no call of at most this many tokens passes, as usual or in the way asked for; None: unpriced.

        Every prompt token at the dearest input-side kind, every output token at the dearest output kind, at the dearest
        context step that the prompt may reach, and the fee per request; not searches, which no token count bounds. A call
        is charged at the prices of its reservation, so a window that opens before it ends does not matter.
        """
        bounds: list[Decimal] = []
        usual = tier is speed is geo is None
        ways = ((None, None, None),) if usual else product({None, tier}, {None, speed}, {None, geo})
        for way in ways:
            rates = self._rates(provider, model, at_us, way, key, route)
            if rates is None:
                return None
            bound = rates.bound(prompt_tokens, output_tokens)
            if bound is None:
                return None
            bounds.append(bound)
        return to_nanos(max(bounds))


def _reported_nanos(usd: Decimal | None) -> int | None:
    """A provider's own figure; None where it is not an amount at all (negative, not finite, absurd)."""
    if usd is None or not usd.is_finite() or not 0 <= usd <= _MAX_USD:
        return None
    return to_nanos(CONTEXT.plus(usd))


def _status(unpriced: bool, partial: bool, estimated: bool, theirs: bool) -> ChargeStatus:
    if theirs:  # the amount is the provider's own: what our prices lack does not touch it
        return "estimated" if estimated else "priced"
    if unpriced:
        return "unpriced"
    return "partial" if partial else "estimated" if estimated else "priced"
