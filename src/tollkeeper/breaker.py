"""A circuit breaker: whether a place that calls go to may be tried now. Pure but for a short lock: time is passed in.

    phase      who may go        event → phase
    closed     all               tripped, blocked → open
    open       nobody            over → half_open    blocked → open, for as long as the later one says
    half_open  one, the probe    passed → closed     failed, blocked → open

It trips after so many failures in a row, or when too many calls of the window failed or were slow. `over` happens by itself,
when somebody asks and the time is over: there is no timer.

Who is let in owns a permit with the breaker's generation, which grows at each event. A permit of another generation is late:
it changes nothing, so that a call from before an outage neither ends it nor begins the next one.

The probe has its place until it reports, and for `probe_s` at most: then another may go. What the first one says later still
counts while the breaker is half-open, since it went out after the open time: or a place whose every reply takes longer than
`probe_s` would never close. A permit speaks once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final, Literal, NamedTuple

import msgspec

Phase = Literal["closed", "open", "half_open"]
Event = Literal["tripped", "blocked", "over", "passed", "failed"]
Outcome = Literal["ok", "fail", "ignore"]
#: (phase, event) → phase; nothing else can happen.
BREAKER_LIFE: Final[dict[tuple[Phase, Event], Phase]] = {
    ("closed", "tripped"): "open",
    ("closed", "blocked"): "open",
    ("open", "over"): "half_open",
    ("open", "blocked"): "open",
    ("half_open", "passed"): "closed",
    ("half_open", "failed"): "open",
    ("half_open", "blocked"): "open",
}
#: Parts of the window: it forgets one at a time.
BUCKETS: Final = 10
#: The generation of a permit that has spoken, or never had a say.
LATE: Final = -1


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker trips, and for how long. Seconds; ratios from 0 to 1."""

    failures: int = 3  #: in a row that open it
    ratio: float = 0.5  #: or this share of the window's calls, of `minimum` or more
    minimum: int = 10
    window_s: float = 30
    slow_s: float | None = 60  #: to the first byte: such a call is slow; None: none is
    slow_ratio: float = 0.8  #: this share of slow calls opens it too, of `minimum` or more
    open_s: float = 30  #: doubled each time that a probe fails, up to `open_max_s`; as before once it is closed
    open_max_s: float = 300
    probe_s: float = 60  #: a probe that has said nothing by then has lost its place


class Permit:
    """Leave to make one call; `report` takes it back. `probe`: the only one while half-open."""

    __slots__ = ("generation", "probe")

    def __init__(self, generation: int, probe: bool = False) -> None:
        self.generation, self.probe = generation, probe


class Counts(NamedTuple):
    """Of the window: calls that ended ok or failed, and how many of them failed, or were slow."""

    calls: int
    failures: int
    slow: int


class Turn(NamedTuple):
    """A change of phase. `until_s`: of the open time, 0 unless it opens."""

    before: Phase
    after: Phase
    until_s: float
    reason: str


class Breaker:
    """Of one place. `told` hears of each change of phase once, outside of the lock, in the thread that caused it.

    `now_s` is of a clock that never goes back; a little disorder between threads does no harm.
    """

    __slots__ = (
        "_bucket_s", "_calls", "_failures", "_generation", "_in_a_row", "_lock", "_next_s", "_open_s", "_phase", "_probe",
        "_probe_until_s", "_slow", "_sums", "_tick", "_told", "_until_s", "bounds", "last_error",
    )  # fmt: skip

    def __init__(self, bounds: Bounds, told: Callable[[Turn], None] = lambda _: None) -> None:
        self.bounds = bounds
        self.last_error = ""  #: the text of the last failure or block
        self._told = told
        self._lock = Lock()
        self._phase: Phase = "closed"
        self._generation = 0
        self._until_s = 0.0
        self._open_s = bounds.open_s  # how long it opens next
        self._probe: Permit | None = None
        self._probe_until_s = 0.0
        self._in_a_row = 0
        self._bucket_s = bounds.window_s / BUCKETS
        self._tick = 0  # the newest bucket's number since time began
        self._next_s = self._bucket_s  # when the next one begins
        self._forget()

    # ── for calls ──

    def admit(self, now_s: float) -> Permit | None:
        """Leave to make a call now, or None."""
        with self._lock:
            if self._phase == "closed":
                return Permit(self._generation)
            turn = self._look(now_s)
            permit = None
            if self._has_room(now_s):
                permit = self._probe = Permit(self._generation, probe=True)
                self._probe_until_s = now_s + self.bounds.probe_s
        if turn is not None:
            self._told(turn)
        return permit

    def allows(self, now_s: float) -> bool:
        """What `admit` would say; nothing is taken."""
        seen = self._phase  # one read needs no lock
        if seen == "closed":
            return True
        with self._lock:
            turn = self._look(now_s)
            room = self._phase == "closed" or self._has_room(now_s)
        if turn is not None:
            self._told(turn)
        return room

    def report(self, permit: Permit, outcome: Outcome, now_s: float, *, slow: bool = False, reason: str = "") -> None:
        """How a call went. `ignore`: it says nothing about the place, and a probe's place is free at once."""
        turn = None
        with self._lock:
            generation, permit.generation = permit.generation, LATE
            if generation != self._generation:
                return
            if self._phase == "half_open":
                turn = self._probed(permit, outcome, now_s, reason)
            elif outcome != "ignore":
                turn = self._count(outcome == "fail", slow, now_s, reason)
        if turn is not None:
            self._told(turn)

    def block(self, until_s: float, now_s: float, reason: str = "") -> None:
        """The place itself says that it serves nobody until then: open until the later of this and what holds already.

        No failure is counted. An instant that is past changes nothing.
        """
        with self._lock:
            if not until_s > now_s:
                return
            self.last_error = reason
            turn = self._move("blocked", reason, max(self._until_s, until_s))
        if turn.before != turn.after:
            self._told(turn)

    # ── for who looks ──

    def phase(self, now_s: float) -> Phase:
        """Where it stands; an open time that is over ends by this."""
        self.allows(now_s)
        return self._phase

    @property
    def open_until_s(self) -> float:
        """When the open time ends; 0 unless it is open."""
        with self._lock:
            return self._until_s if self._phase == "open" else 0.0

    def counts(self, now_s: float) -> Counts:
        """Of the window now; while it is not closed nothing is added."""
        with self._lock:
            self._advance(now_s)
            return Counts(*self._sums)

    # ── under the lock ──

    def _move(self, event: Event, reason: str, until_s: float = 0.0) -> Turn:
        before = self._phase
        self._phase = BREAKER_LIFE[before, event]
        self._generation += 1
        self._until_s = until_s
        self._probe = None
        return Turn(before, self._phase, until_s, reason)

    def _look(self, now_s: float) -> Turn | None:
        if self._phase == "open" and now_s >= self._until_s:
            return self._move("over", "the open time is over")
        return None

    def _has_room(self, now_s: float) -> bool:
        """Whether a probe may go."""
        return self._phase == "half_open" and (self._probe is None or now_s >= self._probe_until_s)

    def _probed(self, probe: Permit, outcome: Outcome, now_s: float, reason: str) -> Turn | None:
        if outcome == "ignore":
            if probe is self._probe:  # else another has its place by now
                self._probe = None
            return None
        if outcome == "ok":
            self._open_s = self.bounds.open_s
            self._in_a_row = 0
            self._forget()
            return self._move("passed", "the probe went well")
        self.last_error = reason
        self._open_s = min(2 * self._open_s, self.bounds.open_max_s)
        return self._move("failed", _said("the probe failed", reason), now_s + self._open_s)

    def _count(self, failed: bool, slow: bool, now_s: float, reason: str) -> Turn | None:
        """A call that went well and was not slow never trips it."""
        if now_s >= self._next_s:
            self._advance(now_s)
        slot, sums, bounds = self._tick % BUCKETS, self._sums, self.bounds
        self._calls[slot] += 1
        sums[0] += 1
        why = ""
        if failed:
            self.last_error = reason
            self._failures[slot] += 1
            sums[1] += 1
            self._in_a_row += 1
            if self._in_a_row >= bounds.failures:
                why = f"{self._in_a_row} failures in a row"
            elif sums[0] >= bounds.minimum and sums[1] / sums[0] >= bounds.ratio:
                why = f"{sums[1]} of {sums[0]} calls failed"
        else:
            self._in_a_row = 0
        if slow:
            self._slow[slot] += 1
            sums[2] += 1
            if not why and sums[0] >= bounds.minimum and sums[2] / sums[0] >= bounds.slow_ratio:
                why = f"{sums[2]} of {sums[0]} calls were slow"
        return self._move("tripped", _said(why, reason), now_s + self._open_s) if why else None

    def _advance(self, now_s: float) -> None:
        """Buckets that lie behind are emptied; an instant from before the newest one changes nothing."""
        tick = int(now_s // self._bucket_s)
        for each in range(max(self._tick, tick - BUCKETS) + 1, tick + 1):
            slot = each % BUCKETS
            for number, buckets in enumerate((self._calls, self._failures, self._slow)):
                self._sums[number] -= buckets[slot]
                buckets[slot] = 0
        self._tick = max(self._tick, tick)
        self._next_s = (self._tick + 1) * self._bucket_s

    def _forget(self) -> None:
        self._calls, self._failures, self._slow = [0] * BUCKETS, [0] * BUCKETS, [0] * BUCKETS
        self._sums = [0, 0, 0]


def _said(why: str, reason: str) -> str:
    return f"{why}: {reason}" if reason else why
