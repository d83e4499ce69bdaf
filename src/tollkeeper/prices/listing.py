"""Prices for people: which ones hold at an instant, who made each and since when; a sum with its terms; a difference.

A listing asks the layers for each name that they have in full, once as usual and once in each way that has prices of its
own (a tier, a place, a key, a route). So two listings differ exactly where calls at that instant would cost otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

import msgspec

from tollkeeper.money import CONTEXT
from tollkeeper.prices import PriceBook
from tollkeeper.prices import data as price_data
from tollkeeper.prices.layers import FOREVER, Asked
from tollkeeper.prices.names import vendor
from tollkeeper.prices.override import EVERY, Override
from tollkeeper.prices.rates import Price, call_context, per, priced_as
from tollkeeper.values import Charge, Part, Provider, Reading, Term, Usage

#: How far back the beginning of a price is looked for: prices by hours or days change often.
_CHANGES: Final = 64
_DIGITS: Final = 28


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One price."""

    provider: str | None  #: None: any
    model: str
    kind: str
    usd: str  #: exact decimal text, for `per` units
    per: int
    from_tokens: int = 0  #: from this prompt length on
    when: dict[str, str] = {}  #: only for calls of this tier, place, key or route
    layers: tuple[str, ...] = ()  #: who set it, and who multiplied it then
    since_us: int | None = None  #: None: as far back as the layers know

    @property
    def place(self) -> tuple[object, ...]:
        """What it is the price of."""
        return (self.provider or "", self.model, tuple(sorted(self.when.items())), self.kind, self.from_tokens)


class Line(NamedTuple):
    """One product of a sum, and who made its price."""

    term: Term
    usd: Decimal  #: the product, exact; to 28 digits where it does not end
    layers: tuple[str, ...]
    since_us: int | None


class Change(NamedTuple):
    """A price that is not the same in two listings; None: it is not in one of them."""

    before: Row | None
    after: Row | None


def rows(
    book: PriceBook, at_us: int, providers: Iterable[Provider], routes: Mapping[str, tuple[Provider, str]] = {}
) -> Iterator[Row]:
    """Every price of these providers' models, and those of the routes that have their own, in order."""
    entries = [entry for _, entry in book.layers.entries()]
    for provider in providers:
        names = set(price_data.models(provider.prices)) if provider.prices is not None else set[str]()
        names.update(name for entry in entries for name in _names(entry, provider))
        for name in sorted(names):
            yield from _of_model(book, Asked(provider.name, provider.prices, name, {}), at_us)
    for route in sorted({entry.route for entry in entries if entry.route is not None and not entry.models}):
        place, model = routes.get(route, (None, route))
        asked = Asked(None, None, model, {}) if place is None else Asked(place.name, place.prices, model, {})
        yield from _of(book, asked._replace(route=route), at_us)


def _names(entry: Override, provider: Provider) -> Iterator[str]:
    """The names that an entry has for a provider."""
    known = {vendor(name) for name in (provider.name, provider.prices) if name is not None}
    if entry.provider is not None and vendor(entry.provider) in known:
        yield from (name for name in entry.models if name != EVERY)


def nameless(book: PriceBook, at_us: int) -> Iterator[Row]:
    """The prices of entries for any provider, of names that the price data do not have."""
    entries = [entry for _, entry in book.layers.entries() if entry.provider is None]
    for name in sorted({name for entry in entries for name in entry.models if name != EVERY}):
        if price_data.find(None, name) is None:
            yield from _of_model(book, Asked(None, None, name, {}), at_us)


def _of_model(book: PriceBook, asked: Asked, at_us: int) -> Iterator[Row]:
    """A name's prices as usual, and in each other way those that differ."""
    found = price_data.find(asked.place, asked.model) if asked.provider is None or asked.place is not None else None
    asks = [asked._replace(context=when) for when in (price_data.variants(found) if found else ())]
    for entry in book.layers.scopes(asked):
        ask = Asked(*asked[:3], dict(entry.context), entry.key, entry.route)
        if ask not in asks:
            asks.append(ask)
    usual = {(row.kind, row.from_tokens): row for row in _of(book, asked, at_us)}
    yield from usual.values()
    for ask in asks:
        for row in _of(book, ask, at_us):
            if row.usd != getattr(usual.get((row.kind, row.from_tokens)), "usd", None):
                yield row


def _of(book: PriceBook, asked: Asked, at_us: int) -> Iterator[Row]:
    """The prices that one name has in one way; none where a part of that way has no price."""
    stack = book.layers.stack(asked, at_us)
    if stack.gaps or not stack.sheet:
        return
    since = _since(book, asked, stack.sheet, at_us)
    scope = {name: value for name, value in (("key", asked.key), ("route", asked.route)) if value is not None}
    for kind, price in stack.sheet.items():
        for start, usd in price:
            yield Row(
                provider=asked.provider, model=asked.model, kind=kind, usd=format(usd, "f"), per=per(kind),
                from_tokens=start, when=asked.context | scope, layers=stack.origins[kind], since_us=since[kind],
            )  # fmt: skip


def _since(book: PriceBook, asked: Asked, sheet: Mapping[str, Price], at_us: int) -> dict[str, int | None]:
    """Since when each price of a sheet holds."""
    since: dict[str, int | None] = {}
    edge = book.layers.stack(asked, at_us).from_us
    for _ in range(_CHANGES):
        if edge == -FOREVER or len(since) == len(sheet):
            break
        before = book.layers.stack(asked, edge - 1)
        for kind, price in sheet.items():
            if kind not in since and before.sheet.get(kind) != price:
                since[kind] = edge
        edge = before.from_us
    return {kind: since.get(kind) for kind in sheet}


def explain(
    book: PriceBook, provider: Provider | None, model: str, usage: Usage, at_us: int, *, tier: str | None = None,
    speed: str | None = None, geo: str | None = None, key: str | None = None, route: str | None = None,
) -> tuple[Charge, list[Line]]:  # fmt: skip
    """What a call of this usage costs, with each term of the sum and who made its price."""
    reading = Reading(parts=(Part(usage),), tier=tier, speed=speed, geo=geo, final=True)
    charge = book.charge(reading, provider=provider, model=model, at_us=at_us, key=key, route=route)
    name, place = (None, None) if provider is None else (provider.name, provider.prices)
    asked = Asked(name, place, model, call_context(tier, speed, geo), key, route)
    stack = book.layers.stack(asked, at_us)
    since = _since(book, asked, stack.sheet, at_us)
    lines: list[Line] = []
    for term in charge.terms:
        source = priced_as(stack.sheet, term.kind)
        assert source is not None
        lines.append(Line(term, product(term), stack.origins[source], since[source]))
    return charge, lines


def product(term: Term) -> Decimal:
    """quantity × usd / per."""
    exact = CONTEXT.divide(CONTEXT.multiply(Decimal(term.quantity), Decimal(term.usd)), Decimal(term.per))
    shorter = CONTEXT.copy()
    shorter.prec = _DIGITS
    return exact if len(exact.as_tuple().digits) < CONTEXT.prec else shorter.plus(exact)


def difference(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """What was removed, added and changed, in the order of names."""
    old, new = ({row.place: row for row in listing} for listing in (before, after))
    changes = [Change(old.get(place), new.get(place)) for place in sorted(old.keys() | new.keys(), key=repr)]
    return [each for each in changes if each.before is None or each.after is None or not _same(each.before, each.after)]


def _same(one: Row, other: Row) -> bool:
    return Decimal(one.usd) == Decimal(other.usd) and one.per == other.per
