"""Reducers against a hundred thousand replies that no provider should send, each from its seed.

A reply begins as a good one of its dialect; then values are replaced by hostile ones, members and events dropped, doubled,
swapped and cut, and bytes flipped. Whatever comes: nothing but StreamBroken is raised, no count is negative or absurd, how the
bytes were cut changes nothing, and memory stays bounded.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

import msgspec
import pytest

from tollkeeper.dialects import DIALECTS
from tollkeeper.errors import StreamBroken
from tollkeeper.meter import Meter
from tollkeeper.values import KINDS, MAX_TOKENS, Reading

CASES = 20_500
"""For each dialect: more than 100,000 in all."""
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 1.5, MAX_TOKENS, MAX_TOKENS + 1, 2**53, 10**40, "", "7", "nan", "\u2028", [], {}, [[]],
    {"input_tokens": 3}, float("nan"), float("inf"), "x" * 300,
)  # fmt: skip
Doc = dict[str, Any]

CHAT_USAGE: Doc = {
    "prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50, "cost": 0.01, "service_tier": "default",
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1, "image_tokens": 2, "cache_write_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 2}, "cost_in_usd_ticks": 5,
    "server_tool_use": {"web_search_requests": 1}, "cost_details": {"upstream_inference_cost": 1}, "is_byok": True,
}  # fmt: skip
CLAUDE_USAGE: Doc = {
    "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 1}, "service_tier": "standard",
    "output_tokens_details": {"thinking_tokens": 2}, "server_tool_use": {"web_search_requests": 1}, "speed": "fast",
    "inference_geo": "us",
    "iterations": [{"type": "message", "input_tokens": 10, "output_tokens": 5, "model": "claude-b"}],
}  # fmt: skip
RESPONSES_USAGE: Doc = {
    "input_tokens": 20, "output_tokens": 30, "total_tokens": 50, "cost_in_usd_ticks": 7,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "output_tokens_details": {"reasoning_tokens": 3}, "server_side_tool_usage_details": {"web_search_calls": 1},
}  # fmt: skip
RESPONSE: Doc = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5", "service_tier": "flex", "error": None,
    "output": [
        {"type": "web_search_call", "action": {"type": "search"}}, {"type": "file_search_call"},
        {"type": "code_interpreter_call", "container_id": "c1"}, {"type": "image_generation_call"},
        {"type": "message", "content": [{"type": "output_text", "text": "hello"}]},
    ],
    "tools": [{"type": "image_generation", "model": "gpt-image-1"}], "usage": RESPONSES_USAGE,
    "tool_usage": {"web_search": {"num_requests": 1}, "image_gen": {"input_tokens": 3, "output_tokens": 4}},
}  # fmt: skip
GEMINI: Doc = {
    "candidates": [{
        "content": {"role": "model", "parts": [{"text": "hello"}, {"inlineData": {"data": "AAAA"}}]}, "finishReason": "STOP",
        "index": 0, "groundingMetadata": {"webSearchQueries": ["a", ""]},
    }],
    "usageMetadata": {
        "promptTokenCount": 9, "candidatesTokenCount": 8, "thoughtsTokenCount": 7, "toolUsePromptTokenCount": 2,
        "cachedContentTokenCount": 3, "totalTokenCount": 26, "serviceTier": "flex", "trafficType": 1,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 4}, {"modality": 4, "tokenCount": 5}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 8}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}],
    },
    "modelVersion": "gemini-2.5-flash", "promptFeedback": {"blockReason": "SAFETY"},
}  # fmt: skip

#: Per dialect: the documents of a stream, and one that is not streamed.
GOOD: dict[str, tuple[list[Doc], Doc]] = {
    "openai-chat": (
        [
            {"model": "gpt-4o", "choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None},
            {"model": "gpt-4o", "choices": [{"delta": {"content": "hello"}, "finish_reason": None}], "usage": None},
            {"model": "gpt-4o", "choices": [{"delta": {"content": "again"}, "finish_reason": None}], "usage": None},
            {"model": "gpt-4o", "choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": CHAT_USAGE}},
            {"model": "gpt-4o", "choices": [], "usage": CHAT_USAGE, "error": None},
        ],
        {"model": "gpt-4o", "choices": [{"message": {"content": "hello"}}], "usage": CHAT_USAGE, "service_tier": "flex"},
    ),
    "openai-embeddings": (
        [{"model": "e", "usage": CHAT_USAGE}],
        {"model": "e", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
    ),
    "anthropic-messages": (
        [
            {"type": "message_start", "message": {"model": "claude-a", "usage": CLAUDE_USAGE}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "input": {}}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
            {"type": "ping"},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": CLAUDE_USAGE},
            {"type": "message_stop"},
        ],
        {"type": "message", "model": "claude-a", "content": [{"type": "text", "text": "hello"}], "usage": CLAUDE_USAGE},
    ),
    "openai-responses": (
        [
            {"type": "response.created", "sequence_number": 0, "response": RESPONSE | {"usage": None, "status": "queued"}},
            {"type": "response.output_item.added", "sequence_number": 1, "item": {"type": "message", "content": []}},
            {"type": "response.output_text.delta", "sequence_number": 2, "delta": "hello", "obfuscation": "xYz"},
            {"type": "response.output_item.done", "sequence_number": 3, "item": RESPONSE["output"][0]},
            {"type": "response.completed", "sequence_number": 4, "response": RESPONSE},
        ],
        RESPONSE,
    ),
    "google-generate": ([GEMINI | {"promptFeedback": None}, GEMINI], GEMINI),
}  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


def spoiled(document: Doc, random: Random) -> Doc:
    """A copy with some values replaced, dropped or moved."""
    copy: Doc = msgspec.json.decode(msgspec.json.encode(document))
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        found = list(places(copy))
        if not found:
            break
        container, key = random.choice(found)
        match random.randrange(4):
            case 0 if isinstance(container, dict):
                del container[key]
            case 1:
                other, from_key = random.choice(found)
                # A copy: a document that holds itself is no JSON.
                if (isinstance(other, dict) and from_key in other) or (
                    isinstance(other, list) and from_key < len(other)
                ):
                    container[key] = deepcopy(other[from_key])
            case _:
                container[key] = deepcopy(random.choice(HOSTILE))
    return copy


def flipped(body: bytes, random: Random) -> bytes:
    """With a few bytes changed, cut out or doubled, now and then."""
    if random.random() < 0.7 or not body:
        return body
    spoilt = bytearray(body)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(spoilt) + 1)
        match random.randrange(3):
            case 0:
                spoilt[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del spoilt[at : at + random.randint(1, 30)]
            case 2:
                spoilt[at:at] = spoilt[max(0, at - random.randint(1, 30)) : at]
    return bytes(spoilt)


def stream(documents: list[Doc], random: Random, *, array: bool) -> bytes:
    """A stream of documents in some order."""
    chosen = [spoiled(each, random) for each in documents for _ in range(random.choice((0, 1, 1, 1, 2)))]
    if random.random() < 0.1:
        random.shuffle(chosen)
    texts = [json.dumps(each, ensure_ascii=random.random() < 0.5, separators=(",", ":")).encode() for each in chosen]
    if array:
        return b"[" + random.choice((b",", b",\n", b"\r\n, ")).join(texts) + random.choice((b"]", b"]\n", b""))
    end = random.choice((b"\n", b"\n", b"\r\n", b"\r"))
    named = random.random() < 0.5
    events = [
        (b"event: " + str(each.get("type", "x")).encode() + end if named else b"") + b"data: " + text + end + end
        for each, text in zip(chosen, texts, strict=True)
    ]
    events += [b"data: [DONE]" + end + end] * random.choice((0, 1))
    if random.random() < 0.1:
        events.insert(
            random.randrange(len(events) + 1), random.choice((b": ping\n\n", b"event: error\ndata: {}\n\n", b"\n\n"))
        )
    return b"".join(events)


def cut(body: bytes, random: Random) -> list[bytes]:
    size = random.choice((1, *(13, 29, 64, 200, 700) * 6))
    return [body[at : at + size] for at in range(0, len(body), size)]


def metered(name: str, chunks: list[bytes], **how: Any) -> tuple[bytes, Reading]:
    meter = Meter(DIALECTS[name], quirks=frozenset(), **how)
    relayed = b"".join(map(meter.feed, chunks))
    reading = meter.finish()
    return relayed + meter.tail, reading


def check(name: str, seed: int) -> None:
    random = Random(f"{name} {seed}")
    documents, whole = GOOD[name]
    shape = random.choice(("whole", "events", "events", "array" if name == "google-generate" else "events"))
    body = flipped(
        json.dumps(spoiled(whole, random)).encode()
        if shape == "whole"
        else stream(documents, random, array=shape == "array"),
        random,
    )
    how = {"stream": shape != "whole", "hide_usage": random.random() < 0.5, "array": shape == "array"}
    relayed, reading = metered(name, [body], **how)
    assert metered(name, cut(body, random), **how) == (relayed, reading)
    for part in reading.parts:
        for kind in KINDS:
            count = getattr(part.usage, kind)
            assert type(count) is int
            assert 0 <= count <= 2 * MAX_TOKENS, kind
        assert part.usage.reasoning <= part.usage.output_tokens
    assert reading.reported_usd is None or 0 <= reading.reported_usd < 10**7
    stated = MAX_TOKENS if name == "google-generate" else 0  # thoughts that are told and not shown count as generated
    assert reading.output_bytes <= len(body) + 20 + stated


@pytest.mark.parametrize("name", DIALECTS)
def test_replies_that_no_provider_should_send(name: str) -> None:
    """H4: 100,000 generated streams and bodies: no other exception than the declared one, and only believable usage."""
    for seed in range(CASES):
        try:
            check(name, seed)
        except StreamBroken:
            continue
        except BaseException as error:
            error.add_note(f"check({name!r}, {seed})")
            raise


def test_every_dialect_is_fuzzed() -> None:
    """Each dialect has good replies to begin with, they are read as such, and there are enough cases."""
    assert set(DIALECTS) <= set(GOOD)
    assert CASES * len(DIALECTS) >= 100_000
    for name in DIALECTS:
        documents, whole = GOOD[name]
        assert metered(name, [json.dumps(whole).encode()], stream=False, hide_usage=False)[1].final
        if name != "openai-embeddings":
            events = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents)
            assert metered(name, [events], stream=True, hide_usage=False)[1].final


def peak_bytes(work: Callable[[], None]) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "openai-embeddings"])
def test_memory_is_bounded(name: str) -> None:
    """H4: a stream of 4 MB leaves nothing behind but its counts, and neither does an event without end."""
    documents, _ = GOOD[name]
    events = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents)

    def endless() -> None:
        meter = Meter(DIALECTS[name], stream=True, hide_usage=True, quirks=frozenset())
        for _ in range(4_000_000 // len(events) // 10):
            meter.feed(events * 10)
        meter.finish()

    assert peak_bytes(endless) < 400_000
