"""The layers of prices, and what they come to for one name at one instant.

    entries of your own     by key, over by route, over by model
    entries shipped here    what the price data lack
    genai-prices            dated price lists

Each entry is laid over what is below it, general to special. Of each price the layers that made it are kept, for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tollkeeper.prices import data as price_data
from tollkeeper.prices.file import shipped
from tollkeeper.prices.names import is_form, spellings, vendor
from tollkeeper.prices.override import Override, in_force
from tollkeeper.prices.rates import Price

FOREVER: Final = 2**62
DATA: Final = "genai-prices"
_ANY, _UNDATED, _EXACT = range(3)


class Asked(NamedTuple):
    """A name that a price is looked up for, and for whom."""

    provider: str | None  #: the provider's name; None: nobody was named, anybody's price will do
    place: str | None  #: its id in the price data
    model: str
    context: dict[str, str]
    key: str | None = None
    route: str | None = None


class Stack(NamedTuple):
    """All layers in one, and the time for which that is right."""

    sheet: dict[str, Price]
    gaps: tuple[str, ...]  #: parts of the context that no layer knows
    origins: dict[str, tuple[str, ...]]  #: by kind: who set the price, and who multiplied it then
    from_us: int
    until_us: int


class _Known(NamedTuple):
    """A name as the price data and the entries know it."""

    found: price_data.Found | None
    places: set[str]  #: whose prices it may have, as entries name them; empty: nobody was named, anybody's will do
    names: set[str]  #: its spellings


class Layers:
    """The price data and the entries over them."""

    def __init__(self, own: tuple[Override, ...]) -> None:
        self._named = {"shipped": shipped(), "own": own}
        self._places = {vendor(entry.provider) for entry in own if entry.provider is not None}
        self.keys = {entry.key for entry in own if entry.key is not None}
        self.routes = {entry.route for entry in own if entry.route is not None}

    def entries(self) -> Iterator[tuple[str, Override]]:
        """Every entry with its name: "shipped #3", "own #1"."""
        for layer, entries in self._named.items():
            yield from ((f"{layer} #{number}", entry) for number, entry in enumerate(entries, 1))

    def stack(self, asked: Asked, at_us: int) -> Stack:
        """What the layers come to for a name: from the last change of a price to the next one."""
        known = self._known(asked)
        told = gaps = tuple(f"{key}={value}" for key, value in asked.context.items())
        sheet: dict[str, Price] = {}
        edges: list[int] = []
        if known.found is not None:
            edges.extend(price_data.changes(known.found, at_us))
            sheet, gaps = price_data.sheet(known.found, at_us, asked.context)
        origins: dict[str, tuple[str, ...]] = dict.fromkeys(sheet, (DATA,))
        for layer, entries in self._named.items():
            matching = list(self._matching(entries, asked, known))
            for _, entry in matching:
                edges += [edge for edge in (entry.from_us, entry.until_us) if edge is not None]
                edges += [edge for window in entry.windows for edge in window.edges(at_us)]
            for entry in in_force(matching, at_us):
                sheet = entry.over(sheet)
                origins = _traced(origins, sheet, entry, f"{layer} #{entries.index(entry) + 1}")
                covered = {f"{key}={value}" for key, value in entry.context}
                gaps = tuple(gap for gap in (told if entry.whole else gaps) if gap not in covered and not entry.free)
        return Stack(
            sheet, gaps, origins,
            from_us=max((edge for edge in edges if edge <= at_us), default=-FOREVER),
            until_us=min((edge for edge in edges if edge > at_us), default=FOREVER),
        )  # fmt: skip

    def scopes(self, asked: Asked) -> list[Override]:
        """The entries that change the price of a name for some calls only: of a key, a route, a tier."""
        known = self._known(asked)
        return [
            entry
            for entries in self._named.values()
            for entry in entries
            if (entry.key or entry.context or (entry.route and entry.models))
            and _exactness(entry, asked, known) is not None
        ]

    def _matching(self, entries: tuple[Override, ...], asked: Asked, known: _Known) -> Iterator[tuple[int, Override]]:
        """The entries for a name, at whatever time, each with how exactly it names it."""
        route = None if asked.route is None else asked.route.lower()
        for entry in entries:
            if entry.key not in (None, asked.key) or entry.route not in (None, route):
                continue
            if not set(entry.context) <= asked.context.items():
                continue
            exactness = _exactness(entry, asked, known)
            if exactness is not None:
                yield exactness, entry

    def _known(self, asked: Asked) -> _Known:
        """What the price data and the entries know of a name."""
        if asked.provider is not None:
            found = None if asked.place is None else price_data.find(asked.place, asked.model)
            places = {vendor(each) for each in (asked.provider, asked.place) if each is not None}
        else:
            found = price_data.find(None, asked.model)
            front, slash, _ = asked.model.partition("/")
            places = {vendor(front)} & self._places if slash else set[str]()
            places |= {found.provider} if found is not None else set()
        return _Known(found, places, set(spellings(asked.model, places)))


def _exactness(entry: Override, asked: Asked, known: _Known) -> int | None:
    """Whether an entry is for the name itself, for its undated form, or for any; None: it is for others."""
    broad = entry.every or not entry.models
    if entry.provider is not None and (known.places or broad) and vendor(entry.provider) not in known.places:
        return None
    if broad:
        return _ANY
    if not known.names.isdisjoint(entry.models):
        return _EXACT
    return _UNDATED if any(_is_same(asked.place, known.found, asked.model, each) for each in entry.models) else None


def _traced(
    below: dict[str, tuple[str, ...]], sheet: dict[str, Price], entry: Override, name: str
) -> dict[str, tuple[str, ...]]:
    """Who made each price of a sheet, after an entry was laid over it."""
    told, scaled = {kind for kind, _ in entry.prices}, set(entry.scaled(sheet))
    return {
        kind: (name,) if kind in told else (*below[kind], name) if kind in scaled else below[kind] for kind in sheet
    }


def _is_same(place: str | None, found: price_data.Found | None, model: str, undated: str) -> bool:
    """Whether a model is the dated form of an entry's name, and the price data agree that they are one."""
    if found is None or not is_form(model, undated):
        return False
    other = price_data.find(place, undated)
    return other is not None and other.model is found.model
