"""Google's replies, chunk by chunk and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.google_reply import DRAWN_MOST, MAX_QUERIES, Reducer
from tollkeeper.sse import Event
from tollkeeper.values import Reading, Usage


def chunk(
    *parts: Any, finish: str | int | None = None, index: int = 0, usage: Any = None, **more: Any
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": index}
    if finish is not None:
        candidate["finishReason"] = finish
    told = {} if usage is None else {"usageMetadata": usage}
    return {"candidates": [candidate], "modelVersion": "gemini-3-flash"} | told | more


def counts(prompt: int, said: int | None = None, thought: int | None = None) -> dict[str, int]:
    found = {"promptTokenCount": prompt, "candidatesTokenCount": said, "thoughtsTokenCount": thought}
    return {name: count for name, count in found.items() if count is not None}


def read(*documents: Any) -> Reducer:
    """A reducer that has seen these chunks, or bytes as they are."""
    reducer = Reducer()
    for document in documents:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        raw = b"data: " + data + b"\r\n\r\n"
        assert reducer.event(Event(raw, b"", data)) == raw
    return reducer


def whole(document: Any) -> Reading:
    reducer = Reducer()
    reducer.whole(document if isinstance(document, bytes) else json.dumps(document).encode())
    return reducer.reading()


HI = {"text": "hi"}


def test_last_usage_wins() -> None:
    """A3: each chunk repeats the usage so far: the last object counts, and never a sum."""
    seen = read(
        chunk(HI, usage=counts(10, 1)),
        chunk(HI, usage=counts(10, 2, 5)),
        chunk(HI, finish="STOP", usage=counts(9, 3, 5)),
    ).reading()
    assert seen.usage == Usage(input=9, output=8, reasoning=5)
    assert (seen.final, seen.ended, seen.inferred, seen.model) == (True, True, False, "gemini-3-flash")


def test_usage_is_final_with_the_finish() -> None:
    """D2: before the finish reason the usage is interim, and the stream has not ended."""
    seen = read(chunk(HI, usage=counts(10, 1, 4)))
    reading = seen.reading()
    assert (reading.final, reading.ended, seen.ended) == (False, False, False)
    assert reading.output_bytes == len("hi") + 4  # thoughts are not shown, and count all the same
    assert not read(chunk(HI, usage=counts(10, 1)), chunk(finish="STOP")).reading().final
    late = read(chunk(HI, finish="STOP"), {"usageMetadata": counts(10, 1)}).reading()
    assert (late.final, late.ended, late.usage.output) == (True, True, 1)


def test_finish_reasons_of_every_candidate() -> None:
    """D2: a stream of two candidates has ended when both have, by name or number; unspecified is no reason."""
    one, other = chunk(HI, finish="STOP", usage=counts(5, 2)), chunk(HI, finish=2, index=1, usage=counts(5, 4))
    begun = chunk(HI, index=1)
    assert not read(begun, one).reading().ended
    assert not read(begun, one).reading().final
    assert read(begun, one, other).reading().final
    for none in ("FINISH_REASON_UNSPECIFIED", 0, ""):
        assert not read(chunk(HI, finish=none)).reading().ended


def test_an_array_ends_with_its_bracket() -> None:
    """D2: the bracket is the end marker of an array; what was stated before it is final."""
    seen = read(chunk(HI, usage=counts(5, 2)), b"]")
    assert (seen.ended, seen.reading().ended, seen.reading().final) == (True, True, True)


def test_usage_before_an_error_is_not_final() -> None:
    """D2: neither the finish of one candidate nor an array's bracket makes it the last word; a later usage is."""
    error, finish = {"error": {"code": 529, "status": "UNAVAILABLE"}}, chunk(HI, finish="STOP", usage=counts(5, 2))
    for begun in (chunk(HI, usage=counts(5, 2)), finish):
        for end in ([], [b"]"]):
            seen = read(begun, error, *end).reading()
            assert (seen.final, seen.error) == (False, "UNAVAILABLE")
    assert read(error, finish).reading().final


def test_counts_that_shrink() -> None:
    """A count of generated tokens that is smaller, or gone, at last is taken as given, and marked as inferred."""
    gone = read(chunk(HI, usage=counts(9, 7, 2)), chunk(finish="STOP", usage=counts(87, None, 78))).reading()
    assert (gone.usage, gone.inferred, gone.final) == (Usage(input=87, output=78, reasoning=78), True, True)
    prompt = read(chunk(HI, usage=counts(15)), chunk(finish="STOP", usage=counts(13, 8))).reading()
    assert (prompt.usage, prompt.inferred) == (Usage(input=13, output=8), False)


def test_blocked_prompts() -> None:
    """A prompt that was blocked costs what its reply states: a count that is left out is 0; without usage none is known."""
    feedback = {"promptFeedback": {"blockReason": "MODEL_ARMOR"}, "modelVersion": "gemini-2.5-flash"}
    stated = whole(feedback | {"usageMetadata": counts(14)})
    assert (stated.usage, stated.final) == (Usage(input=14), True)
    nothing = whole(feedback | {"usageMetadata": {"trafficType": "ON_DEMAND"}})
    assert (nothing.usage, nothing.final, nothing.tier) == (Usage(), True, "on_demand")
    assert whole(feedback).parts == ()
    streamed = read(feedback | {"usageMetadata": counts(14)}).reading()
    assert (streamed.ended, streamed.final, streamed.usage) == (True, True, Usage(input=14))
    open_end = {"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}}
    assert not read(open_end).reading().ended


def test_refused_answers() -> None:
    """An answer that ends for safety is billed for what it states."""
    reading = whole({"candidates": [{"content": {}, "finishReason": "SAFETY"}], "usageMetadata": counts(14)})
    assert (reading.usage, reading.final, reading.error) == (Usage(input=14), True, None)


def test_a_tier_alone_states_nothing() -> None:
    """A reply with content and no count is not known, however much else its usage says; earlier counts stay."""
    assert whole(chunk(HI, finish="STOP", usage={"trafficType": "ON_DEMAND"})).parts == ()
    kept = read(chunk(HI, usage=counts(5, 2)), chunk(finish="STOP", usage={"trafficType": "ON_DEMAND"})).reading()
    assert (kept.usage, kept.final) == (Usage(input=5, output=2), False)


def test_absurd_usage_is_absent() -> None:
    """A9: a count that no call can have makes its usage absent and is noted; a later good one counts."""
    reading = whole(chunk(HI, finish="STOP", usage=counts(-1, 2)))
    assert (reading.parts, reading.note, reading.final) == ((), "absurd usage", False)
    assert reading.output_bytes > 0
    mended = read(chunk(HI, usage=counts(5, 10**12)), chunk(HI, finish="STOP", usage=counts(5, 2))).reading()
    assert (mended.usage.output, mended.note, mended.final) == (2, None, True)
    spoilt = read(chunk(HI, usage=counts(5, 2)), chunk(HI, finish="STOP", usage=counts(5, -2))).reading()
    assert (spoilt.usage.output, spoilt.note, spoilt.final, spoilt.ended) == (2, "absurd usage", False, True)


@pytest.mark.parametrize(
    ("part", "content", "size"),
    [
        (HI, True, 2),
        ({"text": ""}, False, 0),
        ({"text": "", "thoughtSignature": "A" * 500}, False, 0),
        ({"text": "hm", "thought": True}, True, 2),
        ({"functionCall": {"name": "f", "args": {}}}, True, len('"name": "f", "args": {}')),
        ({"codeExecutionResult": {"output": "9" * 99}}, True, 0),
        ({"inlineData": {"data": "A" * 10}}, True, len('{"data": "AAAAAAAAAA"}')),
        ({"inlineData": {"data": "A" * 99_999}}, True, DRAWN_MOST),
        ({"of tomorrow": "x"}, True, 1),
        (7, True, None),
    ],
)
def test_what_was_generated(part: Any, content: bool, size: int | None) -> None:
    """What was generated counts as content, its bytes bound its tokens; signatures, and what tools gave, do not."""
    seen = read(chunk(part))
    assert seen.content == content
    assert size is None or seen.reading().output_bytes == size


def test_searches_are_counted_once() -> None:
    """A4: each distinct query is a search, empty ones are none; a model before Gemini 3 is charged by prompt."""
    grounded = {"webSearchQueries": ["", "largest city", "largest city", "population"]}
    document = chunk(HI, finish="STOP", usage=counts(5, 2))
    document["candidates"][0]["groundingMetadata"] = grounded
    assert read(document, document).reading().usage.web_search == 2
    assert whole(document | {"modelVersion": "models/gemini-2.5-pro"}).usage.web_search == 1
    assert whole(document | {"modelVersion": "models/gemini-2.5-pro"}).model == "gemini-2.5-pro"
    grounded["webSearchQueries"] = [str(n) for n in range(MAX_QUERIES + 5)]
    assert read(document).reading().usage.web_search == MAX_QUERIES
    document["candidates"][0]["groundingMetadata"] = {"webSearchQueries": 7}
    assert read(document).reading().usage.web_search == 0


@pytest.mark.parametrize(
    ("error", "label"),
    [
        ({"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}, "RESOURCE_EXHAUSTED"),
        ({"code": 429, "message": "m"}, "429"),
        ("boom", "error"),
    ],
)
def test_errors_inside(error: Any, label: str) -> None:
    """An error inside a reply or a stream is seen, and named by its status; usage before it stays."""
    seen = read(chunk(HI, usage=counts(5, 2)), {"error": error})
    assert seen.error == (label if isinstance(error, dict) else seen.error)
    assert seen.error
    assert not seen.reading().ended
    assert whole({"error": error}).error == seen.error


def test_embeddings_and_counts() -> None:
    """An embedding states its prompt or nothing at all; a count of tokens is no usage."""
    stated = whole({"embedding": {"values": [0.5]}, "usageMetadata": {"promptTokenCount": 7}})
    assert (stated.usage, stated.final, stated.ended) == (Usage(input=7), True, True)
    assert whole({"embeddings": [{"values": [0.5]}]}).parts == ()
    assert whole({"totalTokens": 31}).parts == ()


@pytest.mark.parametrize("data", [b"{", b"[]", b"null", b"\xff", b"[" * 5000, b'{"candidates": 7}'])
def test_chunks_of_another_shape(data: bytes) -> None:
    """H4: what cannot be read is relayed, and counts as content, because it may be."""
    seen = read(data)
    assert seen.content
    assert seen.reading().output_bytes == len(data)
    assert whole(data).output_bytes == len(data)
