"""Several processes with a Redis store on one server, beside the model: their lives, and what must be true of all of them.

The clock is moved by hand; `quiet` waits until every store has recovered and everything that is in a journal is applied: only
then is anything compared.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from msgspec import structs
from tests.redis_state import Copy, problems

from tollkeeper.errors import StoreOwned, TollkeeperError
from tollkeeper.ledger import CELL_SCOPES, FOREVER_US, PERIODS, expired
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.redis.flush import BEAT_MS
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.stores.redis.url import parse
from tollkeeper.stores.sqlite.journal import Journal, orphans
from tollkeeper.testing.corrections import current
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, HOUR_US, KEEP_ALL, SECOND_US, USD, usd
from tollkeeper.values import Budget, Entry, Hold, ScopeKind, Scopes

T = TypeVar("T")
Amount = int | None

WHO: Final = (
    Scopes(project="alpha"),
    Scopes(project="alpha", agent="w", session="s1", tags=("t1", "t2"), key="k"),
    Scopes(project="alpha", agent="w", session="s2", user="ü", key="k"),
    Scopes(project="beta", agent="w", session="s1", user="a:b|c", key="k", tags=("_other",)),
    Scopes(project="{*}%'", agent="{x}:y", session="s 3", user="\x01\n", tags=("t1",)),
)
BUDGETS: Final[tuple[tuple[Budget, ...], ...]] = (
    (),
    (usd(3 * DIME), usd(USD, window="day", timezone="America/New_York"), Budget(scope="tag", limit=DIME, hard=False)),
    (usd(5 * DIME, id="*"), Budget(scope="agent", limit=900, measure="tokens", window="hour"), usd(DIME, id="*", hard=False)),
    (usd(None), Budget(scope="session", limit=2, measure="requests", window="minute"), usd(0, id="beta")),
    (usd(2 * DIME, window="week", timezone="Asia/Kolkata"), Budget(scope="all", limit=USD, window="total")),
    (Budget(scope="key", limit=3 * DIME), Budget(scope="model", limit=4 * DIME, window="day"), usd(3 * DIME)),
    (Budget(scope="user", limit=DIME, window="day"), Budget(scope="session", limit=5, measure="requests")),
    (Budget(scope="all", limit=700, measure="tokens"), usd(4 * DIME, id="*"), Budget(scope="all", limit=3, hard=False)),
)  # fmt: skip
#: Further than this from where it began the clock is not moved: deadlines in Redis are in its own time.
FAR_US: Final = 40 * DAY_US
WITHIN_S: Final = 30.0
#: Journals that need not outlive the machine.
DISK: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PASSED: Final = (1, SECOND_US, 61 * SECOND_US, 11 * 60 * SECOND_US, HOUR_US, 7 * HOUR_US, 3 * DAY_US)
AMOUNTS: Final = (0, 1, DIME, DIME, USD, None)


class Pick(Protocol):
    """One of several."""

    def __call__(self, some: Sequence[T], /) -> T: ...


class Hands:
    """A clock whose hands are moved: the wall's, and those by which stores wait."""

    def __init__(self) -> None:
        self.us, self.s = AT_US, 0.0

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.s


class Hosts:
    """Does the same to the stores of several processes and to the model.

    With a small cap on scopes nothing fails: which ids fit depends on the order in which Redis hears of them.
    """

    def __init__(self, server: RedisServer, pick: Pick, within_s: float = WITHIN_S) -> None:
        self.within_s = within_s
        self.pick = pick
        self.server, self.raw = server, server.client()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="tollkeeper-", dir=DISK))
        self.clock = Hands()
        self.ahead_s = int(time.time()) - AT_US // SECOND_US
        self.number = self.turn = 0
        self.stores: list[RedisStore] = []
        self.homes: dict[str, Path] = {}  # journal → its folder
        self.holds: dict[str, Hold] = {}
        self.owner: dict[str, RedisStore] = {}  # of a hold
        self.entries: dict[str, Entry] = {}
        self.wrote: dict[str, str] = {}  # which journal has the settlement of an id
        self.voided: set[str] = set()
        self.away = False
        self.copy: Copy | None = None
        self.copied: set[str] = set()

        cap = pick([None, None, None, 1, 2])
        self.together, self.fails, self.budgets = pick([False, True]), cap is None, pick(BUDGETS)
        self.cap = 10_000 if cap is None else cap
        self.raw.flushall()
        self.model = MemoryStore(self.budgets, scope_cap=self.cap)
        for number in range(pick([2, 3])):
            self.open(number)
        self.quiet()

    def come_back(self) -> None:
        if self.away:
            self.server.start()
            self.away = False

    def close_all(self) -> None:
        self.come_back()
        for store in self.stores:
            self.do(store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.raw.close()
        shutil.rmtree(self.folder)

    # ── the stores ──

    def do(self, what: Awaitable[T]) -> T | TollkeeperError:
        async def answer() -> T:
            task = asyncio.ensure_future(what)
            until = time.monotonic() + self.within_s
            while not (await asyncio.wait([task], timeout=0.02))[0]:
                self.clock.s += BEAT_MS / 1000  # it may wait for others
                assert time.monotonic() < until, f"no answer: {[each.state for each in self.stores]}"
            return task.result()

        try:
            return self.loop.run_until_complete(answer())
        except TollkeeperError as error:
            return error

    def open(self, number: int) -> RedisStore:
        folder = self.folder / ("all" if self.together else str(number))
        options = SharedOptions(
            clock=self.clock, journal=folder, retention=KEEP_ALL, ahead_s=self.ahead_s,
            dedupe_s=FAR_US // SECOND_US,  # the model forgets no id
        )  # fmt: skip
        store = RedisStore(Servers(parse(self.server.url)), options, self.budgets, scope_cap=self.cap)
        self.stores.append(store)
        self.homes[store._journal.id] = folder
        return store

    def leave(self, store: RedisStore, close: Callable[[RedisStore], None]) -> None:
        """A process ends; what only its journal knew of is booked by whoever adopts that."""
        intents = self.do(store._journal.live())
        assert not isinstance(intents, TollkeeperError)
        close(store)
        self.stores.remove(store)
        for hold in intents:
            self.do(self.model.settle(expired(hold)))

    def close(self, store: RedisStore) -> None:
        self.do(store.close())

    def crash(self, store: RedisStore) -> None:
        """As after SIGKILL: nothing more reaches Redis, and the journal's file is as it stands now."""
        journal = store._journal
        store._shared.link.close()
        image = {
            path: path.read_bytes()
            for path in journal.path.parent.glob(f"{journal.id}*")
            if not path.name.endswith(("-shm", ".owner"))
        }
        store._flusher.close()
        self.do(journal.close())
        for path, data in image.items():
            path.write_bytes(data)

    def quiet(self) -> None:
        """Wait until every store is in the Redis that is there, and all journals are applied."""
        if self.away:
            return
        until = time.monotonic() + self.within_s
        while not self._recovered() or not self._drained():
            assert time.monotonic() < until, [(store.state, store._shared.link.reason) for store in self.stores]
        for store in self.stores:
            assert self.do(store._current()) is None

    def _recovered(self) -> bool:
        for store in self.stores:
            self.do(store._current())
        epoch = self.raw.get("tollkeeper:{*}:epoch") or b""
        if all(store.state == "ready" and store._flusher.epoch == epoch.decode() for store in self.stores):
            return True
        time.sleep(0.002)
        self.clock.s += BEAT_MS / 1000 / 2
        return False

    def _drained(self) -> bool:
        """Adopt what dead processes have left, as the flusher does every few seconds."""
        for store in self.stores[:1] if self.together else ():
            store._flusher._adopt_orphans()
            for path in orphans(self.homes[store._journal.id], store._journal.path):
                with suppress(StoreOwned):
                    self.do(Journal.open(path).close())
        return True

    # ── what is true ──

    def of_model(self, method: str, *args: Any) -> Any:
        return self.do(getattr(self.model, method)(*args))

    def agree(self) -> None:
        """What stands in Redis, budgets and holds after each step; sums and entries in turn: all of them take most of the time."""
        self.turn += 1
        if not self.away:
            self.quiet()
            same(problems(self.raw), [])
            self.standings(WHO[self.turn % len(WHO)], self.clock.us)
            self.cells(CELL_SCOPES[self.turn % len(CELL_SCOPES)])
            if self.turn % 2 == 0:
                (self.live, self.current, self.verify)[self.turn // 2 % 3]()

    def standings(self, scopes: Scopes, at_us: int) -> None:
        told = self.do(self.turned().standings(scopes, "m", at_us))
        same(told, self.of_model("standings", scopes, "m", at_us))

    def live(self) -> None:
        told: Any = [self.do(each.live()) for each in self.stores]
        same(sorted({hold.id for some in told for hold in some}), sorted(hold.id for hold in self.of_model("live")))

    def current(self) -> None:
        """Entries that stand."""
        told, right = (
            sorted(map(_plain, self.loop.run_until_complete(current(each)))) for each in (self.turned(), self.model)
        )
        same(told, right)

    def cells(self, scope: ScopeKind) -> None:
        period = PERIODS[self.turn // len(CELL_SCOPES) % len(PERIODS)]
        told = _some(self.do(self.turned().cells(scope, period, 0, FOREVER_US)))
        same(told, _some(self.of_model("cells", scope, period, 0, FOREVER_US)))

    def verify(self) -> None:
        assert self.do(self.turned().verify()) == []


def same(told: Any, right: Any) -> None:
    """Or say where they differ."""
    if told != right:
        assert isinstance(told, list), told
        raise AssertionError(
            f"not {[each for each in told if each not in right]} but {[each for each in right if each not in told]}"
        )


def _plain(entry: Entry) -> tuple[Any, ...]:
    """An entry to compare: how often it was corrected may depend on which journal came first."""
    return entry.scopes.project, entry.id, repr(structs.replace(entry, note=None, revision=0))


def _some(cells: Any) -> list[Any]:
    """Without cells in which everything was reversed."""
    return [cell for cell in cells if any(cell[1])]
