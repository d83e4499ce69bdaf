"""The provider of a simulated run: good replies, and what the script makes of them, in virtual time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from itertools import chain, cycle
from typing import Final

import msgspec

from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.testing.faults import Piece, Refuse
from tollkeeper.testing.google_replies import google_at
from tollkeeper.testing.paths import PATHS
from tollkeeper.testing.replies import Reply, error_body, error_piece
from tollkeeper.testing.responses_replies import FAILED
from tollkeeper.testing.script import Planned
from tollkeeper.testing.stage import Story, Tell
from tollkeeper.upstream import Answer
from tollkeeper.values import Route

CALL: Final = b"x-call"
"""The header that carries a call's number."""
PING: Final = b": ping\n\n"
STOP: Final = Piece(b'data: {"candidates":[{"finishReason":"STOP","index":0}]}\r\n\r\n')
"""How Google's events end after an error: without a usage."""
_BY_DIALECT: Final = dict(PATHS.values())
_OUTPUT: Final = re.compile(
    rb'"(completion_tokens|output_tokens|total_tokens|candidatesTokenCount|totalTokenCount)":\d+'
)
_TOTALS: Final = (b"total_tokens", b"totalTokenCount")
_STATED: Final[dict[str, Callable[[int], int]]] = {
    "zero": lambda n: 0,
    "triple": lambda n: 3 * n,
    "absurd": lambda n: 10**12,
    "negative": lambda n: -5,
}


def answer_to(planned: Planned, body: bytes) -> tuple[Reply, list[Piece]]:
    """A good provider's reply to a body, and the pieces that the script makes of it."""
    provided, dialect = planned.provided, planned.dialect
    _, answerer = google_at(planned.target) or (dialect, _BY_DIALECT.get(dialect))
    assert answerer is not None
    reply = answerer(msgspec.json.decode(body), planned.number, provided.traits)
    pieces = list(reply.pieces)
    if provided.lie is not None:
        tells = -2 if reply.stream else -1
        pieces[tells:] = [_lied(piece, provided.lie) for piece in pieces[tells:]]
    if provided.trouble in ("status", "status_cut"):
        return reply, [Piece(error_body(Refuse(provided.status), dialect, "req_1"))]
    error = error_piece(Refuse(529), dialect, "req_1", stream=reply.stream, array=reply.array)
    at = int(provided.at * (1 + sum(piece.tokens > 0 for piece in pieces)))  # the same with usage asked for or not
    match provided.trouble:
        case "error":
            pieces = [*pieces[:at], error]
        case "error_done":
            end = FAILED if dialect == "openai-responses" else STOP if planned.events_of_google else pieces[-1]
            pieces = [*pieces[:at], error, end] if reply.stream else [error]
        case "error_first":
            pieces = [error, *pieces] if reply.stream else [error]
    return reply, _opened(pieces) if reply.array else pieces


def _opened(pieces: list[Piece]) -> list[Piece]:
    """The elements of an array, of which only the first one opens it."""
    inner = [piece._replace(raw=b",\n" + piece.raw[1:]) if piece.raw[:1] == b"[" else piece for piece in pieces]
    return [inner[0]._replace(raw=b"[" + inner[0].raw.removeprefix(b",\n")), *inner[1:]]


def _lied(piece: Piece, lie: str) -> Piece:
    """Another output count in a piece that tells one."""
    tells = _OUTPUT.findall(piece.raw)
    if not set(tells).difference(_TOTALS):
        return piece

    def change(found: re.Match[bytes]) -> bytes:
        name, _, count = found[0].rpartition(b":")
        return b"" if found[1] in _TOTALS else name + b":%d" % stated(lie, int(count))

    return piece._replace(raw=_OUTPUT.sub(change, piece.raw).replace(b",,", b",").replace(b",}", b"}"))


def stated(lie: str | None, output: int) -> int:
    """The count of output that a provider states; Google's says nothing of its thoughts."""
    return output if lie is None else _STATED[lie](output)


class ScriptedUpstream:
    """Implements `upstream.Upstream`. A call is known by its header `x-call`."""

    def __init__(self, stories: Mapping[int, Story], tell: Tell) -> None:
        self._stories = stories
        self._tell = tell

    def open(
        self, route: Route, dialect: str, path: str, body: bytes, headers: Mapping[bytes, bytes]
    ) -> AbstractAsyncContextManager[Answer]:
        story = self._stories[int(headers[CALL])]
        assert story.planned.target.endswith(path) or not story.planned.target, f"nothing is at {path}"
        return _Opening(story, body, self._tell)


class _Opening(AbstractAsyncContextManager[Answer]):
    def __init__(self, story: Story, body: bytes, tell: Tell) -> None:
        self._story, self._body, self._tell = story, body, tell

    async def __aenter__(self) -> Answer:
        story, provided = self._story, self._story.planned.provided
        assert not story.opened, "opened twice"
        story.opened = True
        await asyncio.sleep(provided.connect_s)
        if provided.trouble == "refuses":
            story.refused = True
            raise UpstreamUnreachable("provider: connection refused")
        story.seen, story.got = True, msgspec.json.decode(self._body)
        self._tell(story.planned.number, "the provider has the request")
        story.reply, story.pieces = answer_to(story.planned, self._body)
        if provided.trouble == "silent":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(provided.think_s)
        if provided.trouble == "breaks":
            raise StreamBroken("provider: broke off before it answered")
        return _ScriptedAnswer(story, self._tell)

    async def __aexit__(self, *why: object) -> None:
        self._tell(
            self._story.planned.number, f"the provider's connection closes after {len(self._story.delivered)} bytes"
        )


class _ScriptedAnswer:
    def __init__(self, story: Story, tell: Tell) -> None:
        provided = story.planned.provided
        failed = provided.trouble in ("status", "status_cut")
        self.status = provided.status if failed else 200
        self.is_stream = bool(story.reply and story.reply.stream and not story.reply.array and not failed)
        kind = b"text/event-stream" if self.is_stream else b"application/json"
        self.headers = [(b"content-type", kind)]
        self._story, self._tell = story, tell
        self._acts = _acts(story)

    async def read(self) -> bytes:
        for act in self._acts:
            if isinstance(act, bytes):
                self._story.delivered += act
                return act
            if act is None:
                self._tell(self._story.planned.number, "the provider cuts")
                raise StreamBroken("the provider's reply broke off")
            await asyncio.sleep(act)
        self._story.eof = True
        return b""


def _acts(story: Story) -> Iterator[bytes | float | None]:
    """What a provider does, in order: bytes, seconds to wait, None to break off. Its end is the end of the reply."""
    provided, ends = story.planned.provided, [0]
    for piece in story.pieces:
        ends.append(ends[-1] + len(piece.raw))
    whole = b"".join(piece.raw for piece in story.pieces)
    at_byte, at_event = int(provided.at * ends[-1]), ends[int(provided.at * len(story.pieces))]
    pings: Iterable[bytes | float | None] = cycle(
        (0.5, PING if story.pieces and story.pieces[0].raw[:1] in b"de" else b" ")
    )
    chunks, nothing = _chunks(whole, provided.chunk, provided.gap_s), ()
    match provided.trouble:
        case "cut" | "status_cut":
            return chain(_chunks(whole[:at_byte], provided.chunk, provided.gap_s), (None,))
        case "cut_event":
            return chain(_chunks(whole[:at_event], provided.chunk, provided.gap_s), (None,))
        case "stalls":
            rest = _chunks(whole[at_byte:], provided.chunk, provided.gap_s)
            return chain(_chunks(whole[:at_byte], provided.chunk, provided.gap_s), (provided.stall_s,), rest)
        case "pings":
            return chain(_chunks(whole[:at_event], provided.chunk, provided.gap_s), pings)
        case "lingers":
            return chain(chunks, pings)
    return chain(chunks, nothing)


def _chunks(data: bytes, size: int, gap_s: float) -> Iterator[bytes | float | None]:
    for begin in range(0, len(data), size):
        yield gap_s
        yield data[begin : begin + size]
