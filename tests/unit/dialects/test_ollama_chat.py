"""Ollama's own chat and generate: a line each, counts on the last."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.ollama_chat import Reducer, reducer
from tollkeeper.sse import Event
from tollkeeper.values import Usage

SAID = {"model": "llama3:8b", "message": {"role": "assistant", "content": "toll"}, "done": False}
LAST = {"model": "llama3:8b", "message": {"content": ""}, "done": True, "prompt_eval_count": 18, "eval_count": 64}


def by_lines(*lines: dict[str, Any]) -> Reducer:
    found = reducer(stream=True, hide_usage=False, quirks=frozenset())
    found.whole(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return found


def by_events(*lines: dict[str, Any]) -> Reducer:
    found = reducer(stream=True, hide_usage=False, quirks=frozenset())
    for line in lines:
        found.event(Event(b"", b"", json.dumps(line).encode()))
    return found


@pytest.mark.parametrize("read", [by_lines, by_events])
def test_counts_of_the_last_line(read: Any) -> None:
    """A6, A9: the counts are the last line's, and a model's name keeps its colon."""
    reading = read(SAID, LAST).reading()
    assert (reading.usage, reading.model) == (Usage(input=18, output=64), "llama3:8b")
    assert (reading.final, reading.ended, reading.output_bytes) == (True, True, 4)
    generated = read(
        {"model": "m", "response": "toll", "done": True, "prompt_eval_count": 0, "eval_count": 1}
    ).reading()
    assert (generated.usage, generated.final, generated.output_bytes) == (Usage(output=1), True, 4)


def test_a_prompt_without_a_count_is_not_0() -> None:
    """P4: Ollama leaves the prompt's count out where it had read the prompt before: the reading is not final."""
    reading = by_lines({key: value for key, value in LAST.items() if key != "prompt_eval_count"}).reading()
    assert (reading.usage, reading.final) == (Usage(output=64), False)
    assert by_lines({"done": True}).reading().parts == ()


def test_cuts_errors_and_oddities() -> None:
    """D2: without `done` it is cut; errors are told; absurd counts are none; bytes of any kind raise nothing."""
    assert not by_events(SAID).ended
    assert by_lines({"error": "model not found"}).error == "model not found"
    absurd = by_lines(LAST | {"eval_count": 1.5}).reading()
    assert (absurd.note, absurd.parts, absurd.ended) == ("absurd usage", (), True)
    odd = reducer(stream=True, hide_usage=False, quirks=frozenset())
    odd.whole(b"\xff\n{")
    assert odd.reading().output_bytes == 2
