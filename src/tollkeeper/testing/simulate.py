"""The whole line in virtual time, against a provider, clients and a ledger that misbehave by a seed.

    python -m tollkeeper.testing.simulate --seed 4711 --trace      the story of one seed
    python -m tollkeeper.testing.simulate --seeds 0:100000         many, until one fails

Real: the line, its dialects, meter, keys, routing, prices, the rules of the ledger, the chores. Scripted: everything that
the gateway does not control (`script`, `stage`). What must hold is in `judge`; the same seed is the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tollkeeper import chores, flow
from tollkeeper.dialects import DIALECTS
from tollkeeper.health import Change
from tollkeeper.keys import KeyRing
from tollkeeper.retry import RetryBudget
from tollkeeper.testing import judge, judge_places
from tollkeeper.testing.script import RETRY_RATIO, Planned, Script, draw
from tollkeeper.testing.scripted_provider import CALL, ScriptedUpstream, table_of
from tollkeeper.testing.stage import STORY, Client, Story, Tried, TroubledStore, WatchedHealth, measured
from tollkeeper.testing.virtual_loop import Stuck, VirtualClock, VirtualLoop
from tollkeeper.values import Entry, Hold, Place

#: Virtual seconds in which every call must be over: no limit of `script` adds up to it.
HORIZON_S = 120.0
#: And in which every breaker must be back: the longest that a provider can ask for is an hour.
ALL_BACK_S = 3700.0


class Violation(AssertionError):
    """A seed shows that something does not hold."""


class Run:
    """One script, played once."""

    def __init__(self, script: Script, *, trace: bool = False) -> None:
        self.script = script
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.stories = {planned.number: Story(planned, script.limits, script.hedge_s) for planned in script.calls}
        self.lines: dict[int, asyncio.Task[None]] = {}
        self.clients: dict[int, Client] = {}
        self.over_s = 0.0  #: when the last line came back
        self.wrong: list[str] = []
        self._trace = trace
        self._calling: Story | None = None
        self._forced = False  #: a breaker was passed over, and its attempt begins
        self.changes: list[tuple[float, Change]] = []  #: of the breakers of this process
        self.table = table_of(script)
        self.store = TroubledStore(
            script.budgets, script.ledger, Random(f"{script.seed} ledger"), lambda text: self.tell(None, text)  # noqa: S311
        )  # fmt: skip
        self.store.at_ask = self._begin
        self.store.at_grant = self._check_limits
        self.store.at_void = self._check_void
        self.store.at_booking = self._disturb_booking
        self.gate = self._open_gate()

    def play(self) -> list[str]:
        """What does not hold, in words; empty: all does."""
        try:
            with _quiet():
                self.loop.play(self._main())
        except Stuck as error:
            self._note(None, str(error))
        self.wrong += self.loop.faults
        return self.wrong

    def cancel(self, number: int) -> None:
        """Cancel the line of a call, if it runs."""
        line = self.lines.get(number)
        if line is not None and not line.done():
            self.tell(number, "the line is cancelled")
            self.stories[number].cancelled = True
            line.cancel()

    def _disturb_booking(self, hold_id: str) -> None:
        for story in self.stories.values():
            after_s = story.planned.booking_cancelled_s
            if after_s is not None and story.id == hold_id.rpartition("/")[0]:
                self.loop.call_later(after_s, self.cancel, story.planned.number)

    def entries(self, number: int) -> list[Entry]:
        """What is booked for a call, in that order."""
        story = self.stories[number]
        return [entry for entry in self.store.booked() if story.id and entry.call == story.id]

    # ── the run ──

    async def _main(self) -> None:
        script = self.script
        first, second = self._split()
        chore = asyncio.create_task(self._chores())
        tasks = [asyncio.create_task(self._call(story)) for story in first]
        if script.stop_s is not None:
            self.loop.call_later(script.stop_s, self._stop, tasks)
        await _over(tasks, HORIZON_S if script.death_s is None else script.death_s)
        if script.death_s is not None:
            self.tell(None, "the process dies")
            await self._die([*tasks, chore])
            self.changes = []
            self.gate = self._open_gate()
            chore = asyncio.create_task(self._chores())
            tasks = [asyncio.create_task(self._call(story)) for story in second]
            await _over(tasks, HORIZON_S)
        for story, task in zip(first if script.death_s is None else second, tasks, strict=True):
            if not task.done():
                self._note(story, "is never over")
        await self._settle_down(chore)
        await self._judge()

    def _split(self) -> tuple[list[Story], list[Story]]:
        """The calls of the first process, and of the one after its death."""
        death_s = self.script.death_s
        early = [story for story in self.stories.values() if death_s is None or story.planned.start_s < death_s]
        return early, [story for story in self.stories.values() if story not in early]

    async def _call(self, story: Story) -> None:
        planned = story.planned
        await asyncio.sleep(max(0, planned.start_s - self.loop.time()))
        self.tell(planned.number, "the client asks")
        client = Client(story, self.tell, self._check_record)
        if planned.client.leaves_s is not None:
            self.loop.call_later(planned.client.leaves_s, client.leave)
        line = self.lines[planned.number] = asyncio.create_task(self._line(story, client), name=str(planned.number))
        self.clients[planned.number] = client
        for cancel_s in planned.cancels_s:
            if cancel_s < 0:
                self.cancel(planned.number)
            else:
                self.loop.call_later(cancel_s, self.cancel, planned.number)
        try:
            await line
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                story.cancelled = True
                line.cancel()
                await asyncio.wait([line])
        except Exception as error:
            self._note(story, f"the line raises {error!r}")
        story.returned, self.over_s = True, self.loop.time()
        self.tell(planned.number, "the line is over")
        if not self.store.down:
            self._check_hold(story)

    async def _line(self, story: Story, client: Client) -> None:
        planned, self._calling = story.planned, story
        STORY.set(story)
        headers = {
            CALL: b"%d" % planned.number,
            b"x-tollkeeper-project": planned.project.encode(),
            b"x-tollkeeper-session": planned.session.encode(),
        }
        await flow.run(
            self.gate, flow.Request(DIALECTS[planned.dialect], headers, planned.body, planned.target), client
        )

    def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        self.tell(None, "the gateway stops: every call is cancelled")
        for task in tasks:
            task.cancel()

    async def _die(self, tasks: list[asyncio.Task[None]]) -> None:
        """Nothing that a task still does has any effect."""
        self.store.down = True
        for story in self.stories.values():
            if story.id and not story.returned:
                story.die(story.latest)
        while left := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in sorted(left, key=lambda task: (len(task.get_name()), task.get_name())):
                task.cancel()  # in the order in which they began: a set has none
            await asyncio.wait(left)
        # What the first process owed died with it.
        for due in self.gate.owed:
            story = self._story(due)
            story.die(tried for tried in story.tries if tried.id == due.id)
        self.store.down = False

    async def _chores(self) -> None:
        await chores.every("expire", chores.EXPIRE_EVERY_S, lambda: chores.expire(self.gate))

    async def _settle_down(self, chore: asyncio.Task[None]) -> None:
        """The ledger recovers, time passes every deadline, and the chores are done once more."""
        if chore.done():
            self._note(None, "the chores have ended")
        self._check_breakers()
        chore.cancel()
        await asyncio.wait([chore])
        self.store.recover()
        await asyncio.sleep(self.script.limits.hold_ttl_s + 1)
        await chores.expire(self.gate)
        await asyncio.sleep(ALL_BACK_S)
        self._check_breakers(all_back=True)

    def _open_gate(self) -> flow.Gate:
        health = WatchedHealth(self.script.bounds, self.clock.monotonic_s, self._changed)
        health.at_force = self._check_force
        return flow.Gate(
            clock=self.clock, keys=KeyRing(()), table=self.table, prices=judge.prices(), store=self.store,
            upstream=ScriptedUpstream(self.stories, self.tell, self.script.downs), limits=self.script.limits,
            new_id=self._new_id, draw=Random(f"{self.script.seed} draw").random,  # noqa: S311
            health=health, retries=RetryBudget(RETRY_RATIO),
            latencies=measured((place for each in self.script.calls for place in self.places(each)), self.script.hedge_s),
        )  # fmt: skip

    def _begin(self, hold: Hold) -> None:
        """The line asks for a hold: an attempt begins."""
        tried = self._story(hold).begin(hold.id, self.loop.time())
        tried.forced, self._forced = self._forced, False

    def _story(self, due: Hold | Entry) -> Story:
        return next(story for story in self.stories.values() if story.id == due.call)

    def _changed(self, change: Change) -> None:
        self.changes.append((self.loop.time(), change))
        name = "/".join(filter(None, (change.provider, change.key, change.model)))
        self.tell(None, f"{change.level} {name}: {change.before} → {change.after} ({change.reason})")

    def places(self, planned: Planned) -> list[Place]:
        """Where a call can go."""
        return [route.place for route in self.table.candidates(planned.model, planned.dialect).routes]

    def _new_id(self) -> str:
        story = self._calling
        assert story is not None
        story.id = f"call-{story.planned.number}"
        return story.id

    # ── what must hold ──

    def _check_force(self, place: Place) -> None:
        """A breaker is passed over for a call's first attempt alone, where each other place is shut too."""
        story, self._forced = STORY.get(), True
        good = [other for other in self.places(story.planned) if self.gate.health.allows(other)]
        if story.tries or good or self.script.limits.when_all_open == "refuse":
            self._note(story, f"it goes to {place}, which is shut; open are {good}")

    def _check_breakers(self, *, all_back: bool = False) -> None:
        """No call runs: whatever is not open has room, and with time so has each."""
        for place in {place for story in self.stories.values() for place in self.places(story.planned)}:
            if not (self.gate.health.allows(place) or (self.gate.health.open_until_s(place) and not all_back)):
                self._note(None, f"{place} admits nobody")

    def _check_limits(self, hold: Hold) -> None:
        self._tried(hold.id).granted = True
        holds = [live.hold for live in self.store.holds()]
        passed = judge.over_limit(self.script.budgets, self.store.booked(), holds, hold)
        if passed is not None:
            self._note(None, f"{hold.id} is granted past a hard budget: {passed}")

    def _tried(self, hold_id: str) -> Tried:
        return next(tried for story in self.stories.values() for tried in story.tries if tried.id == hold_id)

    def _check_void(self, hold_id: str) -> None:
        if self._tried(hold_id).seen:
            self._note(None, f"{hold_id} is let go, and the provider saw it")

    def _check_record(self, story: Story) -> None:
        """The client sees the end: then the call is on record."""
        if self.store.down:
            return
        booked = {entry.id for entry in self.store.booked()}
        for tried in story.opened:
            if tried.seen and tried.id not in booked:
                owed = any(due.id == tried.id for due in self.gate.owed)
                held = any(live.hold.id == tried.id for live in self.store.holds())
                tries = self.store.failures[f"settle {tried.id}"]
                if not (owed and held and tries > 2):
                    self._note(story, "its client saw the end before the call was on record")

    def _check_hold(self, story: Story) -> None:
        owed = {due.id for due in self.gate.owed}
        for live in self.store.holds():
            if live.hold.call == story.id and live.hold.id not in owed:
                self._note(story, "it is over, its hold lives and nothing is owed")

    async def _judge(self) -> None:
        for story in self.stories.values():
            for wrong in judge.of_call(story, self.entries(story.planned.number)):
                self._note(story, wrong)
        for wrong in judge_places.of_run(self.script, list(self.stories.values()), self.changes, self.places):
            self._note(None, wrong)
        if left := self.store.holds():
            self._note(None, f"holds live past their deadline: {[live.hold.id for live in left]}")
        if self.gate.draining or self.gate.owed:
            self._note(None, f"draining {self.gate.draining}, owed {len(self.gate.owed)} at the end")
        if differences := await self.store.verify():
            self._note(None, f"verify finds {differences}")
        if judge.honest(self.script) and (
            passed := judge.over_limit(self.script.budgets, self.store.booked(), (), None)
        ):
            self._note(None, f"overspent: {passed}")
        if left_tasks := len(asyncio.all_tasks()) - 1:
            self._note(None, f"{left_tasks} tasks are left")

    # ── the story ──

    def tell(self, number: int | None, text: str) -> None:
        """A line of the story."""
        if self._trace:
            who = "" if number is None else f"call {number}"
            sys.stdout.write(f"{self.loop.time():9.3f} s  {who:8}{text}\n")

    def _note(self, story: Story | None, text: str) -> None:
        text = text if story is None else f"call {story.planned.number}: {text}"
        self.wrong.append(text)
        self.tell(None, f"WRONG: {text}")


async def _over(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Wait until all are done, or so long."""
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    else:
        await asyncio.sleep(seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the gateway's log: its errors are what is being simulated."""
    log = logging.getLogger("tollkeeper")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def play(seed: int, *, trace: bool = False) -> None:
    """Play one seed. Raises Violation with what does not hold and how to see it."""
    wrong = Run(draw(seed), trace=trace).play()
    if wrong:
        how = f"python -m tollkeeper.testing.simulate --seed {seed} --trace"
        raise Violation(f"seed {seed}: " + "; ".join(wrong) + f"\nthe story: {how}")


def main(argv: list[str] | None = None) -> int:
    """The command; 1: a seed failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tollkeeper.testing.simulate", description="Simulated runs by seed."
    )
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--seeds", type=_span, default=range(2000), metavar="A:B", help="play A to B, B excluded")
    parser.add_argument("--trace", action="store_true", help="tell the story")
    asked = parser.parse_args(argv)
    seeds = asked.seeds if asked.seed is None else range(asked.seed, asked.seed + 1)
    for seed in seeds:
        if asked.trace:
            sys.stdout.write(_told(draw(seed)))
        try:
            play(seed, trace=asked.trace)
        except Violation as error:
            sys.stdout.write(f"{error}\n")
            return 1
    sys.stdout.write(f"{len(seeds)} seeds: all holds\n")
    return 0


def _span(text: str) -> range:
    begin, colon, end = text.partition(":")
    if not (colon and begin.isdecimal() and end.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B; two whole numbers such as 0:2000")
    return range(int(begin), int(end))


def _told(script: Script) -> str:
    def call(planned: Planned) -> str:
        return f"call {planned.number}: {planned}"

    settings = (
        script.limits,
        f"hedge_s {script.hedge_s}",
        script.bounds,
        *script.places,
        script.policy,
        *script.downs,
        *script.budgets,
        script.ledger,
    )
    return "\n".join([f"seed {script.seed}", *map(str, settings),
                      f"death {script.death_s}, stop {script.stop_s}", *map(call, script.calls), ""])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
