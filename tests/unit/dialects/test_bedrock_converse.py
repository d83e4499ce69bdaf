"""Bedrock Converse: usage of bodies and streams, errors, and that any bytes are read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.aws_messages import converse, event, exception

from tollkeeper.aws_events import MessageSplitter
from tollkeeper.dialects.bedrock_converse import Reducer, reducer
from tollkeeper.dialects.json_reply import ABSURD
from tollkeeper.sse import Event
from tollkeeper.values import KINDS, MAX_TOKENS, Part, Reading, Usage

USAGE: dict[str, Any] = {"inputTokens": 3, "outputTokens": 227, "totalTokens": 230}


def make() -> Reducer:
    return reducer(stream=True, hide_usage=False, quirks=frozenset())


def whole(document: object) -> Reading:
    reply = make()
    reply.whole(document if isinstance(document, bytes) else json.dumps(document).encode())
    return reply.reading()


def streamed(*messages: bytes | dict[str, Any]) -> Reducer:
    """AWS messages, or events as SDKs decode them."""
    reply = make()
    for message in messages:
        if isinstance(message, bytes):
            for each in MessageSplitter().feed(message):
                assert reply.event(each) == each.raw
        else:
            reply.event(Event(b"", b"", json.dumps(message).encode()))
    return reply


@pytest.mark.parametrize(
    ("usage", "read", "inferred"),
    [
        (USAGE, Usage(input=3, output=227), False),
        (
            USAGE | {"cacheReadInputTokens": 5, "cacheWriteInputTokens": 10, "totalTokens": 245,
                     "cacheDetails": [{"ttl": "1h", "inputTokens": 4}, {"ttl": "5m", "inputTokens": 6}]},
            Usage(input=3, cache_read=5, cache_write_5m=6, cache_write_1h=4, output=227), False,
        ),
        ({"inputTokens": 3, "outputTokens": 1, "cacheWriteInputTokens": 9}, Usage(input=3, cache_write_5m=9, output=1), False),
        (
            {"inputTokens": 3, "outputTokens": 1, "cacheDetails": [{"ttl": "1h", "inputTokens": 4}]},
            Usage(input=3, cache_write_1h=4, output=1), False,
        ),
        (
            {"inputTokens": 3, "outputTokens": 1, "cacheWriteInputTokens": 2,
             "cacheDetails": [{"ttl": "1h", "inputTokens": 4}]},
            Usage(input=3, cache_write_1h=2, output=1), True,
        ),
        ({"outputTokens": 1}, Usage(output=1), True),
        (USAGE | {"totalTokens": 999}, Usage(input=3, output=227), True),
    ],
)  # fmt: skip
def test_usage(usage: dict[str, Any], read: Usage, inferred: bool) -> None:
    """A2, A4: caches stand beside the input, writes are split by lifetime; a body and a stream say the same."""
    body = whole({"output": {}, "usage": usage})
    assert (body.parts, body.inferred, body.final, body.ended) == ((Part(read),), inferred, True, True)
    for reply in (streamed(converse("Hi", usage)), streamed({"metadata": {"usage": usage}})):
        reading = reply.reading()
        assert (reading.parts, reading.inferred, reading.final, reply.ended) == ((Part(read),), inferred, True, True)


def test_tier_and_latency() -> None:
    """A4: the tier that served, and optimised latency, stand in a body and in a stream's metadata."""
    served = {"usage": USAGE, "serviceTier": {"type": "flex"}, "performanceConfig": {"latency": "optimized"}}
    for reading in (whole({"output": {}} | served), streamed({"metadata": served}).reading()):
        assert (reading.tier, reading.speed, reading.model) == ("flex", "optimized", None)


def test_content_is_counted() -> None:
    """D5: text, a tool's call and a thought are content; starts, stops and a thought's signature are not."""
    start: dict[str, Any] = {"messageStart": {"role": "assistant"}}
    reply = streamed(start, {"contentBlockStart": {"start": {}}}, {"contentBlockStop": {}}, {"messageStop": {}})
    assert (reply.content, reply.ended) == (False, False)
    signed = {"contentBlockDelta": {"delta": {"reasoningContent": {"signature": "c2lnbmVk"}}}}
    assert streamed(signed).reading().output_bytes == 0
    for delta in ({"text": "Hello"}, {"toolUse": {"input": "{}"}}, {"reasoningContent": {"text": "Hmm.."}}):
        reply = streamed(start, {"contentBlockDelta": {"delta": delta}})
        assert reply.content
        assert reply.reading().output_bytes >= 5
    assert streamed({"contentBlockStart": {"start": {"toolUse": {"name": "ping"}}}}).content
    assert streamed(event("contentBlockDelta", "odd")).content, "it may be"


def test_a_stream_without_metadata_is_cut() -> None:
    """D2: messageStop is not the end: the usage comes after it."""
    reading = streamed(converse("Hello", None)).reading()
    assert (reading.ended, reading.parts, reading.output_bytes) == (False, (), 5)


def test_errors_inside_a_stream() -> None:
    """D2: an exception in the stream is told by its type, decoded or not; it is no end."""
    text = {"contentBlockDelta": {"delta": {"text": "Hi"}}}
    for told in (exception("modelStreamErrorException", "x"), {"modelStreamErrorException": {"message": "x"}}):
        reply = streamed(text, told)
        assert (reply.error, reply.ended, reply.reading().error) == (
            "modelStreamErrorException", False, "modelStreamErrorException",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"message": "The model is not there."}, "The model is not there."),
        ({"__type": "ValidationException", "message": "x"}, "ValidationException"),
        ({"Message": "Forbidden"}, "Forbidden"),
        ({"Error": {"Code": "ThrottlingException", "Message": "x"}, "ResponseMetadata": {}}, "ThrottlingException"),
        ({"output": {}, "message": "not an error"}, None),
        ({}, None),
    ],
)
def test_errors_in_the_place_of_a_body(body: dict[str, Any], error: str | None) -> None:
    """A body without a reply is an error, as the service or its SDK words it."""
    reading = whole(body)
    assert (reading.error, reading.parts) == (error, ())


@pytest.mark.parametrize("count", [-1, 1.5, MAX_TOKENS + 1, "7", True, [1]])
def test_absurd_usage_is_absent(count: object) -> None:
    """A count that no call can have makes its usage absent, not 0; what stood before it counts as interim."""
    absurd = USAGE | {"cacheReadInputTokens": count}
    for reading in (whole({"output": {}, "usage": absurd}), streamed({"metadata": {"usage": absurd}}).reading()):
        assert (reading.parts, reading.final, reading.note) == ((), False, ABSURD)
    reading = streamed({"metadata": {"usage": USAGE}}, {"metadata": {"usage": absurd}}).reading()
    assert (reading.usage.output, reading.final, reading.note) == (227, False, ABSURD)
    many = USAGE | {"cacheDetails": [{"ttl": "1h", "inputTokens": MAX_TOKENS}] * 2}
    assert whole({"output": {}, "usage": many}).note == ABSURD


counts = st.one_of(st.integers(0, 2000), st.sampled_from([None, -1, 1.5, MAX_TOKENS, 10**30, "7", [], {}]))
usages = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ["inputTokens", "outputTokens", "totalTokens", "cacheReadInputTokens", "cacheWriteInputTokens"], counts
    )
    | {
        "cacheDetails": st.lists(
            st.fixed_dictionaries({"ttl": st.sampled_from(["5m", "1h", 7]), "inputTokens": counts})
        )
    },
)
members = st.fixed_dictionaries(
    {},
    optional={
        "usage": usages, "output": st.just({}), "serviceTier": st.sampled_from([{"type": "flex"}, {"type": 1}, "x"]),
        "delta": st.sampled_from([{"text": "hé"}, {"reasoningContent": 3}, [], None]),
        "message": st.sampled_from(["m", 3]),
    },
)  # fmt: skip
kinds = st.sampled_from(["metadata", "contentBlockDelta", "contentBlockStart", "messageStop", "xException", "new"])


@given(events=st.lists(st.tuples(kinds, members), max_size=4), body=members, noise=st.binary())
def test_anything_is_read(events: list[tuple[str, Any]], body: dict[str, Any], noise: bytes) -> None:
    """H4: any body and any stream is read without an error, named or decoded alike, and every count is believable."""
    named, decoded = streamed(*(event(*each) for each in events)), streamed(*({k: v} for k, v in events))
    assert named.reading() == decoded.reading()
    odd = make()
    odd.event(Event(noise, noise[:3], noise))
    for reading in (named.reading(), whole(body), whole(noise), odd.reading()):
        assert all(0 <= getattr(part.usage, kind) <= MAX_TOKENS for part in reading.parts for kind in KINDS)
