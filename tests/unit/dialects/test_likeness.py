"""Chunks that are alike are read as if each were decoded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.dialects import openai_chat
from tollkeeper.dialects.likeness import Likeness
from tollkeeper.sse import Event, read_event
from tollkeeper.values import Reading

HEAD = b'{"id":"c1","choices":[{"delta":{"content":"'
TAIL = b'"}}],"usage":null'

texts = st.one_of(st.text(max_size=8), st.sampled_from(["", "a", '"', "\\", '"}}],"usage":null}', "\n", "null", "é"]))
members = st.sampled_from(["content", "reasoning_content", "role", "tool_calls"])
deltas = st.one_of(st.fixed_dictionaries({"content": texts}), st.dictionaries(members, st.one_of(texts, st.none())))
chunks = st.builds(
    lambda delta, rest: {"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} | rest,
    deltas,
    st.one_of(
        st.just({}),
        st.just({"usage": None}),
        st.builds(lambda letters: {"obfuscation": letters}, st.text("abcXYZ09", max_size=5)),
        st.builds(lambda model: {"model": model}, st.sampled_from(["m", "n"])),
    ),
)


def as_event(chunk: object) -> Event:
    return read_event(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")


def read(events: list[Event], *, hide: bool, alike: bool) -> tuple[list[bytes | None], Reading]:
    reducer = openai_chat.reducer(stream=True, hide_usage=hide, quirks=frozenset())
    relayed = []
    for event in events:
        if not alike:
            reducer._like.forget()
        relayed.append(reducer.event(event))
    return relayed, reducer.reading()


@given(stream=st.lists(chunks, max_size=12), hide=st.booleans())
def test_likeness_changes_nothing(stream: list[object], hide: bool) -> None:
    """A9: with and without what was learned from the chunk before, the same is relayed and read."""
    events = [as_event(chunk) for chunk in stream]
    assert read(events, hide=hide, alike=True) == read(events, hide=hide, alike=False)


def learned(letters: bytes = b"") -> Likeness:
    like = Likeness()
    like.learn(HEAD + b"first" + TAIL + letters + b"}", b'"first"')
    return like


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (HEAD + b"word" + TAIL + b"}", 4),
        (HEAD + TAIL + b"}", 0),
        (HEAD + "é".encode() + TAIL + b"}", 2),
        (HEAD + b"a\\n" + TAIL + b"}", -1),
        (HEAD + b'a","x":"b' + TAIL + b"}", -1),
        (HEAD + b"word" + TAIL + b"} ", -1),
        (HEAD + b"word", -1),
        (b"", -1),
    ],
)
def test_only_a_plain_text_may_differ(data: bytes, size: int) -> None:
    """An escape, a quote, or any other byte that differs: the chunk is read in full."""
    assert learned().text_bytes(data) == size


@pytest.mark.parametrize(
    ("end", "alike"),
    [(b',"obfuscation":"xYz9"}', True), (b',"obfuscation":""}', True), (b',"obfuscation":"a","error":"b"}', False)],
)
def test_random_letters_may_differ(end: bytes, alike: bool) -> None:
    """The letters that OpenAI adds may be others, and nothing may follow them."""
    like = learned(b',"obfuscation":"q1"')
    assert (like.text_bytes(HEAD + b"word" + TAIL + end) == 4) is alike


def test_a_text_that_stands_twice_is_not_learned() -> None:
    """Where the text stands is certain, or nothing is learned."""
    like = Likeness()
    like.learn(b'{"id":"a","delta":{"content":"a"}}', b'"a"')
    assert like.text_bytes(b'{"id":"a","delta":{"content":"a"}}') == -1


def test_chunks_that_always_differ_are_not_compared_for_ever() -> None:
    """Where each chunk has an id of its own, comparing stops."""
    like = Likeness()
    for number in range(20):
        data = b'{"id":"%d","content":"word"}' % (number + 100)
        assert like.text_bytes(data) == -1
        like.learn(data, b'"word"')
    assert like.text_bytes(data) == -1
