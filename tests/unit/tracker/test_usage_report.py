"""tollkeeper.tracker.usage_report: reports of one entity and one period.

Their edges, and that what is gone or past the cap is never told as 0.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tests.tracking import booked, tracker

from tollkeeper.stores import Retention
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.tracker import CostTracker
from tollkeeper.values import Usage

NOW = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
DOLLAR_TENTH = Decimal("0.1")


def at(moment: datetime) -> ManualClock:
    return ManualClock(int(moment.timestamp()) * 1_000_000)


async def spend(
    costs: CostTracker, *moments: datetime, project: str = "p", agent: str = "a", session: str = "s"
) -> None:
    for moment in moments:
        await costs.record_usage(project, agent, "tenth", 0, 1000, session_id=session, timestamp=moment)


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", datetime(2026, 2, 28, 23, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        ("day", datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        ("month", datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
async def test_edges(tmp_path: Path, period: str, start: datetime, end: datetime) -> None:
    """A period holds its first microsecond and not its end; two projects' agents of one name are apart."""
    last = end - timedelta(microseconds=1)
    async with tracker(tmp_path, clock=at(NOW)) as costs:
        await spend(costs, start - timedelta(microseconds=1), start, last, end)
        await spend(costs, last, project="q")
        for report in (
            await costs.get_project_usage("p", period, last),
            await costs.get_agent_usage("p", "a", period, start),
        ):
            assert (report.period, report.period_start, report.period_end) == (period, start, end)
            assert (report.total_requests, report.total_cost_usd) == (2, Decimal("0.2"))
        assert report.entity == "agent a of project p"
        assert (await costs.get_project_usage("p", period)).total_requests == 1
        assert (await costs.get_agent_usage("p", "b", period, last)).total_requests == 0


async def test_sums_by_model(tmp_path: Path) -> None:
    """The models' sums add up to the whole, in every field; what is not exact is told."""
    async with tracker(tmp_path) as costs:
        await costs.record_usage("p", "a", "cached", usage=Usage(input=1, cache_read=2, output=3, web_search=4))
        await costs.record_usage("p", "a", "cached", usage=Usage(input_audio=5, output=1))
        await costs.record_usage("p", "a", "nobody", 7, 8)
        async with costs.hold("p", "a", "tenth", 0, 1000):
            pass
        day = await costs.get_project_usage("p")
        assert list(day.by_model) == ["cached", "nobody", "tenth"]
        for field in day.by_model["cached"].__struct_fields__:
            assert getattr(day, field) == sum(getattr(each, field) for each in day.by_model.values())
        assert (day.total_requests, day.prompt_tokens, day.cached_tokens, day.completion_tokens) == (4, 15, 2, 1012)
        assert (day.total_tokens, day.unpriced_requests) == (1027, 1)
        inexact = [(entry.charge.status, entry.charge.amount_nanos) for entry in await booked(costs)]
        assert [status for status, _ in inexact] == ["partial", "partial", "unpriced", "estimated"]
        assert day.inexact_cost_usd == Decimal(sum(amount or 0 for _, amount in inexact)) / 10**9


@pytest.mark.parametrize("store", ["memory:", "file"])
async def test_sessions(tmp_path: Path, store: str) -> None:
    """C8: a session is summed over months; where two projects have one of that name, the question must say which."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path}/ledger.sqlite"
    async with tracker(tmp_path, url, clock=at(NOW)) as costs:
        await spend(costs, NOW, NOW - timedelta(days=40))
        report = await costs.get_session_usage("s")
        assert (report.total_requests, report.entity, report.period) == (2, "session s of project p", "total")
        assert (report.period_start.year, report.period_end.year, report.period_end.tzinfo) == (1970, 9999, UTC)
        await spend(costs, NOW, project="q")
        with pytest.raises(ValueError, match=r"^session_id: 's' is in projects p, q; pass project_id$"):
            await costs.get_session_usage("s")
        assert (await costs.get_session_usage("s", "q")).total_requests == 1
        assert (await costs.get_session_usage("s", "p")).total_requests == 2
        assert (await costs.get_session_usage("nobody")).total_requests == 0


async def test_past_retention(tmp_path: Path) -> None:
    """Where the cells are pruned the entries answer; where those are gone too it is an error, never 0."""
    store = MemoryStore()
    async with tracker(tmp_path, store, clock=at(NOW)) as costs:
        old, older = NOW - timedelta(days=3), NOW - timedelta(days=60)
        await spend(costs, old, old, older)
        await store.prune(
            costs._clock.now_us(), Retention(hour_s=3600, day_s=86400, month_s=86400 * 30, entries_s=86400 * 20)
        )
        assert await store.cells("project", "hour", 0, 2**62) == []
        for period in ("hour", "day", "month"):
            assert (await costs.get_project_usage("p", period, old)).total_cost_usd == 2 * DOLLAR_TENTH
            with pytest.raises(
                ValueError, match=r"^timestamp: the .* is past its retention .* from 2026-02-01T00:00:00Z on$"
            ):
                await costs.get_project_usage("p", period, older)
        assert (await costs.get_project_usage("p", "hour")).total_requests == 0


@pytest.mark.parametrize("store", ["memory:", "file"])
async def test_past_the_cardinality_cap(tmp_path: Path, store: str) -> None:
    """B3: ids past the cap count under _other in the cells; asked for by name they are still told exactly."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path}/ledger.sqlite"
    async with tracker(tmp_path, url, clock=at(NOW), scope_cap=2) as costs:
        for number in range(4):
            for agent in ("a1", "a2", "a3"):
                await spend(costs, NOW, project=f"p{number}", agent=agent, session=f"s{number}")
        for number in range(4):
            assert (await costs.get_project_usage(f"p{number}", "month")).total_cost_usd == 3 * DOLLAR_TENTH
            assert (await costs.check_budget(f"p{number}", "0.3"))[0] is False
            assert (await costs.get_session_usage(f"s{number}")).entity == f"session s{number} of project p{number}"
            for agent in ("a1", "a2", "a3"):
                assert (await costs.get_agent_usage(f"p{number}", agent)).total_requests == 1
        assert (await costs.get_project_usage("p9")).total_requests == 0


async def test_one_scope_past_the_cap(tmp_path: Path) -> None:
    """An agent past the cap of its project is told exactly, where the projects themselves fit."""
    async with tracker(tmp_path, clock=at(NOW), scope_cap=1) as costs:
        for agent in ("a1", "a2", "a2"):
            await spend(costs, NOW, agent=agent)
        assert (await costs.get_agent_usage("p", "a2")).total_requests == 2
        assert (await costs.get_agent_usage("p", "a1")).total_requests == 1
