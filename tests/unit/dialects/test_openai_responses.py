"""OpenAI responses: the ask, the permitted changes, the reply and the refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects import openai_responses
from tollkeeper.dialects.json_body import TEMPLATE_TOKENS
from tollkeeper.dialects.openai_responses import read_ask, write_body
from tollkeeper.errors import BadRequest, BudgetExceeded, StreamBroken
from tollkeeper.sse import Event, read_event
from tollkeeper.values import Budget, Part, Reading, Refusal, Standing, Usage

NONE: frozenset[str] = frozenset()
USAGE = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
READ = Usage(input=7, output=2)
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}


def event(kind: str, *, named: bool = True, **members: Any) -> Event:
    """An event of the wire; with `named` its type stands in `event:` too, as OpenAI's do."""
    name = b"event: " + kind.encode() + b"\n" if named else b""
    return read_event(name + b"data: " + json.dumps({"type": kind} | members).encode() + b"\n\n")


def delta(text: Any = "Hi", kind: str = "output_text") -> Event:
    return event(f"response.{kind}.delta", delta=text, sequence_number=1, obfuscation="xyz")


def ends(status: str = "completed", usage: Any = USAGE, **members: Any) -> Event:
    response = {
        "status": status,
        "model": "gpt-5-2025-08-07",
        "service_tier": "flex",
        "usage": usage,
        "output": [MESSAGE],
    }
    return event(f"response.{status}", response=response | members)


CREATED = event("response.created", response={"model": "gpt-5", "service_tier": "auto", "usage": None, "output": []})


def replay(*events: Event, quirks: frozenset[str] = NONE) -> Reading:
    """What a stream says; every event is relayed as it came."""
    reducer = openai_responses.reducer(stream=True, hide_usage=True, quirks=quirks)
    assert [reducer.event(event) for event in events] == [event.raw for event in events]
    return reducer.reading()


def whole(body: Any) -> Reading:
    reducer = openai_responses.reducer(stream=False, hide_usage=False, quirks=NONE)
    reducer.whole(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert reducer.content
    return reducer.reading()


def test_ask() -> None:
    """An ask carries what the line needs: model, stream, cap, user, tier; reasoning is inside the cap."""
    body = b'{"model":"gpt-5","input":"toll","stream":true,"max_output_tokens":9,"user":"bob","service_tier":"flex"}'
    ask = read_ask(body)
    assert (ask.dialect, ask.path, ask.model) == ("openai-responses", "/responses", "gpt-5")
    assert (ask.stream, ask.output_cap, ask.choices, ask.user, ask.tier) == (True, 9, 1, "bob", "flex")
    assert (ask.generates, ask.free, ask.wants_usage) == (True, False, True)
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS
    assert read_ask(b'{"model":"m","input":[],"safety_identifier":"eve"}').user == "eve"
    assert read_ask(b'{"model":"m"}').output_cap is None


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model": None}, "model"),
        ({"stream": 1}, "stream"),
        ({"background": "yes"}, "background"),
        ({"input": 7}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"reasoning": "high"}, "reasoning"),
        ({"user": 7}, "user"),
        ({"safety_identifier": 7}, "safety_identifier"),
        ({"service_tier": {}}, "service_tier"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], name: str) -> None:
    """H4: a field of another type or out of bounds is refused by its name."""
    with pytest.raises(BadRequest, match=f"^{name}: expected"):
        read_ask(json.dumps({"model": "m", "input": "x", **fields}).encode())


def test_background() -> None:
    """A reply that ends where nobody sees it cannot be counted: refused, and the way out is named."""
    with pytest.raises(BadRequest, match=r"^background: without stream .* set stream to true"):
        read_ask(b'{"model":"m","input":"x","background":true}')
    assert read_ask(b'{"model":"m","input":"x","background":true,"stream":true}').stream
    assert not read_ask(b'{"model":"m","input":"x","background":false}').stream


def test_body_keeps_its_values() -> None:
    """C3: every value stays byte for byte but the model's name, and the cap where none was set."""
    body = b'{"model":"a","input":"\\u00e9\\/ ","temperature":1.0e0,"x":{"b":1,"a":1}}'
    ask = read_ask(body)
    assert write_body(ask, model="b", output_cap=None, quirks=NONE) == body.replace(b'"a",', b'"b",', 1)
    assert json.loads(write_body(ask, model="b", output_cap=50, quirks=NONE))["max_output_tokens"] == 50
    capped = read_ask(b'{"model":"a","input":"x","max_output_tokens":9}')
    assert json.loads(write_body(capped, model="b", output_cap=50, quirks=NONE))["max_output_tokens"] == 9


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
def test_ends(status: str) -> None:
    """D2: each of the four last events ends a stream, and its response has the usage, the model and the tier."""
    reading = replay(CREATED, delta(), ends(status), read_event(b"data: [DONE]\n\n"))
    assert (reading.parts, reading.final) == ((Part(READ, "gpt-5-2025-08-07"),), True)
    assert (reading.ended, reading.tier, reading.model) == (True, "flex", "gpt-5-2025-08-07")
    assert reading.error == ("failed" if status == "failed" else None)


def test_type_without_a_name() -> None:
    """The type inside the data counts; a provider need not name its events, nor type those that it names."""
    response = {"status": "completed", "usage": USAGE}
    assert replay(event("response.completed", named=False, response=response)).parts == (Part(READ, None),)
    named = read_event(b'event: response.completed\ndata: {"response":' + json.dumps(response).encode() + b"}\n\n")
    assert replay(named).ended
    unreadable = replay(delta(), read_event(b"event: response.completed\ndata: {\n\n"))
    assert (unreadable.ended, unreadable.parts) == (True, ())


def test_broken_off() -> None:
    """A stream that breaks off has no usage; the model is known from its first event, a tier that is not decided is not."""
    reading = replay(CREATED, delta("abc"), delta('"', "function_call_arguments"), delta("x", "refusal"))
    assert (reading.parts, reading.final, reading.ended) == ((), False, False)
    assert (reading.model, reading.tier, reading.output_bytes) == ("gpt-5", None, 3 + 2 + 1)
    assert not replay(CREATED, read_event(b"data: [DONE]\n\n")).ended


def test_output_bytes_bound_the_text() -> None:
    """An item counts by its deltas or as it stands, whichever is more: sealed reasoning has no deltas."""
    sealed = event("response.output_item.done", item={"type": "reasoning", "id": "rs", "encrypted_content": "x" * 900})
    picture = event(
        "response.output_item.done", item={"type": "image_generation_call", "id": "ig", "result": "A" * 999}
    )
    listed = event("response.output_item.done", item={"type": "mcp_list_tools", "tools": [{"name": "x" * 999}]})
    assert replay(sealed).output_bytes == 900
    assert replay(picture).output_bytes == replay(listed).output_bytes == 0
    message = event("response.output_item.done", item={"type": "message", "content": [{"text": "Hi" * 9}]})
    said = replay(delta("Hi" * 9), message).output_bytes
    assert 18 <= said < 40
    assert replay(delta("Hi" * 99), message, sealed, delta("abc")).output_bytes == 198 + 900 + 3


def test_secret_reasoning_is_unseen() -> None:
    """D1: after reasoning that was not shown, or in a summary, the bytes seen bound nothing; reasoning in full is text."""
    opened = event("response.output_item.added", item={"type": "reasoning", "summary": []})
    assert replay(CREATED, opened, delta()).unseen
    assert replay(CREATED, opened, delta("Hm", "reasoning_summary_text"), delta()).unseen
    assert not replay(CREATED, opened, delta("Hm", "reasoning_text"), delta()).unseen
    assert not replay(CREATED, delta()).unseen
    thought = {"status": "completed", "output": [{"type": "reasoning", "summary": []}, MESSAGE]}
    assert whole(json.dumps(thought, separators=(",", ":")).encode()).unseen
    assert not whole({"status": "completed", "output": [MESSAGE]}).unseen


CONTENT = {
    "created": (CREATED, False),
    "in progress": (event("response.in_progress", response={"model": "m"}), False),
    "queued": (event("response.queued", response={}), False),
    "ping": (read_event(b": ping\n\n"), False),
    "an empty message": (event("response.output_item.added", item={"type": "message", "content": []}), False),
    "an empty thought": (event("response.output_item.added", item={"type": "reasoning", "summary": []}), False),
    "an empty part": (event("response.content_part.added", part={"type": "output_text", "text": ""}), False),
    "a call": (event("response.output_item.added", item={"type": "function_call", "name": "f"}), False),
    "a search": (event("response.output_item.added", item={"type": "web_search_call"}), False),
    "text": (delta(), True),
    "no text": (delta(""), False),
    "null": (delta(None), False),
    "a part of an image": (event("response.image_generation_call.partial_image", partial_image_b64="AAAA"), False),
    "text as a whole": (event("response.output_text.done", text="Hi"), False),
    "an item": (event("response.output_item.done", item=MESSAGE), True),
    "a thought that is not told": (
        event("response.output_item.done", item={"type": "reasoning", "summary": []}),
        False,
    ),
    "what may come, with a delta": (event("response.smell.delta", delta={"rose": 1}), True),
    "what may come": (event("response.smell.sensed", x=1), False),
    "not JSON": (read_event(b"data: {\n\n"), True),
}


@pytest.mark.parametrize(("one", "content"), CONTENT.values(), ids=CONTENT)
def test_content(one: Event, content: bool) -> None:
    """D5: content is generated text, and what cannot be read; frames, progress and what leaves no text are not."""
    reducer = openai_responses.reducer(stream=True, hide_usage=False, quirks=NONE)
    assert reducer.event(one) == one.raw
    assert reducer.content is content
    assert not reducer.ended


@pytest.mark.parametrize(
    ("one", "error"),
    [
        (event("error", error={"type": "insufficient_quota", "code": "x", "message": "m"}), "insufficient_quota"),
        (event("error", code="rate_limit_exceeded", message="slow down", param=None), "rate_limit_exceeded"),
        (event("error", message="slow down"), "slow down"),
        (event("error"), "error"),
        (read_event(b'data: {"error":{"code":502,"message":"upstream"}}\n\n'), "502"),
        (read_event(b"event: error\ndata: oops\n\n"), "error"),
        (ends("failed", None, error={"code": "server_error", "message": "m"}), "server_error"),
        (event("response.failed"), "failed"),
    ],
)
def test_errors_in_the_stream(one: Event, error: str) -> None:
    """D2: an in-band error is seen in every shape and relayed."""
    assert replay(CREATED, one).error == error


def test_failed() -> None:
    """Failed before anything was generated is zero, and the provider's last word; after that it is not known.

    Also where it was nothing that can be seen: a call that opened, a search, a thought, a part of an image.
    """
    failed = ends("failed", None, error={"code": "server_error"}, output=[])
    reading = replay(CREATED, failed)
    assert (reading.parts, reading.final, reading.ended) == ((Part(Usage(), "gpt-5-2025-08-07"),), True, True)
    for reading in (
        replay(CREATED, delta(), failed),
        replay(CREATED, ends("failed", None)),
        replay(ends("completed", None)),
    ):
        assert (reading.parts, reading.final, reading.ended) == ((), False, True)
    for begun in ("a call", "a search", "a part of an image", "text as a whole", "a thought that is not told"):
        assert replay(CREATED, CONTENT[begun][0], failed).parts == ()
    assert replay(delta(), ends("failed")).parts == (Part(READ, "gpt-5-2025-08-07"),)


def test_absurd_usage_is_absent() -> None:
    """F4: usage that cannot be believed is told and not counted, and is no error."""
    for usage in (
        USAGE | {"output_tokens": -2},
        7,
        USAGE | {"server_side_tool_usage_details": {"web_search_calls": True}},
    ):
        reading = replay(delta(), ends(usage=usage))
        assert (reading.parts, reading.note, reading.inferred, reading.final) == ((), "absurd usage", True, False)
        assert (reading.error, reading.ended) == (None, True)
    assert replay(ends(usage={})).parts == ()


def test_search_items_by_quirk() -> None:
    """Opening a page is no search, but for a provider that bills it as one."""
    output = [{"type": "web_search_call", "action": {"type": kind}} for kind in ("search", "open_page", "find_in_page")]
    assert replay(ends(output=output)).usage.web_search == 1
    assert replay(ends(output=output), quirks=frozenset(["every_search_item"])).usage.web_search == 3


def test_whole() -> None:
    """A whole body gives its usage, tier and error; without usage its bytes bound what was generated."""
    body = {
        "status": "completed",
        "model": "gpt-5",
        "service_tier": "default",
        "error": None,
        "usage": USAGE,
        "output": [MESSAGE],
    }
    reading = whole(body)
    assert (reading.parts, reading.tier, reading.final, reading.ended) == (
        (Part(READ, "gpt-5"),),
        "default",
        True,
        True,
    )
    assert (reading.error, reading.output_bytes) == (None, 0)
    for status in ("queued", "in_progress"):
        reading = whole(body | {"status": status, "usage": None})
        assert (reading.parts, reading.final) == ((), False)
        assert reading.output_bytes > 0
    failed = {"status": "failed", "error": {"code": "server_error"}, "usage": None}
    assert whole(failed | {"output": []}).parts == (Part(Usage()),)
    assert whole(failed | {"output": [MESSAGE]}).parts == ()
    assert whole(failed).error == "server_error"
    refused = whole(b'{"error":{"type":"t"}}')
    assert (refused.parts, refused.error, refused.ended) == ((), "t", True)
    assert whole(b"<html>").output_bytes == 6


STANDING = Standing(
    budget=Budget(scope="project", limit=10),
    id="a",
    project="a",
    window_start_us=0,
    resets_at_us=None,
    spent=10,
    held=0,
)


def test_refusal() -> None:
    """C7: a refusal has OpenAI's shape, with the numbers beside."""
    body = json.loads(openai_responses.refusal(BudgetExceeded(Refusal(standing=STANDING, asked=1)), "r1"))
    assert (body["request_id"], body["error"]["code"], body["error"]["scope"]) == ("r1", "budget_exceeded", "project")


def test_broken() -> None:
    """D3: a broken stream ends with an `error` event that has the documented members and those that the SDK raises on."""
    one = read_event(openai_responses.broken(StreamBroken("cut"), "r1"))
    document = json.loads(one.data)
    assert (one.name, document["type"], document["code"], document["message"]) == (
        b"error",
        "error",
        "stream_broken",
        "cut",
    )
    assert document["error"]["message"] == "cut"
    assert replay(one).error == "server_error"
    assert not replay(one).ended
