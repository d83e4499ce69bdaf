"""What holds for any bytes from a provider: cuts change nothing, and nothing but StreamBroken is ever raised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.dialects import DIALECTS
from tollkeeper.dialects.json_body import json_depth_ok, read_object, write_object
from tollkeeper.errors import BadRequest, RequestError, StreamBroken
from tollkeeper.meter import Meter
from tollkeeper.sse import Splitter
from tollkeeper.values import KINDS, MAX_TOKENS, Reading

counts = st.one_of(
    st.integers(0, 2000),
    st.sampled_from([None, True, -1, 1.5, MAX_TOKENS, MAX_TOKENS + 1, 10**30, "7", [], {}, float("nan"), float("inf")]),
)
openai_details = st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"]), counts
)
openai_usage = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "cost"]), counts).flatmap(
        lambda usage: st.fixed_dictionaries(
            {key: st.just(value) for key, value in usage.items()},
            optional={
                "prompt_tokens_details": openai_details,
                "completion_tokens_details": openai_details,
                "prompt_cache_hit_tokens": counts,
                "cost_in_usd_ticks": counts,
                "service_tier": st.sampled_from(["default", "flex", 7]),
            },
        )
    ),
)
delta = st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), st.sampled_from([None, "", "hé\u2028", []]))
choice = st.fixed_dictionaries({"delta": st.one_of(st.none(), delta)}, optional={"finish_reason": st.just("stop")})
openai_chunk = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.one_of(st.none(), st.lists(choice, max_size=2), st.just("odd")),
        "usage": openai_usage,
        "model": st.sampled_from(["gpt-4o", "", None]),
        "x_groq": st.fixed_dictionaries({"usage": openai_usage}),
        "error": st.sampled_from([None, "boom", {"type": "t"}, {"message": ""}, 3]),
    },
)
anthropic_usage = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"]), counts
).flatmap(
    lambda usage: st.fixed_dictionaries(
        {key: st.just(value) for key, value in usage.items()},
        optional={
            "cache_creation": st.dictionaries(
                st.sampled_from(["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"]), counts
            ),
            "iterations": st.lists(st.dictionaries(st.sampled_from(["type", "input_tokens", "output_tokens"]), counts)),
        },
    )
)
anthropic_chunk = st.fixed_dictionaries(
    {"type": st.sampled_from(["message_start", "message_delta", "content_block_delta", "error", "ping", "new"])},
    optional={
        "message": st.fixed_dictionaries({"usage": anthropic_usage, "model": st.just("claude")}),
        "usage": anthropic_usage,
        "delta": st.sampled_from([{"type": "text_delta", "text": "hi"}, {}, 7]),
        "error": st.sampled_from([{"type": "overloaded_error"}, None]),
    },
)
responses_usage = openai_usage.map(
    lambda usage: (
        usage and {name.replace("prompt", "input").replace("completion", "output"): n for name, n in usage.items()}
    )
)
response = st.fixed_dictionaries(
    {"usage": responses_usage},
    optional={
        "status": st.sampled_from(["completed", "failed", "queued", 7]),
        "model": st.sampled_from(["gpt-5", "", None]),
        "error": st.sampled_from([None, {"code": "server_error"}, "boom"]),
        "output": st.sampled_from([None, [], [{"type": "web_search_call", "action": {"type": "search"}}], [7]]),
        "tool_usage": st.fixed_dictionaries({"web_search": st.fixed_dictionaries({"num_requests": counts})}),
    },
)
responses_kinds = [
    "created",
    "completed",
    "failed",
    "output_item.added",
    "output_item.done",
    "output_text.delta",
    "new",
]
responses_chunk = st.fixed_dictionaries(
    {"type": st.sampled_from([*(f"response.{kind}" for kind in responses_kinds), "error"])},
    optional={
        "response": response,
        "delta": st.sampled_from(["hé\u2028", "", None, {}, 7]),
        "item": st.sampled_from([{"type": "message", "content": []}, {"type": "function_call", "name": "f"}, 7]),
        "error": st.sampled_from([None, {"type": "t"}]),
    },
)
modality = st.sampled_from(["TEXT", "IMAGE", "AUDIO", "VIDEO", 1, 2, 4, "new", None])
google_details = st.lists(st.fixed_dictionaries({"modality": modality, "tokenCount": counts}), max_size=3)
google_usage = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            **{
                f"{name}TokenCount": counts
                for name in ("prompt", "toolUsePrompt", "cachedContent", "candidates", "thoughts", "total")
            },
            **{f"{name}TokensDetails": google_details for name in ("prompt", "toolUsePrompt", "cache", "candidates")},
            "trafficType": st.sampled_from(["ON_DEMAND_FLEX", 1, 9, None]),
            "serviceTier": st.sampled_from(["standard", "priority", 2]),
        },
    ),
)
google_part = st.sampled_from([{"text": "hé\u2028"}, {"text": ""}, {"inlineData": {"data": "AAAA"}}, {"new": 1}, {}, 7])
google_candidate = st.fixed_dictionaries(
    {"index": st.sampled_from([0, 1, -1])},
    optional={
        "content": st.one_of(st.none(), st.fixed_dictionaries({"parts": st.lists(google_part, max_size=2)})),
        "finishReason": st.sampled_from(["STOP", 1, 0, "FINISH_REASON_UNSPECIFIED", None]),
        "groundingMetadata": st.fixed_dictionaries({"webSearchQueries": st.sampled_from([None, ["", "a", "b"], 7])}),
    },
)
google_chunk = st.fixed_dictionaries(
    {},
    optional={
        "candidates": st.one_of(st.none(), st.lists(google_candidate, max_size=2), st.just("odd")),
        "usageMetadata": google_usage,
        "modelVersion": st.sampled_from(["gemini-2.5-flash", "models/gemini-3", "", None]),
        "promptFeedback": st.sampled_from([None, {"blockReason": "SAFETY"}, {"blockReason": 0}, 7]),
        "error": st.sampled_from([None, "boom", {"status": "INTERNAL"}, {"code": 500}, 3]),
    },
)
CHUNKS = {
    "openai-chat": openai_chunk,
    "openai-responses": responses_chunk,
    "anthropic-messages": anthropic_chunk,
    "google-generate": google_chunk,
}
line_end = st.sampled_from([b"\n", b"\r\n", b"\r"])


def as_event(parts: tuple[object, bytes, bytes]) -> bytes:
    document, name, end = parts
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return name + (end if name else b"") + b"data: " + data + end + end


def streams(documents: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[bytes]:
    """Event streams of documents, comments, end markers and noise, with any line ends and perhaps a cut end."""
    data = st.one_of(documents, st.sampled_from([b"[DONE]", b"", b'{"type":"message_stop"}', b"{", b"[[", b"\xff"]))
    names = st.sampled_from([b"", b"event: error", b": comment", b"id: 1"])
    events = st.tuples(data, names, line_end).map(as_event)
    return st.tuples(st.lists(events, max_size=6).map(b"".join), st.integers(0, 20)).map(
        lambda s: s[0][: -s[1] or None]
    )


def cut(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    """A stream in pieces."""
    edges = sorted({0, len(stream), *(at % (len(stream) + 1) for at in cuts)})
    return [stream[begin:end] for begin, end in pairwise(edges)]


def metered(name: str, chunks: Sequence[bytes], *, stream: bool, hide: bool) -> tuple[bytes, Reading]:
    meter = Meter(DIALECTS[name], stream=stream, hide_usage=hide, quirks=frozenset())
    relayed = b"".join([meter.feed(chunk) for chunk in chunks])
    reading = meter.finish()
    assert meter.finish() is reading
    return relayed + meter.tail, reading


def believable(reading: Reading) -> None:
    """Every count of a reading is a whole number that a call can have."""
    for part in reading.parts:
        for kind in KINDS:
            count = getattr(part.usage, kind)
            assert type(count) is int
            assert 0 <= count <= MAX_TOKENS
        assert part.usage.reasoning <= part.usage.output_tokens
    assert reading.reported_usd is None or reading.reported_usd >= 0


@pytest.mark.parametrize(("name", "documents"), CHUNKS.items(), ids=CHUNKS)
@given(data=st.data(), hide=st.booleans(), cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_cuts_change_nothing(
    name: str, documents: st.SearchStrategy[dict[str, object]], data: st.DataObject, hide: bool, cuts: list[int]
) -> None:
    """A9, D2: whole, cut anywhere and byte by byte, the same is relayed and read, and every count is believable."""
    stream = data.draw(streams(documents))
    whole = metered(name, [stream], stream=True, hide=hide)
    assert metered(name, cut(stream, cuts), stream=True, hide=hide) == whole
    assert metered(name, cut(stream, range(len(stream))), stream=True, hide=hide) == whole
    believable(whole[1])


@given(
    documents=st.lists(google_chunk, max_size=4), ends=st.booleans(), lost=st.integers(0, 9), size=st.integers(1, 30)
)
def test_arrays_are_read_like_events(documents: list[object], ends: bool, lost: int, size: int) -> None:
    """A9, D2: a stream that comes as one array reads the same however it is cut, and the same as its events."""
    body = b"[" + b",\r\n".join(json.dumps(each).encode() for each in documents) + (b"\n]\n" if ends else b"")
    body = body[: -lost or None]
    dialect = DIALECTS["google-generate"]

    def read(step: int) -> tuple[bytes, Reading]:
        meter = Meter(dialect, stream=True, hide_usage=False, quirks=frozenset(), array=True)
        relayed = b"".join([meter.feed(body[at : at + step]) for at in range(0, len(body), step)])
        reading = meter.finish()
        return relayed + meter.tail, reading

    whole = read(len(body) or 1)
    assert read(size) == read(1) == whole
    believable(whole[1])
    if ends and not lost:
        assert whole[0] == body
        events = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents)
        assert metered("google-generate", [events], stream=True, hide=False)[1].parts == whole[1].parts


@given(stream=st.lists(st.sampled_from([b"\r", b"\n", b"data: x", b":", b"\xef\xbb\xbf", b"event: y"])).map(b"".join))
@example(b"\r\n\r\n\r\r\n\n\r")
def test_splitter_keeps_every_byte(stream: bytes) -> None:
    """Events and rest are the stream again, and each event ends with a blank line wherever it was cut."""
    whole, bytewise = Splitter(), Splitter()
    events = whole.feed(stream)
    assert [event for byte in stream for event in bytewise.feed(bytes([byte]))] == events
    rest = whole.rest()
    assert bytewise.rest() == rest
    assert b"".join(event.raw for event in events) + rest == stream


@pytest.mark.parametrize("name", DIALECTS)
@given(body=st.one_of(st.binary(), st.binary().map(lambda b: b"data: " + b + b"\n\n")), stream=st.booleans())
def test_arbitrary_bytes_raise_nothing(name: str, body: bytes, stream: bool) -> None:
    """H4: arbitrary bytes from a provider never raise anything but StreamBroken."""
    try:
        _, reading = metered(name, [body], stream=stream, hide=True)
    except StreamBroken:
        return
    believable(reading)


@pytest.mark.parametrize(("name", "documents"), CHUNKS.items(), ids=CHUNKS)
@given(data=st.data())
def test_whole_bodies_raise_nothing(name: str, documents: st.SearchStrategy[object], data: st.DataObject) -> None:
    """Any JSON body is read without an error, and its counts are believable."""
    body = json.dumps(data.draw(documents)).encode()
    believable(metered(name, [body[:7], body[7:]], stream=False, hide=False)[1])


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=15,
)


@given(
    document=st.dictionaries(st.text(), json_values),
    separators=st.sampled_from([(",", ":"), (", ", ": "), ("\n ,", " :\t")]),
    ascii_only=st.booleans(),
)
def test_bodies_keep_their_values(document: dict[str, object], separators: tuple[str, str], ascii_only: bool) -> None:
    """A body is read and written back without losing anything; a repeated member is refused, wherever it stands."""
    text = json.dumps(document, separators=separators, ensure_ascii=ascii_only)
    members = read_object(text.encode())
    assert json.loads(write_object(members)) == document
    for name, value in document.items():
        member = json.dumps({name: value}, ensure_ascii=ascii_only)[1:-1]
        with pytest.raises(BadRequest):
            read_object(text[:-1].encode() + b"," + member.encode() + b"}")
        with pytest.raises(BadRequest):
            read_object(b"{" + member.encode() + b" ," + text[1:].encode())


def depth(value: object) -> int:
    """How deep a document is nested."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(document=json_values, limit=st.integers(0, 6), ascii_only=st.booleans())
@example({"a": ['"[[', "\\", '\\"[[[', [["]]"]]]}, 3, True)
def test_depth_is_exact(document: object, limit: int, ascii_only: bool) -> None:
    """H4: a body passes the depth check exactly when it is not nested deeper; brackets in text do not count."""
    text = json.dumps(document, ensure_ascii=ascii_only).encode()
    assert json_depth_ok(text, limit) == (depth(document) <= limit)


@pytest.mark.parametrize("name", DIALECTS)
@given(
    body=st.one_of(st.binary(), st.dictionaries(st.sampled_from(["model", "n", "stream", "max_tokens"]), json_values))
)
def test_any_body_is_read_or_refused(name: str, body: bytes | dict[str, object]) -> None:
    """H4: any request body is an Ask or a clear refusal."""
    try:
        DIALECTS[name].read_ask(body if isinstance(body, bytes) else json.dumps(body).encode())
    except RequestError as error:
        message = str(error)
        assert message.endswith(".")
        assert message.isprintable()
