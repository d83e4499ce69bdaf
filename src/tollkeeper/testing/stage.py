"""The parts of a simulated run: what a call saw, its client, and the ledger, each as its script says, in virtual time.

What clients and the provider really saw stands in `Story`, beside the gateway and unknown to it: that is what `judge`
compares with the ledger. The provider is in `scripted_provider`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from random import Random
from typing import Any, Final, TypeVar

from tollkeeper.book import Live
from tollkeeper.errors import StoreUnavailable
from tollkeeper.flow import Limits
from tollkeeper.health import Health, Pass
from tollkeeper.latency import LEAST, Latencies
from tollkeeper.ledger import expired
from tollkeeper.stores import Booked
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.faults import Piece
from tollkeeper.testing.replies import Reply
from tollkeeper.testing.script import Ledger, Planned, Provided
from tollkeeper.values import Budget, Entry, Grant, Hold, Place, Route

T = TypeVar("T")
END_MARKERS: Final = (
    b"data: [DONE]",
    b'"type":"message_stop"',
    b'{"type":"response.completed"',
    b'{"type":"response.incomplete"',
    b"}\n]\n",
)
Tell = Callable[[int, str], None]


class Tried:
    """What became of one attempt, as its provider saw it and the ledger was asked for it."""

    def __init__(self, number: int, provided: Provided, id: str = "") -> None:
        self.number = number  #: within its call, from 1
        self.provided = provided
        self.id = id  #: of its hold; empty: none was asked for
        self.asked_s = 0.0  #: when
        self.granted = False
        self.forced = False  #: its place was shut, and so was every other
        self.after_left = False  #: the client had gone when it began
        self.after_start = False  #: the reply had begun
        self.after_answer = False  #: the attempt that it was made beside had its answer
        self.others = 0  #: attempts of the call that were under way when it began
        self.beside: Tried | None = None  #: the other one, where two were under way at once
        self.lost = False  #: it was cut for the other one, as the ledger has it
        self.route: Route | None = None
        self.target = ""
        self.down = False  #: its provider failed for all
        self.opened_s: float | None = None  #: the gateway began to connect
        self.closed_s: float | None = None
        self.seen = False  #: the provider has the request
        self.refused = False  #: there was no connection
        self.answered = False  #: the gateway has its status
        self.got: dict[str, Any] = {}  #: the request as the provider got it
        self.reply: Reply | None = None  #: what a good provider answers to what it got
        self.pieces: list[Piece] = []  #: what this one answers
        self.delivered = bytearray()  #: of it, to the gateway
        self.eof = False
        self.left_at: int | None = None  #: bytes that the provider had delivered when the client left
        self.died = False  #: its process went down with it, or owed its booking

    @property
    def is_hedge(self) -> bool:
        """It was made while another was under way."""
        return self.beside is not None and self.beside.number < self.number

    @property
    def where(self) -> str:
        """Its provider's name and its credential's."""
        route = self.route
        if route is None:
            return "nobody"
        return route.provider.name + ("" if route.credential is None else f"/{route.credential.name}")


class Story:
    """What became of one call, as its client saw it, and of its attempts."""

    def __init__(self, planned: Planned, limits: Limits | None = None, hedge_s: float | None = None) -> None:
        self.planned = planned
        self.hedge_s = hedge_s
        self.limits = Limits() if limits is None else limits
        self.id = ""
        self.tries: list[Tried] = []
        self.status: int | None = None  #: what the client got
        self.started_s = 0.0  #: when
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.ended = False
        self.left = False
        self.returned = False  #: the line came back, or was cancelled
        self.cancelled = False
        self.died = False  #: its process went down with it

    def begin(self, id: str, asked_s: float) -> Tried:
        """A further attempt."""
        plan, number = self.planned.provided, len(self.tries) + 1
        tried = Tried(number, plan[min(number, len(plan)) - 1], id)
        tried.asked_s, tried.after_left, tried.after_start = asked_s, self.left, self.status is not None
        if self.left:
            tried.left_at = 0
        under_way = [other for other in self.opened if other.closed_s is None]
        tried.others = len(under_way)
        for other in under_way[-1:]:
            tried.beside, other.beside, tried.after_answer = other, tried, other.answered
        self.tries.append(tried)
        return tried

    def die(self, tries: Iterable[Tried]) -> None:
        """Its process went down with these attempts, or owed them."""
        self.died = True
        for tried in tries:
            tried.died = True

    def opening(self) -> Tried:
        """The attempt that now goes out: the latest one, or one that the ledger was never asked for."""
        if self.tries and self.tries[-1].route is None:
            return self.tries[-1]
        return self.begin("", asyncio.get_running_loop().time())

    @property
    def opened(self) -> list[Tried]:
        """The attempts that went out."""
        return [tried for tried in self.tries if tried.opened_s is not None]

    @property
    def latest(self) -> list[Tried]:
        """The latest attempt, and the one that was under way beside it."""
        return [tried for tried in self.tries if tried is self.tries[-1] or tried.beside is self.tries[-1]]

    @property
    def seen(self) -> bool:
        """A provider has a request of it."""
        return any(tried.seen for tried in self.tries)


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """Implements `flow.Reply`. `at_end(story)` is called when the client sees the end of a good reply."""

    def __init__(self, story: Story, tell: Tell, at_end: Callable[[Story], None]) -> None:
        self._story, self._tell, self._at_end = story, tell, at_end
        self._on_left: Callable[[], None] | None = None
        self._goes = asyncio.Event()
        self._pieces = 0
        self._told_end = False
        self.left = False

    def leave(self) -> None:
        """Close the connection."""
        if self.left or self._story.ended:
            return
        self._tell(self._story.planned.number, "the client leaves")
        self.left = self._story.left = True
        for tried in self._story.latest:
            tried.left_at = len(tried.delivered)
        self._goes.set()
        if self._on_left is not None:
            self._on_left()

    def on_left(self, callback: Callable[[], None]) -> None:
        self._on_left = callback
        if self.left:
            asyncio.get_running_loop().call_soon(callback)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        story = self._story
        assert story.status is None, "two starts"
        story.status, story.headers, story.started_s = status, dict(headers), asyncio.get_running_loop().time()
        self._tell(story.planned.number, f"the reply starts: {status}")

    async def send(self, data: bytes) -> None:
        await self._take(data)

    async def end(self, data: bytes = b"") -> None:
        story = self._story
        assert story.status is not None, "an end without a start"
        assert not story.ended, "two ends"
        await self._take(data)
        if not self.left:
            story.ended = True
            self._tell(story.planned.number, f"the reply ends with {bytes(story.body[-60:])!r}")
            if story.status < 300:
                self._see_end()

    async def _take(self, data: bytes) -> None:
        manners, story = self._story.planned.client, self._story
        assert story.status is not None, "a body without a start"
        if manners.manner == "stops" and self._pieces == manners.stops_at:
            await self._goes.wait()
        elif manners.slow_s and not self.left:
            await asyncio.sleep(manners.slow_s)
        self._pieces += 1
        if self.left:
            return
        story.body += data
        if any(marker in story.body[-len(data) - 30 :] for marker in END_MARKERS):
            self._see_end()

    def _see_end(self) -> None:
        if not self._told_end:
            self._told_end = True
            self._at_end(self._story)


STORY: ContextVar[Story] = ContextVar("STORY")
"""Whose line it is."""


def measured(places: Iterable[Place], usual_s: float | None) -> Latencies | None:
    """Of places that have always taken so long; None: nobody knows."""
    if usual_s is None:
        return None
    latencies = Latencies()
    for place in places:
        for stream in (False, True):
            for _ in range(LEAST):
                latencies.add(place, stream, usual_s)
    return latencies


# ── the breakers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class WatchedHealth(Health):
    """The breakers; `at_force(place)` is called when one is passed over."""

    at_force: Callable[[Place], None]

    def force(self, place: Place) -> Pass:
        self.at_force(place)
        return super().force(place)


# ── the ledger ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class TroubledStore(MemoryStore):
    """A ledger whose writes queue, come late, fail, or succeed unheard. What is in it is right: it is the model.

    `down` while its process is dead: what was queued is lost, and nobody is answered.
    """

    def __init__(self, budgets: Iterable[Budget], troubles: Ledger, rng: Random, tell: Callable[[str], None]) -> None:
        super().__init__(budgets)
        self._troubles, self._rng, self._tell = troubles, rng, tell
        self._busy_until_s = 0.0
        self.failures: Counter[str] = Counter()  #: by what was asked
        self.down = False
        self.at_ask: Callable[[Hold], None] = lambda hold: None
        self.at_grant: Callable[[Hold], None] = lambda hold: None
        self.at_void: Callable[[str], None] = lambda hold_id: None
        self.at_booking: Callable[[str], None] = lambda hold_id: None

    async def reserve(self, hold: Hold) -> Grant:
        def apply() -> Grant:
            grant = _now(MemoryStore.reserve(self, hold))
            self.at_grant(hold)
            return grant

        self.at_ask(hold)
        return await self._ask(f"reserve {hold.id}", apply)

    async def void(self, hold_id: str) -> None:
        def apply() -> None:
            self.at_void(hold_id)
            _now(MemoryStore.void(self, hold_id))

        self.at_booking(hold_id)
        await self._ask(f"void {hold_id}", apply)

    async def settle(self, entry: Entry) -> Booked:
        self.at_booking(entry.id)
        return await self._ask(f"settle {entry.id}", lambda: _now(MemoryStore.settle(self, entry)))

    async def expire(self, now_us: int) -> int:
        due = self._book.due(now_us)

        def apply() -> int:
            for hold in due:
                _now(MemoryStore.settle(self, expired(hold)))
            return len(due)

        return await self._ask("expire", apply) if due else 0

    def booked(self) -> list[Entry]:
        """Every entry, in the order of booking."""
        return list(self._entries)

    def holds(self) -> list[Live]:
        """Holds that stand."""
        return list(self._book.live.values())

    def recover(self) -> None:
        """From now on every write works at once."""
        self._troubles = Ledger()
        self.down = False

    async def _ask(self, what: str, apply: Callable[[], T]) -> T:
        """Queue a write; they are made in order, whoever still waits for them."""
        loop, troubles, rng = asyncio.get_running_loop(), self._troubles, self._rng
        if self.down:
            raise StoreUnavailable("the process is dead")
        told: asyncio.Future[T] = loop.create_future()
        fate, late_s = rng.random(), rng.uniform(0, troubles.latency_s)
        self._busy_until_s = max(loop.time(), self._busy_until_s) + rng.uniform(0, troubles.latency_s) + 1e-6

        def make() -> None:
            if self.down:
                return
            out = any(begin <= loop.time() < end for begin, end in troubles.outages_s)
            if out or fate < troubles.refused:
                self._answer(told, what, StoreUnavailable("the disk does not answer"))
                return
            try:
                result = apply()
            except Exception as error:
                self._answer(told, what, error)
                return
            self._tell(f"ledger: {what} is made")
            if fate > 1 - troubles.unheard:
                self._answer(told, what, StoreUnavailable("the answer was lost"))
            else:
                loop.call_later(late_s, lambda: None if told.done() else told.set_result(result))

        loop.call_at(self._busy_until_s, make)
        return await told

    def _answer(self, told: asyncio.Future[Any], what: str, error: Exception) -> None:
        self.failures[what] += 1
        self._tell(f"ledger: {what} fails: {error}")
        if not told.done():
            told.set_exception(error)


def _now(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the model waits for nothing")
