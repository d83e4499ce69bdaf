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
from tollkeeper.errors import BudgetExceeded, RateLimited
from tollkeeper.failures import Verdict
from tollkeeper.health import Health, Pass
from tollkeeper.retry import Tries
from tollkeeper.testing.simulate import Violation, main, play
from tollkeeper.values import Entry, Hold

Patch = pytest.MonkeyPatch


def test_every_seed_holds(seeds: range) -> None:
    """P2, P3, B5, C6, D3–D5, E1–E3, E5: whatever clients, providers, the ledger, a shutdown and a kill do, the account is right."""
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
        gate: flow.Gate, request: flow.Request, call: flow.Call, tried: Attempt, path: str, reply: flow.Reply
    ) -> None:  # fmt: skip
        await good(gate, request, call, tried, path, reply)
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
    patch.setattr(openai_chat, "broken", lambda *told: good(*told) + b"data: [DONE]\n\n")


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
    patch.setattr(openai_chat, "broken", lambda *told: b"")


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


def not_reserved(patch: Patch) -> None:
    """A further attempt goes out under a hold that no budget was asked for."""
    good = attempt._reserve

    async def reserve(gate: flow.Gate, request: flow.Request, call: flow.Call, tried: Attempt) -> None:
        if tried.number == 1:
            await good(gate, request, call, tried)
        else:
            first = Hold(
                **(structs.asdict(holds[call.id]) | {"id": f"{call.id}/{tried.number}", "attempt": call.sent + 1})
            )
            tried.hold = first
        assert tried.hold is not None
        holds[call.id] = tried.hold

    holds: dict[str, Hold] = {}
    patch.setattr(attempt, "_reserve", reserve)


def goes_on_after_content(patch: Patch) -> None:
    """A stream that broke after its content is tried again."""
    good, judged = flow._following, attempt.verdict_of

    async def following(gate: flow.Gate, call: flow.Call, tries: Tries, tried: Attempt, reply: flow.Reply) -> Any:
        started, call.started = call.started, False
        found = await good(gate, call, tries, tried, reply)
        call.started = started
        return found

    patch.setattr(flow, "_following", following)
    patch.setattr(attempt, "verdict_of", lambda *told, **how: judged(*told, **how | {"content": False}))


def stays_with_the_first(patch: Patch) -> None:
    """A whole error is taken for content: nothing goes on."""
    judged = attempt.verdict_of

    def verdict_of(*told: Any, **how: Any) -> Verdict:
        return judged(*told, **how | {"content": how["content"] or told[1] is not None})

    patch.setattr(attempt, "verdict_of", verdict_of)


def settled_as_the_first(patch: Patch) -> None:
    """Every attempt is settled under the first one's id."""
    good = attempt._entry

    def entry(gate: flow.Gate, call: flow.Call, tried: Attempt) -> Entry:
        return structs.replace(good(gate, call, tried), id=f"{call.id}/1")

    patch.setattr(attempt, "_entry", entry)


def counted_twice(patch: Patch) -> None:
    """Every attempt counts as a call."""
    good = attempt._entry

    def entry(gate: flow.Gate, call: flow.Call, tried: Attempt) -> Entry:
        return structs.replace(good(gate, call, tried), calls=1)

    patch.setattr(attempt, "_entry", entry)


def refused_goes_on(patch: Patch) -> None:
    """What a budget refuses is tried elsewhere."""
    good = attempt._judge

    def judge(gate: flow.Gate, call: flow.Call, tried: Attempt, leave_to_go: Pass) -> None:
        good(gate, call, tried, leave_to_go)
        if isinstance(tried.failure, (BudgetExceeded, RateLimited)):
            tried.verdict = Verdict(True, True, "model", "fail", None, "refused here")

    patch.setattr(attempt, "_judge", judge)


def leaving_counts(patch: Patch) -> None:
    """A client that leaves counts against the provider."""
    judged = attempt.verdict_of
    patch.setattr(attempt, "verdict_of", lambda *told, **how: judged(*told, **how | {"client_left": False}))


def never_blocked(patch: Patch) -> None:
    """Retry-After, and a key that is refused, close nothing."""
    patch.setattr(Health, "block", lambda health, place, level, until_s, reason: None)


def probe_lost(patch: Patch) -> None:
    """A call that is cancelled, or refused here, keeps its probe's place."""
    good = Health.report

    def report(health: Health, pass_: Pass, **how: Any) -> None:
        if not how.get("ignore"):
            good(health, pass_, **how)

    patch.setattr(Health, "report", report)


def breakers_passed_over(patch: Patch) -> None:
    """A place that is shut is asked all the same."""
    patch.setattr(Health, "allows", lambda health, place: True)


def never_opens(patch: Patch) -> None:
    """No failure is counted."""
    good = Health.report
    patch.setattr(Health, "report", lambda health, pass_, **how: good(health, pass_, **how | {"failed": None}))


CONTROLS: list[Callable[[Patch], None]] = [
    unshielded, nothing_settled, released_on_leave, end_before_the_record, booked_twice, owed_forgotten,
    done_after_the_error, nothing_estimated, estimate_passed_off, a_piece_lost, cut_not_told, limits_not_checked,
    drain_not_counted_down, waits_for_ever, raises, chores_end, not_reserved, goes_on_after_content, stays_with_the_first,
    settled_as_the_first, counted_twice, refused_goes_on, leaving_counts, never_blocked, probe_lost, breakers_passed_over,
    never_opens,
]  # fmt: skip
WITHIN = 200
"""Seeds in which each of them must show; 5,000 are played for each change."""


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.__name__)
def test_a_known_bad_line_is_caught(control: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """A simulator that cannot see a fault proves nothing: each of these is found."""
    control(monkeypatch)
    assert is_caught(own_errors=control is raises), f"not caught within {WITHIN} seeds: {control.__doc__}"


def is_caught(*, own_errors: bool = False) -> bool:
    """Whether one of the first seeds fails. `own_errors`: also where the line raises, which may be the control's own fault."""
    for seed in range(WITHIN):
        try:
            play(seed)
        except Violation as error:
            if own_errors or "the line raises" not in str(error):
                return True
    return False
