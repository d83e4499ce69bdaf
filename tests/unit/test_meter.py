"""The meter: what it relays, what it accumulates, and how it ends."""

from __future__ import annotations

import pytest

from tollkeeper import meter as meter_module
from tollkeeper.dialects import DIALECTS
from tollkeeper.errors import StreamBroken
from tollkeeper.meter import Meter
from tollkeeper.sse import MAX_EVENT
from tollkeeper.values import Part, Usage

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}],"usage":null}\n\n'
USAGE = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}\n\n'
DONE = b"data: [DONE]\n\n"


def make(*, stream: bool = True, hide: bool = False, dialect: str = "openai-chat") -> Meter:
    return Meter(DIALECTS[dialect], stream=stream, hide_usage=hide, quirks=frozenset())


def test_stream_relays_whole_events() -> None:
    """Half an event waits for its other half; then both halves are relayed as they came."""
    meter = make()
    assert meter.feed(TEXT[:9]) == b""
    assert meter.feed(TEXT[9:] + USAGE + DONE[:4]) == TEXT + USAGE
    assert not meter.ended
    assert meter.feed(DONE[4:]) == DONE
    assert meter.ended
    assert meter.finish().parts == (Part(Usage(input=7, output=1), "m"),)
    assert meter.tail == b""


def test_content_begins_with_text() -> None:
    """D5: pings and chunks that only name the role are not content."""
    meter = make()
    meter.feed(b": ping\n\n" + ROLE)
    assert not meter.content
    meter.feed(TEXT)
    assert meter.content


def test_hidden_usage_is_read_and_not_relayed() -> None:
    """D2: a client that did not ask for usage sees neither the usage chunk nor `usage: null`."""
    meter = make(hide=True)
    relayed = meter.feed(TEXT + USAGE + DONE)
    assert relayed == b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n' + DONE
    assert meter.finish().usage == Usage(input=7, output=1)


def test_whole_body_comes_out_at_the_end() -> None:
    """A body that is not streamed relays nothing while it comes; `body` has it byte for byte."""
    body = b'{"model":"m", "usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}'
    meter = make(stream=False)
    assert [meter.feed(body[:5]), meter.feed(body[5:])] == [b"", b""]
    assert meter.body == body
    assert not meter.ended
    reading = meter.finish()
    assert (reading.usage, reading.final, reading.ended) == (Usage(input=7, output=1), True, True)
    assert meter.finish() is reading
    assert make(stream=False).body == b""


def test_last_event_without_blank_line_is_read() -> None:
    """A last event that is all there counts, and `tail` has it completed for the client."""
    meter = make()
    meter.feed(TEXT + DONE.rstrip())
    assert not meter.ended
    assert meter.finish().ended
    assert meter.ended
    assert meter.tail == DONE


def test_last_hidden_event_stays_hidden() -> None:
    """D2: usage that is to be hidden is hidden in the tail too, and read."""
    meter = make(hide=True)
    meter.feed(USAGE[:-1])
    assert meter.finish().usage == Usage(input=7, output=1)
    assert meter.tail == b""


@pytest.mark.parametrize("size", range(1, len(TEXT) - 4))
def test_half_an_event_is_dropped(size: int) -> None:
    """D3: a stream that is cut inside an event relays whole events alone, and is not ended."""
    meter = make()
    assert meter.feed(TEXT + TEXT[:size]) == TEXT
    reading = meter.finish()
    assert (reading.ended, meter.tail) == (False, b"")


def test_blank_lines_at_the_end_pass() -> None:
    """White space behind the last event, or behind an array, is relayed: the client gets the provider's bytes."""
    meter = make()
    assert meter.feed(TEXT + b"\n") == TEXT
    meter.finish()
    assert meter.tail == b"\n"
    array = Meter(DIALECTS["google-generate"], stream=True, hide_usage=False, quirks=frozenset(), array=True)
    assert array.feed(b'[{"candidates": []}\n]\n') == b'[{"candidates": []}\n]'
    assert array.ended
    array.finish()
    assert array.tail == b"\n"


def test_large_event_breaks_the_stream() -> None:
    """H4: an event above 16 MiB raises StreamBroken; what was read before it stands."""
    meter = make()
    meter.feed(USAGE)
    with pytest.raises(StreamBroken):
        meter.feed(b"x" * (MAX_EVENT + 1))
    reading = meter.finish()
    assert (reading.usage, reading.ended) == (Usage(input=7, output=1), False)


def test_large_body_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: a body above WHOLE_MAX raises StreamBroken and is not kept."""
    monkeypatch.setattr(meter_module, "WHOLE_MAX", 10)
    meter = make(stream=False)
    meter.feed(b"x" * 10)
    with pytest.raises(StreamBroken, match="10 bytes"):
        meter.feed(b"x")
    assert meter.body == b""


def test_errors_inside_a_stream_are_told() -> None:
    """D2: an in-band error shows at once, and the stream is not ended by it."""
    meter = make(dialect="anthropic-messages")
    meter.feed(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n')
    assert meter.error == "overloaded_error"
    assert (meter.finish().error, meter.ended) == ("overloaded_error", False)
