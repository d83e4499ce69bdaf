"""Everything that may happen to Redis stores, told to the model as well.

`step` does one thing, chosen by `pick`: by Hypothesis's or by a seed's random choice; then everything is compared.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from msgspec import structs
from tests.redis_hosts import AMOUNTS, BUDGETS, FAR_US, PASSED, WHO, Amount, Hosts, same
from tests.redis_state import copy_of, holds_in, problems, put_back

from tollkeeper.book import refusal_of
from tollkeeper.errors import Conflict, StoreUnavailable, TollkeeperError
from tollkeeper.ledger import CELL_SCOPES, PERIODS, expired
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.flush import BEAT_MS
from tollkeeper.stores.redis.store import GRACE_MS, RedisStore
from tollkeeper.testing.samples import AT_US, DIME, HOUR_US, SECOND_US, a_hold, an_entry
from tollkeeper.values import Entry, Hold, Scopes, Usage

#: How often each thing is done, of 100 or so.
WEIGHTS: Final = {
    "reserve": 20, "reserve_at_the_limit": 12, "reserve_again": 4, "settle": 18, "record_without_a_hold": 6, "settle_again": 6,
    "correct": 8, "void": 6, "time_passes": 6, "another_expires_it": 4, "set_budgets": 4, "process_ends": 4, "redis_fails": 6,
}  # fmt: skip
FAILURES: Final = {"cut": 4, "empty": 3, "emptied quietly": 2, "copy": 5, "put back": 5, "restart": 1, "stop": 1}


def weighted(weights: dict[str, int]) -> list[str]:
    return [name for name, weight in weights.items() for _ in range(weight)]


class Many(Hosts):
    """Does the same to the stores of several processes and to the model."""

    def step(self) -> None:
        """One thing is done; then everything agrees."""
        what = "come_back" if self.away and self.pick(range(4)) == 0 else self.pick(weighted(WEIGHTS))
        getattr(self, what)()
        self.agree()

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
        if any(self.owner[hold.id] not in self.stores for hold in self.of_model("live")):
            return  # nobody tells holds of the dead of new budgets
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
