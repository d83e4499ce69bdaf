"""Cohere's own chat: what is billed is read, not what the model saw."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.cohere_chat import Reducer, reducer
from tollkeeper.sse import Event
from tollkeeper.values import Usage

BILLED = {"billed_units": {"input_tokens": 11, "output_tokens": 2}, "tokens": {"input_tokens": 506, "output_tokens": 5}}


def read(*events: dict[str, Any], name: bytes = b"") -> Reducer:
    found = reducer(stream=True, hide_usage=False, quirks=frozenset())
    for event in events:
        data = json.dumps(event).encode()
        assert found.event(Event(data, name, data)) == data
    return found


def whole(body: Any) -> Reducer:
    found = reducer(stream=False, hide_usage=False, quirks=frozenset())
    found.whole(body if isinstance(body, bytes) else json.dumps(body).encode())
    return found


@pytest.mark.parametrize(
    ("usage", "parts"),
    [
        (BILLED, Usage(input=11, output=2)),
        ({"tokens": BILLED["tokens"]}, Usage(input=506, output=5)),
        ({"billed_units": {"output_tokens": 2}}, Usage(output=2)),
        ({"billed_units": {}}, None),
        (None, None),
    ],
)
def test_usage(usage: Any, parts: Usage | None) -> None:
    """A3: what is billed, else what was counted; none is none, whole and streamed alike."""
    for found in (
        whole({"finish_reason": "COMPLETE", "usage": usage}),
        read({"type": "message-end", "delta": {"usage": usage}}),
    ):
        reading = found.reading()
        assert [part.usage for part in reading.parts] == ([] if parts is None else [parts])
        assert (reading.final, reading.ended, reading.error) == (parts is not None, True, None)


def test_content_and_end() -> None:
    """D2: only deltas are content; the end is message-end; text is bounded by its bytes."""
    start = {"type": "message-start", "delta": {"message": {"role": "assistant"}}}
    assert not read(start).content
    found = read(start, {"type": "content-delta", "delta": {"message": {"content": {"text": "toll"}}}})
    assert (found.content, found.ended) == (True, False)
    assert found.reading().output_bytes >= len("toll")
    assert found.event(Event(b"data: [DONE]\n\n", b"", b"[DONE]")) == b"data: [DONE]\n\n"
    assert not found.ended


def test_errors_and_oddities() -> None:
    """Errors are told; absurd counts are none; bytes of any kind raise nothing."""
    assert whole({"message": "invalid api token"}).error == "invalid api token"
    assert read({"type": "error", "message": "boom"}).error == "error"
    absurd = whole({"finish_reason": "X", "usage": {"billed_units": {"input_tokens": -1}}})
    assert (absurd.reading().note, absurd.reading().parts) == ("absurd usage", ())
    assert whole(b"\xff{").reading().output_bytes == 2
    odd = reducer(stream=True, hide_usage=False, quirks=frozenset())
    odd.event(Event(b"x", b"", b"[1"))
    assert (odd.content, odd.reading().output_bytes) == (True, 2)
