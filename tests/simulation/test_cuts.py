"""D3: the provider's connection breaks at each place of a reply."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from tests.lines import MARKED, STREAMS, a_call, entry, events, played

from tollkeeper.testing.simulate import Run


def cut_at(dialect: str, stream: bool | str, byte: int, size: int) -> Run:
    """A run whose provider breaks off before that byte of the stream; the judge finds nothing wrong."""
    return played(a_call(dialect, stream, trouble="cut", at=(byte + 0.5) / size, chunk=65536))


def check(run: Run, byte: int, content: int, usage: int) -> None:
    """One entry; the client learns of the cut, without an end marker; what was said last is booked exactly."""
    found, body = entry(run), bytes(run.stories[0].body)
    assert (found.outcome, found.charge.status) == ("cut", "priced" if byte >= usage else "estimated"), byte
    assert b"[DONE]" not in body
    assert b'"type":"message_stop"' not in body
    assert b'{"type":"response.completed"' not in body
    assert b"stream_broken" in body.lower()
    begins = (b"chatcmpl", b"message_start", b"response.created", b"modelVersion")
    assert run.stories[0].status == (200 if any(mark in body for mark in begins) else 502)
    if byte < content:  # no text was seen: nobody knows what was generated
        assert found.usage.output == 20


def places(dialect: str, stream: bool | str) -> tuple[list[int], int, int, int]:
    """Where the events end, the first one of text, and the last one of usage and the end marker, without their blank lines."""
    planned = a_call(dialect, stream)
    raw = events(planned)
    ends = list(accumulate(map(len, raw)))
    text = next(n for n, event in enumerate(raw) if re.search(rb'"(content|text|delta)":"[^"]', event))
    usage = -1 if dialect == "openai-responses" or planned.events_of_google else -2  # told in the end marker
    assert b"usage" in raw[usage]
    blank = len(raw[text]) - len(raw[text].rstrip())
    return ends, ends[text] - blank, ends[usage] - blank, ends[-1] - (len(raw[-1]) - len(raw[-1].rstrip()))


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_cut_at_every_event(dialect: str, stream: bool | str) -> None:
    """D3: at every event boundary exactly one entry, and no end marker after the error."""
    ends, content, usage, _ = places(dialect, stream)
    for byte in (0, *ends[:-1]):
        check(cut_at(dialect, stream, byte, ends[-1]), byte, content, usage)


@pytest.mark.parametrize("event", [0, 2, -2, -1], ids=["first", "text", "usage", "end"])
@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_cut_at_every_byte_of_an_event(dialect: str, stream: bool | str, event: int) -> None:
    """D3: at every byte of one event exactly one entry, and no end marker after the error."""
    ends, content, usage, whole = places(dialect, stream)
    begin, end = ([0, *ends][:-1][event], ends[event])
    for byte in range(begin, min(end, whole)):  # from there on the end marker is whole
        check(cut_at(dialect, stream, byte, ends[-1]), byte, content, usage)


@pytest.mark.parametrize(("dialect", "stream"), MARKED)
def test_cut_after_the_end_marker(dialect: str, stream: bool | str) -> None:
    """A provider that breaks off behind its end marker has done its work: nothing is told, all is exact."""
    size = places(dialect, stream)[0][-1]
    run = cut_at(dialect, stream, size, size)
    assert (entry(run).outcome, entry(run).charge.status) == ("ok", "priced")
    assert b"stream_broken" not in run.stories[0].body


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic-messages", "openai-responses", "google-generate"])
def test_a_whole_body_cut_at_every_byte(dialect: str) -> None:
    """D3: half a body is no reply: 502, one entry, and the most that it can have cost."""
    (body,) = events(a_call(dialect, False))
    for byte in range(0, len(body), 7):
        run = played(a_call(dialect, False, trouble="cut", at=(byte + 0.5) / len(body)))
        assert (run.stories[0].status, entry(run).outcome, entry(run).usage.output) == (502, "cut", 20), byte
