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
from functools import cache
from random import Random

from tollkeeper import chores, flow
from tollkeeper.breaker import Bounds
from tollkeeper.dialects import DIALECTS
from tollkeeper.health import Health
from tollkeeper.keys import KeyRing
from tollkeeper.prices import PriceBook
from tollkeeper.retry import RetryBudget
from tollkeeper.routing import Table
from tollkeeper.testing import judge
from tollkeeper.testing.script import Planned, Script, draw
from tollkeeper.testing.scripted_provider import CALL, ScriptedUpstream
from tollkeeper.testing.stage import Client, Story, TroubledStore
from tollkeeper.testing.virtual_loop import Stuck, VirtualClock, VirtualLoop
from tollkeeper.values import Entry, Hold, Provider

#: Virtual seconds in which every call must be over: no limit of `script` adds up to it.
HORIZON_S = 120.0


class Violation(AssertionError):
    """A seed shows that something does not hold."""


class Run:
    """One script, played once."""

    def __init__(self, script: Script, *, trace: bool = False) -> None:
        self.script = script
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.stories = {
            planned.number: Story(planned, script.limits.default_output_cap or 0) for planned in script.calls
        }
        self.lines: dict[int, asyncio.Task[None]] = {}
        self.clients: dict[int, Client] = {}
        self.over_s = 0.0  #: when the last line came back
        self.wrong: list[str] = []
        self._trace = trace
        self._calling: Story | None = None
        self.store = TroubledStore(
            script.budgets, script.ledger, Random(f"{script.seed} ledger"), lambda text: self.tell(None, text)  # noqa: S311
        )  # fmt: skip
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
            if after_s is not None and f"{story.id}/1" == hold_id:
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
        line = self.lines[planned.number] = asyncio.create_task(self._line(story, client))
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
            story.died = story.id != "" and not story.returned
        while left := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        # What the first process owed died with it.
        for entry in self.gate.owed:
            next(story for story in self.stories.values() if story.id == entry.call).died = True
        self.store.down = False

    async def _chores(self) -> None:
        await chores.every("expire", chores.EXPIRE_EVERY_S, lambda: chores.expire(self.gate))

    async def _settle_down(self, chore: asyncio.Task[None]) -> None:
        """The ledger recovers, time passes every deadline, and the chores are done once more."""
        if chore.done():
            self._note(None, "the chores have ended")
        chore.cancel()
        await asyncio.wait([chore])
        self.store.recover()
        await asyncio.sleep(self.script.limits.hold_ttl_s + 1)
        await chores.expire(self.gate)

    def _open_gate(self) -> flow.Gate:
        providers = {
            "o": Provider(
                name="o", base_url="", dialects=frozenset({"openai-chat", "openai-embeddings", "openai-responses"})
            ),
            "a": Provider(name="a", base_url="", dialects=frozenset({"anthropic-messages"})),
            "g": Provider(name="g", base_url="", dialects=frozenset({"google-generate"})),
        }
        return flow.Gate(
            clock=self.clock, keys=KeyRing(()), table=Table(providers, {}, lambda model: None), prices=_prices(),
            store=self.store, upstream=ScriptedUpstream(self.stories, self.tell), limits=self.script.limits,
            new_id=self._new_id, draw=Random(f"{self.script.seed} draw").random,  # noqa: S311
            health=Health(Bounds(), self.clock.monotonic_s, lambda change: None), retries=RetryBudget(0.2),
        )  # fmt: skip

    def _new_id(self) -> str:
        story = self._calling
        assert story is not None
        story.id = f"call-{story.planned.number}"
        return story.id

    # ── what must hold ──

    def _check_limits(self, hold: Hold) -> None:
        holds = [live.hold for live in self.store.holds()]
        passed = judge.over_limit(self.script.budgets, self.store.booked(), holds, hold)
        if passed is not None:
            self._note(None, f"{hold.id} is granted past a hard budget: {passed}")

    def _check_void(self, hold_id: str) -> None:
        for story in self.stories.values():
            if story.seen and f"{story.id}/1" == hold_id:
                self._note(story, "its hold is let go, and the provider saw it")

    def _check_record(self, story: Story) -> None:
        """The client sees the end: then the call is on record."""
        if self.store.down:
            return
        if not any(entry.call == story.id for entry in self.store.booked()):
            owed = any(entry.call == story.id for entry in self.gate.owed)
            held = any(live.hold.call == story.id for live in self.store.holds())
            tries = self.store.failures[f"settle {story.id}/1"]
            if not (owed and held and tries > 2):
                self._note(story, "its client saw the end before the call was on record")

    def _check_hold(self, story: Story) -> None:
        owed = {entry.id for entry in self.gate.owed}
        for live in self.store.holds():
            if live.hold.call == story.id and live.hold.id not in owed:
                self._note(story, "it is over, its hold lives and nothing is owed")

    async def _judge(self) -> None:
        for story in self.stories.values():
            for wrong in judge.of_call(story, self.entries(story.planned.number)):
                self._note(story, wrong)
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


@cache
def _prices() -> PriceBook:
    return judge.prices()


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

    return "\n".join([f"seed {script.seed}", *map(str, (script.limits, *script.budgets, script.ledger)),
                      f"death {script.death_s}, stop {script.stop_s}", *map(call, script.calls), ""])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
