"""Fail-over over real sockets: a provider is down, refuses, or has no quota left, and another one or another key serves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.failover import ASK, ASKS, CHAT, KEYS, NAME, Several, several
from tests.gateway import STREAMS, budget, request, until

from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import Cut, FakeProvider, Refuse, Stall


def closed(sv: Several) -> bool:
    """Whether no breaker has opened or counted a failure."""
    return all((each.state, each.failures) == ("closed", 0) for each in sv.gw.app.gate.health.states())


# ---- a provider is down ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refuses connections", "503", "breaks off"])
async def test_a_provider_is_down_for_a_minute(tmp_path: Path, how: str) -> None:
    """E1, B5: at most 4 of 20 calls try it, all are served, none pauses; each attempt is booked, and each call counts once."""

    def pause() -> float:
        raise AssertionError("no call waits before it goes elsewhere")

    clock = ManualClock()
    async with several(tmp_path, clock=clock, draw=pause) as sv:
        if how == "refuses connections":
            await sv.places[0].shut()
        sv.fakes[0].always = Refuse(503) if how == "503" else Cut(headers=False)
        for _ in range(20):
            assert await sv.served_by() == "two"
            clock.advance(3)
        tried = [route for route in sv.opened if route.provider.name == "one"]
        booked = await sv.by_provider()
        assert 0 < len(tried) <= 4
        assert len(booked["one"]) == len(sv.fakes[0].requests) == (0 if how == "refuses connections" else len(tried))
        assert len(booked["two"]) == 20
        assert sum(entry.calls for entry in await sv.gw.entries()) == 20
        assert [entry.outcome for entry in booked["two"]] == ["ok"] * 20
        assert [entry.usage for entry in booked["two"]] == [billed.usage for billed in sv.fakes[1].bill]


async def test_a_provider_that_is_back_is_asked_again(tmp_path: Path) -> None:
    """E1: after the open time one call tries it, and from then on all do."""
    clock = ManualClock()
    async with several(tmp_path, clock=clock) as sv:
        await sv.places[0].shut()
        assert [await sv.served_by() for _ in range(4)] == ["two"] * 4
        await sv.places[0].reopen()
        assert await sv.served_by() == "two"
        clock.advance(30)
        assert [await sv.served_by() for _ in range(4)] == ["one"] * 4


async def test_the_headers_of_a_call_that_moved(tmp_path: Path) -> None:
    """A reply tells who served it, how many were asked, and what all of that cost together."""
    async with several(tmp_path) as sv:
        sv.fakes[0].always = Cut(headers=False)  # it may have worked: booked at the quote
        status, told, _ = await sv.ask()
        entries = await sv.gw.entries()
    assert status == 200
    assert (told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == ("two", "2")
    total = sum(entry.charge.amount_nanos or 0 for entry in entries)
    assert told["x-tollkeeper-cost"] == f"{total / 1e9:.9f}".rstrip("0")
    assert told["x-tollkeeper-cost-status"] == "estimated"


async def test_three_billed_attempts_are_one_call(tmp_path: Path) -> None:
    """B5: three entries, one call; what three providers bill is what the ledger has, to the token."""
    thinks = [FakeProvider(always=Cut(3), reasoning_tokens=9) for _ in range(2)]  # all but [DONE], and not a word
    async with several(tmp_path, *thinks, FakeProvider()) as sv:
        body = ASK | {"max_completion_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
        status, _, through = await sv.ask(body=body)
        entries = await sv.gw.entries()
        await sv.agrees()
    assert status == 200
    assert through.endswith(b"[DONE]\n\n")
    assert [(entry.attempt, entry.calls, entry.provider) for entry in entries] == [
        (1, 1, "one"), (2, 0, "two"), (3, 0, "three"),
    ]  # fmt: skip
    assert len({entry.call for entry in entries}) == 1
    assert [entry.charge.status for entry in entries] == ["priced"] * 3
    assert [entry.usage.output for entry in entries] == [5, 5, 5]


async def may_be_back(sv: Several, clock: ManualClock) -> None:
    """The first provider has failed three times, and its open time is over."""
    sv.fakes[0].next(*[Refuse(503)] * 3)
    assert [await sv.served_by() for _ in range(3)] == ["two"] * 3
    clock.advance(30)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_provider_that_may_be_back_gets_one_call(tmp_path: Path, hangs: bool) -> None:
    """E2: of 100 calls one probes it; where that hangs another may after its time, and its own good end still counts."""
    clock, stall = ManualClock(), Stall(0)
    async with several(tmp_path, clock=clock) as sv:
        await may_be_back(sv, clock)
        sv.fakes[0].next(stall)
        probe = asyncio.ensure_future(sv.served_by())
        await stall.reached.wait()
        assert Counter(await asyncio.gather(*(sv.served_by() for _ in range(99)))) == {"two": 99}
        if hangs:
            clock.advance(60)
            assert await sv.served_by() == "one"
        stall.release.set()
        assert await probe == "one"
        assert [await sv.served_by() for _ in range(3)] == ["one"] * 3
        assert {each.state for each in sv.gw.app.gate.health.states()} == {"closed"}


@pytest.mark.parametrize("ends", ["a client error", "its client leaves"])
async def test_a_probe_that_says_nothing_gives_its_place_back(tmp_path: Path, ends: str) -> None:
    """E2: at once: the next call probes it, and no breaker stays half-open."""
    clock, stall = ManualClock(), Stall(0)
    async with several(tmp_path, settings='on_disconnect = "cancel"\n', clock=clock) as sv:
        await may_be_back(sv, clock)
        sv.fakes[0].next(Refuse(400) if ends == "a client error" else stall)
        _, writer = await sv.gw.connect()
        writer.write(request(json.dumps(ASK).encode()))
        if ends == "its client leaves":
            await stall.reached.wait()
            writer.transport.abort()  # type: ignore[attr-defined]
        await until(lambda: sv.gw.booked(7))
        assert [await sv.served_by() for _ in range(3)] == ["one"] * 3
        assert {each.state for each in sv.gw.app.gate.health.states()} == {"closed"}
        writer.close()


# ---- what says nothing of the provider ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_client_error_moves_nothing(tmp_path: Path, status: int) -> None:
    """E3: it is relayed after one attempt, and however many there are, no breaker hears of it."""
    async with several(tmp_path) as sv:
        sv.fakes[0].always = Refuse(status)
        for _ in range(12):
            assert (await sv.ask())[0] == status
        assert sv.asked() == [12, 0]
        assert closed(sv)


@pytest.mark.parametrize("policy", ["drain", "cancel"])
async def test_clients_that_leave_open_no_breaker(tmp_path: Path, policy: str) -> None:
    """E3: nor is anything tried for a client that has gone."""
    async with several(tmp_path, settings=f'on_disconnect = "{policy}"\n') as sv:
        for number in range(4):
            sv.fakes[0].always = stall = Stall(0)
            _, writer = await sv.gw.connect()
            writer.write(request(json.dumps(ASK | {"stream": True}).encode()))
            await stall.reached.wait()
            writer.transport.abort()  # type: ignore[attr-defined]
            if policy == "drain":
                await until(lambda: sv.gw.app.gate.draining)
                stall.release.set()
            await until(lambda number=number: sv.gw.booked(number + 1))  # type: ignore[misc]
        assert sv.asked() == [4, 0]
        assert closed(sv)


async def test_a_client_that_leaves_in_the_pause_ends_the_call(tmp_path: Path) -> None:
    """E3: between two attempts a client that has gone is noticed: nobody else is asked for it."""
    async with several(tmp_path, FakeProvider(always=Refuse(503)), draw=lambda: 2.0) as sv:
        _, writer = await sv.gw.connect()
        writer.write(request(json.dumps(ASK).encode()))
        await until(lambda: sv.gw.booked(1))
        writer.transport.abort()  # type: ignore[attr-defined]
    assert sv.asked() == [1]


async def test_a_budget_that_refuses_opens_no_breaker(tmp_path: Path) -> None:
    """E3: it is the caller's own."""
    async with several(tmp_path, settings=budget("project", "0.000000001")) as sv:
        for _ in range(12):
            assert (await sv.ask())[0] == 402
        assert sv.asked() == [0, 0]
        assert closed(sv)


# ---- keys -----------------------------------------------------------------------------------------------------------


async def test_keys_take_turns(tmp_path: Path) -> None:
    """Each call begins with another credential of the provider."""
    async with several(tmp_path, FakeProvider(), keys=3) as sv:
        for _ in range(9):
            await sv.served_by()
    assert Counter(sv.keys()) == dict.fromkeys(KEYS, 3)
    assert len(set(sv.keys()[:3])) == 3


@pytest.mark.parametrize("keys", [1, 2])
async def test_a_rate_limit_holds_until_retry_after(tmp_path: Path, keys: int) -> None:
    """E3: until then another key of the provider serves, or where it has none another provider; and no longer."""
    clock = ManualClock()
    async with several(tmp_path, keys=keys, clock=clock) as sv:
        sv.fakes[0].next(Refuse(429, retry_after="20"))
        served = [await sv.served_by() for _ in range(5)]
        clock.advance(19.9)
        served += [await sv.served_by() for _ in range(4)]
        limited, asked = sv.keys()[0], sv.keys()[1:]
        assert limited not in asked
        assert served == ["one" if keys == 2 else "two"] * 9
        clock.advance(0.1)
        assert [await sv.served_by() for _ in range(4)] == ["one"] * 4
        assert limited in sv.keys()[-4:]


@pytest.mark.parametrize("before", [["20", "5"], ["5", "20"]])
async def test_the_longest_retry_after_holds(tmp_path: Path, before: list[str]) -> None:
    """E3: of two calls that were refused side by side the later instant counts."""
    clock = ManualClock()
    async with several(tmp_path, clock=clock) as sv:
        stalls = [Stall(0), Stall(0)]
        sv.fakes[1].always = None
        sv.fakes[0].next(
            *([stall, Refuse(429, retry_after=after)] for stall, after in zip(stalls, before, strict=True))
        )
        await asyncio.gather(sv.served_by(), sv.served_by())
        clock.advance(19.9)
        assert await sv.served_by() == "two"
        clock.advance(0.1)
        assert await sv.served_by() == "one"


NO_QUOTA = [Refuse(status, type="insufficient_quota", code="insufficient_quota") for status in (400, 402, 403, 429)]
CREDIT = "Your credit balance is too low to access the Anthropic API."
OUT = [*NO_QUOTA, Refuse(400, type="invalid_request_error", message=CREDIT), Refuse(401), Refuse(403)]


@pytest.mark.parametrize("refusal", OUT, ids=lambda each: f"{each.status} {each.type}")
async def test_a_key_without_quota_is_left_out(tmp_path: Path, refusal: Refuse) -> None:
    """E4: by the error's type, whatever its status; another credential of the same provider serves."""
    clock = ManualClock()
    async with several(tmp_path, keys=2, clock=clock) as sv:
        sv.fakes[0].next(refusal)
        for _ in range(6):
            assert await sv.served_by() == "one"
            clock.advance(60)
        left_out, *asked = sv.keys()
        assert left_out not in asked
        assert len(asked) == 6
        assert sv.asked()[1] == 0
        (key,) = (each for each in sv.gw.app.gate.health.states() if each.state == "open")
        assert (key.level, key.provider) == ("key", "one")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_a_whole_error_with_status_200(tmp_path: Path, path: str) -> None:
    """D5, P4: some answer 200 with an error for a body: it counts as what it says, is estimated, and is served elsewhere.

    Where all answer so, the client has the last one's body as it came.
    """
    async with several(tmp_path) as sv:
        sv.fakes[0].next(Refuse(200, type="overloaded_error"))
        status, headers, body = await sv.ask(path, dict(ASKS)[path])
        assert (status, headers["x-tollkeeper-provider"], b"overloaded" in body) == (200, "two", False)
        for fake in sv.fakes:
            fake.always = Refuse(200, type="overloaded_error", message="Busy.")
        status, headers, body = await sv.ask(path, dict(ASKS)[path])
        assert (status, headers["x-tollkeeper-attempts"], b"Busy." in body) == (200, "3", True)
        entries = await sv.gw.entries()
        booked = Counter((each.outcome, each.note, each.charge.status) for each in entries)
        assert booked == {("error", "overloaded_error", "estimated"): 4, ("ok", None, "priced"): 1}


async def test_where_every_key_is_refused_another_provider_serves(tmp_path: Path) -> None:
    """E4: a provider that knows none of its keys is no more than left out; nobody sees its 401."""
    async with several(tmp_path, FakeProvider(key="sk-other"), FakeProvider(), keys=2) as sv:
        assert [await sv.served_by() for _ in range(3)] == ["two"] * 3
        assert sv.asked() == [2, 3]


@pytest.mark.parametrize("code", ["model_not_found", "not_found"])
async def test_a_model_that_is_not_there(tmp_path: Path, code: str) -> None:
    """E3: it is looked for elsewhere, and not there again; a thing of the client's that is not found goes back to it."""
    async with several(tmp_path) as sv:
        sv.fakes[0].always = Refuse(404, code=code)
        seen = [(await sv.ask())[0] for _ in range(3)]
        assert seen == [200] * 3 if code == "model_not_found" else [404] * 3
        assert sv.asked() == ([1, 3] if code == "model_not_found" else [3, 0])
        async with sv.gw.post(CHAT, ASK | {"model": "one/gpt-4o"}) as response:  # its other models are not concerned
            assert response.status == 404
        assert len(sv.opened) == (5 if code == "model_not_found" else 4)


# ---- the official SDKs ----------------------------------------------------------------------------------------------

FAILING: list[Any] = [Refuse(503), Refuse(401), Cut(headers=False), Cut(1), Cut(20, "bytes")]


@pytest.mark.parametrize("fault", FAILING, ids=str)
async def test_the_official_sdks_see_nothing_of_it(tmp_path: Path, fault: Any) -> None:
    """P5: unmodified, streamed or not, they get a good answer while the first provider fails."""
    body = STREAMS[0][1] | {"model": NAME}
    whole = {name: value for name, value in body.items() if name != "stream"}
    async with several(tmp_path, settings="retry_budget = 1\n") as sv:
        sv.fakes[0].always = fault
        async with sv.gw.openai() as client:
            assert (await client.chat.completions.create(**whole)).choices[0].message.content
            chunks = [chunk async for chunk in await client.chat.completions.create(**body)]
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert (await client.responses.create(model=NAME, input="How much?")).output_text
            assert (await client.embeddings.create(model=NAME, input="toll")).data[0].embedding
        async with sv.gw.anthropic() as messages:
            asked = whole | {"max_tokens": 20}
            assert (await messages.messages.create(**asked)).content
            async with messages.messages.stream(**asked) as stream:
                assert (await stream.get_final_message()).stop_reason == "max_tokens"
        assert [entry.outcome for entry in (await sv.by_provider())["two"]] == ["ok"] * 6
        assert sum(entry.calls for entry in await sv.gw.entries()) == 6
