"""A JSON array cut into its elements while it arrives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.errors import StreamBroken
from tollkeeper.json_array import ArraySplitter
from tollkeeper.sse import MAX_EVENT, Event

texts = st.text(max_size=6)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=4)


def split(chunks: list[bytes]) -> tuple[list[Event], bytes]:
    splitter = ArraySplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.rest()


@given(elements=st.lists(objects, max_size=6), indent=st.sampled_from([None, 2]), size=st.integers(1, 40))
def test_elements_come_out_one_by_one(elements: list[object], indent: int | None, size: int) -> None:
    """A9: however it is cut, each element is an event, the closing bracket is the last, and no byte is lost."""
    body = json.dumps(elements, indent=indent, ensure_ascii=False).encode()
    events, rest = split([body[at : at + size] for at in range(0, len(body), size)])
    assert [json.loads(event.data) for event in events[:-1]] == elements
    assert events[-1].data == b"]"
    assert b"".join(event.raw for event in events) + rest == body


@given(body=st.binary(max_size=60).map(lambda noise: b"[" + noise), size=st.integers(1, 9))
def test_any_bytes_are_kept(body: bytes, size: int) -> None:
    """Bytes of any kind raise nothing, and all of them come out again, cut or whole alike."""
    pieces = split([body[at : at + size] for at in range(0, len(body), size)])
    assert pieces == split([body])
    assert b"".join(event.raw for event in pieces[0]) + pieces[1] == body


def test_chunks_that_are_one_element_each() -> None:
    """Elements that come one by one, as they mostly do, are cut the same as all at once; blanks behind one are kept."""
    chunks = [b"[", b'{"a": "]}"}\n', b',\r\n{"b": {}}', b', {"c": 1}, {"d": 2}', b"\n]\n"]
    events, rest = split(chunks)
    assert (events, rest) == split([b"".join(chunks)])
    assert [event.data for event in events] == [b'{"a": "]}"}', b'{"b": {}}', b'{"c": 1}', b'{"d": 2}', b"]"]
    assert rest == b"\n"


def test_an_object_is_its_own_element() -> None:
    """An error comes as one object, not as an array of one."""
    events, rest = split([b' {"error": {"code', b'": 400}}\n'])
    assert [event.data for event in events] == [b'{"error": {"code": 400}}']
    assert rest == b"\n"


def test_escapes_that_are_cut() -> None:
    """A quote that is escaped does not end its text, also where the cut is between the two bytes."""
    events, _ = split([b'[{"a":"\\', b'"}', b'"}]'])
    assert [event.data for event in events] == [b'{"a":"\\"}"}', b"]"]


def test_an_element_above_the_bound() -> None:
    """H4: an element above 16 MiB raises; elements before it come out first."""
    splitter = ArraySplitter()
    assert len(splitter.feed(b"[{}" + b',{"a":"' + b"x" * (MAX_EVENT + 1))) == 1
    with pytest.raises(StreamBroken, match="an element of more than"):
        splitter.feed(b"x")
    with pytest.raises(StreamBroken):
        ArraySplitter().feed(b'["' + b"x" * (MAX_EVENT + 1))


def test_an_array_inside_the_array() -> None:
    """A9: a second opening bracket is an element's, also where it comes as a chunk with one object behind it."""
    chunks = [b'[{"a": 1}', b'[{"b": 2}', b"]", b"]"]
    assert split(chunks) == split([b"".join(chunks)])
    assert [event.raw for event in split(chunks)[0]] == [b'[{"a": 1}', b'[{"b": 2}]', b"]"]
