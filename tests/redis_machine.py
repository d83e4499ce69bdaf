"""Several Redis stores on one server and the model, told the same and compared, while Redis and the processes fail.

`step` does one thing, chosen by `pick`: by Hypothesis's or by a seed's random choice. The clock is moved by hand; `quiet` waits
until every store has recovered and everything that is in a journal is applied: only then is anything compared.
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
from tests.redis_state import Copy, copy_of, holds_in, problems, put_back

from tollkeeper.book import refusal_of
from tollkeeper.errors import Conflict, StoreOwned, StoreUnavailable, TollkeeperError
from tollkeeper.ledger import CELL_SCOPES, FOREVER_US, PERIODS, expired
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.journal import Journal, orphans
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.redis import GRACE_MS, RedisStore
from tollkeeper.stores.redis_flush import BEAT_MS
from tollkeeper.stores.redis_link import Ask
from tollkeeper.stores.redis_servers import Servers
from tollkeeper.stores.redis_url import parse
from tollkeeper.testing.corrections import current
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, HOUR_US, KEEP_ALL, SECOND_US, USD, a_hold, an_entry, usd
from tollkeeper.values import Budget, Entry, Hold, ScopeKind, Scopes, Usage

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
#: How often each thing is done, of 100 or so.
WEIGHTS: Final = {
    "reserve": 20, "reserve_at_the_limit": 12, "reserve_again": 4, "settle": 18, "record_without_a_hold": 6, "settle_again": 6,
    "correct": 8, "void": 6, "time_passes": 6, "another_expires_it": 4, "set_budgets": 4, "process_ends": 4, "redis_fails": 6,
}  # fmt: skip
FAILURES: Final = {"cut": 4, "empty": 3, "emptied quietly": 2, "copy": 5, "put back": 5, "restart": 1, "stop": 1}


class Pick(Protocol):
    """One of several."""

    def __call__(self, some: Sequence[T], /) -> T: ...


def weighted(weights: dict[str, int]) -> list[str]:
    return [name for name, weight in weights.items() for _ in range(weight)]


class Hands:
    """A clock whose hands are moved: the wall's, and those by which stores wait."""

    def __init__(self) -> None:
        self.us, self.s = AT_US, 0.0

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.s


class Many:
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

    def step(self) -> None:
        """One thing is done; then everything agrees."""
        what = "come_back" if self.away and self.pick(range(4)) == 0 else self.pick(weighted(WEIGHTS))
        getattr(self, what)()
        self.agree()

    def close_all(self) -> None:
        self.come_back()
        for store in self.stores:
            self.do(store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.raw.close()
        shutil.rmtree(self.folder)

    def end(self) -> None:
        """Every hold ends, of the dead too; then nothing is held, and all sums are right."""
        self.come_back()
        for hold in self.of_model("live") if not self.fails else ():
            self.give_up(hold.id)
        self.quiet()
        self.clock.us += 3600 * SECOND_US
        self.expire_all()
        self.quiet()
        for _ in range(len(CELL_SCOPES) * len(PERIODS)):
            self.turn += 1
            self.cells(CELL_SCOPES[self.turn % len(CELL_SCOPES)])
        for scopes in WHO:
            self.standings(scopes, self.clock.us)
        self.current()
        self.verify()
        same(problems(self.raw), [])
        assert self.do(self.stores[0].live()) == []
        assert holds_in(self.raw) == set()

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
        options = SharedOptions(clock=self.clock, journal=folder, retention=KEEP_ALL, ahead_s=self.ahead_s)
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

    # ── what is done ──

    def new(self) -> str:
        self.number += 1
        return f"c{self.number // 3}/{self.number % 3 + 1}"

    def turned(self) -> RedisStore:
        return self.stores[self.turn % len(self.stores)]

    def any(self) -> RedisStore:
        return self.pick(self.stores)

    def reserve(self) -> None:
        self.hold(self.any(), self.pick(WHO), self.pick(AMOUNTS), self.pick([0, 100, 450, None]), self.pick("mn"))

    def reserve_at_the_limit(self) -> None:
        """What is just left of the tightest budget, one less, one more."""
        scopes, measure = self.pick(WHO), self.pick(["usd", "usd", "tokens"])
        left = [
            each.remaining
            for each in self.of_model("standings", scopes, "m", self.clock.us)
            if each.budget.measure == measure and each.budget.hard and each.remaining is not None
        ]
        if left:
            amount = max(0, min(left) + self.pick([-1, 0, 1]))
            self.hold(self.any(), scopes, *((amount, 1) if measure == "usd" else (1, amount)))

    def hold(self, store: RedisStore, scopes: Scopes, nanos: Amount, tokens: Amount, model: str = "m") -> None:
        hold = a_hold(self.new(), nanos, tokens=tokens, at_us=self.clock.us, scopes=scopes, model=model)
        could = [refusal_of(each, hold) for each in self.of_model("standings", scopes, model, hold.at_us)]
        told = self.do(store.reserve(hold))
        if self.away and isinstance(told, StoreUnavailable):
            return
        right = self.do(self.model.reserve(hold))
        if isinstance(right, TollkeeperError):
            assert isinstance(told, type(right)), (told, right)
            assert told.refusal in [each.refusal for each in could if each is not None]  # type: ignore[attr-defined]
            return
        assert self.away or told == right
        self.holds[hold.id], self.owner[hold.id] = hold, store

    def a_hold(self) -> tuple[Hold, RedisStore | None]:
        """One that was made; its process, if that lives, and the hold too."""
        hold = self.pick(list(self.holds.values()))
        owner = self.owner[hold.id]
        return hold, owner if owner in self.stores and hold in self.of_model("live") else None

    def reserve_again(self) -> None:
        if self.holds:
            hold, store = self.a_hold()
            if store is not None:
                again = structs.replace(hold, quote_nanos=12345) if self.pick([False, True]) else hold
                told, right = self.do(store.reserve(again)), self.do(self.model.reserve(again))
                assert isinstance(told, type(right)), (told, right)

    def settle(self) -> None:
        """By its own process; where that is dead, or its deadline was first, by any."""
        if self.holds:
            hold, store = self.a_hold()
            self.record(store or self.any(), hold.id, self.pick(AMOUNTS), hold.scopes, hold.at_us, hold.model)

    def record_without_a_hold(self) -> None:
        at_us = self.clock.us - self.pick([0, 0, 1, HOUR_US, 26 * HOUR_US])
        self.record(self.any(), self.new(), self.pick([0, DIME, None]), self.pick(WHO), at_us)

    def record(self, store: RedisStore, id: str, nanos: Amount, scopes: Scopes, at_us: int, model: str = "m") -> None:
        usage = Usage(input=7, cache_read=3, output=self.number, reasoning=1)
        outcome = ("ok", "cut")[self.number % 2]
        entry = an_entry(id, nanos, scopes=scopes, at_us=at_us, usage=usage, outcome=outcome, model=model)
        if self.book(store, entry) in ("booked", "late"):
            self.entries[id] = entry

    def book(self, store: RedisStore, entry: Entry) -> Any:
        """Settle in a store and in the model: what the model says. An estimate that it replaces may be another process's."""
        project, id = entry.scopes.project, entry.id
        known = self.of_model("entry", project, id) if self.away else None
        if known is not None and known.outcome != "expired" and self.wrote.get(id) != store._journal.id:
            return None  # which of them counts is found out later
        told, right = self.do(store.settle(entry)), self.do(self.model.settle(entry))
        if isinstance(right, TollkeeperError):
            assert isinstance(told, type(right)), (told, right)
        else:
            assert (told == "repeated") == (right == "repeated") or self.away, (told, right)
            if right != "repeated":
                self.wrote[id] = store._journal.id
        return right

    def settle_again(self) -> None:
        """In any process, also with other contents."""
        if self.entries:
            entry = self.pick(list(self.entries.values()))
            if self.pick([False, True]):
                entry = structs.replace(entry, served="another")
            self.book(self.any(), structs.replace(entry, latency_ms=None))

    def correct(self) -> None:
        """From the entry that stands or, by `step`, from another one; expired holds and unknown ids too."""
        if not self.holds and not self.entries:
            return
        each = self.pick([*self.holds.values(), *self.entries.values()])
        changed = {
            "usage": Usage(input=self.pick([7, 450]), cache_read=3), "charge": an_entry("a/1", self.pick(AMOUNTS)).charge,
            "note": "why", "by": self.pick(["ann", "bob"]),
        }  # fmt: skip
        step, answers = self.pick([1, 1, 1, 0, 2]), []
        standing = self.of_model("entry", each.scopes.project, each.id)
        if self.fails and standing is not None and standing.outcome == "expired" and standing.by is not None:
            return  # once: in which order its revisions come back after Redis was emptied is not known then
        for ledger in (self.any(), self.model):
            old = self.do(ledger.entry(each.scopes.project, each.id))
            if not isinstance(old, Entry):
                old = an_entry(each.id, scopes=each.scopes, at_us=each.at_us)
            right = structs.replace(old, revision=old.revision + step, **changed)
            answers.append(self.do(ledger.correct(right)))
            if self.away:
                assert isinstance(answers[0], StoreUnavailable)
                return
            if answers[-1] == "corrected":
                assert self.do(ledger.correct(right)) == "repeated"
            if isinstance(answers[0], Conflict) and self._outran(ledger, old):
                return
        told, right = answers
        assert told == right or (isinstance(told, TollkeeperError) and isinstance(right, type(told))), answers

    def _outran(self, ledger: RedisStore | MemoryStore, old: Entry) -> bool:
        """Whether a journal has a revision that does not count any more, after the one that stands since Redis was emptied."""
        own = self.do(ledger._journal.entry(old.scopes.project, old.id)) if isinstance(ledger, RedisStore) else None
        return isinstance(own, Entry) and own.revision > old.revision

    def void(self) -> None:
        if self.holds:
            id = self.pick(list(self.holds))
            if self.owner[id] in self.stores:
                self.give_up(id)

    def give_up(self, id: str) -> None:
        self.do(self.owner[id].void(id))
        self.do(self.model.void(id))
        self.voided.add(id)

    # ── time ──

    def time_passes(self) -> None:
        passed_us = self.pick(PASSED)
        if self.clock.us + passed_us < AT_US + FAR_US:
            self.clock.us += passed_us
            for hold in self.of_model("live") if not self.fails else ():
                self.give_up(hold.id)  # several that expire at once have no order
            self.expire_all()

    def expire_all(self) -> None:
        """Every store looks; holds of the dead are anyone's after a while."""
        first = self.pick(range(len(self.stores)))
        now_us = self.clock.us
        before_ms = (now_us - GRACE_MS * 1000) // 1000
        for number in range(len(self.stores)):
            store = self.stores[(first + number) % len(self.stores)]
            self.sweep(store)
            for hold in self.of_model("live"):
                owner = self.owner[hold.id]
                if hold.deadline_us <= now_us and owner is store:
                    self.do(self.model.settle(expired(hold)))
        for hold in self.of_model("live"):
            if not self.away and self.owner[hold.id] not in self.stores and hold.deadline_us // 1000 <= before_ms:
                self.do(self.model.settle(expired(hold)))

    def sweep(self, store: RedisStore) -> None:
        if not self.away:
            self.raw.delete("tollkeeper:{*}:sweeper")
        assert not isinstance(self.do(store.expire(self.clock.us)), TollkeeperError)

    def another_expires_it(self) -> None:
        """A process is slow: others book its hold at the estimate, then it settles."""
        if not self.holds or self.away or len(self.stores) == 1 or not self.fails:
            return
        hold, store = self.a_hold()
        if store is not None:
            self.clock.us = max(self.clock.us, hold.deadline_us + GRACE_MS * 1000)
            self.sweep(self.pick([each for each in self.stores if each is not store]))
            self.do(self.model.settle(expired(hold)))
            self.quiet()
            if self.pick([False, True, True]):
                self.record(store, hold.id, self.pick(AMOUNTS), hold.scopes, hold.at_us, hold.model)
            self.expire_all()

    def set_budgets(self) -> None:
        self.budgets = self.pick(BUDGETS)
        for store in (*self.stores, self.model):
            assert self.do(store.set_budgets(self.budgets)) is None

    # ── what fails ──

    def process_ends(self) -> None:
        """In good order or not, with rows under way; another one takes its place, or the rest adopt its journal."""
        if not self.fails or self.away:
            return
        if self.together and len(self.stores) < 3 and self.pick([False, True]):
            self.open(0)
            return
        store = self.any()
        if self.pick([False, True]):
            self.record(store, self.new(), DIME, self.pick(WHO), self.clock.us)
        number = 0 if self.together else int(self.homes[store._journal.id].name)
        self.leave(store, self.pick([self.crash, self.close]))
        if not self.stores or not self.together or self.pick([False, True]):
            self.open(number)

    def redis_fails(self) -> None:
        if not self.fails or self.away:
            return
        self.quiet()
        how = self.pick(weighted(FAILURES))
        if how == "copy":
            self.copy, self.copied = copy_of(self.raw), holds_in(self.raw)
            return
        if how == "stop":
            self.server.stop()
            self.away = True
        elif how == "restart":
            self.server.restart()
        elif how == "put back" and self.copy is not None and not self._ghosts():
            put_back(self.raw, self.copy)
            self._forgotten(self.copied)
        elif how.startswith("emp"):
            self.raw.flushall()
            self._forgotten(set())
        if how not in ("stop", "restart", "emptied quietly"):
            self.raw.client_kill_filter(_type="normal", skipme=True)
        self.clock.s += 2 * BEAT_MS / 1000
        for store in self.stores:
            self._touch(store)

    def _touch(self, store: RedisStore) -> None:
        """A lost connection is found out when it is used."""
        with suppress(StoreUnavailable):
            store._shared.link.run(Ask(("GET", store._shared.keys.epoch)))

    def _forgotten(self, known: set[str]) -> None:
        """Redis alone knew of the holds of the dead."""
        for hold in self.of_model("live"):
            if self.owner[hold.id] not in self.stores and hold.id not in known:
                self.do(self.model.void(hold.id))
                self.voided.add(hold.id)

    def _ghosts(self) -> bool:
        """Whether a hold would come back that a process gave up of which nobody knows any more."""
        return any(id in self.copied and self.owner[id] not in self.stores for id in self.voided)

    def come_back(self) -> None:
        if self.away:
            self.server.start()
            self.away = False

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
