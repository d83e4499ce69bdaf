"""The ledger's stores: one contract, several places to keep it.

`opening.open_store(url)` chooses by the URL's scheme. Every store passes the suite in `tollkeeper.testing.conformance`, and equals
`memory:`, the model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import msgspec

from tollkeeper.clock import Clock
from tollkeeper.ledger import BalanceKey, CellKey, Period, window_of
from tollkeeper.values import Budget, Entry, Grant, Hold, ScopeKind, Scopes, Standing, Window

K = TypeVar("K")
V = TypeVar("V")

#: booked: counted now · repeated: counted before, nothing changed · late: its hold had expired, the difference is booked
Booked = Literal["booked", "repeated", "late"]
#: corrected: it stands now · repeated: it was put there before, nothing changed
Corrected = Literal["corrected", "repeated"]
Cell = tuple[CellKey, tuple[int, ...]]
Kept = Literal["hour", "day", "month", "entry"]


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long things are kept after their period's end, in seconds; None: forever."""

    hour_s: int | None = 24 * 3600
    day_s: int | None = 30 * 86400
    month_s: int | None = 365 * 86400
    entries_s: int | None = 90 * 86400


def horizons(now_us: int, retention: Retention) -> dict[str, int]:
    """Before which instant each kind of row has outlived its retention: "hour", "day", "month" cells and "entry".

    Entries go by whole UTC months, so that a cell has all of its entries or none.
    """
    keeps = {"hour": retention.hour_s, "day": retention.day_s, "month": retention.month_s, "entry": retention.entries_s}
    windows: dict[str, Window] = {"hour": "hour", "day": "day", "month": "month", "entry": "month"}
    return {
        what: window_of(windows[what], "UTC", max(0, now_us - keep_s * 1_000_000))[0]
        for what, keep_s in keeps.items()
        if keep_s is not None
    }


class Difference(NamedTuple):
    """A sum that does not agree with the entries."""

    what: str  #: "cell" or "balance"
    key: str
    stored: str
    entries: str


SharedState = Literal["away", "recovering", "ready", "closed"]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a shared store is just now, for whoever watches it."""

    state: SharedState
    since_us: int
    reason: str | None = None  #: what went wrong last
    waiting: int | None = None  #: entries that are safe here and not yet there; None: unknown, it was never there
    peers: int = 0  #: other gateways that are alive


def differences(what: str, stored: Mapping[K, V], right: Mapping[K, V], zero: V) -> Iterator[Difference]:
    """Where sums differ from what they should be; one that is not there is `zero`."""
    for key in sorted(stored.keys() | right.keys(), key=str):
        if stored.get(key, zero) != right.get(key, zero):
            yield Difference(what, str(key), str(stored.get(key, zero)), str(right.get(key, zero)))


def is_named(key: CellKey, project: str | None, id: str | None) -> bool:
    """Whether a cell is one of those asked for by project and id; None: any."""
    return project in (None, key.project) and id in (None, key.id)


class Size(NamedTuple):
    """Rows of each kind."""

    entries: int
    cells: int
    balances: int


class Reader(Protocol):
    """What can be asked of a ledger, also while another process owns it."""

    async def cells(
        self,
        scope: ScopeKind,
        period: Period,
        from_us: int,
        to_us: int,
        project: str | None = None,
        id: str | None = None,
    ) -> list[Cell]:
        """Rollup cells whose period starts in [from_us, to_us), oldest first."""
        ...

    async def tally(
        self, scope: ScopeKind, from_us: int, to_us: int, project: str | None = None, id: str | None = None
    ) -> list[Cell]:
        """The same sums over the entries of [from_us, to_us): for windows that no cell matches."""
        ...

    def entries(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        """Entries of [from_us, to_us) in the order in which they were booked, up to the newest one now."""
        ...

    def current(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        """Those of them that stand, reversals and what they reverse left out, as of the instant at which it begins.

        What is booked or corrected while they are read changes nothing: it has no snapshot and need not have one.
        """
        ...

    async def entry(self, project: str, id: str) -> Entry | None:
        """The entry of an attempt as it stands: its latest revision."""
        ...

    async def known(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
        """The same of many at once, by project and id; those that the ledger does not have are left out."""
        ...

    async def verify(self) -> list[Difference]:
        """Compute every cell and balance again from the entries; an empty list is a ledger that agrees with itself."""
        ...

    async def spent(self, key: BalanceKey) -> int:
        """What a balance has spent, without what is held; from its window's entries where none is kept."""
        ...

    async def kept_since(self, what: Kept = "entry") -> int:
        """Entries, or cells of a period, before this instant (UTC microseconds) may have been pruned; 0: none have."""
        ...

    async def size(self) -> Size:
        """How much there is."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[None]:
        """Everything asked within it is answered as of one instant, also while the owner writes."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go."""
        ...


class Store(Reader, Protocol):
    """A ledger that this process owns. Methods raise StoreUnavailable when a write cannot be made safe: then nothing happened."""

    @property
    def trouble(self) -> str | None:
        """Why writes fail just now; None: they do not."""
        ...

    @property
    def condition(self) -> Condition | None:
        """How what is shared is; None: this process has all of it, and `trouble` says all."""
        ...

    async def reserve(self, hold: Hold) -> Grant:
        """Hold a quote against all budgets that cover it, or none of them.

        Raises BudgetExceeded, RateLimited, Conflict (the id lives with other contents). Repeating a reservation is harmless.
        """
        ...

    async def void(self, hold_id: str) -> None:
        """Let go of a hold for which nothing is owed; unknown ids are ignored."""
        ...

    async def settle(self, entry: Entry) -> Booked:
        """Book an entry and end the hold of the same id, if one lives, in one step; durable when it returns.

        Never refused for being above its hold, late or without a hold. The same contents again count once; other contents
        under an id that was booked raise Conflict.
        """
        ...

    async def correct(self, entry: Entry) -> Corrected:
        """Put an entry in the place of the one that stands under its id, in its windows; durable when it returns.

        Its revision is the next one after the entry that it was computed from, and it says who asked (`by`). The same again
        changes nothing. Raises Conflict where another revision stands meanwhile, UnknownEntry where none does (any more). A
        hold of that id is not touched.
        """
        ...

    async def expire(self, now_us: int) -> int:
        """Book every hold past its deadline at its estimate; returns how many."""
        ...

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        """Every budget that covers such a call."""
        ...

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        """Replace the limits; balances of new shapes are filled from the entries first.

        Calls in flight count on them, once this has returned: those of other processes when they have been told, too.
        """
        ...

    async def live(self) -> list[Hold]:
        """Holds that stand."""
        ...

    async def claim(self, what: str, now_us: int, for_us: int) -> bool:
        """Whether a thing that is done once, such as an alert of a budget's window, is this caller's to do now.

        It is not where it is done, or where somebody of this ledger has claimed it less than `for_us` before: who dies with it
        loses it to the next one. Whoever has done it says so (`done`).
        """
        ...

    async def done(self, what: str, until_us: int) -> None:
        """Nobody is to do it again until then, also after a restart; kept as safe as the balances are."""
        ...

    async def prune(self, now_us: int, retention: Retention) -> int:
        """Drop what has outlived its retention; returns how many rows."""
        ...


class SharedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a store that many processes share needs beside its URL."""

    clock: Clock
    journal: Path  #: the folder of the journals of this host's processes
    prefix: str = "tollkeeper"  #: of every key
    retention: Retention = Retention()
    dedupe_s: int = 86400  #: how long an entry's id is known to other processes
    ahead_s: int = 0  #: how far Redis's clock is ahead of `clock`: for tests, in which time is passed in
