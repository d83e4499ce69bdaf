"""A fake provider: OpenAI's chat, responses and embeddings, Anthropic's messages, Google's generateContent; plain ASGI.

    async with serving(FakeProvider()) as url: ...     # or: python -m tollkeeper.testing.provider --port 9001

It answers as the real ones do, so that their SDKs accept it, and keeps two lists: `requests`, what it got, and `bill`,
what it would charge for. The bill is kept as a provider keeps it, by what was generated, whether or not anyone read it:
a ledger that agrees with it has lost nothing and doubled nothing. Faults come on command, from `script` or `next`, one
step for each request in turn, or for all of them from `always`, and wait on events, never on time:

    place = serving(provider)
    async with place as url:
        provider.next(Cut(3), Lie(2))          # the next reply breaks off, the one after it states twice its usage
        provider.always = stall = Stall()      # what follows waits for stall.release.set()
        provider.always = Refuse(503)          # is refused
        await place.shut()                     # has no connection
        await place.reopen()
        provider.always = None                 # and is served again
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import msgspec
import uvloop

from tollkeeper.testing.faults import (
    Cut,
    Endless,
    ErrorEvent,
    Fault,
    Huge,
    Lie,
    NoUsage,
    Piece,
    Refuse,
    Replay,
    Stall,
    WrongJson,
    distort,
)
from tollkeeper.testing.google_replies import Answerer, google_at
from tollkeeper.testing.paths import FREE, PATHS
from tollkeeper.testing.replies import BadAskError, Reply, Traits, encode, error_body, error_piece
from tollkeeper.testing.serving import TRANSPORT, App, Receive, Scope, Send, Served, serving
from tollkeeper.values import Usage

__all__ = [
    "App", "Billed", "Cut", "Endless", "ErrorEvent", "FakeProvider", "Fault", "Huge", "Lie", "NoUsage", "Received",
    "Refuse", "Replay", "Served", "Stall", "WrongJson", "serving",
]  # fmt: skip

Step = Fault | Sequence[Fault] | None
"""One request's faults; None: a good reply."""


class Received(msgspec.Struct, frozen=True):
    """A request as it arrived."""

    request_id: str
    path: str
    headers: dict[str, str]  #: lower-case names; the last value of a repeated one
    body: bytes

    def json(self) -> Any:
        """The body read as JSON."""
        return msgspec.json.decode(self.body)


class Billed(msgspec.Struct):
    """What one request would cost: grows while the reply is generated, and stops where the reply was cut."""

    request_id: str
    dialect: str
    model: str  #: the model that served
    usage: Usage  #: the prompt's kinds, and the output generated so far
    complete: bool = False  #: the reply went out to its end


class FakeProvider:
    """The application. `cached_tokens` and `reasoning_tokens` as in `Traits`; `pause_s` before each event.

    With `key` set, only requests that carry it as a bearer token, in x-api-key or in x-goog-api-key are answered; others get 401.
    `always` is done to every request that neither `next` nor `script` says anything about.
    `keep_requests=False` keeps the bill alone, for load tests.
    """

    def __init__(
        self,
        script: Iterable[Step] = (),
        *,
        always: Step = None,
        key: str | None = None,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        pause_s: float = 0,
        keep_requests: bool = True,
    ) -> None:
        self.requests: list[Received] = []
        self.bill: list[Billed] = []
        self.always = always
        self.key = key
        self.pause_s = pause_s
        self._keep = keep_requests
        self._traits = Traits(cached_tokens=cached_tokens, reasoning_tokens=reasoning_tokens)
        self._script = iter(script)
        self._next: deque[Step] = deque()
        self._numbers = count(1)

    def next(self, *steps: Step) -> None:
        """Puts faults before the script: one step for each of the requests to come."""
        self._next.extend(steps)

    def _faults(self) -> tuple[Fault, ...]:
        step = self._next.popleft() if self._next else next(self._script, self.always)
        return () if step is None else tuple(step) if isinstance(step, Sequence) else (step,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing to start or to stop
        if scope["method"] == "GET" and scope["path"] == "/bill":
            await _whole(send, 200, encode(self.bill), {})
            return
        number = next(self._numbers)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        got = Received(f"req_{number:08d}", scope["path"], headers, await _read(receive))
        if self._keep:
            self.requests.append(got)
        faults = self._faults()
        dialect, answerer = spoken_at(f"{got.path}?{scope['query_string'].decode('latin-1')}")
        answer = self._answer(got, number, faults, answerer)
        head = {"request-id" if dialect == "anthropic-messages" else "x-request-id": got.request_id}
        if isinstance(answer, Refuse):
            if answer.retry_after is not None:
                head["retry-after"] = answer.retry_after
            await _whole(send, answer.status, error_body(answer, dialect, got.request_id), head)
            return
        line = _Line(scope, receive, send, faults, self.pause_s)
        if isinstance(answer, Replay):
            await line.run(answer.status, _replayed(answer), *distort(_chunks(answer), faults, Piece(b"")))
            return
        fault = next((fault for fault in faults if isinstance(fault, ErrorEvent)), ErrorEvent())
        error = error_piece(Refuse(fault.status), dialect, got.request_id, stream=answer.stream, array=answer.array)
        pieces, ends = distort(answer.pieces, faults, error)
        head["content-type"] = (
            "text/event-stream; charset=utf-8" if answer.stream and not answer.array else "application/json"
        )
        if ends and not answer.stream:
            pieces = list(pieces)
            head["content-length"] = str(sum(len(piece.raw) for piece in pieces))
        prompt = msgspec.structs.replace(answer.usage, output=0, reasoning=0)
        billed = Billed(got.request_id, dialect, answer.model, prompt)
        if not answer.free:
            self.bill.append(billed)
        sent = await line.run(200, head, pieces, ends, billed)
        billed.complete = sent and billed.usage == answer.usage

    def _answer(
        self, got: Received, number: int, faults: tuple[Fault, ...], answerer: Answerer | None
    ) -> Reply | Refuse | Replay:
        for fault in faults:
            if isinstance(fault, (Refuse, Replay)):
                return fault
        if answerer is None:
            return Refuse(404)
        if self.key is not None:
            bearer = got.headers.get("authorization", "").removeprefix("Bearer ")
            if self.key not in (bearer, got.headers.get("x-api-key"), got.headers.get("x-goog-api-key")):
                return Refuse(401)
        traits = self._traits
        if NoUsage() in faults:
            traits = msgspec.structs.replace(traits, tells_usage=False)
        try:
            return answerer(msgspec.json.decode(got.body, type=dict[str, Any]), number, traits)
        except (BadAskError, msgspec.DecodeError) as bad:
            return Refuse(400, message=str(bad))


def spoken_at(target: str) -> tuple[str, Answerer | None]:
    """The dialect at a path and query, and what answers there; OpenAI's way to say that there is nothing."""
    path = target.partition("?")[0]
    return PATHS.get(path) or FREE.get(path) or google_at(target) or ("openai-chat", None)


class _Line:
    """One reply on its way out: it sees the client leave, stalls and breaks off where the faults say."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, faults: tuple[Fault, ...], pause_s: float) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stalls = {fault.after: fault for fault in faults if isinstance(fault, Stall)}
        self._mute = any(isinstance(fault, Cut) and not fault.headers for fault in faults)
        self._pause_s = pause_s
        self._started = False

    async def run(
        self, status: int, headers: dict[str, str], pieces: Iterable[Piece], ends: bool, billed: Billed | None = None
    ) -> bool:
        """Sends the reply and returns whether all of it went out. The bill grows with each piece."""
        left: asyncio.Future[Any] = asyncio.ensure_future(_until_left(self._receive))
        try:
            at = -1
            for at, piece in enumerate(pieces):
                await self._wait(at, status, headers, left)
                if left.done():
                    return False
                if billed is not None:
                    billed.usage = _grown(billed.usage, piece)
                await self._start(status, headers)
                await self._send({"type": "http.response.body", "body": piece.raw, "more_body": True})
            await self._wait(at + 1, status, headers, left)
            if not ends:
                await self._break(status, headers, left)
                return False
            await self._start(status, headers)
            await self._send({"type": "http.response.body", "body": b""})
            return True
        finally:
            left.cancel()

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        """Headers go out with the first piece, so that a stall before it is a stall before the first byte."""
        if self._started:
            return
        self._started = True
        await _head(self._send, status, headers)

    async def _wait(self, at: int, status: int, headers: dict[str, str], left: asyncio.Future[Any]) -> None:
        """What comes before piece `at`: a stall until its release or until the client leaves, or a pause."""
        stall = self._stalls.get(at)
        if stall is not None:
            if stall.headers:
                await self._start(status, headers)
            stall.reached.set()
            release: asyncio.Future[Any] = asyncio.ensure_future(stall.release.wait())
            await asyncio.wait((release, left), return_when=asyncio.FIRST_COMPLETED)
            release.cancel()
        if self._pause_s:
            await asyncio.wait((left,), timeout=self._pause_s)
        else:
            await asyncio.sleep(0)  # a client that left is seen between any two pieces

    async def _break(self, status: int, headers: dict[str, str], left: asyncio.Future[Any]) -> None:
        """Closes the connection; what was sent before still arrives."""
        if not self._mute:
            await self._start(status, headers)
        transport = self._scope.get("extensions", {}).get(TRANSPORT)
        if transport is None:
            return  # another server than `serving`: it closes when an application does not end its reply
        transport.close()
        await left


def _replayed(answer: Replay) -> dict[str, str]:
    """Recorded headers without those of the connection and of a compression that the body no longer has."""
    dropped = ("connection", "content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in answer.headers if name.lower() not in dropped}


def _chunks(answer: Replay) -> list[Piece]:
    step = answer.chunk or len(answer.body) or 1
    return [Piece(answer.body[at : at + step]) for at in range(0, len(answer.body), step)]


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _grown(usage: Usage, piece: Piece) -> Usage:
    return msgspec.structs.replace(
        usage, output=usage.output + piece.tokens, reasoning=usage.reasoning + piece.reasoning
    )


async def _head(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _whole(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await _head(send, status, {"content-type": "application/json", "content-length": str(len(body))} | headers)
    await send({"type": "http.response.body", "body": body})


async def _process(host: str, port: int, provider: FakeProvider) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(provider, host, port) as url:
        sys.stdout.write(f"fake provider on {url}/v1 (bill: {url}/bill)\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """The provider as a process of its own: stops on SIGTERM and Ctrl-C; `GET /bill` is its bill as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tollkeeper.testing.provider", description="A fake LLM provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001, help="0 takes a free one")
    parser.add_argument("--key", help="the only key that it answers; without one it takes any")
    parser.add_argument("--cached-tokens", type=int, default=0)
    parser.add_argument("--reasoning-tokens", type=int, default=0)
    parser.add_argument("--pause-ms", type=int, default=0, help="before each event of a stream")
    asked = parser.parse_args()
    provider = FakeProvider(
        key=asked.key,
        cached_tokens=asked.cached_tokens,
        reasoning_tokens=asked.reasoning_tokens,
        pause_s=asked.pause_ms / 1000,
        keep_requests=False,  # nobody can read them there, and load tests send millions
    )
    try:
        uvloop.run(_process(asked.host, asked.port, provider))
    except (OSError, OverflowError) as error:
        parser.error(f"--host, --port: cannot listen on {asked.host}:{asked.port}: {error}")


if __name__ == "__main__":
    main()
