"""The shared ledger: a journal here, and Redis for everyone.

An entry is safe in this process's journal before it is acknowledged; `flush` brings it to Redis within moments, once.
Reservations are made in Redis (`holds`); those that no budget covers are an intent in the journal. While Redis is away
entries go on into the journal, and hard budgets refuse or admit what they declare.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Final

from msgspec import structs

from tollkeeper.errors import Conflict, StoreUnavailable
from tollkeeper.ledger import correcting, expired
from tollkeeper.stores import Booked, Condition, Corrected, Difference, Retention, SharedOptions, horizons
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.batch import Row, parted, window_at
from tollkeeper.stores.redis.check import Watch
from tollkeeper.stores.redis.flush import Flusher
from tollkeeper.stores.redis.holds import Holds
from tollkeeper.stores.redis.keys import DAY_US, FOREVER_S, GLOBAL, digest_of, tag_of
from tollkeeper.stores.redis.leases import Leases
from tollkeeper.stores.redis.legs import checked
from tollkeeper.stores.redis.link import State
from tollkeeper.stores.redis.open import Advice
from tollkeeper.stores.redis.reader import RedisReader, shared_of
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes, Standing

log = logging.getLogger("tollkeeper")

#: Milliseconds past its deadline after which a hold is any gateway's to book: its own books it at the deadline.
GRACE_MS: Final = 5000
#: Milliseconds from the start for which calls wait for Redis.
BEGIN_MS: Final = 2000
#: Milliseconds between two looks for the holds of dead gateways, by whichever gateway comes first.
SWEEP_MS: Final = 2000
_since: Final = Script("since")


class RedisStore(RedisReader):
    """A ledger that many processes share. May be used from several threads, each with its own event loop."""

    def __init__(
        self,
        servers: Servers,
        options: SharedOptions,
        budgets: Iterable[Budget] | None = (),
        *,
        scope_cap: int = 10_000,
    ) -> None:
        super().__init__(shared_of(servers, options, self._changed, scope_cap))
        budgets = checked(budgets or ())  # before anything is started
        self._begin_until_ms = self._shared.ticks_ms() + BEGIN_MS
        self.advice = Advice(self._shared)  #: what gateways tell each other of providers
        self._since_us = self._shared.now_us()
        self._reached, self._failure = 0, ""
        watch = Watch(servers)
        # The last row that was above its hold, or had none: no balance knows of it until it is applied.
        self._uncovered = 0
        self._journal = Journal.adopt(options.journal, on_booked=self._booked)
        self._leases = Leases(
            self._shared, self._journal.id, epoch=lambda: self._flusher.epoch, wanted=lambda: self._flusher.want()
        )
        self._flusher = Flusher(self._shared, self._journal, self._leases, folder=options.journal)
        self._holds = Holds(
            self._shared, self._journal, self._leases, epoch=lambda: self._flusher.epoch, applied=self._flusher.applied,
            flushed=self._flusher.flushed, look=lambda hard: watch.look(self._shared.link.runs, hard=hard),
        )  # fmt: skip
        self._holds.take(budgets)
        self._flusher.start(self._holds)
        self._shared.link.start()

    @property
    def state(self) -> State:
        """Of the link to Redis."""
        return self._shared.link.state

    @property
    def trouble(self) -> str | None:
        """Why calls are refused just now; None: they are not, or only those of hard budgets while Redis is away."""
        if self._journal.trouble is not None:
            return self._journal.trouble
        return None if self._flusher.begun else f"store: Redis is not there yet ({self._shared.link.reason})"

    @property
    def condition(self) -> Condition:
        link, flusher = self._shared.link, self._flusher
        self._reached = max(self._reached, flusher.done)
        return Condition(
            state=link.state, since_us=self._since_us,
            reason=(self._failure if link.state == "ready" else link.reason) or None,
            waiting=max(0, self._journal.last - self._reached) if flusher.begun else None,
            peers=len(flusher.peers.keys() - {self._journal.id}),
        )  # fmt: skip

    def _changed(self, state: State, reason: str) -> None:
        """One line for each change."""
        self._reached = max(self._reached, self._flusher.done)
        self._since_us, self._failure = self._shared.now_us(), reason or self._failure
        if state == "away":
            log.error("store: Redis is away (%s); entries wait in the journal, hard budgets go by when_away", reason)
        elif state == "recovering":
            log.warning(
                "store: Redis is checked against the journal before anything is admitted%s", reason and f" ({reason})"
            )
        elif state == "ready":
            log.info("store: Redis is ready")
        self._flusher.wake()

    # ── the contract ──

    async def reserve(self, hold: Hold) -> Grant:
        if not self._flusher.begun:
            await self._begun()
            if not self._flusher.begun:
                raise StoreUnavailable(str(self.trouble))
        if self._uncovered > self._flusher.done and self.state == "ready":
            await self._current()
        return await self._holds.reserve(hold)

    async def void(self, hold_id: str) -> None:
        await self._holds.void(hold_id)

    async def settle(self, entry: Entry) -> Booked:
        ends = self._holds.ends(entry)
        if not ends:
            await self._begun()
        if not ends and self.state == "ready" and await self._booked_elsewhere(entry):
            return "repeated"
        booked = await self._journal.settle(entry)
        if booked == "repeated" and ends:
            await self._holds.void(entry.id)
        return booked

    async def _booked_elsewhere(self, entry: Entry) -> bool:
        """Whether a process of this ledger has booked the same before; two at once are found out when they are applied.

        Raises Conflict where it was booked with other contents.
        """
        shared, tag = self._shared, tag_of(entry.scopes.project)
        days = [shared.keys.ids(tag, day_us) for day_us in shared.deadlines.days(shared.now_us())]
        try:
            found = await shared.link.asks([Ask(("HGET", day, f"0={entry.id}")) for day in days])
        except StoreUnavailable:  # recording goes on; it is found out when it is applied
            return False
        _, stands = parted(next((each.decode() for each in found if each is not None), ""))
        if entry.outcome == "expired" or not stands or stands.startswith("{"):
            return bool(stands) and entry.outcome == "expired"
        if stands != digest_of(entry):
            raise Conflict(f"entry {entry.id!r} was booked with other contents; use a new id")
        return True

    async def correct(self, entry: Entry) -> Corrected:
        try:
            return await self._correct(entry)
        except Conflict:  # perhaps with another caller's of this process, which can be read by now
            return await self._correct(entry)

    async def _correct(self, entry: Entry) -> Corrected:
        await self._current()
        project, id = entry.scopes.project, entry.id
        revisions = (await asyncio.to_thread(self._finder.revisions, project, [id])).get(id, [])
        added = correcting(revisions, entry)
        if not added:
            return "repeated"
        own = await self._journal.entry(project, id)
        stands = revisions[-1]
        if own is not None and (
            own.revision > stands.revision or structs.replace(own, other=stands.other) == stands
        ):  # the journal puts callers of one id in a row
            return await self._journal.correct(entry)
        await self._journal.add(added)
        return "corrected"

    def _booked(self, rows: list[Row]) -> None:
        for seq, entry in rows:
            if not self._holds.settled(seq, entry):
                self._uncovered = seq
        self._flusher.push(rows)

    async def expire(self, now_us: int) -> int:
        due = self._holds.due(now_us)
        dead, apart = list[Hold](), list[Hold]()
        if self.state == "ready":
            with contextlib.suppress(StoreUnavailable):  # it has been said; whoever looks next finds them
                dead, apart = await asyncio.to_thread(self._dead, now_us)
        booked = await asyncio.gather(*(self.settle(expired(hold)) for hold in (*due, *dead)))
        left = [hold for hold, told in zip(dead, booked[len(due) :], strict=True) if told == "repeated"]
        for hold in (*left, *apart):
            await self._holds.let_go(hold)
        return len(due) + len(dead)

    def _dead(self, now_us: int) -> tuple[list[Hold], list[Hold]]:
        """Holds of gateways that have died, if it is this one's turn to look."""
        shared = self._shared
        (mine,) = shared.link.run(Ask(("SET", shared.keys.sweeper, self._journal.id, "NX", "PX", SWEEP_MS)))
        if mine is None:
            return [], []
        return self._holds.stand.dead(self._shared.projects(), now_us - GRACE_MS * 1000)

    async def verify(self) -> list[Difference]:
        await self._do(lambda: self._holds.keep(self._shared.projects()))
        return await super().verify()

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        await self._current()
        return await self._holds.standings(scopes, model, at_us)

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        self._holds.take(budgets)
        await self._holds.cover()

    async def live(self) -> list[Hold]:
        intents = await self._journal.live()
        shared = await self._do(lambda: self._holds.stand.live(self._shared.projects()))
        return list({hold.id: hold for hold in (*intents, *shared)}.values())

    async def claim(self, what: str, now_us: int, for_us: int) -> bool:
        await self._begun()
        key = self._shared.keys.once(what)
        mine = await self._shared.link.ask(Ask(("SET", key, self._journal.id, "NX", "PX", max(1, for_us // 1000))))
        return mine is not None

    async def done(self, what: str, until_us: int) -> None:
        shared = self._shared
        await shared.link.ask(Ask(("SET", shared.keys.once(what), "done", "EXAT", shared.deadlines.once(until_us))))

    async def prune(self, now_us: int, retention: Retention) -> int:
        await self._current()
        await self._journal.prune(now_us, retention, self._flusher.applied_upto())
        return await asyncio.to_thread(self._prune, horizons(now_us, retention))

    def _prune(self, before: dict[str, int]) -> int:
        """Drop what has outlived its retention, without waiting for its deadline; how many keys, for a list how many blocks."""
        shared, dropped = self._shared, 0
        tags = shared.projects()
        self._holds.keep(tags)  # a balance begins with what entries say that go now
        forgotten_us = min(shared.deadlines.days(shared.now_us())) - DAY_US
        for tag, project in (tags | {GLOBAL: ""}).items():
            shared.link.run(Ask(("UNLINK", shared.keys.ids(tag, forgotten_us))))
            names = [each.decode() for each in self._dated(tag)]
            gone = [name for name in names if _is_over(name, before) or self._is_past(tag, project, name)]
            for name in gone:
                key = shared.keys.of(tag, name)
                if name.startswith("entries:"):
                    dropped += shared.link.run(Ask(("LLEN", key)))[0] - 1
                shared.link.run(Ask(("UNLINK", key)), Ask(("ZREM", shared.keys.index(tag), name)))
            dropped += len(gone)
        marks = [each for mark in before.items() for each in mark]
        shared.link.run(_since([shared.keys.since], [FOREVER_S, *marks]))
        return dropped

    def _is_past(self, tag: str, project: str, name: str) -> bool:
        """Whether it is a balance that Redis has dropped, or is about to."""
        if not name.startswith("balance:"):
            return False
        keys, deadlines = self._shared.keys, self._shared.deadlines
        shape, _, _, start_us = keys.balance_key(keys.of(tag, name), project)
        _, end_us = window_at(shape.window, shape.timezone, start_us)
        return deadlines.balance(end_us) < self._shared.now_us() // 10**6

    async def close(self) -> None:
        await asyncio.to_thread(self._flusher.close)
        await self._journal.close()
        await super().close()

    async def _begun(self) -> None:
        """Give Redis a moment at the start, before the first calls fail or go on without it."""
        left_ms = 0 if self._flusher.begun else self._begin_until_ms - self._shared.ticks_ms()
        if left_ms > 0:
            await asyncio.to_thread(self._shared.link.wait, lambda state: state == "ready", left_ms)

    async def _current(self) -> None:
        """Wait until everything booked here before can be read in Redis. Raises StoreUnavailable."""
        await self._begun()
        await asyncio.wrap_future(self._flusher.flushed())


def _is_over(name: str, before: dict[str, int]) -> bool:
    """Whether a dated key's period began before its kind's horizon: cells:day:agent:1700000000000000, entries:1700…"""
    what, *rest = name.split(":")
    kind = "entry" if what == "entries" else rest[0] if what in ("cells", "others") else ""
    return int(rest[-1]) < before.get(kind, 0)
