"""What bounds fail-over, over real sockets: budgets at every hop, attempts, a storm, the end of the gateway; and who is first."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.failover import ASK, ASKS, MODEL, NAME, NO_BREAKERS, Several, several
from tests.gateway import budget, request, until

from tollkeeper import app, retry
from tollkeeper.api import dialect_at
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import Cut, FakeProvider, Refuse, Stall
from tollkeeper.values import Budget

EACH = pytest.mark.parametrize(("path", "body"), ASKS, ids=[path for path, _ in ASKS])


def failing(count: int, fault: Any) -> list[FakeProvider]:
    return [FakeProvider(always=fault) for _ in range(count)]


async def set_limit(sv: Several, nanos: int, project: str, **more: Any) -> None:
    await sv.gw.app.gate.store.set_budgets([Budget(scope="project", id=project, limit=nanos, window="total", **more)])


# ---- budgets --------------------------------------------------------------------------------------------------------


@EACH
async def test_every_hop_is_gated(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """C6: a budget that pays for n attempts pays for n, by whichever key and provider; the next one is not sent."""
    settings = "attempts = 4\nretry_budget = 1\ndefault_output_cap = 20\n" + NO_BREAKERS
    async with several(tmp_path, *failing(2, Cut(headers=False)), settings=settings, keys=2) as sv:
        ways = sv.gw.app.gate.table.candidates(NAME, dialect_at(path) or "").routes
        await set_limit(sv, 10**12, "all")
        assert (await sv.ask(path, body, **{"x-tollkeeper-project": "all"}))[0] == 502
        assert len(ways) == len(sv.opened) == 4
        assert {route.place for route in sv.opened} == {route.place for route in ways}
        (quote,) = {entry.charge.amount_nanos for entry in await sv.gw.entries()}  # what never answered is booked at it
        assert quote
        for count in range(4):
            sv.opened.clear()
            project = f"pays for {count}"
            await set_limit(sv, quote * count + quote - 1, project)
            status, told, through = await sv.ask(path, body, **{"x-tollkeeper-project": project})
            assert (status, told["x-should-retry"]) == (402, "false")
            assert b"udget of project" in through
            assert len(sv.opened) == count
        booked = Counter(entry.scopes.project for entry in await sv.gw.entries())
    assert booked == {"all": 4} | {f"pays for {count}": count for count in range(1, 4)}


@pytest.mark.parametrize(("window", "status"), [("day", 402), ("minute", 429)])
async def test_a_request_budget_counts_attempts(tmp_path: Path, window: str, status: int) -> None:
    """C6: the second attempt of the second call is one too many."""
    settings = budget("project", 3, measure="requests", window=window)
    fakes = [FakeProvider(always=Refuse(503)), FakeProvider()]
    async with several(tmp_path, *fakes, settings=settings, clock=ManualClock()) as sv:
        assert await sv.served_by() == "two"
        found, told, _ = await sv.ask()
        assert (found, told["x-should-retry"]) == (status, "false")
        assert (told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == ("one", "1")  # who was asked
        assert told["x-tollkeeper-cost"] == "0"
        assert sv.asked() == [2, 1]
        assert [entry.calls for entry in await sv.gw.entries()] == [1, 0, 1]


@pytest.mark.parametrize("limit", ["0.01", "0.000001"])
async def test_instead_of_a_refusal(tmp_path: Path, limit: str) -> None:
    """A budget that cannot pay turns the call to its cheaper model, booked as that; where that is too dear it refuses."""
    cheap = '[routes.cheap]\nto = ["two/gpt-4o-mini"]\n'
    settings = "default_output_cap = 2000\n" + budget("project", limit, window="total", instead="cheap") + cheap
    async with several(tmp_path, settings=settings, to=['"one/gpt-4o"']) as sv:
        status, told, _ = await sv.ask()
        entries = await sv.gw.entries()
        assert told["x-tollkeeper-instead-of"] == NAME
        if limit == "0.01":
            assert (status, told["x-tollkeeper-provider"], told["x-tollkeeper-model"]) == (200, "two", MODEL)
            assert [(entry.model, entry.sent, entry.calls, entry.outcome) for entry in entries] == [
                ("cheap", MODEL, 1, "ok")
            ]
            await sv.agrees()
        else:
            assert (status, entries, sv.opened) == (402, [], [])
            assert told["x-should-retry"] == "false"
        assert sv.asked()[0] == 0


async def test_instead_fails_over_too(tmp_path: Path) -> None:
    """The cheaper model's name may lead to several targets."""
    cheap = '[routes.cheap]\nto = ["one/gpt-4o-mini", "two/gpt-4o-mini"]\n'
    settings = "default_output_cap = 2000\n" + budget("project", "0.01", window="total", instead="cheap") + cheap
    async with several(tmp_path, settings=settings, to=['"one/gpt-4o"']) as sv:
        sv.fakes[0].always = Refuse(503)
        assert await sv.served_by() == "two"
        assert [(entry.model, entry.calls) for entry in await sv.gw.entries()] == [("cheap", 1), ("cheap", 0)]


# ---- attempts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
@pytest.mark.parametrize("fault", [Refuse(503), Refuse(529), Cut(headers=False)], ids=str)
async def test_attempts_are_bounded(tmp_path: Path, attempts: int, fault: Any) -> None:
    """E5: at other providers first, then at the last one again; after more than one an SDK is told to leave it at that."""
    async with several(tmp_path, *failing(3, fault), settings=f"attempts = {attempts}\n") as sv:
        status, told, _ = await sv.ask()
        entries = await sv.gw.entries()
    assert status == (fault.status if isinstance(fault, Refuse) else 502)
    assert sv.asked() == {1: [1, 0, 0], 2: [1, 1, 0], 3: [1, 1, 1], 5: [1, 1, 3]}[attempts]
    assert told["x-tollkeeper-attempts"] == str(attempts)
    assert told.get("x-should-retry") == ("false" if attempts > 1 else None)
    assert [entry.attempt for entry in entries] == list(range(1, attempts + 1))
    assert sum(entry.calls for entry in entries) == 1


@pytest.mark.parametrize(("share", "most"), [("0.2", 40 + retry.FLOOR), ("0", 0)])
async def test_a_storm_ends_by_itself(tmp_path: Path, share: str, most: int) -> None:
    """E5: while every provider fails, further attempts are a share of the calls and a floor, also with no breaker open.

    A share of 0 is none.
    """
    settings = f"retry_budget = {share}\n" + NO_BREAKERS
    async with several(tmp_path, *failing(3, Refuse(503)), settings=settings, clock=ManualClock()) as sv:
        for _ in range(20):
            replies = await asyncio.gather(*(sv.ask() for _ in range(10)))
            assert {status for status, _, _ in replies} == {503}
        made = sum(sv.asked())
        assert made - 200 == most
        assert len(await sv.gw.entries()) == made
        assert sum(entry.calls for entry in await sv.gw.entries()) == 200


ONE_FAILURE = "[breaker]\nfailures = 1\n"


async def test_where_all_are_open_it_refuses(tmp_path: Path) -> None:
    """E5: 503 with Retry-After and terminal for SDKs, as declared; nobody is asked, nothing booked; then it goes on."""
    clock = ManualClock()
    settings = 'when_all_open = "refuse"\n' + ONE_FAILURE
    async with several(tmp_path, *failing(2, Refuse(503)), settings=settings, clock=clock) as sv:
        assert (await sv.ask())[0] == 503
        clock.advance(10.5)
        status, told, through = await sv.ask()
        assert (status, told["retry-after"], told["x-should-retry"]) == (503, "20", "false")
        assert json.loads(through)["error"]["code"] == "held_off"
        assert sv.asked() == [1, 1]
        assert len(await sv.gw.entries()) == 2
        clock.advance(19.5)
        sv.fakes[0].always = None
        assert await sv.served_by() == "one"


@pytest.mark.parametrize(("waits", "first"), [((20, 10), "two"), ((10, 20), "one"), ((10, 10), "one")])
async def test_where_all_are_open_it_tries(tmp_path: Path, waits: tuple[int, int], first: str) -> None:
    """E5: the one that is back first is asked, once."""
    fakes = [FakeProvider([Refuse(429, retry_after=str(seconds))]) for seconds in waits]
    async with several(tmp_path, *fakes, clock=ManualClock()) as sv:
        assert (await sv.ask())[0] == 429
        assert await sv.served_by() == first
        assert sum(sv.asked()) == 3


# ---- who is first ---------------------------------------------------------------------------------------------------


async def test_weighted(tmp_path: Path) -> None:
    """Three of four calls begin at the one that weighs three times as much, and what fails there moves on."""
    to = [f'{{ provider = "one", model = "{MODEL}" }}', f'{{ provider = "two", model = "{MODEL}", weight = 3 }}']
    async with several(tmp_path, to=to, policy="weighted", draw=Random(7).random) as sv:
        served = Counter([await sv.served_by() for _ in range(80)])
        assert 50 <= served["two"] <= 70
        sv.fakes[1].always = Refuse(503)
        assert {await sv.served_by() for _ in range(4)} == {"one"}


async def test_cheapest(tmp_path: Path) -> None:
    """The target whose call costs least, wherever it is listed; then the next dearer one."""
    async with several(tmp_path, to=['"one/gpt-4o"', f'"two/{MODEL}"'], policy="cheapest") as sv:
        assert await sv.served_by() == "two"
        sv.fakes[1].always = Refuse(503)
        assert await sv.served_by() == "one"


async def test_fastest(tmp_path: Path) -> None:
    """Each is measured once, then the one whose first byte came soonest is asked."""
    clock = ManualClock()
    async with several(tmp_path, policy="fastest", clock=clock) as sv:
        for fake, seconds in zip(sv.fakes, (2, 1), strict=True):
            stall = Stall(0)
            fake.next(stall)
            asking = asyncio.ensure_future(sv.served_by())
            await stall.reached.wait()
            clock.advance(seconds)
            stall.release.set()
            await asking
        assert [await sv.served_by() for _ in range(3)] == ["two"] * 3


# ---- the gateway stops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drain_s", "pause_s", "status", "entries"), [(5, 0.2, 200, 2), (0.1, 20, 500, 1)])
async def test_a_call_between_two_attempts_when_the_gateway_stops(
    tmp_path: Path, drain_s: float, pause_s: float, status: int, entries: int
) -> None:
    """I3: it goes on within drain_seconds; past them it ends, and what was made is booked either way."""
    fake = FakeProvider([Refuse(503)])
    async with several(
        tmp_path, fake, settings=f"drain_seconds = {drain_s}\n", draw=lambda: pause_s / retry.PAUSE_S
    ) as sv:
        server = app.server(sv.gw.app)
        listening = app.listen(sv.gw.app.config)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        await until(lambda: server.started)
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        writer.write(request(json.dumps(ASK).encode()))
        await until(lambda: sv.gw.booked(1))
        server.handle_exit(signal.SIGTERM, None)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await asyncio.wait_for(serving, 5)
        listening.close()
        found = await sv.gw.entries()
        assert await sv.gw.live() == []
    assert int(answer.split()[1]) == status
    assert len(found) == len(sv.fakes[0].requests) == entries
    assert [entry.calls for entry in found] == [1, 0][:entries]
