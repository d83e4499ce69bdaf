"""Hedging over real sockets: a provider that does not answer has a second one beside it, and the account is right for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.failover import ASKS, CHAT, NAME, NO_BREAKERS, Several, several
from tests.gateway import budget, until
from tests.integration.test_failover_streams import STREAMS, direct

from tollkeeper import retry
from tollkeeper.latency import LEAST
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, Stall

USUAL_S = 0.01
ALL = [(path, body) for path, body in ASKS if ":stream" not in path] + [(path, body) for path, body, _ in STREAMS]
EACH = pytest.mark.parametrize(("path", "body"), ALL, ids=[f"{path} {'stream' in body}" for path, body in ALL])
STREAM: dict[str, Any] = STREAMS[0][1]


@asynccontextmanager
async def hedged(folder: Path, *fakes: FakeProvider, settings: str = "") -> AsyncIterator[tuple[Several, ManualClock]]:
    """Providers that are known to answer within USUAL_S, by a clock that stands until it is moved."""
    clock = ManualClock()
    async with several(folder, *fakes, settings="hedge = true\n" + settings, clock=clock) as sv:
        latencies = sv.gw.app.gate.latencies
        assert latencies is not None
        for route in sv.gw.app.gate.table.candidates(NAME, "openai-chat").routes:
            for stream in [True, False] * LEAST:
                latencies.add(route.place, stream, USUAL_S)
        yield sv, clock


async def late(sv: Several, clock: ManualClock, count: int = 1) -> None:
    """The first provider has its requests and does not answer in time."""
    await until(lambda: len(sv.fakes[0].requests) >= count)
    clock.advance(2 * USUAL_S)


async def booked(sv: Several) -> list[tuple[str | None, int, str]]:
    """Provider, calls and outcome of all entries, by attempt."""
    entries = sorted(await sv.gw.entries(), key=lambda entry: entry.id)
    return [(entry.provider, entry.calls, entry.outcome) for entry in entries]


async def counted(sv: Several) -> tuple[float, float]:
    """Hedges made, and those that served, by what Prometheus reads."""
    async with sv.gw.session.get(sv.gw.url + "/metrics") as response:
        samples = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines())
    return float(samples["tollkeeper_hedges_total"]), float(samples["tollkeeper_hedges_served_total"])


@EACH
async def test_the_hedge_serves(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """The client has the second provider's reply, byte for byte; the first one is booked for what it may have used."""
    async with hedged(tmp_path) as (sv, clock):
        sv.fakes[0].always = Stall()
        asking = asyncio.ensure_future(sv.ask(path, body))
        await late(sv, clock)
        status, told, through = await asyncio.wait_for(asking, 5)
        assert (status, told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == (200, "two", "2")
        if "batch" not in path:  # whose body names models of its own
            assert through == await direct(sv, path, body)
        assert await booked(sv) == [("one", 1, "left"), ("two", 0, "ok")]
        assert await counted(sv) == (1, 1)
        first, second = sorted(await sv.gw.entries(), key=lambda entry: entry.id)
        assert (first.note, first.charge.status) == ("outrun", "estimated")
        assert second.usage == sv.fakes[1].bill[0].usage
        assert all(first.usage.output >= billed.usage.output for billed in sv.fakes[0].bill)
        amounts = [entry.charge.amount_nanos for entry in (first, second)]
        if "x-tollkeeper-cost" in told:
            assert round(float(told["x-tollkeeper-cost"]) * 10**9) == sum(amount or 0 for amount in amounts)


@EACH
async def test_the_first_serves_after_all(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """The hedge is cut, and booked: what it cost is not lost."""
    async with hedged(tmp_path) as (sv, clock):
        first = Stall()
        sv.fakes[0].always, sv.fakes[1].always = first, Stall()
        asking = asyncio.ensure_future(sv.ask(path, body))
        await late(sv, clock)
        await until(lambda: sv.fakes[1].requests)
        first.release.set()
        status, told, _ = await asyncio.wait_for(asking, 5)
        assert (status, told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == (200, "one", "2")
        assert await booked(sv) == [("one", 1, "ok"), ("two", 0, "left")]
        assert await counted(sv) == (1, 0)
        assert [entry.charge.status for entry in (await sv.by_provider())["two"]] == ["estimated"]


async def test_in_time(tmp_path: Path) -> None:
    """Nobody is asked twice while the clock stands; nor by default, however late an answer is."""
    async with hedged(tmp_path) as (sv, _):
        assert [await sv.served_by() for _ in range(3)] == ["one"] * 3
        assert sv.asked() == [3, 0]
        assert await counted(sv) == (0, 0)
    async with several(tmp_path / "off", clock=(clock := ManualClock())) as sv:
        assert sv.gw.app.gate.latencies is None
        sv.fakes[0].always = stall = Stall()
        asking = asyncio.ensure_future(sv.served_by())
        await stall.reached.wait()
        clock.advance(100)
        stall.release.set()
        assert (await asking, sv.asked()) == ("one", [1, 0])


async def test_what_is_free_is_not_hedged(tmp_path: Path) -> None:
    """Nor learned from: tokens are counted sooner than they are made."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "toll"}]}
    async with hedged(tmp_path) as (sv, clock):
        sv.fakes[0].always = stall = Stall()
        asking = asyncio.ensure_future(sv.ask("/v1/messages/count_tokens", body))
        await until(stall.reached.is_set)
        clock.advance(100)
        stall.release.set()
        assert (await asking)[0] == 200
        assert sv.asked() == [1, 0]
        latencies = sv.gw.app.gate.latencies
        assert latencies is not None
        assert {seconds for known in latencies._of.values() for seconds in known} == {USUAL_S}


async def test_what_is_usual_is_learned(tmp_path: Path) -> None:
    """From the calls themselves: none is hedged before so many went well."""
    clock = ManualClock()
    async with several(tmp_path, settings="hedge = true\n", clock=clock) as sv:
        for asked in range(LEAST + 1):
            sv.fakes[0].next(stall := Stall())
            asking = asyncio.ensure_future(sv.served_by())
            await stall.reached.wait()
            clock.advance(USUAL_S / 2 if asked < LEAST else 1)
            if asked < LEAST:
                stall.release.set()
            assert await asyncio.wait_for(asking, 5) == ("one" if asked < LEAST else "two")


@pytest.mark.parametrize("fault", [Cut(headers=False), Cut(0), ErrorEvent(0)], ids=str)
async def test_the_first_fails_while_its_hedge_is_under_way(tmp_path: Path, fault: Any) -> None:
    """The call stays with the hedge, and no third one is asked."""
    async with hedged(tmp_path, *(FakeProvider() for _ in range(3))) as (sv, clock):
        first, second = Stall(), Stall()
        sv.fakes[0].always, sv.fakes[1].always = (fault, first), second
        asking = asyncio.ensure_future(sv.ask(CHAT, STREAM))
        await late(sv, clock)
        await until(second.reached.is_set)
        first.release.set()
        await until(lambda: _booked_by(sv, "one", 1))
        second.release.set()
        status, told, _ = await asyncio.wait_for(asking, 5)
        assert (status, told["x-tollkeeper-provider"]) == (200, "two")
        assert [calls for _, calls, _ in await booked(sv)] == [1, 0]
        assert sv.asked() == [1, 1, 0]


async def test_a_hard_budget_holds(tmp_path: Path) -> None:
    """C1, C6: as many attempts as it pays for; a call whose hedge it cannot pay is served by its first one."""
    settings = budget("project", 13, measure="requests", window="total") + NO_BREAKERS
    async with hedged(tmp_path, settings="retry_budget = 1\n" + settings) as (sv, clock):
        sv.fakes[0].always = stall = Stall()
        asking = [asyncio.ensure_future(sv.ask(CHAT, STREAM)) for _ in range(10)]
        await late(sv, clock, 10)
        await until(lambda: _booked_by(sv, "two", 3))
        stall.release.set()
        replies = await asyncio.wait_for(asyncio.gather(*asking), 5)
        assert [status for status, _, _ in replies] == [200] * 10
        assert sorted(told["x-tollkeeper-provider"] for _, told, _ in replies) == ["one"] * 7 + ["two"] * 3
        entries = await sv.gw.entries()
        assert (len(entries), sum(entry.calls for entry in entries)) == (13, 10)
        assert sv.asked() == [10, 3]
        exact = [entry.usage for entry in entries if entry.outcome == "ok"]
        billed = [each.usage for fake in sv.fakes for each in fake.bill if each.complete]
        assert sorted(exact, key=str) == sorted(billed, key=str)


async def _booked_by(sv: Several, provider: str, count: int) -> bool:
    return len((await sv.by_provider())[provider]) == count


async def test_hedges_are_bounded(tmp_path: Path) -> None:
    """E5: when everything is late, the load grows by a share of the calls and a floor, as with retries."""
    async with hedged(tmp_path, settings=NO_BREAKERS) as (sv, clock):
        sv.fakes[0].always = stall = Stall()
        asking = [asyncio.ensure_future(sv.ask(CHAT, STREAM)) for _ in range(30)]
        await late(sv, clock, 30)
        most = retry.FLOOR + 6
        await until(lambda: _booked_by(sv, "two", most))
        stall.release.set()
        replies = await asyncio.wait_for(asyncio.gather(*asking), 5)
        assert {status for status, _, _ in replies} == {200}
        assert sv.asked() == [30, most]
        assert len(await sv.gw.entries()) == 30 + most


@pytest.mark.parametrize("policy", ["drain", "cancel"])
async def test_the_client_leaves(tmp_path: Path, policy: str) -> None:
    """D1: both are booked; drained, the one with content first exactly."""
    async with hedged(tmp_path, settings=f'on_disconnect = "{policy}"\n') as (sv, clock):
        sv.fakes[0].always, sv.fakes[1].always = (first := Stall()), Stall()
        asking = asyncio.ensure_future(sv.ask(CHAT, STREAM))
        await late(sv, clock)
        await until(lambda: sv.fakes[1].requests)
        asking.cancel()
        await asyncio.wait([asking])
        if policy == "drain":
            await until(lambda: sv.gw.app.gate.draining == 2)
            first.release.set()
        await until(lambda: sv.gw.booked(2))
        assert [(provider, calls) for provider, calls, _ in await booked(sv)] == [("one", 1), ("two", 0)]
        statuses = [entry.charge.status for entry in (await sv.by_provider())["one"]]
        assert statuses == ["priced" if policy == "drain" else "estimated"]
