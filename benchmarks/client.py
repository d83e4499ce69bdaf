"""A client as its own process: `python -m benchmarks.client PORT --rate 500 --seconds 4` or `PORT --calls 200`.

With a rate it is an open loop: requests leave by the clock, whether or not earlier ones were answered, each on a connection
of its own for that time, so that a slow server is met by more requests at once and cannot hide its stalls. With a number of
calls it is a closed loop over `--connections`, which reads every reply to its end. Prints one JSON line, times in
microseconds from the moment that the request was written; `late` is how far behind the clock it was written (p99).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from time import perf_counter  # uvloop keeps whole milliseconds
from typing import Final, cast

import msgspec
import uvloop

from benchmarks.load import KEY, PATH

WARM: Final = 0.2
"""The first part of the requests, which is not counted: connections open, caches fill."""


class Client(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reply = bytearray()
        self._sent_s = 0.0
        self._done: asyncio.Future[float] | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def ask(self, request: bytes) -> asyncio.Future[float]:
        """Seconds from now to the reply's last byte."""
        assert self._transport is not None
        self._done = self._loop.create_future()
        self._reply.clear()
        self._sent_s = perf_counter()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if self._done is None or not _whole(self._reply):
            return
        done, self._done = self._done, None
        if self._reply.startswith(b"HTTP/1.1 200"):
            done.set_result(perf_counter() - self._sent_s)
        else:
            done.set_exception(RuntimeError(self._reply[:500].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None:
            self._done.set_exception(RuntimeError("the connection broke"))


def _whole(reply: bytearray) -> bool:
    head = reply.find(b"\r\n\r\n")
    if head < 0:
        return False
    at = reply[:head].lower().find(b"content-length:")
    if at < 0:
        return reply.endswith(b"0\r\n\r\n")
    length = int(reply[at + 15 : head].split(b"\r\n", 1)[0])
    return len(reply) >= head + 4 + length


def request(*, stream: bool) -> bytes:
    """The same request as chat.lua's."""
    text = "Tell me about gateways. " * 35
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
    body = msgspec.json.encode(
        {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 256} | ({"stream": True} if stream else {})
    )
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        f"x-tollkeeper-agent: load\r\nx-tollkeeper-session: bench-1\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def steady(port: int, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    """An open loop: latencies, and how late each request left, both in seconds."""
    loop, ask = asyncio.get_running_loop(), request(stream=False)
    idle: list[Client] = []
    latencies: list[float] = []
    late: list[float] = []

    async def one(due_s: float) -> None:
        client = idle.pop() if idle else (await loop.create_connection(Client, "127.0.0.1", port))[1]
        late.append(perf_counter() - due_s)
        latencies.append(await client.ask(ask))
        idle.append(client)

    begin_s = perf_counter() + 0.1
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due_s = begin_s + number / rate
            await asyncio.sleep(max(0, due_s - perf_counter()))
            group.create_task(one(due_s))
    warm = int(len(latencies) * WARM)
    return latencies[warm:], late[warm:]


async def all_of(port: int, calls: int, connections: int) -> tuple[list[float], list[float]]:
    """A closed loop of streamed calls: latencies in seconds."""
    loop, ask = asyncio.get_running_loop(), request(stream=True)
    latencies: list[float] = []
    left = iter(range(calls))

    async def worker() -> None:
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        latencies.extend([await client.ask(ask) for _ in left])

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())
    return latencies, [0.0]


def part(values: list[float], share: float) -> int:
    """A quantile, in microseconds."""
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--connections", type=int, default=32)
    asked = parser.parse_args()
    if asked.rate is None:
        latencies, late = uvloop.run(all_of(asked.port, asked.calls, asked.connections))
    else:
        latencies, late = uvloop.run(steady(asked.port, asked.rate, asked.seconds))
    saw = {
        "requests": len(latencies), "p50_us": part(latencies, 0.5), "p99_us": part(latencies, 0.99),
        "late_us": part(late, 0.99),
    }  # fmt: skip
    sys.stdout.write(msgspec.json.encode(saw).decode() + "\n")


if __name__ == "__main__":
    main()
