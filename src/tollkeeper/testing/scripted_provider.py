"""The provider of a simulated run: good replies, and what the script makes of them, in virtual time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from itertools import chain, cycle
from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.routing import Candidates, Table
from tollkeeper.testing.faults import Piece, Refuse
from tollkeeper.testing.google_replies import google_at
from tollkeeper.testing.paths import PATHS
from tollkeeper.testing.replies import Reply, error_body, error_piece
from tollkeeper.testing.responses_replies import FAILED
from tollkeeper.testing.script import DEAR, GROUPS, PRICED, UNPRICED, Down, Placed, Planned, Provided, Script
from tollkeeper.testing.stage import Story, Tell, Tried
from tollkeeper.upstream import Answer, Opening
from tollkeeper.values import Credential, Provider, Route

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


def answer_to(
    planned: Planned, body: bytes, number: int = 1, *, provided: Provided | None = None, target: str | None = None
) -> tuple[Reply, list[Piece]]:
    """A good provider's reply to a body, and the pieces that the script makes of it, for the attempt of that number.

    No two attempts are answered alike: `number` is in each reply and each error.
    """
    provided, dialect = planned.provided[0] if provided is None else provided, planned.dialect
    _, answerer = google_at(planned.target if target is None else target) or (dialect, _BY_DIALECT.get(dialect))
    assert answerer is not None
    name = 100 * planned.number + number
    reply = answerer(msgspec.json.decode(body), name, provided.traits)
    pieces = list(reply.pieces)
    if provided.lie is not None:
        tells = -2 if reply.stream else -1
        pieces[tells:] = [_lied(piece, provided.lie) for piece in pieces[tells:]]
    said = f"Refused as {name}."
    if provided.trouble in ("status", "status_cut"):
        return reply, [Piece(error_body(Refuse(provided.status, message=said), dialect, "req_1"))]
    error = error_piece(Refuse(529, message=said), dialect, "req_1", stream=reply.stream, array=reply.array)
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


def table_of(script: Script) -> Table:
    """PRICED and UNPRICED lead to every provider."""
    providers = {place.name: _provider(place) for place in script.places}
    priced = (Route(providers[p.name], DEAR if p.dear else PRICED, weight=p.weight) for p in script.places)
    unpriced = (Route(providers[place.name], UNPRICED, weight=place.weight) for place in script.places)
    routes = {
        PRICED: Candidates(tuple(priced), script.policy),
        UNPRICED: Candidates(tuple(unpriced), script.policy),
    }
    return Table(providers, routes, lambda model: None)


def _provider(place: Placed) -> Provider:
    keys = tuple(Credential(f"{place.name}-key{number}", "secret") for number in range(place.credentials))
    return Provider(name=place.name, base_url="", dialects=GROUPS[place.name[0]], credentials=keys)


class ScriptedUpstream:
    """Implements `upstream.Upstream`. A call is known by its header `x-call`."""

    def __init__(self, stories: Mapping[int, Story], tell: Tell, downs: Iterable[Down] = ()) -> None:
        self._stories = stories
        self._tell = tell
        self._downs = list(downs)

    def open(self, route: Route, dialect: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Opening:
        story = self._stories[int(headers[CALL])]
        planned, tried = story.planned, story.opening()
        tried.route = route
        if planned.target:  # its model is the route's
            tried.target = f"/v1beta{path.removeprefix('/v1beta')}"
        assert path.rpartition(":")[2] == planned.target.rpartition(":")[2] or not planned.target, (
            f"nothing is at {path}"
        )
        now_s = asyncio.get_running_loop().time()
        for down in self._downs:
            if down.provider == route.provider.name and down.begins_s <= now_s < down.ends_s:
                tried.down = True
                tried.provided = structs.replace(
                    tried.provided, trouble="refuses" if down.refuses else "status", status=503, retry_after_s=None,
                    connect_s=0.01, think_s=0.01, gap_s=0.01,
                )  # fmt: skip
        return _Opening(planned, tried, body, self._tell)


class _Opening(AbstractAsyncContextManager[Answer]):
    def __init__(self, planned: Planned, tried: Tried, body: bytes, tell: Tell) -> None:
        self._planned, self._tried, self._body, self._tell = planned, tried, body, tell

    @property
    def sent(self) -> bool:
        return self._tried.seen

    async def __aenter__(self) -> Answer:
        tried, provided, number = self._tried, self._tried.provided, self._planned.number
        now_s = asyncio.get_running_loop().time
        tried.opened_s = now_s()
        try:
            await asyncio.sleep(provided.connect_s)
            if provided.trouble == "refuses":
                tried.refused = True
                raise UpstreamUnreachable("provider: connection refused")
            tried.seen, tried.got = True, msgspec.json.decode(self._body)
            self._tell(number, f"{tried.where} has the request")
            tried.reply, tried.pieces = answer_to(
                self._planned, self._body, tried.number, provided=provided, target=tried.target
            )
            if provided.trouble == "silent":
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(provided.think_s)
            if provided.trouble == "breaks":
                raise StreamBroken("provider: broke off before it answered")
        except BaseException:
            tried.closed_s = now_s()
            raise
        return _ScriptedAnswer(self._planned, tried, self._tell)

    async def __aexit__(self, *why: object) -> None:
        self._tried.closed_s = asyncio.get_running_loop().time()
        self._tell(
            self._planned.number,
            f"the connection to {self._tried.where} closes after {len(self._tried.delivered)} bytes",
        )


class _ScriptedAnswer:
    def __init__(self, planned: Planned, tried: Tried, tell: Tell) -> None:
        provided, reply, tried.answered = tried.provided, tried.reply, True
        failed = provided.trouble in ("status", "status_cut")
        self.status = provided.status if failed else 200
        self.is_stream = bool(reply and reply.stream and not reply.array and not failed)
        kind = b"text/event-stream" if self.is_stream else b"application/json"
        self.headers = [(b"content-type", kind)]
        if failed and provided.retry_after_s is not None:
            self.headers.append((b"retry-after", b"%d" % provided.retry_after_s))
        self._planned, self._tried, self._tell = planned, tried, tell
        self._acts = _acts(tried)

    async def read(self) -> bytes:
        for act in self._acts:
            if isinstance(act, bytes):
                self._tried.delivered += act
                return act
            if act is None:
                self._tell(self._planned.number, f"{self._tried.where} cuts")
                raise StreamBroken("the provider's reply broke off")
            await asyncio.sleep(act)
        self._tried.eof = True
        return b""


def _acts(tried: Tried) -> Iterator[bytes | float | None]:
    """What a provider does, in order: bytes, seconds to wait, None to break off. Its end is the end of the reply."""
    provided, ends = tried.provided, [0]
    for piece in tried.pieces:
        ends.append(ends[-1] + len(piece.raw))
    whole = b"".join(piece.raw for piece in tried.pieces)
    at_byte, at_event = int(provided.at * ends[-1]), ends[int(provided.at * len(tried.pieces))]
    pings: Iterable[bytes | float | None] = cycle(
        (0.5, PING if tried.pieces and tried.pieces[0].raw[:1] in b"de" else b" ")
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
