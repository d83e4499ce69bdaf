"""Events that are alike are read as if each were cut out and decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.dialects import DIALECTS
from tollkeeper.dialects.likeness import Likeness
from tollkeeper.errors import StreamBroken
from tollkeeper.meter import Meter
from tollkeeper.sse import MAX_EVENT, Event, read_event
from tollkeeper.values import Reading

HEAD = b'data: {"id":"c1","choices":[{"delta":{"content":"'
TAIL = b'"}}],"usage":null'
END = b"}\n\n"

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "a", '"', "\\", '"}}],"usage":null}', "\n", "\r\n\r\n", "null", "é", "\ud83d\ude00", "\ud83d"]
    ),
)
members = st.sampled_from(["content", "reasoning_content", "role", "tool_calls"])
deltas = st.one_of(st.fixed_dictionaries({"content": texts}), st.dictionaries(members, st.one_of(texts, st.none())))
chat = st.builds(
    lambda delta, rest: {"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} | rest,
    deltas,
    st.one_of(
        st.just({}),
        st.just({"usage": None}),
        st.builds(lambda letters: {"obfuscation": letters}, st.text("abcXYZ09", max_size=5)),
        st.builds(lambda model: {"model": model}, st.sampled_from(["m", "n"])),
    ),
)
claude = st.builds(
    lambda delta: {"type": "content_block_delta", "index": 0, "delta": delta},
    st.one_of(
        st.builds(lambda text: {"type": "text_delta", "text": text}, texts),
        st.builds(lambda text: {"type": "signature_delta", "signature": text}, texts),
        st.dictionaries(st.sampled_from(["type", "text", "thinking"]), st.one_of(texts, st.none()), max_size=2),
    ),
)
parts = st.one_of(
    st.builds(lambda text: {"text": text}, texts),
    st.dictionaries(
        st.sampled_from(["text", "thought", "inlineData", "codeExecutionResult"]), st.one_of(texts, st.none())
    ),
)
gemini = st.builds(
    lambda parts, usage, rest: {"candidates": [{"content": {"parts": parts}} | rest], "usageMetadata": usage, "modelVersion": "m"},
    st.lists(parts, min_size=1, max_size=2),
    st.builds(
        lambda said, more: {"promptTokenCount": 9, "candidatesTokenCount": said} | more,
        st.sampled_from([1, 2, 30, -1, None]),
        st.sampled_from([{}, {}, {"thoughtsTokenCount": 5}, {"trafficType": []}]),
    ),
    st.sampled_from([{}, {}, {"finishReason": "STOP"}, {"index": 1}]),
)  # fmt: skip
CHUNKS = {"openai-chat": chat, "anthropic-messages": claude, "google-generate": gemini}


def as_event(chunk: object, end: bytes = b"\n") -> bytes:
    """A chunk as an event, or with no line end as an element of an array."""
    data = json.dumps(chunk, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"data: " + data + end + end if end else b",\n" + data


def read(name: str, pieces: list[bytes], *, hide: bool = False, array: bool = False) -> tuple[bytes, Reading, bool]:
    meter = Meter(DIALECTS[name], stream=True, hide_usage=hide, quirks=frozenset(), array=array)
    relayed = b"".join(map(meter.feed, pieces))
    return relayed, meter.finish(), meter.content


def untaught(read: Callable[[], tuple[bytes, Reading, bool]]) -> tuple[bytes, Reading, bool]:
    """The same with every event read in full."""
    with patch.object(Likeness, "learn", lambda *told: None):
        return read()


@pytest.mark.parametrize("name", CHUNKS)
@given(data=st.data(), hide=st.booleans(), end=st.sampled_from([b"\n", b"\r\n", b"\r", b""]), size=st.integers(0, 60))
def test_likeness_changes_nothing(name: str, data: st.DataObject, hide: bool, end: bytes, size: int) -> None:
    """A9: with and without what was learned from the event before, in one cut or another, the same is relayed and read."""
    pieces = [as_event(chunk, end) for chunk in data.draw(st.lists(CHUNKS[name], max_size=12))]
    array = name == "google-generate" and not end
    if array:
        pieces = [b"[" + pieces[0][1:], *pieces[1:]] if pieces else []
    body = b"".join(pieces)
    full = untaught(lambda: read(name, pieces, hide=hide, array=array))
    assert read(name, pieces, hide=hide, array=array) == full
    cuts = [body[at : at + size] for at in range(0, len(body), size)] if size else [body]
    assert read(name, cuts, hide=hide, array=array) == full


@given(padding=st.lists(st.integers(0, 9), max_size=6), text=texts)
@example([3, 0, 9], "plain")
def test_blanks_may_differ(padding: list[int], text: str) -> None:
    """A9: Anthropic ends its chunks with a random number of blanks."""
    chunk = as_event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}})
    pieces = [chunk[:-3] + b" " * blanks + END for blanks in padding]
    assert read("anthropic-messages", pieces) == untaught(lambda: read("anthropic-messages", pieces))


def an_event(raw: bytes, data: bytes | None = None) -> Event:
    found = read_event(raw)
    return found if data is None else Event(raw, b"", data)


def learned(rest: bytes = b"", value: bytes | None = None) -> Likeness:
    like = Likeness()
    like.learn(an_event(HEAD + b"first" + TAIL + rest + END), b'"first"', value)
    return like


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (HEAD + b"word" + TAIL + END, 4),
        (HEAD + TAIL + END, 0),
        (HEAD + "é".encode() + TAIL + END, 2),
        (HEAD + b'a\\n\\"\\u003c' + TAIL + END, 11),
        (HEAD + b"a\\ud83d\\ude00" + TAIL + END, -1),
        (HEAD + b"a\\q" + TAIL + END, -1),
        (HEAD + b"a\\", -1),
        (HEAD + b"a\n" + TAIL + END, -1),
        (HEAD + b"a\r" + TAIL + END, -1),
        (HEAD + b'a","x":"b' + TAIL + END, -1),
        (HEAD + b"word" + TAIL + b" }\n\n", 4),
        (HEAD + b"word" + TAIL + b"\n}\n\n", -1),
        (HEAD + b"word" + TAIL + b"} \n\n", -1),
        (HEAD + b"word" + TAIL + END + b":", -1),
        (HEAD + b"word" + TAIL + b"}\n", -1),
        (HEAD + b"word", -1),
        (HEAD[1:] + b"word" + TAIL + END, -1),
        (HEAD + b"x" * MAX_EVENT + TAIL + END, -1),
        (b"", -1),
    ],
)
def test_only_a_text_may_differ(raw: bytes, size: int) -> None:
    """A line's end, a quote, half of a pair, or any other byte that differs: the event is read in full."""
    assert learned().text_bytes(raw) == size


@pytest.mark.parametrize(
    ("rest", "alike"),
    [
        (b',"obfuscation":"xYz9"', True),
        (b',"obfuscation":""', True),
        (b',"obfuscation":"', False),
        (b',"obfuscation":"a","error":"b"', False),
        (b',"obfuscation":"a\n"', False),
    ],
)
def test_random_letters_may_differ(rest: bytes, alike: bool) -> None:
    """The letters that OpenAI adds may be others, and nothing may follow them."""
    like = learned(b',"obfuscation":"q1"')
    assert (like.text_bytes(HEAD + b"word" + TAIL + rest + END) == 4) is alike


def test_a_value_may_differ() -> None:
    """What stands in its place is handed over unread; a line's end in it might end the event."""
    like = learned(b',"u":{"n":1},"m":2', b'{"n":1}')
    assert like.text_bytes(HEAD + b"word" + TAIL + b',"u":{"n":23},"m":2' + END) == 4
    assert like.value == b'{"n":23}'
    assert like.text_bytes(HEAD + b"word" + TAIL + b',"u":{"n":\n23},"m":2' + END) == -1
    assert like.text_bytes(HEAD + b"word" + TAIL + b',"u":{"n":23},"m":3' + END) == -1


@pytest.mark.parametrize(
    "event",
    [
        an_event(b'data: {"id":"a","delta":{"content":"a"}}\n\n'),
        an_event(b'data: {"delta":{"content":"a"}}\r\r'),
        an_event(b'data: {"delta":\ndata: {"content":"a"}}\n\n'),
        an_event(b': "a"\ndata: {"delta":{"content":"a"}}\n\n'),
        an_event(b"", b'{"delta":{"content":"a"}}'),
    ],
)
def test_what_is_not_learned(event: Event) -> None:
    """Where the text stands and where the event ends is certain, or nothing is learned."""
    like = Likeness()
    like.learn(event, b'"a"')
    assert like.text_bytes(event.raw) == -1


def test_events_that_always_differ_are_not_compared_for_ever() -> None:
    """Where each chunk has an id of its own, comparing stops."""
    like = Likeness()
    for number in range(20):
        event = an_event(b'data: {"id":"%d","content":"word"}\n\n' % (number + 100))
        assert like.text_bytes(event.raw) == -1
        like.learn(event, b'"word"')
    assert like.text_bytes(event.raw) == -1


def test_nothing_is_read_behind_what_broke_the_stream() -> None:
    """H4: an event that is like the one before does not mend a stream that is broken."""
    for name, array in (("google-generate", True), ("google-generate", False)):
        one = as_event({"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}, b"" if array else b"\n")
        meter = Meter(DIALECTS[name], stream=True, hide_usage=False, quirks=frozenset(), array=array)
        meter.feed(b"[" + one[1:] if array else one)
        assert meter.feed(one) == one
        assert meter.feed(one + one[:-20] + b" " * MAX_EVENT) == one
        with pytest.raises(StreamBroken):
            meter.feed(one)


def test_an_array_that_opens_is_like_no_other() -> None:
    """A9: the bracket that opened the array would open one inside it the next time."""
    one = b"[" + as_event({"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}, b"")[2:]
    for pieces in ([one, one, b"]]"], [one, one[:9], one[9:], b"]]"]):
        meter = Meter(DIALECTS["google-generate"], stream=True, hide_usage=False, quirks=frozenset(), array=True)
        assert [meter.feed(piece) for piece in pieces][1] == b""
