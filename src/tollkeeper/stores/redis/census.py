"""The cardinality cap over all gateways: which ids have cells of their own is decided in Redis, once, and remembered here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tollkeeper.ledger import ids_of
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.batch import window_at
from tollkeeper.stores.redis.keys import GLOBAL, Deadlines, Keys, tag_of
from tollkeeper.stores.redis.link import Link
from tollkeeper.values import OTHER, Entry, ScopeKind, Scopes

_COUNTED: Final[tuple[ScopeKind, ...]] = ("agent", "session", "user", "tag")
_KNOWN_MAX: Final = 50_000
_census: Final = Script("census")

Name = tuple[str, str]


class SharedCensus:
    """`place` after `learn`: what is not known yet is asked of Redis in one pipeline."""

    def __init__(self, cap: int, keys: Keys, deadlines: Deadlines) -> None:
        self._cap, self._keys, self._deadlines = cap, keys, deadlines
        self._fits: dict[Name, bool] = {}  # (key, id) → has cells of its own
        self._placed: dict[tuple[Scopes, int], tuple[ScopeKind, ...]] = {}

    def forget(self) -> None:
        """Redis may have forgotten, too."""
        self._fits.clear()
        self._placed.clear()

    def learn(self, link: Link, entries: Iterable[Entry]) -> None:
        """Ask about every id that is new. Raises StoreUnavailable."""
        if len(self._fits) > _KNOWN_MAX:
            self.forget()
        entries = [each for each in entries if (each.scopes, _month(each)) not in self._placed]
        self._ask(link, [self._project(each) for each in entries])
        self._ask(link, [name for each in entries for _, name in self._names(each)])

    def place(self, entry: Entry) -> tuple[ScopeKind, ...]:
        """The scopes of an entry whose id counts under `_other`."""
        key = (entry.scopes, _month(entry))
        placed = self._placed.get(key)
        if placed is None:
            past: list[ScopeKind] = [] if self._fits[self._project(entry)] else ["project"]
            past += [scope for scope, name in self._names(entry) if not self._fits[name]]
            if len(self._placed) > _KNOWN_MAX:
                self._placed.clear()
            placed = self._placed[key] = tuple(dict.fromkeys(past))
        return placed

    def _project(self, entry: Entry) -> Name:
        return self._name(GLOBAL, "project", _month(entry), entry.scopes.project)

    def _names(self, entry: Entry) -> Iterator[tuple[ScopeKind, Name]]:
        own = self._fits[self._project(entry)]
        tag = tag_of(entry.scopes.project) if own else GLOBAL
        for scope in _COUNTED:
            for _, id in ids_of(scope, entry.scopes, entry.model):
                yield scope, self._name(tag, scope, _month(entry), id)

    def _name(self, tag: str, scope: ScopeKind, month_us: int, id: str) -> Name:
        name = self._keys.seen(tag, scope, month_us), id
        if id == OTHER:
            self._fits[name] = True
        return name

    def _ask(self, link: Link, names: Iterable[Name]) -> None:
        new: dict[str, list[str]] = {}
        for key, id in dict.fromkeys(names):
            if (key, id) not in self._fits:
                new.setdefault(key, []).append(id)
        asks: list[tuple[str, list[str], Ask]] = []
        for key, ids in new.items():
            until_s = self._deadlines.cells("month", int(key.rpartition(":")[2]))
            for at in range(0, len(ids), 1000):
                some = ids[at : at + 1000]
                asks.append((key, some, _census([key], [self._cap, until_s, *some])))
        for (key, ids, _), fits in zip(asks, link.run(*(ask for *_, ask in asks)) if asks else (), strict=True):
            self._fits.update({(key, id): bool(fit) for id, fit in zip(ids, fits, strict=True)})


def _month(entry: Entry) -> int:
    return window_at("month", "UTC", entry.at_us)[0]
