"""OpenAI's responses through the gateway, asked by the official SDK: streamed, whole, with tools, cut, failed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway import BODIES, Gateway, budget, gateway, until

from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, NoUsage, Replay
from tollkeeper.values import Usage

ASK = BODIES["openai-responses"]
PATH = "/v1/responses"
FUNCTION = {"type": "function", "name": "say", "parameters": {"type": "object", "properties": {}}, "strict": False}
FAILED = {"code": "server_error", "message": "The model failed."}


async def test_response_is_booked_as_billed(tmp_path: Path) -> None:
    """A1: an SDK's response is one entry with the provider's usage, the model that served and an exact price."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4, reasoning_tokens=3)) as gw:
        async with gw.openai(project="alpha") as client:
            reply = await client.responses.create(**ASK, user="bob")
        entry = await gw.entry()
    assert reply.usage is not None
    assert reply.output_text.startswith(("every", "crossing")) or reply.output_text
    usage = entry.usage
    assert usage == gw.fake.bill[0].usage
    assert (usage.tokens, usage.reasoning) == (reply.usage.total_tokens, 3)
    assert (entry.dialect, entry.served, entry.tier) == ("openai-responses", "gpt-4o-mini-2024-07-18", "default")
    assert (entry.scopes.user, entry.outcome, entry.charge.status) == ("bob", "ok", "priced")
    assert entry.charge.amount_nanos == usage.input * 150 + usage.cache_read * 75 + usage.output * 600


async def test_stream_is_booked_as_billed(tmp_path: Path) -> None:
    """A1, D1: a stream gives the SDK every event in order, and the same account as the whole reply."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=3)) as gw:
        async with gw.openai() as client:
            whole = await client.responses.create(**ASK)
            events = [event async for event in await client.responses.create(**ASK, stream=True)]
        first, second = await booked(gw, 2)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert (first.usage, first.charge) == (second.usage, second.charge)
    assert second.usage == gw.fake.bill[1].usage


async def test_stream_helper(tmp_path: Path) -> None:
    """The SDK's own accumulating stream ends with the final response."""
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client, client.responses.stream(**ASK) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_response()
        entry = await gw.entry()
    assert {"response.output_text.delta", "response.output_text.done", "response.completed"} <= kinds
    assert final.output_text
    assert final.usage is not None
    assert final.usage.total_tokens == entry.usage.tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_tools(tmp_path: Path, stream: bool) -> None:
    """A function call goes there and back; a search is counted and priced beside the tokens, the call itself is not."""
    tools: list[Any] = [FUNCTION, {"type": "web_search"}]
    asked = ASK | {"model": "gpt-4o-mini", "tools": tools}
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            if stream:
                async with client.responses.stream(**asked) as events:
                    reply: Any = await events.get_final_response()
            else:
                reply = await client.responses.create(**asked)
            (call,) = [item for item in reply.output if item.type == "function_call"]
            assert json.loads(call.arguments)["say"]
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
            asked["input"] = [{"role": "user", "content": "toll?"}, call.model_dump(exclude_unset=True), result]
            last = await client.responses.create(**asked)
        first, second = await booked(gw, 2)
    assert last.output_text
    for entry, billed in zip((first, second), gw.fake.bill, strict=True):
        assert entry.usage == billed.usage
        assert entry.usage.web_search == 1
        searched = [term for term in entry.charge.terms if term.kind == "web_search"]
        assert (len(searched) == 1) == (entry.charge.status == "priced")


async def test_cap(tmp_path: Path) -> None:
    """C3: a hard budget has a cap written where none was set; a response cut short by it is incomplete, and exact."""
    settings = "default_output_cap = 5\n" + budget("project", "1")
    async with gateway(tmp_path, settings=settings) as gw:
        async with gw.openai() as client:
            events = [event async for event in await client.responses.create(**ASK, stream=True)]
        entry = await gw.entry()
    assert gw.fake.requests[0].json()["max_output_tokens"] == 5
    assert events[-1].type == "response.incomplete"
    assert (entry.usage.output, entry.outcome, entry.charge.status) == (5, "ok", "priced")


async def test_budget_refusal_is_not_retried(tmp_path: Path) -> None:
    """C7: a budget's refusal is 402, raised by the SDK at once with the budget's numbers; nothing is sent."""
    async with gateway(tmp_path, settings=budget("project", "0")) as gw:
        async with gw.openai() as client:
            with pytest.raises(openai.APIStatusError) as raised:
                await client.responses.create(**ASK, max_output_tokens=20)
        assert await gw.untouched()
    assert raised.value.status_code == 402
    error: Any = raised.value.body
    assert (error["code"], error["scope"], error["limit"]) == ("budget_exceeded", "project", "0")


async def test_background(tmp_path: Path) -> None:
    """A background response that nobody waits for is refused, and says why; streamed it passes."""
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            with pytest.raises(openai.BadRequestError, match="set stream to true"):
                await client.responses.create(**ASK, background=True)
            assert await gw.untouched()
            async for event in await client.responses.create(**ASK, background=True, stream=True):
                last = event.type
        entry = await gw.entry()
    assert last == "response.completed"
    assert (entry.usage, entry.charge.status) == (gw.fake.bill[0].usage, "priced")


async def read_on(stream: openai.AsyncStream[Any], seen: list[str]) -> None:
    async for event in stream:
        seen.append(event.type)  # noqa: PERF401 - what was seen before it raised counts


@pytest.mark.parametrize("helper", [False, True])
async def test_broken_stream_raises_in_the_sdk(tmp_path: Path, helper: bool) -> None:
    """D3: a stream that breaks after content ends in the SDK's APIError, never quietly, and is estimated."""
    seen: list[str] = []
    async with gateway(tmp_path, FakeProvider([Cut(6)])) as gw:
        async with gw.openai() as client:
            if helper:
                async with client.responses.stream(**ASK) as events:
                    with pytest.raises(openai.APIError, match="broke off"):
                        await read_on(events, seen)  # type: ignore[arg-type]
            else:
                stream = await client.responses.create(**ASK, stream=True)
                with pytest.raises(openai.APIError, match="broke off"):
                    await read_on(stream, seen)
        entry = await gw.entry()
    assert "response.output_text.delta" in seen
    assert not {"response.completed", "response.failed", "response.incomplete"} & set(seen)
    assert (entry.outcome, entry.charge.status) == ("cut", "estimated")
    assert entry.usage.output >= gw.fake.bill[0].usage.output > 0


async def test_error_event_raises_in_the_sdk(tmp_path: Path) -> None:
    """A provider's own error event reaches the SDK as it came."""
    async with gateway(tmp_path, FakeProvider([ErrorEvent(8)])) as gw:
        async with gw.openai() as client:
            stream = await client.responses.create(**ASK, stream=True)
            with pytest.raises(openai.APIError, match="Overloaded"):
                await read_on(stream, [])
        entry = await gw.entry()
    assert (entry.outcome, entry.charge.status, entry.note) == ("error", "estimated", "server_error")


def failing(*events: dict[str, Any]) -> Replay:
    body = b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)
    return Replay(body, 200, (("content-type", "text/event-stream"),), chunk=50)


CREATED = {"type": "response.created", "response": {"model": "gpt-4o-mini", "status": "in_progress", "usage": None}}
DELTA = {"type": "response.output_text.delta", "delta": "half an answer"}
ERROR = {"type": "response.failed", "response": {"status": "failed", "error": FAILED, "output": [], "usage": None}}


async def test_failed_before_content_costs_nothing(tmp_path: Path) -> None:
    """A response that failed before anything was generated is an error at no cost, streamed or not."""
    whole = json.dumps(ERROR["response"]).encode()
    async with gateway(tmp_path, FakeProvider([failing(CREATED, ERROR), Replay(whole)])) as gw:
        async with gw.post(PATH, ASK | {"stream": True}) as response:
            assert b"event: response.failed" in await response.read()
        async with gw.post(PATH, ASK) as response:
            assert await response.read() == whole
        entries = await booked(gw, 2)
    for entry in entries:
        assert (entry.outcome, entry.usage, entry.note) == ("error", Usage(), "server_error")
        assert (entry.charge.status, entry.charge.amount_nanos) == ("priced", 0)


async def test_failed_after_content_is_estimated(tmp_path: Path) -> None:
    """A response that failed in the midst of its text, and tells no usage, is estimated from what was seen."""
    async with gateway(tmp_path, FakeProvider([failing(CREATED, DELTA, ERROR)])) as gw:
        async with gw.post(PATH, ASK | {"stream": True}) as response:
            await response.read()
        entry = await gw.entry()
    assert (entry.outcome, entry.charge.status, entry.usage.output) == ("error", "estimated", len("half an answer"))


async def test_no_usage_is_estimated(tmp_path: Path) -> None:
    """A reply that keeps silent about its usage is bounded, never free."""
    async with gateway(tmp_path, FakeProvider([NoUsage(), NoUsage()])) as gw:
        for stream in (False, True):
            async with gw.post(PATH, ASK | {"stream": stream}) as response:
                await response.read()
        entries = await booked(gw, 2)
    for entry, billed in zip(entries, gw.fake.bill, strict=True):
        assert entry.charge.status == "estimated"
        assert entry.usage.output >= billed.usage.output
        assert entry.usage.input >= billed.usage.input


async def booked(gw: Gateway, count: int) -> list[Any]:
    await until(lambda: gw.booked(count))
    return await gw.entries()


async def test_a_cut_after_secret_reasoning_is_booked_at_the_cap(tmp_path: Path) -> None:
    """D1: what was thought in secret is not in the bytes that were seen: the cap bounds it."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=500, always=Cut(8))) as gw:
        async with gw.post("/v1/responses", ASK | {"stream": True, "max_output_tokens": 900}) as response:
            assert b"response.output_text.delta" in await response.read()
        entry = await gw.entry()
    assert (entry.outcome, entry.usage.output, entry.charge.status) == ("cut", 900, "estimated")
    assert entry.usage.output >= gw.fake.bill[0].usage.output >= 500
