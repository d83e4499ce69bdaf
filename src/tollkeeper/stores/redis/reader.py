"""Reading the shared ledger in Redis: reports, lookups and `verify`. What is asked is put together from every project's slot."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import CELL_SUMS, PERIODS, BalanceKey, CellKey, Period, cells_of, spent_by
from tollkeeper.stores import Cell, Difference, Kept, SharedOptions, Size, differences, horizons, is_named
from tollkeeper.stores.redis.apply import Shared, pairs
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.batch import Places, window_at
from tollkeeper.stores.redis.census import SharedCensus
from tollkeeper.stores.redis.finder import Finder
from tollkeeper.stores.redis.keys import GLOBAL, Deadlines, Keys, balance_tag, decode, digest_of, shape_of, tag_of
from tollkeeper.stores.redis.link import Link, Servers, State
from tollkeeper.values import OTHER, Entry, ScopeKind

T = TypeVar("T")
K = TypeVar("K")
_SUM: Final = {name: number for number, name in enumerate(CELL_SUMS)}
_ZERO: Final = (0,) * len(CELL_SUMS)
#: Milliseconds that a reader waits for its first connection.
CONNECT_MS: Final = 5000
_PAGE: Final = 500
_TO_THE_END: Final = 2**62
_SECOND_US: Final = 1_000_000


class RedisReader:
    """Read-only questions to a Redis that others write."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._finder = Finder(shared)

    @classmethod
    def open(cls, servers: Servers, options: SharedOptions) -> RedisReader:
        """A reader that is connected. Raises StoreUnavailable."""
        return cls(connected(servers, options))

    async def _current(self) -> None:
        """What has to happen before anything is read: nothing, for who only reads."""

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        await self._current()
        return await asyncio.to_thread(work, *args)

    # ── the contract ──

    async def cells(
        self,
        scope: ScopeKind,
        period: Period,
        from_us: int,
        to_us: int,
        project: str | None = None,
        id: str | None = None,
    ) -> list[Cell]:
        found = await self._do(self._cells, scope, period, from_us, to_us, self._tags(scope, project))
        return sorted((key, sums) for key, sums in found.items() if is_named(key, project, id))

    async def tally(
        self, scope: ScopeKind, from_us: int, to_us: int, project: str | None = None, id: str | None = None
    ) -> list[Cell]:
        def work() -> dict[CellKey, list[int]]:
            found: dict[CellKey, list[int]] = {}
            for entry in self._walk(self._tags(scope, project), from_us, to_us):
                for key, sums in cells_of(entry):
                    if key.period == "hour" and key.scope == scope and is_named(key, project, id):
                        _add(found, key._replace(start_us=from_us), sums)
            return found

        return sorted((key, tuple(sums)) for key, sums in (await self._do(work)).items())

    async def entries(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        await self._current()
        tags = None if project is None else [tag_of(project)]
        walk = await asyncio.to_thread(lambda: self._walk(tags, from_us, to_us))
        async for entry in _paged(walk):
            yield entry

    async def current(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        await self._current()
        tags = None if project is None else [tag_of(project)]

        def begin() -> tuple[Counter[tuple[str, str, str, str | None]], Iterator[Entry]]:
            lists = self._lists(tags, from_us, to_us)  # as long as they are now, both times
            gone = Counter(_name(entry) for entry in self._over(lists, from_us, to_us) if entry.sign < 0)
            return gone, self._over(lists, from_us, to_us)

        gone, walk = await asyncio.to_thread(begin)
        ids = {name[:2] for name in gone}
        async for entry in _paged(walk):
            if entry.sign < 0:
                continue
            if (entry.scopes.project, entry.id) in ids and gone[_name(entry)]:
                gone[_name(entry)] -= 1
            else:
                yield entry

    async def entry(self, project: str, id: str) -> Entry | None:
        return (await self.known([(project, id)])).get((project, id))

    async def known(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
        def work() -> dict[tuple[str, str], Entry]:
            by_project: dict[str, list[str]] = {}
            for project, id in names:
                by_project.setdefault(project, []).append(id)
            return {
                (project, id): revisions[-1]
                for project, ids in by_project.items()
                for id, revisions in self._finder.revisions(project, ids).items()
            }

        return await self._do(work)

    async def spent(self, key: BalanceKey) -> int:
        def work() -> int:
            (found,) = self._shared.link.run(Ask(("HGET", self._shared.keys.balance(key), "spent")))
            if found is not None:
                return int(found)
            _, end_us = window_at(key.shape.window, key.shape.timezone, key.start_us)
            tags = None if key.project == "" else [tag_of(key.project)]
            entries = self._walk(tags, key.start_us, end_us)
            return sum(amount for entry in entries for each, amount in spent_by((key.shape,), entry) if each == key)

        return await self._do(work)

    async def kept_since(self, what: Kept = "entry") -> int:
        return (await self._do(self._since))[what]

    async def size(self) -> Size:
        def work() -> Size:
            entries = sum(1 for _ in self._walk(None, 0, _TO_THE_END))
            cells = sum(len(self._cells(None, period, 0, _TO_THE_END, None)) for period in PERIODS)
            balances = sum(
                name.startswith(b"balance:") for tag in (*self._shared.projects(), GLOBAL) for name in self._dated(tag)
            )
            return Size(entries, cells, balances)

        return await self._do(work)

    async def verify(self) -> list[Difference]:
        return await self._do(self._verify)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Everything that was safe before is in what is read within; what others book meanwhile may be in a part of it."""
        await self._current()
        yield

    async def close(self) -> None:
        await asyncio.to_thread(self._shared.link.close)

    # ── within, on a thread ──

    def _tags(self, scope: ScopeKind, project: str | None) -> list[str] | None:
        """Slots that can have what is asked for; None: all."""
        return None if project in (None, "", OTHER) or scope == "key" else [tag_of(project)]

    def _since(self) -> dict[str, int]:
        """Before which instants rows may be gone: pruned, or past their deadline."""
        (found,) = self._shared.link.run(Ask(("HGETALL", self._shared.keys.since)))
        since = dict.fromkeys((*PERIODS, "entry"), 0) | horizons(
            self._shared.now_us(), self._shared.deadlines.retention
        )
        for what, at_us in pairs(found).items():
            since[what.decode()] = max(since[what.decode()], int(at_us))
        return since

    def _dated(self, tag: str, from_us: int | None = None, to_us: int = _TO_THE_END) -> list[bytes]:
        """Names of the dated keys of a slot whose period begins in a time."""
        low = "-inf" if from_us is None else f"{-(-from_us // _SECOND_US)}"
        (found,) = self._shared.link.run(
            Ask(("ZRANGEBYSCORE", self._shared.keys.index(tag), low, f"({-(-to_us // _SECOND_US)}"))
        )
        return list(found)

    def _cells(
        self, scope: ScopeKind | None, period: Period, from_us: int, to_us: int, tags: list[str] | None
    ) -> dict[CellKey, tuple[int, ...]]:
        projects = self._shared.projects()
        found: dict[CellKey, list[int]] = {}
        for tag in projects if tags is None else [tag for tag in tags if tag in projects]:
            names = [
                name
                for name in (each.decode() for each in self._dated(tag, from_us, to_us))
                if name.startswith((f"cells:{period}:{scope or ''}", f"others:{period}:{scope or ''}"))
            ]
            hashes = self._shared.link.run(*(Ask(("HGETALL", self._shared.keys.of(tag, name))) for name in names))
            for name, fields in zip(names, hashes, strict=True):
                what, _, its, id, start_us = name.split(":")
                if scope not in (None, its):
                    continue
                own = "" if its == "key" else OTHER if what == "others" else projects[tag]
                for field, amount in pairs(fields).items():
                    provider, model, sum_ = field.decode().split("|")
                    key = CellKey(
                        period, int(start_us), its, own, decode(id), decode(provider), decode(model)  # type: ignore[arg-type]
                    )  # fmt: skip
                    found.setdefault(key, list(_ZERO))[_SUM[sum_]] += int(amount)
        return {key: tuple(sums) for key, sums in found.items()}

    def _lists(self, tags: list[str] | None, from_us: int, to_us: int) -> list[tuple[str, int]]:
        """The lists of entries of some months, and how long they are now."""
        months = window_at("month", "UTC", max(0, from_us))[0]
        keys = [
            self._shared.keys.of(tag, name.decode())
            for tag in (self._shared.projects() if tags is None else tags)
            for name in self._dated(tag, months, to_us)
            if name.startswith(b"entries:")
        ]
        lengths = self._shared.link.run(*(Ask(("LLEN", key)) for key in keys))
        return list(zip(keys, lengths, strict=True))

    def _walk(self, tags: list[str] | None, from_us: int, to_us: int) -> Iterator[Entry]:
        return self._over(self._lists(tags, from_us, to_us), from_us, to_us)

    def _over(self, lists: list[tuple[str, int]], from_us: int, to_us: int) -> Iterator[Entry]:
        """Entries in the order in which they were applied, each list read block by block."""

        def read(key: str, length: int) -> Iterator[tuple[tuple[int, str, int], Entry]]:
            for block in self._shared.blocks(key, 0, length):
                yield from (((block.applied_ms, block.journal, seq), entry) for seq, entry in block.rows)

        merged = heapq.merge(*(read(key, length) for key, length in lists), key=lambda each: each[0])
        return (entry for _, entry in merged if from_us <= entry.at_us < to_us)

    # ── verify ──

    def _verify(self) -> list[Difference]:
        """Every cell and balance again from the entries."""
        since, projects = self._since(), self._shared.projects()
        cells: dict[CellKey, list[int]] = {}
        spent: dict[BalanceKey, int] = {}
        shapes = {tag: self._shapes(tag) for tag in (*projects, GLOBAL)}
        for entry in self._walk(None, 0, _TO_THE_END):
            for key, sums in cells_of(entry):
                _add(cells, key, sums)
            for balance, amount in spent_by((*shapes[tag_of(entry.scopes.project)], *shapes[GLOBAL]), entry):
                spent[balance] = spent.get(balance, 0) + amount
        stored = {
            key: sums for period in PERIODS for key, sums in self._cells(None, period, 0, _TO_THE_END, None).items()
        }
        now_s = self._shared.now_us() // _SECOND_US
        deadlines = self._shared.deadlines

        def whole(key: CellKey) -> bool:
            return key.start_us >= max(since[key.period], since["entry"])

        kept = {
            key: spent_
            for key, spent_ in self._balances(projects).items()
            if key.start_us >= since["entry"] and key.shape in shapes[balance_tag(key)]  # else it is being filled
        }
        right = {
            key: amount
            for key, amount in spent.items()
            if key.start_us >= since["entry"]
            and deadlines.balance(window_at(key.shape.window, key.shape.timezone, key.start_us)[1]) > now_s
        }
        return [
            *differences(
                "cell", {key: sums for key, sums in stored.items() if whole(key)},
                {key: tuple(sums) for key, sums in cells.items() if whole(key)}, _ZERO,
            ),
            *differences("balance", kept, right, 0),
        ]  # fmt: skip

    def _shapes(self, tag: str) -> list[Any]:
        (found,) = self._shared.link.run(Ask(("SMEMBERS", self._shared.keys.shapes(tag))))
        return [shape_of(each.decode()) for each in found]

    def _balances(self, projects: Mapping[str, str]) -> dict[BalanceKey, int]:
        found: dict[BalanceKey, int] = {}
        for tag in (*projects, GLOBAL):
            names = [name.decode() for name in self._dated(tag) if name.startswith(b"balance:")]
            keys = [self._shared.keys.of(tag, name) for name in names]
            sums = self._shared.link.run(*(Ask(("HGET", key, "spent")) for key in keys))
            for key, amount in zip(keys, sums, strict=True):
                if amount is not None:
                    found[self._shared.keys.balance_key(key, projects.get(tag, ""))] = int(amount)
        return found


def shared_of(
    servers: Servers, options: SharedOptions, changed: Callable[[State, str], None], scope_cap: int
) -> Shared:
    """What the parts of a Redis store have in common; the link is not started."""
    keys = Keys(options.prefix)
    deadlines = Deadlines(options.retention, options.dedupe_s, options.ahead_s)
    census = SharedCensus(scope_cap, keys, deadlines)
    return Shared(
        Link(servers, changed),
        keys,
        deadlines,
        census,
        Places(keys, deadlines),
        options.clock.now_us,
        lambda: int(options.clock.monotonic_s() * 1000),
    )


def connected(servers: Servers, options: SharedOptions, scope_cap: int = 0) -> Shared:
    """The same with a link that is up; the cap is for who writes. Raises StoreUnavailable."""
    shared = shared_of(servers, options, lambda state, reason: None, scope_cap)
    link = shared.link
    link.start()
    if not link.wait(lambda state: state != "away", CONNECT_MS):
        reason = link.reason
        link.close()
        raise StoreUnavailable(f"store: Redis is not there ({reason}); start it, or name another one")
    return shared


async def _paged(walk: Iterator[Entry]) -> AsyncIterator[Entry]:
    """A walk that blocks, a page at a time on a thread."""

    def page() -> list[Entry]:
        return [entry for _, entry in zip(range(_PAGE), walk, strict=False)]

    while some := await asyncio.to_thread(page):
        for entry in some:
            yield entry


def _name(entry: Entry) -> tuple[str, str, str, str | None]:
    """Whose entry it is and what it says: journals that come in another order may count an id's revisions otherwise."""
    return entry.scopes.project, entry.id, digest_of(entry), entry.by


def _add(cells: dict[K, list[int]], key: K, sums: tuple[int, ...]) -> None:
    mine = cells.setdefault(key, list(_ZERO))
    for number, amount in enumerate(sums):
        mine[number] += amount
