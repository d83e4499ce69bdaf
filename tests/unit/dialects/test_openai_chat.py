"""OpenAI chat completions: the ask, the permitted changes, the reply and the refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects import openai_chat
from tollkeeper.dialects.json_body import TEMPLATE_TOKENS, TOOL_PREAMBLE_TOKENS
from tollkeeper.dialects.openai_chat import read_ask, write_body
from tollkeeper.errors import BadRequest, BudgetExceeded, RateLimited, StreamBroken, TollkeeperError, UnknownModel
from tollkeeper.sse import Event, read_event
from tollkeeper.values import Budget, Part, Reading, Refusal, Standing, Usage

NONE: frozenset[str] = frozenset()
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
READ = Usage(input=7, output=2)


def chunk(**members: Any) -> Event:
    return read_event(b"data: " + json.dumps(members, separators=(",", ":")).encode() + b"\n\n")


def text(content: str | None = "Hi", finish: str | None = None, **members: Any) -> Event:
    return chunk(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **members)


DONE = read_event(b"data: [DONE]\n\n")


def replay(*events: Event, hide: bool = False, quirks: frozenset[str] = NONE) -> tuple[list[bytes | None], Reading]:
    reducer = openai_chat.reducer(stream=True, hide_usage=hide, quirks=quirks)
    return [reducer.event(event) for event in events], reducer.reading()


def test_ask() -> None:
    """An ask carries what the line needs: model, stream, caps, choices, user, tier."""
    body = (
        b'{"model":"gpt-4o","messages":[],"stream":true,"stream_options":{"include_usage":true},'
        b'"max_completion_tokens":9,"n":3,"user":"bob","service_tier":"flex"}'
    )
    ask = read_ask(body)
    assert (ask.dialect, ask.model, ask.stream, ask.output_cap, ask.choices) == ("openai-chat", "gpt-4o", True, 9, 3)
    assert (ask.user, ask.tier, ask.wants_usage, ask.generates) == ("bob", "flex", True, True)
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS
    tools = b'{"model":"gpt-4o","tools":[]}'
    assert read_ask(tools).prompt_bound == len(tools) + TEMPLATE_TOKENS + TOOL_PREAMBLE_TOKENS


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 0}, 0),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 9),
    ],
)
def test_output_cap(fields: dict[str, Any], cap: int | None) -> None:
    """The cap is the larger of the two names that it has; 0 is a cap."""
    assert read_ask(json.dumps({"model": "m", **fields}).encode()).output_cap == cap


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"stream": 1}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "include_usage"),
        ({"user": 7}, "user"),
        ({"service_tier": {}}, "service_tier"),
        ({"models": "m"}, "models"),
        ({"models": ["m"] * 17}, "models"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], name: str) -> None:
    """H4: a field of another type or out of bounds is refused by its name."""
    with pytest.raises(BadRequest, match=f"^{name}: expected"):
        read_ask(json.dumps({"model": "m", **fields}).encode())


def test_body_keeps_its_values() -> None:
    """Every value stays byte for byte but the model's name."""
    body = b'{"model":"a","messages":[{"content": "\\u00e9\\/ "}],"temperature":1.0e0,"x":{"b":1,"a":1}}'
    written = write_body(read_ask(body), model='b"', output_cap=None, quirks=NONE)
    assert written == body.replace(b'"a",', b'"b\\"",', 1)


@pytest.mark.parametrize(
    ("body", "quirks", "written"),
    [
        (
            {"stream": True},
            (),
            {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 50},
        ),
        ({"stream": True}, ("no_stream_options",), {"stream": True, "max_completion_tokens": 50}),
        (
            {"stream": True, "stream_options": {"x": [1], "include_usage": False}, "max_tokens": 5},
            (),
            {"stream": True, "stream_options": {"x": [1], "include_usage": True}, "max_tokens": 5},
        ),
        (
            {"stream": True, "stream_options": None, "max_completion_tokens": 5},
            (),
            {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 5},
        ),
        ({"max_tokens": None}, ("max_tokens",), {"max_tokens": 50}),
        ({}, (), {"max_completion_tokens": 50}),
        ({"stream": False}, (), {"stream": False, "max_completion_tokens": 50}),
    ],
)
def test_permitted_changes(body: dict[str, Any], quirks: tuple[str, ...], written: dict[str, Any]) -> None:
    """D2, C3: usage is asked for in streams and a cap is written where none was set, by the provider's quirks."""
    ask = read_ask(json.dumps({"model": "a", **body}).encode())
    changed = json.loads(write_body(ask, model="b", output_cap=50, quirks=frozenset(quirks)))
    assert changed == {"model": "b", **written}
    assert ask.body["model"] != b'"b"'


def test_last_usage_wins() -> None:
    """A3: usage that a stream repeats, cumulative or not, is not summed."""
    events = [text(usage={**USAGE, "completion_tokens": n, "total_tokens": 7 + n}) for n in (0, 1, 2)]
    _, reading = replay(*events, text(None, "stop", usage=USAGE), DONE)
    assert (reading.parts, reading.final, reading.ended) == ((Part(READ),), True, True)


def test_interim_usage_is_not_final() -> None:
    """A cumulative count of a stream that was cut is interim."""
    _, reading = replay(text(usage=USAGE))
    assert (reading.parts, reading.final, reading.ended) == ((Part(READ),), False, False)


USAGE_EVENTS = {
    "extra chunk": (chunk(choices=[], usage=USAGE), True),
    "choices null": (chunk(choices=None, usage=USAGE), True),
    "finish chunk": (text(None, "stop", usage=USAGE), False),
    "with an error": (chunk(choices=[], usage=USAGE, error={"code": 400}), False),
    "x_groq": (text(None, "stop", x_groq={"id": "r", "usage": USAGE}), False),
    "x_groq and null": (text(None, "stop", usage=None, x_groq={"usage": USAGE}), False),
}


@pytest.mark.parametrize(("event", "hidden"), USAGE_EVENTS.values(), ids=USAGE_EVENTS)
def test_usage_on_any_chunk(event: Event, hidden: bool) -> None:
    """D2: usage is read wherever it stands; only a chunk that the client did not ask for is hidden."""
    relayed, reading = replay(text(), event)
    assert (relayed[1], reading.usage, reading.final) == (event.raw, READ, True)
    relayed, reading = replay(text(), event, hide=True)
    assert (relayed[1] is None, reading.usage) == (hidden, READ)


@pytest.mark.parametrize(
    ("raw", "relayed"),
    [
        (b'data: {"choices":[],"usage":null}\n\n', b'data: {"choices":[]}\n\n'),
        (b'data: {"usage":null,"choices":[]}\n\n', b'data: {"choices":[]}\n\n'),
        (b'data: {"choices": [], "usage": null, "x": 1}\r\n\r\n', b'data: {"choices": [], "x": 1}\r\n\r\n'),
        (
            b'data: {"choices":[{"delta":{"content":",\\"usage\\":null"}}],"usage":null}\n\n',
            b'data: {"choices":[{"delta":{"content":",\\"usage\\":null"}}]}\n\n',
        ),
        (
            b'data: {"choices":[{"delta":{"content":",\\"usage\\":null"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":",\\"usage\\":null"}}]}\n\n',
        ),
    ],
)
def test_null_usage_is_cut_out(raw: bytes, relayed: bytes) -> None:
    """D2: a client that did not ask for usage does not see `usage: null`; text that says so is left alone."""
    assert replay(read_event(raw), hide=True)[0] == [relayed]
    assert replay(read_event(raw))[0] == [raw]


@pytest.mark.parametrize(
    ("delta", "content"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None, "refusal": None}, False),
        ({}, False),
        (None, False),
        ({"content": "x"}, True),
        ({"refusal": "x"}, True),
        ({"reasoning_content": "x"}, True),
        ({"content": [{"type": "thinking"}]}, True),
        ({"tool_calls": [{"index": 0}]}, True),
    ],
)
def test_content(delta: Any, content: bool) -> None:
    """D5: a role alone, nulls and empty text are not content; text, thought, refusal and tool calls are."""
    reducer = openai_chat.reducer(stream=True, hide_usage=False, quirks=NONE)
    reducer.event(read_event(b": ping\n\n"))
    reducer.event(chunk(choices=[{"delta": delta}]))
    assert reducer.content is content
    assert (reducer.reading().output_bytes > 0) is content


def test_unknown_shapes_are_relayed_as_content() -> None:
    """A chunk that cannot be read goes on to the client and counts, since it may be content."""
    odd = read_event(b'data: {"choices":"odd"}\n\n')
    reducer = openai_chat.reducer(stream=True, hide_usage=True, quirks=NONE)
    reducer.event(odd)
    assert reducer.content
    relayed, reading = replay(odd)
    assert (relayed, reading.output_bytes) == ([odd.raw], len(odd.data))


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (chunk(error={"type": "server_error", "code": 500}), "server_error"),
        (chunk(error="boom"), "boom"),
        (text(error={"code": 400, "message": "limit"}, usage=USAGE), "400"),
        (read_event(b'event: error\ndata: {"message":"m"}\n\n'), "m"),
        (read_event(b"event: error\ndata: oops\n\n"), "error"),
    ],
)
def test_errors_in_the_stream(event: Event, error: str) -> None:
    """D2: an in-band error is seen in every shape and relayed."""
    relayed, reading = replay(event, hide=True)
    assert (relayed, reading.error, reading.ended) == ([event.raw], error, False)


def test_absurd_usage_is_absent() -> None:
    """F4: usage that cannot be believed is told and not counted; an earlier count stands, later ones count."""
    absurd = chunk(choices=[], usage={**USAGE, "completion_tokens": -2})
    _, reading = replay(absurd, DONE)
    assert (reading.parts, reading.note, reading.inferred, reading.final) == ((), "absurd usage", True, False)
    assert reading.error is None
    _, reading = replay(text(usage=USAGE), absurd, DONE)
    assert (reading.usage, reading.note, reading.final) == (READ, "absurd usage", False)
    _, reading = replay(absurd, chunk(choices=[], usage=USAGE), DONE)
    assert (reading.usage, reading.note, reading.inferred) == (READ, None, False)


def test_end() -> None:
    """D2: [DONE] ends a stream; a provider that sends none ends with a finish reason, by its quirk alone."""
    assert not replay(text(None, "stop"))[1].ended
    assert replay(text(None, "stop"), DONE)[1].ended
    assert replay(text(None, "stop"), quirks=frozenset(["no_done"]))[1].ended
    assert not replay(text(), quirks=frozenset(["no_done"]))[1].ended


def test_model_and_tier_that_served() -> None:
    """A4: the model and tier are the reply's; an empty name says nothing."""
    _, reading = replay(
        chunk(choices=[], model=""), text(model="gpt-4o-2024-08-06", service_tier="default"), chunk(model="")
    )
    assert (reading.model, reading.tier) == ("gpt-4o-2024-08-06", "default")
    assert replay(text(None, "stop", usage={**USAGE, "service_tier": "standard"}))[1].tier == "standard"


@pytest.mark.parametrize(
    ("body", "parts", "error", "size"),
    [
        (b'{"model":"m","usage":{"prompt_tokens":7,"completion_tokens":2}}', (Part(READ, "m"),), None, 0),
        (b'{"model":"m"}', (), None, 13),
        (b'{"error":{"type":"t"}}', (), "t", 22),
        (b'{"usage":{"prompt_tokens":true}}', (), None, 32),
        (b"<html>", (), None, 6),
    ],
)
def test_whole(body: bytes, parts: tuple[Part, ...], error: str | None, size: int) -> None:
    """A whole body gives its usage; without one its bytes bound what was generated."""
    reducer = openai_chat.reducer(stream=False, hide_usage=False, quirks=NONE)
    assert not reducer.ended
    reducer.whole(body)
    assert reducer.ended
    reading = reducer.reading()
    assert (reading.parts, reading.error, reading.output_bytes, reading.ended) == (parts, error, size, True)
    assert reading.final is bool(parts)


STANDING = Standing(
    budget=Budget(scope="session", limit=10, measure="requests", window="minute"),
    id="s1",
    project="alpha",
    window_start_us=0,
    resets_at_us=60_000_000,
    spent=10,
    held=0,
)


def test_refusals() -> None:
    """C7: a refusal has OpenAI's shape, with the numbers beside."""
    body = json.loads(openai_chat.refusal(RateLimited(Refusal(standing=STANDING, asked=1)), "r1"))
    assert body["request_id"] == "r1"
    error = body["error"]
    assert (error["type"], error["param"], error["code"]) == ("rate_limit_error", None, "rate_limited")
    assert (error["scope"], error["limit"], error["resets_at"]) == ("session", 10, "1970-01-01T00:01:00Z")
    error = json.loads(openai_chat.refusal(UnknownModel("no route"), "r1"))["error"]
    assert error == {"message": "no route", "type": "not_found_error", "param": None, "code": "unknown_model"}
    error = json.loads(openai_chat.refusal(TollkeeperError("bad"), "r1"))["error"]
    assert (error["type"], TollkeeperError.http_status) == ("server_error", 500)
    paid = json.loads(openai_chat.refusal(BudgetExceeded(Refusal(standing=STANDING, asked=None)), "r1"))["error"]
    assert (paid["type"], paid["code"], paid["asked"]) == ("insufficient_quota", "budget_exceeded", None)


def test_broken_stream_is_told_without_done() -> None:
    """D3: a broken stream ends with an error event that every reader sees as one, and no [DONE]."""
    event = read_event(openai_chat.broken(StreamBroken("cut"), "r1"))
    assert json.loads(event.data)["error"]["type"] == "server_error"
    assert replay(event)[1].error == "server_error"
