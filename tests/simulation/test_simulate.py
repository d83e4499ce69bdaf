"""The whole line by seeds (testing/simulate), and proof that the simulator sees: faults put in on purpose are caught."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec import structs

from tollkeeper import attempt, book, chores, flow, settlement
from tollkeeper.call import Attempt
from tollkeeper.cancellation import Deadline
from tollkeeper.dialects import openai_chat
from tollkeeper.testing.simulate import Violation, main, play
from tollkeeper.values import Entry, Hold

Patch = pytest.MonkeyPatch


def test_every_seed_holds(seeds: range) -> None:
    """P2, P3, D3, D4: whatever clients, the provider, the ledger, a shutdown and a kill do, the account is right."""
    for seed in seeds:
        play(seed)


def test_a_seed_is_one_story(capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed is the same run, to the last line."""
    stories = []
    for _ in range(2):
        assert main(["--seed", "11", "--trace"]) == 0
        stories.append(capsys.readouterr().out)
    assert stories[0] == stories[1]
    assert stories[0].count("\n") > 10


def test_a_failure_names_its_seed(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    """A violation says which seed, what does not hold, and the command that tells the story."""
    nothing_settled(monkeypatch)
    assert main(["--seeds", "0:100"]) == 1
    told = capsys.readouterr().out
    seed = told.split()[1].rstrip(":")
    assert f"python -m tollkeeper.testing.simulate --seed {seed} --trace" in told
    assert "entries stand" in told


def test_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what would be right."""
    with pytest.raises(SystemExit) as stop:
        main(["--seeds", "100"])
    assert stop.value.code == 2
    assert "'100' is not A:B; two whole numbers such as 0:2000" in capsys.readouterr().err


# ── known-bad lines ──


def unshielded(patch: Patch) -> None:
    """Settling stops where the call is cancelled."""

    async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
        work.close()

    patch.setattr(attempt, "to_its_end", to_its_end)


def nothing_settled(patch: Patch) -> None:
    """A call that failed after it was sent has its hold let go."""
    good = attempt._put_right

    async def put_right(gate: flow.Gate, call: flow.Call, tried: Attempt) -> Entry | None:
        tried.sent = tried.sent and tried.failure is None
        return await good(gate, call, tried)

    patch.setattr(attempt, "_put_right", put_right)


def released_on_leave(patch: Patch) -> None:
    """The hold of a client that leaves is let go at once."""
    good = attempt.leave
    tasks = []

    def leave(gate: flow.Gate, call: flow.Call) -> None:
        good(gate, call)
        assert call.attempt is not None
        assert call.attempt.hold is not None
        tasks.append(asyncio.ensure_future(attempt._book(gate, call.attempt.hold)))

    patch.setattr(attempt, "leave", leave)


def end_before_the_record(patch: Patch) -> None:
    """The client sees [DONE] before the call is booked."""
    good = attempt._relay

    async def relay(
        gate: flow.Gate, request: flow.Request, call: flow.Call, tried: Attempt, reply: flow.Reply
    ) -> None:  # fmt: skip
        await good(gate, request, call, tried, reply)
        if call.started:
            last, tried.last = tried.last, b""
            await reply.send(last)

    patch.setattr(attempt, "_relay", relay)


def booked_twice(patch: Patch) -> None:
    """A settlement that is tried again has a new id."""
    good, tried = flow.Gate.pay, set[str]()

    async def pay(gate: flow.Gate, due: Entry | Hold) -> None:
        again = isinstance(due, Entry) and due.id in tried
        tried.add(due.id)
        await good(gate, structs.replace(due, id=f"{due.id}/again") if again else due)
        tried.discard(due.id)

    patch.setattr(flow.Gate, "pay", pay)


def owed_forgotten(patch: Patch) -> None:
    """What the ledger does not take is dropped."""
    good = attempt._book

    async def settle(gate: flow.Gate, due: Entry | Hold) -> None:
        await good(gate, due)
        gate.owed.clear()

    patch.setattr(attempt, "_book", settle)


def done_after_the_error(patch: Patch) -> None:
    """A broken stream still ends with [DONE]."""
    good = openai_chat.broken
    patch.setattr(openai_chat, "broken", lambda error, id: good(error, id) + b"data: [DONE]\n\n")


def nothing_estimated(patch: Patch) -> None:
    """A reply that was cut is booked as if nothing had been generated."""
    good = settlement._estimated

    def estimated(course: settlement.Course) -> Any:
        found = good(course)
        return structs.replace(
            found, parts=tuple(structs.replace(p, usage=structs.replace(p.usage, output=0)) for p in found.parts)
        )

    patch.setattr(settlement, "_estimated", estimated)


def estimate_passed_off(patch: Patch) -> None:
    """An estimate is booked as exact."""
    good = attempt._entry

    def entry(gate: flow.Gate, call: flow.Call, tried: Attempt) -> Entry:
        found = good(gate, call, tried)
        return structs.replace(found, charge=structs.replace(found.charge, status="priced"))

    patch.setattr(attempt, "_entry", entry)


def a_piece_lost(patch: Patch) -> None:
    """The first piece of a stream is not relayed."""
    good = attempt._send

    async def send(call: flow.Call, tried: Attempt, reply: flow.Reply, data: bytes) -> None:
        await good(call, tried, reply, data if call.started else data[data.find(b"\n\n") + 2 :])

    patch.setattr(attempt, "_send", send)


def cut_not_told(patch: Patch) -> None:
    """A stream without its end marker ends as if it were whole."""
    patch.setattr(openai_chat, "broken", lambda error, id: b"")


def limits_not_checked(patch: Patch) -> None:
    """A hard budget is passed."""
    patch.setattr(book, "pays", lambda budget, used, asked: True)


def drain_not_counted_down(patch: Patch) -> None:
    """A drained reply stays counted."""
    good = attempt.leave

    def leave(gate: flow.Gate, call: flow.Call) -> None:
        good(gate, call)
        call.draining = False

    patch.setattr(attempt, "leave", leave)


def waits_for_ever(patch: Patch) -> None:
    """Nothing bounds the wait for a provider or for a client that does not read."""
    boundless = asyncio.timeout
    patch.setattr(asyncio, "timeout", lambda seconds: boundless(None))
    patch.setattr(Deadline, "move", lambda deadline, at_s: None)


def raises(patch: Patch) -> None:
    """An error that is none of the gateway's own."""
    good = flow._finish

    async def finish(*told: Any) -> None:
        await good(*told)
        raise ZeroDivisionError

    patch.setattr(flow, "_finish", finish)


def chores_end(patch: Patch) -> None:
    """The periodic work stops at a failing ledger."""

    async def every(name: str, seconds: float, work: Any) -> None:
        for _ in range(1000):
            await asyncio.sleep(seconds)
            await work()

    patch.setattr(chores, "every", every)


CONTROLS: list[Callable[[Patch], None]] = [
    unshielded, nothing_settled, released_on_leave, end_before_the_record, booked_twice, owed_forgotten,
    done_after_the_error, nothing_estimated, estimate_passed_off, a_piece_lost, cut_not_told, limits_not_checked,
    drain_not_counted_down, waits_for_ever, raises, chores_end,
]  # fmt: skip
WITHIN = 100
"""Seeds in which each of them must show; 2,000 are played for each change."""


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.__name__)
def test_a_known_bad_line_is_caught(control: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """A simulator that cannot see a fault proves nothing: each of these is found."""
    control(monkeypatch)
    for seed in range(WITHIN):
        try:
            play(seed)
        except Violation:
            return
    pytest.fail(f"not caught within {WITHIN} seeds: {control.__doc__}")
