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
        async with upstream.open(ROUTE, planned.dialect, "/", planned.body, {CALL: b"0"}) as answer:
            for _ in range(reads):
                chunk = await answer.read()
                if not chunk:
                    break
                got.extend(chunk)

    try:
        VirtualLoop().play(main())
    finally:
        assert story.delivered == got
    return story, bytes(got)


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
@pytest.mark.parametrize("chunk", [97, 65536])
def test_a_good_reply(dialect: str, stream: bool, chunk: int) -> None:
    """All of it, whatever the chunks, and then the end."""
    planned = a_call(dialect, stream, chunk=chunk)
    story, got = asked(planned)
    assert story.seen
    assert story.eof
    assert got == b"".join(piece.raw for piece in story.pieces)
    assert any(marker in got for marker in END_MARKERS) == stream


def test_no_connection() -> None:
    """Refused before it has seen anything."""
    with pytest.raises(UpstreamUnreachable):
        asked(a_call(trouble="refuses"))


def test_breaks_before_the_answer() -> None:
    """It has the request, and nothing comes back."""
    with pytest.raises(StreamBroken):
        asked(a_call(trouble="breaks"))


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_cuts(dialect: str, stream: bool) -> None:
    """At the byte, and at the event."""
    for trouble in ("cut", "cut_event"):
        with pytest.raises(StreamBroken):
            asked(a_call(dialect, stream, trouble=trouble, at=0.5))


@pytest.mark.parametrize("trouble", ["pings", "lingers"])
def test_never_closes(trouble: str) -> None:
    """Pings come for ever."""
    story, got = asked(a_call(trouble=trouble, at=0.5), reads=200)
    assert not story.eof
    assert got.endswith(PING * 100)


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_lies(dialect: str, stream: bool) -> None:
    """Another output count is stated, and nothing else changes but the total."""
    true, false = events(a_call(dialect, stream)), events(a_call(dialect, stream, lie="triple"))
    at = -1 if dialect == "openai-responses" else -2  # a response tells it in its end marker
    assert [*true[:at], *true[at:][1:]] == [*false[:at], *false[at:][1:]]
    told = [msgspec.json.decode(raw[at].split(b"data: ")[1]) for raw in (true, false)]
    counts = [document.get("response", document)["usage"] for document in told]
    name = "completion_tokens" if dialect == "openai-chat" else "output_tokens"
    assert counts[1][name] == 3 * counts[0][name] == stated("triple", counts[0][name])
