"""AWS event streams cut into messages while they arrive."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.aws_messages import converse, error, event, exception, framed, text_header

from tollkeeper.aws_events import MessageSplitter
from tollkeeper.errors import StreamBroken
from tollkeeper.sse import MAX_EVENT, Event

USAGE: dict[str, object] = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
STREAM = converse("Hi", USAGE)


def split(chunks: list[bytes]) -> tuple[list[Event], bytes, bool]:
    """Events, rest, and whether it broke."""
    splitter, events = MessageSplitter(), list[Event]()
    try:
        for chunk in [*chunks, b""]:
            events += splitter.feed(chunk)
    except StreamBroken:
        return events, splitter.rest(), True
    return events, splitter.rest(), False


def test_messages_are_events() -> None:
    """An event has its type as its name and its payload as its data, and keeps its bytes."""
    events, rest, broken = split([STREAM])
    names = [b"messageStart", b"contentBlockDelta", b"contentBlockStop", b"messageStop", b"metadata"]
    assert ([each.name for each in events], rest, broken) == (names, b"", False)
    assert json.loads(events[-1].data)["usage"] == USAGE
    assert b"".join(each.raw for each in events) == STREAM


def test_cut_at_every_byte() -> None:
    """A9, D3: cut anywhere the same events come out; what is not whole is the rest."""
    for at in range(len(STREAM)):
        assert split([STREAM[:at], STREAM[at:]]) == split([STREAM])
        events, rest, broken = split([STREAM[:at]])
        assert (b"".join(each.raw for each in events) + rest, broken) == (STREAM[:at], False)


def test_every_damaged_byte_is_found() -> None:
    """H4: one wrong byte anywhere breaks the stream; the messages before it come out, cut or whole alike."""
    for at in range(len(STREAM)):
        damaged = STREAM[:at] + bytes([STREAM[at] ^ 0x40]) + STREAM[at + 1 :]
        events, rest, broken = split([damaged])
        good = b"".join(each.raw for each in events)
        assert (broken, rest, STREAM[: len(good)]) == (True, b"", good)
        assert split([damaged[i : i + 1] for i in range(len(damaged))]) == (events, rest, broken)
        splitter = MessageSplitter()
        with pytest.raises(StreamBroken, match=r"^The provider sent a damaged event stream: the checksum of a message"):
            splitter.feed(damaged[len(good) :])
        with pytest.raises(StreamBroken):
            splitter.feed(b"")


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (exception("throttlingException", "slow"), {"type": "throttlingException", "message": '{"message": "slow"}'}),
        (error("InternalFailure", "oh"), {"type": "InternalFailure", "message": "oh"}),
    ],
)
def test_exceptions_are_errors(message: bytes, data: dict[str, str]) -> None:
    """D2: an exception or error inside the stream is an event named error, with its type."""
    ((found,), _, _) = split([message])
    assert (found.name, json.loads(found.data), found.raw) == (b"error", data, message)


def test_a_vendors_event_is_unwrapped() -> None:
    """A chunk of InvokeModelWithResponseStream is the vendor's own event; one without bytes is an event like any other."""
    inner = b'{"type":"message_stop"}'
    ((found,), _, _) = split([event("chunk", {"bytes": base64.b64encode(inner).decode(), "p": "abc"})])
    assert (found.name, found.data) == (b"", inner)
    for payload in ({"p": 1}, {"bytes": "?"}):
        ((found,), _, _) = split([event("chunk", payload)])
        assert (found.name, json.loads(found.data)) == (b"chunk", payload)


def test_headers_of_every_type() -> None:
    """Headers of all ten types are passed over by their size; a type that is not one, or a header cut short, is damage."""
    sizes = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
    others = b"".join(b"\1x" + bytes([kind]) + b"\0" * size for kind, size in sizes.items()) + b"\1y\6\0\2ab"
    named = text_header(":event-type", "metadata")
    ((found,), _, broken) = split([framed(others + named, b"{}")])
    assert (found.name, found.data, broken) == (b"metadata", b"{}", False)
    for headers in (b"\1x\x0a", b"\1x", b"\x09x", b"\1x\7\0\x09a", b"\1x\7\0", b"\1x\4\0"):
        with pytest.raises(StreamBroken, match="the headers of a message cannot be read"):
            MessageSplitter().feed(framed(headers, b""))


def test_lengths_are_bounded() -> None:
    """H4: a message that says it is above 16 MiB, or shorter than its headers, breaks the stream at once."""
    for total, headers, words in (
        (MAX_EVENT + 1, 0, "more than"),
        (20, 9, "shorter than its headers"),
        (0, 0, "shorter"),
    ):
        prelude = total.to_bytes(4) + headers.to_bytes(4)
        with pytest.raises(StreamBroken, match=words):
            MessageSplitter().feed(prelude + zlib.crc32(prelude).to_bytes(4))


@given(
    payloads=st.lists(st.binary(max_size=40), max_size=5),
    noise=st.binary(max_size=30),
    size=st.integers(1, 50),
)
def test_any_bytes_are_kept_or_broken(payloads: list[bytes], noise: bytes, size: int) -> None:
    """H4: whatever is fed, whole messages come out as they went in, and nothing but StreamBroken is raised."""
    stream = b"".join(framed(text_header(":event-type", "e"), payload) for payload in payloads) + noise
    events, rest, broken = split([stream[at : at + size] for at in range(0, len(stream), size)])
    assert [each.data for each in events] == payloads
    assert broken or rest == noise
    assert split([stream]) == (events, rest, broken)
