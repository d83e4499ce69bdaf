"""Responses through the gateway, asked by the official SDK: whole and streamed, with tools, cut, failed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway import BODIES, budget, gateway, until

from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, Replay

ASK: Any = BODIES["openai-responses"]
FUNCTION: Any = {
    "type": "function",
    "name": "pay",
    "strict": False,
    "parameters": {"type": "object", "properties": {"toll": {"type": "string"}}},
}
SEARCH: Any = {"type": "web_search"}
SSE = (("content-type", "text/event-stream"),)


def cost(usage: Any) -> int:
    """At 0.15, 0.075 and 0.60 dollars per million tokens and 10 dollars per thousand searches."""
    return int(usage.input * 150 + usage.cache_read * 75 + usage.output * 600 + usage.web_search * 10_000_000)


async def test_a_response_is_booked_as_billed(tmp_path: Path) -> None:
    """A1: the SDK's response is one entry with the provider's usage, the model and tier that served, an exact price."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4, reasoning_tokens=3)) as gw:
        async with gw.openai(project="alpha", session="s1") as client:
            reply = await client.responses.create(**ASK, user="u1", instructions="Be short.")
        entry = await gw.entry()
    assert reply.usage is not None
    assert entry.usage == gw.fake.bill[0].usage
    assert (entry.usage.tokens, entry.usage.reasoning) == (reply.usage.total_tokens, 3)
    assert entry.usage.output == len(reply.output_text.split()) + 3
    assert (entry.dialect, entry.provider, entry.outcome) == ("openai-responses", "openai", "ok")
    assert (entry.model, entry.served, entry.tier) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "default")
    assert (entry.scopes.project, entry.scopes.session, entry.scopes.user) == ("alpha", "s1", "u1")
    assert (entry.charge.amount_nanos, entry.charge.status) == (cost(entry.usage), "priced")


async def test_a_stream_is_booked_as_billed(tmp_path: Path) -> None:
    """A3: the events come in order and unchanged, and their usage is counted once."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4, reasoning_tokens=2)) as gw:
        async with gw.openai() as client:
            events = [event async for event in await client.responses.create(**ASK, stream=True)]
        entry = await gw.entry()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text
    assert gw.fake.requests[0].json() == ASK | {"stream": True}
    assert (entry.usage, entry.outcome) == (gw.fake.bill[0].usage, "ok")
    assert (entry.charge.amount_nanos, entry.charge.status) == (cost(entry.usage), "priced")


async def test_the_sdks_own_stream(tmp_path: Path) -> None:
    """`responses.stream` accumulates what passes to the provider's last response."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=2)) as gw:
        async with gw.openai() as client, client.responses.stream(**ASK) as stream:
            names = [event.type async for event in stream]
            final = await stream.get_final_response()
        entry = await gw.entry()
    assert final.usage is not None
    assert final.usage.total_tokens == entry.usage.tokens
    assert "response.output_text.delta" in names
    assert final.output_text


@pytest.mark.parametrize("stream", [False, True])
async def test_functions_are_called(tmp_path: Path, stream: bool) -> None:
    """A call of the caller's own function passes whole and in pieces, and costs its tokens alone."""
    asked = {**ASK, "tools": [FUNCTION], "tool_choice": "required"}
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            if stream:
                async with client.responses.stream(**asked) as events:
                    pieces = [
                        event.delta async for event in events if event.type == "response.function_call_arguments.delta"
                    ]
                    reply: Any = await events.get_final_response()
            else:
                reply = await client.responses.create(**asked)
        entry = await gw.entry()
    (call,) = reply.output
    assert (call.type, call.name) == ("function_call", "pay")
    assert json.loads(call.arguments)["toll"]
    assert not stream or "".join(pieces) == call.arguments
    assert (entry.usage, entry.charge.amount_nanos) == (gw.fake.bill[0].usage, cost(entry.usage))


@pytest.mark.parametrize("stream", [False, True])
async def test_searches_are_counted(tmp_path: Path, stream: bool) -> None:
    """A4: searches that the provider made stand in the entry, and at their own price."""
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            reply = await client.responses.create(**ASK, tools=[SEARCH], stream=stream)
            if stream:
                assert [event async for event in reply][-1].type == "response.completed"
        entry = await gw.entry()
    assert entry.usage.web_search == 1
    assert (entry.usage, entry.charge.amount_nanos) == (gw.fake.bill[0].usage, cost(entry.usage))


@pytest.mark.parametrize("stream", [False, True])
async def test_output_cap_is_written_and_told(tmp_path: Path, stream: bool) -> None:
    """C3: a response without a cap gets the declared one under a hard budget; cut short, it is billed and booked so."""
    settings = "default_output_cap = 5\n" + budget("project", "1000")
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=2), settings) as gw:
        async with gw.openai() as client:
            if stream:
                last = [event async for event in await client.responses.create(**ASK, stream=True)][-1]
                assert last.type == "response.incomplete"
                reply = last.response
            else:
                raw = await client.responses.with_raw_response.create(**ASK)
                assert raw.headers["x-tollkeeper-output-cap"] == "5"
                reply = raw.parse()
        entry = await gw.entry()
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert gw.fake.requests[0].json()["max_output_tokens"] == 5
    assert (entry.outcome, entry.usage.output, entry.usage.reasoning) == ("ok", 5, 2)
    assert entry.charge.status == "priced"


@pytest.mark.parametrize("fault", [Cut(6), ErrorEvent(6)], ids=["cut", "error"])
async def test_a_stream_that_breaks_raises(tmp_path: Path, fault: Any) -> None:
    """D3: the SDK raises on a stream that broke off or failed, and never ends as if all were well; one estimated entry."""
    async with gateway(tmp_path, FakeProvider(always=fault)) as gw:
        async with gw.openai() as client:
            stream = await client.responses.create(**ASK, stream=True)
            seen = [await anext(stream) for _ in range(6)]
            with pytest.raises(openai.APIError) as broken:
                await anext(stream)
        entry = await gw.entry()
    assert seen[-1].type == "response.output_text.delta"
    assert "broke off" in str(broken.value) or "Overloaded" in str(broken.value)
    assert entry.charge.status == "estimated"
    assert entry.usage.output >= gw.fake.bill[0].usage.output


async def test_a_cut_after_secret_reasoning_is_booked_at_the_cap(tmp_path: Path) -> None:
    """D1: what was thought in secret is not in the bytes that were seen: the cap bounds it."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=500, always=Cut(8))) as gw:
        async with gw.post("/v1/responses", ASK | {"stream": True, "max_output_tokens": 900}) as response:
            assert b"response.output_text.delta" in await response.read()
        entry = await gw.entry()
    assert (entry.outcome, entry.usage.output, entry.charge.status) == ("cut", 900, "estimated")
    assert entry.usage.output >= gw.fake.bill[0].usage.output >= 500


def failing(usage: Any, *between: dict[str, Any]) -> bytes:
    """A stream that fails, with what came before."""
    response = {"id": "r", "object": "response", "model": "gpt-4o-mini", "output": [], "error": None, "usage": None}
    failed = response | {"status": "failed", "error": {"code": "server_error", "message": "no"}, "usage": usage}
    events = [
        {"type": "response.created", "response": response | {"status": "in_progress"}}, *between,
        {"type": "response.failed", "response": failed},
    ]  # fmt: skip
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in events)


TEXT = {"type": "response.output_text.delta", "delta": "toll"}
USAGE = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}


@pytest.mark.parametrize(
    ("body", "status", "output", "nanos"),
    [
        (failing(None), "priced", 0, 0),
        (failing(None, TEXT), "estimated", 4, None),
        (failing(USAGE, TEXT), "priced", 1, 9 * 150 + 600),
    ],
    ids=["at once", "after text", "with usage"],
)
async def test_failed_responses(tmp_path: Path, body: bytes, status: str, output: int, nanos: int | None) -> None:
    """A5: a response that failed at once cost nothing; after text what it cost is estimated, unless it says so."""
    async with gateway(tmp_path, FakeProvider(always=Replay(body, headers=SSE, chunk=50))) as gw:
        async with gw.post("/v1/responses", ASK | {"stream": True}) as response:
            assert response.status == 200
            assert await response.read() == body
        entry = await gw.entry()
    assert (entry.outcome, entry.note, entry.usage.output) == ("error", "server_error", output)
    assert entry.charge.status == status
    assert nanos is None or entry.charge.amount_nanos == nanos


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_does_not_retry_a_refusal(tmp_path: Path, stream: bool) -> None:
    """C7: a refusal for money is one request, in OpenAI's shape, whatever the SDK's retries; nothing was sent."""
    asked = 0
    async with gateway(tmp_path, settings=budget("session", "0.000001", window="total")) as gw:
        call = gw.app.api._call

        async def counting(*args: Any) -> None:
            nonlocal asked
            asked += 1
            await call(*args)

        gw.app.api._call = counting  # type: ignore[method-assign]
        async with gw.openai(session="s1") as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.with_options(max_retries=5).responses.create(**ASK, stream=stream)
        assert (asked, refused.value.status_code) == (1, 402)
        assert isinstance(refused.value.body, dict)
        assert (refused.value.body["code"], refused.value.body["id"]) == ("budget_exceeded", "s1")
        assert await gw.untouched()


async def test_background(tmp_path: Path) -> None:
    """C3: in the background a response is refused, since its end is not seen; as a stream it passes and is counted."""
    async with gateway(tmp_path) as gw, gw.openai() as client:
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.create(**ASK, background=True)
        assert await gw.untouched()
        stream = await client.responses.create(**ASK, background=True, stream=True)
        assert [event async for event in stream][-1].type == "response.completed"
        await until(lambda: gw.booked(1))
        assert gw.fake.requests[0].json()["background"] is True
        assert (await gw.entry()).charge.status == "priced"


async def test_what_the_provider_holds_is_bounded(tmp_path: Path) -> None:
    """C3: a call that goes on from an earlier response holds as much as the largest context, and gives the rest back."""
    async with gateway(tmp_path, settings=budget("project", "0.5")) as gw, gw.openai() as client:
        reply = await client.responses.create(**ASK, previous_response_id="resp_1", max_output_tokens=50)
        assert reply.status == "completed"
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.create(
                **ASK | {"model": "gpt-4o"}, previous_response_id="resp_1", max_output_tokens=50
            )
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["asked"].startswith("5.00")  # two million tokens at 2.50 dollars a million
        await gw.entry()
