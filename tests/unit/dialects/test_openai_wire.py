"""OpenAI's usage object, with every compatible provider's habits."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tollkeeper.dialects.openai_wire import read_usage
from tollkeeper.values import MAX_TOKENS, Usage


def usage(prompt: int | None, completion: int | None, total: int | None = None, **more: Any) -> bytes:
    """A usage object; `asked` and `given` are the two details objects."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    counts |= {"prompt_tokens_details": more.pop("asked", None), "completion_tokens_details": more.pop("given", None)}
    return json.dumps({key: value for key, value in (counts | more).items() if value is not None}).encode()


HABITS = {
    "plain": (usage(7, 1, 8), Usage(input=7, output=1)),
    "zero is zero": (usage(0, 0, 0), Usage()),
    "cached and written inside": (
        usage(4020, 4, 4024, asked={"cached_tokens": 1000, "cache_write_tokens": 3000}),
        Usage(input=20, cache_read=1000, cache_write_5m=3000, output=4),
    ),
    "reasoning inside": (usage(200, 1500, 1700, given={"reasoning_tokens": 1344}), Usage(input=200, output=1500, reasoning=1344)),
    "audio inside": (
        usage(100, 60, 160, asked={"audio_tokens": 80}, given={"audio_tokens": 50}),
        Usage(input=20, output=10, input_audio=80, output_audio=50),
    ),
    "images inside": (
        usage(100, 60, 160, asked={"image_tokens": 80}, given={"image_tokens": 50}),
        Usage(input=20, output=10, input_image=80, output_image=50),
    ),
    "DeepSeek cache": (usage(460, 86, 546, prompt_cache_hit_tokens=384), Usage(input=76, cache_read=384, output=86)),
    "Mistral cache": (usage(86, 5, 91, num_cached_tokens=16), Usage(input=70, cache_read=16, output=5)),
    "Mistral audio outside": (
        usage(9, 248, 632, asked={"cached_tokens": 0, "audio_tokens": 375}),
        Usage(input=9, input_audio=375, output=248),
    ),
    "xAI reasoning outside": (usage(12, 1, 241, given={"reasoning_tokens": 228}), Usage(input=12, output=229, reasoning=228)),
    "both outside": (
        usage(9, 1, 60, asked={"audio_tokens": 20}, given={"reasoning_tokens": 30}),
        Usage(input=9, input_audio=20, output=31, reasoning=30),
    ),
    "grok on Azure": (usage(10, 213, 223, asked={"cached_tokens": 161}), Usage(input=10, cache_read=161, output=213)),
    "cached in the total": (usage(10, 213, 384, asked={"cached_tokens": 161}), Usage(input=10, cache_read=161, output=213)),
    "reasoning at the top": (usage(57, 11, 68, reasoning_tokens=4), Usage(input=57, output=11, reasoning=4)),
    "reasoning above output": (usage(43, 10, 53, given={"reasoning_tokens": 11}), Usage(input=43, output=10, reasoning=10)),
    "OpenRouter search": (
        usage(7, 1, 8, server_tool_use_details={"web_search_requests": 2}),
        Usage(input=7, output=1, web_search=2),
    ),
    "written for 12 hours": (
        usage(900, 1, 901, asked={
            "cache_write_tokens": 500, "cache_write_tokens_details": {"ttl_30m_tokens": 100, "ttl_12h_tokens": 400},
        }),
        Usage(input=400, cache_write_5m=100, cache_write_1h=400, output=1),
    ),
    "Perplexity search": (usage(7, 1, 8, num_search_queries=3), Usage(input=7, output=1, web_search=3)),
    "embeddings": (usage(4, None, 4), Usage(input=4)),
    "no total": (usage(7, 1), Usage(input=7, output=1)),
    "unknown members": (usage(7, 1, 8, queue_time=0.1, prompt_audio_seconds={}), Usage(input=7, output=1)),
}  # fmt: skip


@pytest.mark.parametrize(("wire", "expected"), HABITS.values(), ids=HABITS)
def test_habits_come_out_disjoint(wire: bytes, expected: Usage) -> None:
    """A4: every token stands in one kind, wherever a provider counts it; nothing had to be inferred."""
    counted = read_usage(wire)
    assert counted is not None
    assert (counted.usage, counted.inferred) == (expected, False)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (usage(12, 35, 109), Usage(input=12, output=97, reasoning=62)),
        (
            usage(9, 1, 110, asked={"audio_tokens": 5}, given={"reasoning_tokens": 1}),
            Usage(input=4, input_audio=5, output=101, reasoning=100),
        ),
        (usage(None, None, 9), Usage(input=9)),
        (usage(None, 3, 9), Usage(input=6, output=3)),
        (usage(None, 3), Usage(output=3)),
        (usage(6, None, 9), Usage(input=6, output=3)),
        (
            usage(10, 5, 15, asked={"cached_tokens": 8, "cache_write_tokens": 6}),
            Usage(cache_read=8, cache_write_5m=6, output=5),
        ),
        (usage(10, 5, 15, given={"audio_tokens": 6}), Usage(input=10, output_audio=6)),
    ],
)
def test_what_is_worked_out_is_marked(wire: bytes, expected: Usage) -> None:
    """Hidden thinking and counts that only follow from others are inferred, and say so; never less than stated."""
    counted = read_usage(wire)
    assert counted is not None
    assert (counted.usage, counted.inferred) == (expected, True)


def test_nothing_stated_is_nothing() -> None:
    """A usage object without a count is no usage, not a usage of 0."""
    assert read_usage(b"{}") is None
    assert read_usage(b'{"prompt_tokens":null}') is None


@pytest.mark.parametrize(
    "value", ["true", "-1", "1.5", "1.0", "1e400", "1e3", '"7"', "[]", str(MAX_TOKENS + 1), "9" * 99]
)
def test_absurd_counts_never_reach_a_usage(value: str) -> None:
    """F4: a count that is not a whole number from 0 to MAX_TOKENS makes the object unreadable."""
    for wire in ('{"prompt_tokens":%s}', '{"prompt_tokens":1,"completion_tokens_details":{"reasoning_tokens":%s}}'):
        with pytest.raises(msgspec.DecodeError):
            read_usage((wire % value).encode())


@pytest.mark.parametrize(
    ("more", "usd"),
    [
        ({"cost": 2.96e-05}, "0.0000296"),
        ({"cost": 0}, "0"),
        ({"cost": {"total_cost": 0.00504, "request_cost": 0.005}}, "0.00504"),
        ({"cost": {}}, None),
        ({"cost_in_usd_ticks": 37756000}, "0.0037756"),
        ({"cost_in_usd_ticks": -1}, None),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, "0.021"),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": 0, "is_byok": True}, None),
        ({"cost": -1}, None),
        ({"cost": "free"}, None),
        ({}, None),
    ],
)
def test_reported_cost(more: dict[str, Any], usd: str | None) -> None:
    """A8: what the provider says that it charged is exact; what is no total is not taken for one."""
    counted = read_usage(usage(7, 1, 8, **more))
    assert counted is not None
    assert counted.reported_usd == (None if usd is None else Decimal(usd))
