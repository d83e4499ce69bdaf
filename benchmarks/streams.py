"""An upstream that streams: `python -m benchmarks.streams PORT PACE_MS`.

Answers every POST with 200 SSE chunks of an OpenAI chat and `[DONE]`. With a pace each chunk is a write of its own, so many
milliseconds after the one before, as from a model that generates; with pace 0 all of them leave in one write.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final, cast

import msgspec
import uvloop

CHUNKS: Final = 200
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def events() -> list[bytes]:
    """Role, 197 words, the finish, the usage; then the end marker."""
    head = {
        "id": "chatcmpl-fixed", "object": "chat.completion.chunk", "created": 1732240000,
        "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_fixed",
    }  # fmt: skip

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return head | {"choices": [choice], "usage": None}

    usage = {
        "prompt_tokens": 220, "completion_tokens": CHUNKS - 3, "total_tokens": 220 + CHUNKS - 3,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }  # fmt: skip
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": f" word{number}"}) for number in range(CHUNKS - 3)]
    chunks += [chunk({}, "stop"), head | {"choices": [], "usage": usage}]
    return [b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks] + [b"data: [DONE]\n\n"]


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


PIECES: Final = [_framed(event) for event in events()]
PIECES[0] = _HEAD + PIECES[0]
PIECES[-1] += b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection; `running` holds those with a reply under way and the pieces that it still has to write."""

    def __init__(self, running: dict[asyncio.Transport, list[bytes]], pieces: list[bytes]) -> None:
        self._running, self._pieces = running, pieces
        self._got = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        at = self._got[:head].lower().find(b"content-length:") if head >= 0 else -1
        if at < 0 or len(self._got) < head + 4 + int(self._got[at + 15 : head].split(b"\r\n", 1)[0]):
            return
        self._got.clear()
        assert self._transport is not None
        self._running[self._transport] = self._pieces[::-1]

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._running.pop(self._transport, None)


async def _run(port: int, pace_s: float) -> None:
    running: dict[asyncio.Transport, list[bytes]] = {}
    pieces = PIECES if pace_s else [b"".join(PIECES)]
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Upstream(running, pieces), "127.0.0.1", port, backlog=1024)
    due_s = loop.time()
    while True:
        due_s = max(due_s + (pace_s or 0.001), loop.time())
        await asyncio.sleep(due_s - loop.time())
        for transport, left in list(running.items()):
            transport.write(left.pop())
            if not left:
                del running[transport]


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1]), float(sys.argv[2]) / 1000))
