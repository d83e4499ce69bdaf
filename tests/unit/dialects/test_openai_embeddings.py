"""OpenAI embeddings: input tokens only."""

from __future__ import annotations

import json

import pytest

from tollkeeper.dialects import openai_embeddings
from tollkeeper.dialects.openai_embeddings import IMAGE_TOKENS, read_ask, write_body
from tollkeeper.errors import BadRequest, NotAllowed
from tollkeeper.sse import Event
from tollkeeper.values import Part, Reading, Usage

NONE: frozenset[str] = frozenset()


def read(body: bytes) -> Reading:
    reducer = openai_embeddings.reducer(stream=False, hide_usage=True, quirks=NONE)
    assert (reducer.ended, reducer.content) == (False, False)
    reducer.whole(body)
    assert (reducer.ended, reducer.content) == (True, True)
    return reducer.reading()


def test_ask_generates_nothing() -> None:
    """An embeddings ask has no output; its bytes bound its tokens, given as text or by number."""
    body = b'{"model":"e","input":[[1,2,3]],"user":"bob"}'
    ask = read_ask(body)
    assert (ask.generates, ask.output_cap, ask.stream, ask.user) == (False, 0, False, "bob")
    assert (ask.prompt_bound, ask.plain) == (len(body), True)
    image = b'{"model":"e","input":[{"image":"https://x"}]}'
    assert (read_ask(image).prompt_bound, read_ask(image).plain) == (len(image) + IMAGE_TOKENS, False)
    assert write_body(ask, model="f", output_cap=9, quirks=NONE) == body.replace(b'"e"', b'"f"')
    with pytest.raises(BadRequest, match=r"^user: expected text"):
        read_ask(b'{"model":"e","user":1}')


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (b'{"prompt_tokens":4,"total_tokens":4}', Usage(input=4)),
        (b'{"prompt_tokens":0,"total_tokens":0}', Usage()),
        (b'{"total_tokens":4}', Usage(input=4)),
    ],
)
def test_usage(usage: bytes, expected: Usage) -> None:
    """A1: the prompt's tokens are the usage; 0 is 0."""
    reading = read(b'{"model":"e","data":[],"usage":' + usage + b"}")
    assert (reading.parts, reading.model, reading.final) == ((Part(expected, "e"),), "e", True)


@pytest.mark.parametrize(
    ("body", "error", "note"),
    [
        (b'{"usage":{"prompt_tokens":-4}}', None, "absurd usage"),
        (b'{"usage":null}', None, None),
        (b'{"error":{"type":"t"}}', "t", None),
        (b"<html>", None, None),
    ],
)
def test_no_usage(body: bytes, error: str | None, note: str | None) -> None:
    """F4: what states no believable count has no usage, not a usage of 0."""
    reading = read(body)
    assert (reading.parts, reading.error, reading.note, reading.final) == ((), error, note, False)
    assert reading.ended


def test_refusal_and_events() -> None:
    """Refusals have OpenAI's shape; events, which no provider sends here, are relayed as they came."""
    error = json.loads(openai_embeddings.refusal(NotAllowed("no"), "r"))["error"]
    assert (error["type"], error["code"]) == ("permission_error", "not_allowed")
    assert openai_embeddings.broken(NotAllowed("no"), "r").startswith(b'data: {"error":')
    reducer = openai_embeddings.reducer(stream=True, hide_usage=False, quirks=NONE)
    assert reducer.event(Event(b"data: 1\n\n", b"", b"1")) == b"data: 1\n\n"
