"""Server-sent events: where they are cut, what their fields are, and that buffers stay bounded."""

from __future__ import annotations

import pytest

from tollkeeper.errors import StreamBroken
from tollkeeper.sse import MAX_EVENT, Event, Splitter, read_event


def split(*chunks: bytes) -> tuple[list[Event], bytes]:
    """The events of chunks, and the rest."""
    splitter = Splitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.rest()


FIELDS = [
    (b"data: {}\n\n", b"", b"{}"),
    (b"data:{}\n\n", b"", b"{}"),
    (b"data:  two blanks\n\n", b"", b" two blanks"),
    (b"event: ping\ndata: {}\n\n", b"ping", b"{}"),
    (b"data: {}\nevent: ping\n\n", b"ping", b"{}"),
    (b"event:ping\ndata:{}\n\n", b"ping", b"{}"),
    (b"event: a\ndata: 1\ndata: 2\n\n", b"a", b"1\n2"),
    (b"event: a\nid: 7\ndata: 1\n\n", b"a", b"1"),
    (b"data: 1\ndata\ndata: 3\n\n", b"", b"1\n\n3"),
    (b"event: a\r\ndata: 1\r\n\r\n", b"a", b"1"),
    (b"data: 1\r\rx: y\r\r", b"", b"1"),
    (b"data: 1\r\ndata: 2\n\r\n", b"", b"1\n2"),
    (b": comment\n\n", b"", b""),
    (b": comment\ndata: 1\n\n", b"", b"1"),
    (b"retry: 10\n\n", b"", b""),
    (b"\xef\xbb\xbfdata: 1\n\n", b"", b"1"),
    (b"dataset: 1\n\n", b"", b""),
    (b"\n\n", b"", b""),
    (b"data: \xe2\x80\xa8\x85\x1c\n\n", b"", b"\xe2\x80\xa8\x85\x1c"),
]


@pytest.mark.parametrize(("stream", "name", "data"), FIELDS)
def test_fields(stream: bytes, name: bytes, data: bytes) -> None:
    """Names and data are read as the standard says, whatever ends the lines."""
    events, rest = split(stream + b".")
    assert (events[0].name, events[0].data) == (name, data)
    assert b"".join(event.raw for event in events) + rest == stream + b"."


def test_carriage_return_waits_for_its_line_feed() -> None:
    """A chunk that ends between CR and LF does not make an event of its own."""
    assert split(b"data: 1\r\n\r", b"\ndata: 2\r\n\r\n")[0] == [
        Event(b"data: 1\r\n\r\n", b"", b"1"),
        Event(b"data: 2\r\n\r\n", b"", b"2"),
    ]
    assert split(b"data: 1\r", b"\ndata: 2\r\n\r\n")[0] == [Event(b"data: 1\r\ndata: 2\r\n\r\n", b"", b"1\n2")]


def test_unterminated_event_is_the_rest() -> None:
    """What lacks its blank line is no event; read_event reads it all the same."""
    events, rest = split(b"data: 1\n\nevent: error\ndata: 2")
    assert [event.data for event in events] == [b"1"]
    assert read_event(rest) == Event(b"event: error\ndata: 2", b"error", b"2")
    assert read_event(b"data: 1\nx").data == b"1"
    assert read_event(b"event: error") == Event(b"event: error", b"error", b"")
    assert read_event(b"") == Event(b"")


def test_several_events_in_one_chunk() -> None:
    """A chunk may complete many events and begin another."""
    events, rest = split(b"data: 1\n\ndata: 2\n\n: ping\n\nda", b"ta: 3\n\n")
    assert [event.data for event in events] == [b"1", b"2", b"", b"3"]
    assert rest == b""


@pytest.mark.parametrize("stray", [b"", b"\n", b"\r"])
def test_lines_that_all_end_in_crlf(stray: bytes) -> None:
    """A stream with CRLF alone, as Google sends it, is cut the same as one with a stray line end in it."""
    stream = b"data: 1\r\n\r\nevent: e\r\ndata: 2\r\ndata: 3\r\n\r\n\r\n: ping\r\n\r\n"
    events, rest = split(stream + stray + b"data: 4\r\n\r\n")
    assert [(event.name, event.data) for event in events] == [(b"", b"1"), (b"e", b"2\n3"), (b"", b""), (b"", b"4")]
    assert rest == b""
    assert b"".join(event.raw for event in events) == stream + stray + b"data: 4\r\n\r\n"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b""])
@pytest.mark.parametrize("size", [4096, 1 << 30])
def test_event_above_the_limit_breaks_the_stream(end: bytes, size: int) -> None:
    """H4: an event above 16 MiB raises, ended or not; events before it come out first."""
    stream = b"data: 1\n\n" + b"data: " + b"x" * MAX_EVENT + end
    splitter = Splitter()
    events: list[Event] = []

    def feed_all() -> None:
        for at in range(0, len(stream) + size, size):
            events.extend(splitter.feed(stream[at : at + size]))

    with pytest.raises(StreamBroken, match=str(MAX_EVENT)):
        feed_all()
    assert [event.data for event in events] == [b"1"]
    assert splitter.rest() == b""
    with pytest.raises(StreamBroken):
        splitter.feed(b"data: 2\n\n")


def test_event_at_the_limit_passes() -> None:
    """An event of exactly 1 MiB is whole, and so is a stream of many."""
    event = b"data: " + b"x" * (MAX_EVENT - 8) + b"\n\n"
    events, rest = split(event * 3)
    assert [len(event.raw) for event in events] == [MAX_EVENT] * 3
    assert rest == b""
