"""testing/scripted_provider: a provider that keeps to its script."""

from __future__ import annotations

import msgspec
import pytest
from tests.lines import SHAPES, STREAMS, a_call, events

from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.testing.script import Planned
from tollkeeper.testing.scripted_provider import CALL, PING, ScriptedUpstream, stated
from tollkeeper.testing.stage import END_MARKERS, Story
from tollkeeper.testing.virtual_loop import VirtualLoop
from tollkeeper.values import Provider, Route

ROUTE = Route(Provider(name="p", base_url="", dialects=frozenset()), "m")


def asked(planned: Planned, reads: int = 10_000) -> tuple[Story, bytes]:
    """What it sends to a client that reads so often."""
    story, got = Story(planned), bytearray()

    async def main() -> None:
        upstream = ScriptedUpstream({0: story}, lambda number, text: None)
        async with upstream.open(ROUTE, planned.dialect, planned.target or "/", planned.body, {CALL: b"0"}) as answer:
            for _ in range(reads):
                chunk = await answer.read()
                if not chunk:
                    break
                got.extend(chunk)

    try:
        VirtualLoop().play(main())
    finally:
        assert story.tries[0].delivered == got
    return story, bytes(got)


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
@pytest.mark.parametrize("chunk", [97, 65536])
def test_a_good_reply(dialect: str, stream: bool, chunk: int) -> None:
    """All of it, whatever the chunks, and then the end."""
    planned = a_call(dialect, stream, chunk=chunk)
    story, got = asked(planned)
    assert story.seen
    assert story.tries[0].eof
    assert got == b"".join(piece.raw for piece in story.tries[0].pieces)
    marked = bool(stream) and not planned.events_of_google
    assert any(marker in got for marker in END_MARKERS) == marked


def test_no_connection() -> None:
    """Refused before it has seen anything."""
    with pytest.raises(UpstreamUnreachable):
        asked(a_call(trouble="refuses"))


def test_breaks_before_the_answer() -> None:
    """It has the request, and nothing comes back."""
    with pytest.raises(StreamBroken):
        asked(a_call(trouble="breaks"))


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_cuts(dialect: str, stream: bool | str) -> None:
    """At the byte, and at the event."""
    for trouble in ("cut", "cut_event"):
        with pytest.raises(StreamBroken):
            asked(a_call(dialect, stream, trouble=trouble, at=0.5))


@pytest.mark.parametrize("trouble", ["pings", "lingers"])
def test_never_closes(trouble: str) -> None:
    """Pings come for ever."""
    story, got = asked(a_call(trouble=trouble, at=0.5), reads=200)
    assert not story.tries[0].eof
    assert got.endswith(PING * 100)


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_lies(dialect: str, stream: bool | str) -> None:
    """Another output count is stated, and nothing else changes but the total."""
    planned = a_call(dialect, stream)
    true, false = events(planned), events(a_call(dialect, stream, lie="triple"))
    at = -1 if dialect == "openai-responses" or planned.events_of_google else -2  # told in the end marker, or before it
    before = -2 if dialect == "google-generate" else at  # of its usage so far
    assert [*true[:before], *true[at:][1:]] == [*false[:before], *false[at:][1:]]
    told = [msgspec.json.decode(raw[at][raw[at].find(b"{") :]) for raw in (true, false)]
    counts = [document.get("response", document).get("usage") or document["usageMetadata"] for document in told]
    names = {"openai-chat": "completion_tokens", "google-generate": "candidatesTokenCount"}
    name = names.get(dialect, "output_tokens")
    assert counts[1][name] == 3 * counts[0][name] == stated("triple", counts[0][name])


@pytest.mark.parametrize("trouble", ["error", "error_first", "error_done"])
@pytest.mark.parametrize("at", [0, 0.5])
def test_an_error_inside_an_array(trouble: str, at: float) -> None:
    """An array stays one: it is opened once, and its elements are divided."""
    raw = b"".join(events(a_call("google-generate", "array", trouble=trouble, at=at)))
    elements = msgspec.json.decode(raw if raw.endswith(b"\n]\n") else raw + b"]")
    assert sum("error" in element for element in elements) == 1
