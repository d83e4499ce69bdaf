"""Anthropic's usage object in disjoint kinds."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tollkeeper.dialects.anthropic_usage import read_parts, read_wire
from tollkeeper.values import MAX_TOKENS, Part, Usage


def parts(usage: dict[str, Any]) -> tuple[tuple[Part, ...], bool]:
    return read_parts(read_wire(json.dumps(usage).encode()), "main")


def split(short: int, long: int) -> dict[str, int]:
    return {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}


KINDS = {
    "A2": (
        {"input_tokens": 56322, "cache_read_input_tokens": 72960, "output_tokens": 87},
        Usage(input=56322, cache_read=72960, output=87),
    ),
    "no split": ({"input_tokens": 4, "cache_creation_input_tokens": 1165}, Usage(input=4, cache_write_5m=1165)),
    "split": (
        {"input_tokens": 3, "cache_creation_input_tokens": 4562, "cache_creation": split(20, 4542)},
        Usage(input=3, cache_write_5m=20, cache_write_1h=4542),
    ),
    "more written than the split": (
        {"input_tokens": 6, "cache_creation_input_tokens": 3337, "cache_creation": split(3068, 100)},
        Usage(input=6, cache_write_5m=3237, cache_write_1h=100),
    ),
    "split alone": ({"input_tokens": 3, "cache_creation": split(1, 2)}, Usage(input=3, cache_write_5m=1, cache_write_1h=2)),
    "thinking": (
        {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 7}},
        Usage(input=1, output=9, reasoning=7),
    ),
    "searches": ({"input_tokens": 1, "server_tool_use": {"web_search_requests": 2}}, Usage(input=1, web_search=2)),
    "nulls": ({"input_tokens": 1, "output_tokens": None, "cache_creation": None, "iterations": None}, Usage(input=1)),
}  # fmt: skip


@pytest.mark.parametrize(("wire", "expected"), KINDS.values(), ids=KINDS)
def test_kinds(wire: dict[str, Any], expected: Usage) -> None:
    """A4: input, cache reads and both kinds of cache writes stand apart, and none has to be inferred."""
    assert parts(wire) == ((Part(expected, "main"),), False)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ({"output_tokens": 9}, Usage(output=9)),
        (
            {"input_tokens": 1, "cache_creation_input_tokens": 5, "cache_creation": split(4, 3)},
            Usage(input=1, cache_write_5m=2, cache_write_1h=3),
        ),
    ],
)
def test_what_does_not_add_up_is_marked(wire: dict[str, Any], expected: Usage) -> None:
    """Counts that leave something open are inferred and say so."""
    assert parts(wire) == ((Part(expected, "main"),), True)


def turn(kind: str, given: int, output: int, model: str | None = None) -> dict[str, Any]:
    return {"type": kind, "input_tokens": given, "output_tokens": output, "model": model}


TURNS = {
    "messages": ((3, 7), [turn("message", 1, 2), turn("message", 2, 5)], True),
    "advisor": (
        (3, 7),
        [turn("message", 1, 2), turn("advisor_message", 50, 60, "adviser"), turn("message", 2, 5)],
        True,
    ),
    "compaction": ((2, 5), [turn("compaction", 900, 100), turn("message", 2, 5)], True),
    "fall-back": ((4, 6), [turn("message", 3, 0, "first"), turn("fallback_message", 4, 6, "second")], True),
    "unexplained": ((9, 9), [turn("message", 1, 2)], False),
    "without input": ((0, 5), [{"type": "message", "output_tokens": 5, "input_tokens": None}], False),
    "only apart": ((0, 0), [turn("compaction", 1, 2)], False),
}


@pytest.mark.parametrize(("total", "turns", "explained"), TURNS.values(), ids=TURNS)
def test_turns_are_priced_apart(total: tuple[int, int], turns: list[dict[str, Any]], explained: bool) -> None:
    """A8: each iteration is a part at its own model; turns that do not explain the top level are marked."""
    wire = {"input_tokens": total[0], "output_tokens": total[1], "iterations": turns}
    read, inferred = parts(wire)
    expected = [(t.get("model") or "main", t["input_tokens"] or 0, t["output_tokens"]) for t in turns]
    assert [(part.model, part.usage.input, part.usage.output) for part in read] == expected
    assert inferred is not explained


def test_searches_and_thinking_go_to_the_longest_answer() -> None:
    """Searches are counted once, on the turn that answered at most length, however long a compaction was."""
    wire = {"input_tokens": 5, "output_tokens": 7, "server_tool_use": {"web_search_requests": 3}}
    wire |= {"output_tokens_details": {"thinking_tokens": 4}}
    read, _ = parts(wire | {"iterations": [turn("compaction", 9, 99), turn("message", 2, 6), turn("message", 3, 1)]})
    assert [part.usage.web_search for part in read] == [0, 3, 0]
    assert [part.usage.reasoning for part in read] == [0, 4, 0]


@pytest.mark.parametrize("value", ["true", "-1", "1.5", "1e400", '"7"', "{}", str(MAX_TOKENS + 1)])
def test_absurd_counts_are_unreadable(value: str) -> None:
    """F4: a count that no call can have makes the object unreadable, in iterations too."""
    for wire in (
        '{"input_tokens":%s}',
        '{"cache_creation":{"ephemeral_1h_input_tokens":%s}}',
        '{"iterations":[{"output_tokens":%s}]}',
    ):
        with pytest.raises(msgspec.DecodeError):
            read_wire((wire % value).encode())
