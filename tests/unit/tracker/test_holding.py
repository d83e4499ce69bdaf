"""tollkeeper.tracker.holding: every way out of the block, and budgets that hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.tracking import DOLLAR, booked, live, tracker

from tollkeeper.errors import BudgetExceeded, Conflict, RateLimited, StoreUnavailable
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.values import Budget, Entry, Grant, Hold, Usage

CALL: dict[str, Any] = {
    "project_id": "p", "agent_id": "a", "model": "tenth", "prompt_tokens": 100, "max_completion_tokens": 1000,
}  # fmt: skip


async def test_settles_what_was_used(tmp_path: Path) -> None:
    """The quote is held inside the block; what was used is booked, the rest is free again, and settling twice counts once."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        async with costs.hold(**CALL, session_id="s", tags=["t"]) as hold:
            assert (hold.quote_usd, hold.max_completion_tokens) == (Decimal("0.1"), 1000)
            assert hold.grant.tightest is not None
            assert (hold.grant.tightest.held, hold.grant.tightest.remaining) == (10**8, 9 * 10**8)
            told = await hold.settle(prompt_tokens=90, completion_tokens=10, cached_tokens=40, model="tenth-2")
            assert (told.booked, told.amount_usd, told.status) == ("booked", Decimal("0.001"), "partial")
            assert (
                await hold.settle(prompt_tokens=90, completion_tokens=10, cached_tokens=40, model="tenth-2")
            ).booked == ("repeated")
            with pytest.raises(Conflict):
                await hold.settle(Usage(input=1))
            with pytest.raises(Conflict, match="is settled and cannot void"):
                await hold.void()
        (entry,) = await booked(costs)
        assert (entry.usage, entry.served) == (Usage(input=50, cache_read=40, output=10), "tenth-2")
        assert (entry.scopes.session, entry.scopes.tags, entry.outcome) == ("s", ("t",), "ok")
        assert await live(costs) == 0


async def test_settles_above_its_hold(tmp_path: Path) -> None:
    """A settlement is recorded and never refused, also above the hold and the limit; the next hold is refused."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        async with costs.hold(**CALL) as hold:
            told = await hold.settle(Usage(output=20_000))
        assert told.amount_usd == 2
        with pytest.raises(BudgetExceeded, match=r"limit \$1, spent \$2, held \$0, this call may need \$0.1"):
            await costs.hold(**CALL).__aenter__()


async def test_void_frees_everything(tmp_path: Path) -> None:
    """Nothing was sent, nothing is booked; voiding again is harmless, settling after it is a conflict."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        async with costs.hold(**CALL) as hold:
            await hold.void()
            await hold.void()
            with pytest.raises(Conflict, match="is voided and cannot settle any more; record what was used"):
                await hold.settle(Usage(output=1))
        assert (await booked(costs), await live(costs)) == ([], 0)


@pytest.mark.parametrize("error", [None, RuntimeError("lost"), asyncio.CancelledError()])
async def test_left_without_settling(tmp_path: Path, error: BaseException | None) -> None:
    """C2: left by its end, an error or a cancellation, the estimate is booked and marked; a late settle still counts."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        hold = costs.hold(**CALL)
        with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
            async with hold:
                if error is not None:
                    raise error
        day = await costs.get_project_usage("p")
        assert (day.total_cost_usd, day.inexact_cost_usd) == (Decimal("0.1"), Decimal("0.1"))
        assert [(entry.charge.status, entry.outcome) for entry in await booked(costs)] == [("estimated", "expired")]
        assert await live(costs) == 0
        with pytest.raises(Conflict, match="expired and cannot void"):
            await hold.void()
        assert (await hold.settle(Usage(output=100))).booked == "late"
        day = await costs.get_project_usage("p")
        assert (day.total_requests, day.total_cost_usd, day.inexact_cost_usd) == (1, Decimal("0.01"), 0)


async def test_record_usage_corrects_a_left_hold(tmp_path: Path) -> None:
    """The hold's request id is enough to put the estimate right later."""
    async with tracker(tmp_path) as costs:
        async with costs.hold(**CALL) as hold:
            pass
        told = await costs.record_usage("p", "a", "tenth", 100, 0, request_id=hold.request_id)
        assert told.booked == "late"
        assert (await costs.get_project_usage("p")).total_cost_usd == 0


async def test_deadline_passes(tmp_path: Path) -> None:
    """A hold past its deadline is booked at its estimate by whoever uses the ledger next; its own settle corrects that."""
    clock = ManualClock()
    async with tracker(tmp_path, clock=clock, hold_ttl_s=700) as costs, costs.hold(**CALL) as hold:
        clock.advance(699)
        assert (await costs.get_project_usage("p")).total_requests == 0
        clock.advance(1)
        assert (await costs.get_project_usage("p")).inexact_cost_usd == Decimal("0.1")
        assert (await hold.settle(Usage(output=10))).booked == "late"
        assert (await costs.get_project_usage("p")).total_cost_usd == Decimal("0.001")


@pytest.mark.parametrize("store", ["memory:", "file"])
async def test_two_hundred_at_once(tmp_path: Path, store: str) -> None:
    """C1: 200 parallel calls of $0.10 on a budget of $1: exactly 10 go out, in 20 rounds of 20."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path}/ledger.sqlite"
    async with tracker(tmp_path, url, budgets=[DOLLAR]) as costs:

        async def call(project: str) -> bool:
            try:
                async with costs.hold(**CALL | {"project_id": project}) as hold:
                    await asyncio.sleep(0)
                    await hold.settle(Usage(output=1000))
            except BudgetExceeded:
                return False
            return True

        for project in (f"p{number}" for number in range(20)):
            assert sum(await asyncio.gather(*(call(project) for _ in range(200)))) == 10
            assert await costs.check_budget(project, "1.00") == (False, 1, 1)
        assert await live(costs) == 0


def test_threads_at_once(tmp_path: Path) -> None:
    """C1: the same from four threads with their own event loops."""
    costs = tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite", budgets=[DOLLAR])
    admitted: list[int] = []

    async def call() -> int:
        try:
            async with costs.hold(**CALL):
                return 1
        except BudgetExceeded:
            return 0

    async def work() -> None:
        admitted.append(sum(await asyncio.gather(*(call() for _ in range(50)))))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(costs.close())
    assert sum(admitted) == 10


@pytest.mark.parametrize(
    ("model", "cap", "settings", "outcome"),
    [
        ("tenth", None, {}, 4096),
        ("tenth", None, {"output_caps": {"tenth": 7}}, 7),
        ("tenth", 5, {"output_caps": {"tenth": 7}}, 5),
        ("tenth", None, {"default_output_cap": "none"}, "needs an output cap"),
        ("no-such-model", 5, {}, "this model has no price"),
        ("free", 5, {"budgets": [DOLLAR | {"limit": "0"}]}, 5),
        ("tenth", 5, {"budgets": [DOLLAR | {"limit": "0"}]}, r"limit \$0, spent \$0"),
    ],
)
async def test_bounds(
    tmp_path: Path, model: str, cap: int | None, settings: dict[str, Any], outcome: int | str
) -> None:
    """C3, C5, A5: a declared cap or a refusal, never a silent pass; 0 blocks what costs, and a free model passes it."""
    wanted = CALL | {"model": model, "max_completion_tokens": cap}
    async with tracker(tmp_path, **{"budgets": [DOLLAR | {"limit": "100"}]} | settings) as costs:
        if isinstance(outcome, str):
            with pytest.raises(BudgetExceeded, match=outcome):
                await costs.hold(**wanted).__aenter__()
            assert (await booked(costs), await live(costs)) == ([], 0)
        else:
            async with costs.hold(**wanted) as hold:
                assert hold.max_completion_tokens == outcome


async def test_rate_limit(tmp_path: Path) -> None:
    """A budget in requests a minute refuses with RateLimited."""
    per_minute = {"scope": "agent", "measure": "requests", "window": "minute", "limit": 1}
    async with tracker(tmp_path, budgets=[per_minute]) as costs, costs.hold(**CALL):
        with pytest.raises(RateLimited):
            await costs.hold(**CALL).__aenter__()
        async with costs.hold(**CALL | {"agent_id": "other"}):
            assert await live(costs) == 2


async def test_bad_settlements_change_nothing(tmp_path: Path) -> None:
    """A wrong argument is a ValueError that names it, and the hold stands."""
    async with tracker(tmp_path) as costs, costs.hold(**CALL) as hold:
        for bad, argument in (
            ({"prompt_tokens": -1, "completion_tokens": 1}, "prompt_tokens"),
            ({"usage": {"input": 1}}, "usage"),
            ({}, "prompt_tokens"),
            ({"usage": Usage(), "cost_usd": 0.1}, "cost_usd"),
            ({"usage": Usage(), "model": ""}, "model"),
        ):
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                await hold.settle(**bad)
        assert (await booked(costs), await live(costs)) == ([], 1)
        await hold.void()


async def test_used_wrongly(tmp_path: Path) -> None:
    """A hold is for one call, and only inside its block."""
    async with tracker(tmp_path) as costs:
        hold = costs.hold(**CALL)
        with pytest.raises(Conflict, match="not entered"):
            await hold.settle(Usage())
        async with hold:
            await hold.void()
        with pytest.raises(Conflict, match="for one call"):
            await hold.__aenter__()


class Slow(MemoryStore):
    """A ledger whose answers wait for `go`, and that fails as often as `failures` says."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__([Budget(scope="project", limit=10**9)])
        self.go, self.failures = asyncio.Event(), failures

    async def reserve(self, hold: Hold) -> Grant:
        grant = await super().reserve(hold)
        await self.go.wait()
        return grant

    async def settle(self, entry: Entry) -> Any:
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the disk is full")
        return await super().settle(entry)


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_anywhere(tmp_path: Path, steps: int) -> None:
    """D4: cancelled at any await of the block, there is one entry or none owed, and no hold is left."""
    store = Slow()
    async with tracker(tmp_path, store) as costs:
        await costs  # prices are read
        entered: list[bool] = []

        async def call() -> None:
            async with costs.hold(**CALL) as hold:
                entered.append(True)
                await asyncio.sleep(0)
                store.go.clear()
                await hold.settle(Usage(output=1))

        task = asyncio.ensure_future(call())
        for step in range(steps):
            await asyncio.sleep(0)
            if step == 2:
                store.go.set()
        task.cancel()
        await asyncio.sleep(0)
        store.go.set()
        await asyncio.wait([task])
        assert await live(costs) == 0
        assert len(await booked(costs)) == len(entered)


@pytest.mark.parametrize("settled", [True, False])
async def test_cancelled_while_booking(tmp_path: Path, settled: bool) -> None:
    """D4: a cancellation does not stop a settlement, nor the estimate of a block that was left; it comes afterwards."""
    store = Slow()
    async with tracker(tmp_path, store) as costs:
        await costs
        store.go.set()

        async def call() -> None:
            async with costs.hold(**CALL) as hold:
                store.go.clear()
                if settled:
                    await hold.settle(Usage(output=1))

        task = asyncio.ensure_future(call())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not store.go.is_set()
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [entry.usage.output for entry in await booked(costs)] == [1 if settled else 1000]
        assert await live(costs) == 0


async def test_window_of_the_reservation(tmp_path: Path) -> None:
    """C4: reserved before midnight and settled after, a call counts on the day of its reservation."""
    clock = ManualClock()
    midnight = datetime.fromtimestamp(clock.advance(86_400) // 1_000_000, UTC)
    clock.set_wall(clock.now_us() - 1)
    async with tracker(tmp_path, clock=clock) as costs:
        async with costs.hold(**CALL) as hold:
            clock.advance(1)
            await hold.settle(Usage(output=10))
        assert (await costs.get_project_usage("p")).period_start == midnight
        assert (await costs.get_project_usage("p")).total_requests == 0
        assert (await costs.get_project_usage("p", "day", midnight - timedelta(hours=1))).total_requests == 1


async def test_ledger_fails_at_the_settlement(tmp_path: Path) -> None:
    """A settlement that the ledger did not take is tried again at the end of the block, with what was really used."""
    store = Slow(failures=1)
    store.go.set()
    async with tracker(tmp_path, store) as costs:
        async with costs.hold(**CALL) as hold:
            with pytest.raises(StoreUnavailable):
                await hold.settle(Usage(output=7))
        assert [entry.usage.output for entry in await booked(costs)] == [7]


async def test_ledger_fails_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where it still fails that is told, or logged beside the block's own error; the hold stands until its deadline."""
    store = Slow(failures=2)
    store.go.set()
    async with tracker(tmp_path, store) as costs:
        with pytest.raises(StoreUnavailable):
            async with costs.hold(**CALL):
                pass
        with pytest.raises(KeyError):
            async with costs.hold(**CALL):
                raise KeyError
        assert "its deadline books it at the estimate: the disk is full" in caplog.text
        assert await live(costs) == 2


CHAT: dict[str, Any] = {
    "id": "chatcmpl-0123456789abcdefghij", "model": "tenth", "choices": [{"message": {"content": "Hi"}}],
    "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
}  # fmt: skip


async def test_settles_a_reply(tmp_path: Path) -> None:
    """What the provider's reply says is booked on the hold, whatever its form; the same again counts once."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        async with costs.hold(**CALL) as hold:
            told = await hold.settle_response("openai-chat", CHAT, http_status=200)
            assert (told.booked, told.amount_usd, told.status) == ("booked", Decimal("0.001"), "priced")
            assert (await hold.settle_response("openai-chat", json.dumps(CHAT))).booked == "repeated"
            with pytest.raises(Conflict):
                await hold.settle_response("openai-chat", CHAT | {"usage": None})
        (entry,) = await booked(costs)
        assert (entry.usage, entry.dialect, entry.call) == (Usage(input=90, output=10), "openai-chat", hold.request_id)
        assert (entry.http_status, await live(costs)) == (200, 0)


async def test_settles_a_reply_without_usage(tmp_path: Path) -> None:
    """An estimate stands on the hold's own bound of the prompt, and of the output where no text was seen."""
    stream: list[dict[str, Any]] = [{"choices": [{"delta": {"content": "Hello"}}]}]
    for body, seen in ((stream, 5), ([{"choices": [{"delta": {}}]}], 0), ([], 0), (b"data: {", 1000)):
        async with tracker(tmp_path) as costs, costs.hold(**CALL) as hold:
            told = await hold.settle_response("openai-chat", body)
            assert (told.status, told.entry.usage.input) == ("estimated", 100)
            assert told.entry.usage.output >= seen


async def test_a_refusal_frees_the_hold(tmp_path: Path) -> None:
    """A refusal by the provider costs nothing, and is no mistake of the caller's."""
    async with tracker(tmp_path, budgets=[DOLLAR]) as costs:
        async with costs.hold(**CALL) as hold:
            told = await hold.settle_response("openai-chat", {"error": {"type": "rate_limit"}}, http_status=429)
            assert (told.amount_usd, told.entry.outcome) == (0, "error")
        assert (await costs.check_budget("p", "1"))[1:] == (0, 1)
        for bad, argument in (
            ({"dialect": "x"}, "dialect"),
            ({"tier": ""}, "tier"),
            ({"http_status": 1}, "http_status"),
        ):
            async with costs.hold(**CALL) as hold:
                with pytest.raises(ValueError, match=f"^{argument}: "):
                    await hold.settle_response(**{"dialect": "openai-chat", "body": CHAT} | bad)
                await hold.void()
