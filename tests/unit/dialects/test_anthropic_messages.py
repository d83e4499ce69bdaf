"""Anthropic messages: the ask, the permitted changes, the reply and the refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects import anthropic_messages
from tollkeeper.dialects.anthropic_messages import read_ask, write_body
from tollkeeper.dialects.json_body import TEMPLATE_TOKENS
from tollkeeper.errors import BadRequest, BudgetExceeded, StreamBroken, TollkeeperError, UpstreamTimeout
from tollkeeper.sse import Event, read_event
from tollkeeper.values import Budget, Part, Reading, Refusal, Standing, Usage

NONE: frozenset[str] = frozenset()


def event(kind: str, *, named: bool = True, **members: Any) -> Event:
    data = json.dumps({"type": kind, **members}).encode()
    return read_event((b"event: " + kind.encode() + b"\n" if named else b"") + b"data: " + data + b"\n\n")


def start(**usage: Any) -> Event:
    return event("message_start", message={"model": "claude", "content": [], "usage": usage})


def delta(**usage: Any) -> Event:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


STOP = event("message_stop")
PING = event("ping")


def replay(*events: Event) -> Reading:
    reducer = anthropic_messages.reducer(stream=True, hide_usage=True, quirks=NONE)
    assert [reducer.event(each) for each in events] == [each.raw for each in events]
    return reducer.reading()


def test_ask() -> None:
    """An ask carries model, cap, user, tier, speed and place; every count and text is checked by name."""
    body = (
        b'{"model":"claude","max_tokens":9,"stream":true,"metadata":{"user_id":"bob"},"messages":[],"service_tier":"auto",'
        b'"speed":"fast","inference_geo":"us"}'
    )
    ask = read_ask(body)
    assert (ask.dialect, ask.model, ask.stream, ask.output_cap) == ("anthropic-messages", "claude", True, 9)
    assert (ask.user, ask.tier, ask.choices, ask.wants_usage) == ("bob", "auto", 1, True)
    assert (ask.speed, ask.geo) == ("fast", "us")
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":"claude"}', "^max_tokens: this dialect needs it"),
        (b'{"model":"claude","max_tokens":null}', "^max_tokens: this dialect needs it"),
        (b'{"model":"claude","max_tokens":true}', "^max_tokens: expected"),
        (b'{"max_tokens":1}', "^model: expected"),
        (b'{"model":"claude","max_tokens":1,"metadata":7}', "^metadata: expected"),
        (b'{"model":"claude","max_tokens":1,"metadata":{"user_id":7}}', "^metadata: expected"),
        (b'{"model":"claude","max_tokens":1,"stream":"no"}', "^stream: expected"),
    ],
)
def test_bad_asks(body: bytes, message: str) -> None:
    """H4: a refused ask names its field and what is right."""
    with pytest.raises(BadRequest, match=message):
        read_ask(body)


def test_body_keeps_its_values() -> None:
    """Every value stays byte for byte but the model's name; the client's cap stands."""
    body = b'{"model":"a","max_tokens":5,"messages":[{"content": "\\u00e9 "}],"temperature":1.0e0}'
    assert write_body(read_ask(body), model="b", output_cap=99, quirks=NONE) == body.replace(b'"a"', b'"b"', 1)


def test_output_is_the_last_count() -> None:
    """A3: message_start{25,1} + message_delta{15} is 15 output tokens."""
    reading = replay(start(input_tokens=25, output_tokens=1), PING, delta(output_tokens=15), STOP)
    assert reading.parts == (Part(Usage(input=25, output=15), "claude"),)
    assert (reading.final, reading.ended, reading.inferred) == (True, True, False)


def test_overlay() -> None:
    """A4: what a delta states replaces the start's; what it leaves out or has as null stays; the split stays."""
    base = {"input_tokens": 2, "cache_creation_input_tokens": 3068, "cache_read_input_tokens": 0, "output_tokens": 69}
    base |= {"cache_creation": {"ephemeral_5m_input_tokens": 3000, "ephemeral_1h_input_tokens": 68}}
    base |= {"service_tier": "standard", "inference_geo": "us", "speed": "fast"}
    later = {"input_tokens": 6, "cache_creation_input_tokens": 3337, "cache_read_input_tokens": 6289}
    reading = replay(
        start(**base), delta(**later, output_tokens=100), delta(output_tokens=198, input_tokens=None), STOP
    )
    expected = Usage(input=6, cache_read=6289, cache_write_5m=3269, cache_write_1h=68, output=198)
    assert reading.usage == expected
    assert (reading.tier, reading.geo, reading.speed) == ("standard", "us", "fast")


def test_repeated_start_adds_nothing() -> None:
    """A3: a message_start that comes again, also after a delta, changes nothing."""
    again = start(input_tokens=17, output_tokens=1)
    reading = replay(again, again, delta(output_tokens=227), again, STOP)
    assert reading.usage == Usage(input=17, output=227)


def test_start_alone_is_interim() -> None:
    """D1: a stream that is cut after its start gives the input side, not as the last word."""
    reading = replay(start(input_tokens=25, output_tokens=1), event("content_block_delta", delta={"text": "Hello"}))
    assert (reading.usage.input, reading.final, reading.ended, reading.output_bytes) == (25, False, False, 5)


def test_late_input() -> None:
    """Gateways that start with 0 and tell the input in the delta are read right; without a start too."""
    assert replay(start(input_tokens=0), delta(input_tokens=9, output_tokens=1), STOP).usage == Usage(input=9, output=1)
    assert replay(delta(input_tokens=9, output_tokens=1), STOP).usage == Usage(input=9, output=1)


@pytest.mark.parametrize("stop", ["refusal", "max_tokens", "pause_turn"])
def test_every_stop_reason_is_billed(stop: str) -> None:
    """A refusal is billed by its usage like any other stop."""
    end = event("message_delta", delta={"stop_reason": stop}, usage={"output_tokens": 5})
    reading = replay(start(input_tokens=18, output_tokens=1), end, STOP)
    assert (reading.usage, reading.error, reading.ended) == (Usage(input=18, output=5), None, True)


@pytest.mark.parametrize(
    ("each", "content"),
    [
        (PING, False),
        (read_event(b": ping\n\n"), False),
        (event("content_block_start", content_block={"type": "text", "text": ""}), False),
        (event("content_block_start", content_block={"type": "thinking", "thinking": "", "signature": ""}), False),
        (event("content_block_stop", index=0), False),
        (event("something_new", delta={"text": "x"}), False),
        (event("content_block_delta", delta={"type": "signature_delta", "signature": "x"}), False),
        (event("content_block_start", content_block={"type": "tool_use", "id": "t", "name": "n", "input": {}}), True),
        (event("content_block_start", content_block={"type": "redacted_thinking", "data": "x"}), True),
        (event("content_block_start", content_block={"type": "web_search_tool_result", "content": []}), True),
        (event("content_block_delta", delta={"type": "text_delta", "text": "x"}), True),
        (event("content_block_delta", named=False, delta={"type": "text_delta", "text": "x"}), True),
        (event("content_block_delta", delta={"type": "input_json_delta", "partial_json": "{"}), True),
        (read_event(b'event: content_block_delta\ndata: {"delta":{"text":"x"}}\n\n'), True),
        (read_event(b"data: odd\n\n"), True),
    ],
)
def test_content(each: Event, content: bool) -> None:
    """D5: pings, starts of empty blocks and signatures are not content."""
    reducer = anthropic_messages.reducer(stream=True, hide_usage=False, quirks=NONE)
    reducer.event(start(input_tokens=1))
    reducer.event(each)
    assert reducer.content is content


@pytest.mark.parametrize(
    ("each", "error"),
    [
        (event("error", error={"type": "overloaded_error", "message": "m"}), "overloaded_error"),
        (event("error", named=False, error={"type": "api_error"}), "api_error"),
        (event("error"), "error"),
        (read_event(b"event: error\ndata: oops\n\n"), "error"),
    ],
)
def test_errors_in_the_stream(each: Event, error: str) -> None:
    """D2: an in-band error is told, is no end, and what was counted before it stands."""
    reading = replay(start(input_tokens=25, output_tokens=1), each)
    assert (reading.error, reading.ended, reading.usage.input) == (error, False, 25)


def test_absurd_usage_is_absent() -> None:
    """F4: a usage object that cannot be believed is laid over nothing, and told."""
    good, bad = start(input_tokens=25, output_tokens=1), delta(input_tokens=-1, output_tokens=9)
    reading = replay(good, bad, STOP)
    assert (reading.usage, reading.note, reading.inferred) == (Usage(input=25, output=1), "absurd usage", True)
    assert not reading.final
    reading = replay(start(input_tokens=True), STOP)
    assert (reading.parts, reading.note, reading.error, reading.final) == ((), "absurd usage", None, False)
    assert replay(start(input_tokens=True), delta(input_tokens=3, output_tokens=1)).note is None


@pytest.mark.parametrize(
    ("body", "parts", "error", "size"),
    [
        (
            b'{"model":"m","usage":{"input_tokens":7,"output_tokens":2}}',
            (Part(Usage(input=7, output=2), "m"),),
            None,
            0,
        ),
        (b'{"model":"m","usage":{}}', (), None, 24),
        (b'{"type":"error","error":{"type":"t"}}', (), "t", 37),
        (b'{"usage":{"input_tokens":1e400}}', (), None, 32),
        (b"<html>", (), None, 6),
    ],
)
def test_whole(body: bytes, parts: tuple[Part, ...], error: str | None, size: int) -> None:
    """A whole body gives its usage; without one its bytes bound what was generated."""
    reducer = anthropic_messages.reducer(stream=False, hide_usage=False, quirks=NONE)
    assert not reducer.ended
    reducer.whole(body)
    assert reducer.ended
    reading = reducer.reading()
    assert (reading.parts, reading.error, reading.output_bytes, reading.ended) == (parts, error, size, True)
    assert reading.final is bool(parts)


def test_refusals() -> None:
    """C7: a refusal has Anthropic's shape, with the numbers beside."""
    standing = Standing(
        budget=Budget(scope="project", limit=1_500_000_000),
        id="alpha",
        project="alpha",
        window_start_us=0,
        resets_at_us=None,
        spent=1,
        held=0,
    )
    body = json.loads(anthropic_messages.refusal(BudgetExceeded(Refusal(standing=standing, asked=2)), "r1"))
    assert (body["type"], body["request_id"], body["error"]["type"]) == ("error", "r1", "billing_error")
    assert (body["error"]["limit"], body["error"]["spent"], body["error"]["asked"]) == (
        "1.5",
        "0.000000001",
        "0.000000002",
    )
    error = json.loads(anthropic_messages.refusal(TollkeeperError("bad"), "r1"))["error"]
    assert (error["type"], TollkeeperError.http_status) == ("api_error", 500)
    error = json.loads(anthropic_messages.refusal(UpstreamTimeout("late"), "r1"))["error"]
    assert error == {"type": "timeout_error", "message": "late", "code": "upstream_timeout"}


def test_broken_stream_is_told_without_stop() -> None:
    """D3: a broken stream ends with an error event that every reader sees as one, and no message_stop."""
    each = read_event(anthropic_messages.broken(StreamBroken("cut"), "r1"))
    assert each.name == b"error"
    reading = replay(each)
    assert (reading.error, reading.ended) == ("api_error", False)
