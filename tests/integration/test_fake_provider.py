"""The fake provider and its replies, asked by the official SDKs and byte by byte: what every other integration test stands on."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from tollkeeper.testing.faults import Piece, distort
from tollkeeper.testing.paths import PATHS
from tollkeeper.testing.provider import (
    Cut,
    Endless,
    ErrorEvent,
    FakeProvider,
    Fault,
    Huge,
    Lie,
    NoUsage,
    Refuse,
    Replay,
    Stall,
    WrongJson,
    serving,
)
from tollkeeper.values import Usage

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How much is the toll?"}]}
MESSAGES = CHAT | {"model": "claude-haiku-4-5", "max_tokens": 20}
GOOGLE = "/v1beta/models/gemini-2.5-flash:generateContent"
CONTENTS: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "How much is the toll?"}]}]}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "toll"},
    "/v1/messages": MESSAGES,
    "/v1/responses": {"model": "gpt-4o-mini", "input": "How much is the toll?"},
}


@asynccontextmanager
async def asking(provider: FakeProvider) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        serving(provider) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as chat,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk-ant-test", max_retries=0) as messages,
    ):
        yield chat, messages


@asynccontextmanager
async def posting(
    provider: FakeProvider, body: dict[str, Any] = CHAT, path: str = "/v1/chat/completions"
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        serving(provider) as url,
        aiohttp.ClientSession() as session,
        session.post(url + path, json=body) as response,
    ):
        yield response


async def until_cut(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """What arrived, and whether the body came to its end."""
    read = bytearray()
    try:
        async for chunk in response.content.iter_any():
            read += chunk
    except aiohttp.ClientPayloadError:
        return bytes(read), False
    return bytes(read), True


async def test_chat() -> None:
    """The openai SDK reads a whole answer, and the bill agrees with the usage that it read."""
    provider = FakeProvider(cached_tokens=4, reasoning_tokens=3)
    async with asking(provider) as (client, _):
        reply = await client.chat.completions.create(**CHAT, n=2)

    (billed,) = provider.bill
    words = sum(len((choice.message.content or "").split()) for choice in reply.choices)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 4
    assert reply.usage.completion_tokens == words + 6
    assert reply.model == billed.model == "gpt-4o-mini-2024-07-18"
    assert billed.usage == Usage(
        input=reply.usage.prompt_tokens - 4, cache_read=4, output=reply.usage.completion_tokens, reasoning=6
    )
    assert billed.complete


async def test_chat_stream_tells_usage_only_when_asked() -> None:
    """With include_usage a chunk without choices ends the stream, the others say null; without it none has usage."""
    provider = FakeProvider()
    async with asking(provider) as (client, _):
        asked = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        told = [chunk async for chunk in asked]
        untold = [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]

    usage = told[-1].usage
    assert usage is not None
    assert told[-1].choices == []
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in told[:-1])
    assert not any("usage" in chunk.model_fields_set for chunk in untold)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in untold)
    assert usage.completion_tokens == len(text.split())
    assert [billed.usage.output for billed in provider.bill] == [usage.completion_tokens] * 2


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_output_cap(field: str) -> None:
    """No answer has more output tokens than its cap, reasoning inside; it says that the cap cut it."""
    async with asking(FakeProvider(reasoning_tokens=2)) as (client, _):
        reply = await client.chat.completions.create(**CHAT, **{field: 5})

    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.choices[0].finish_reason == "length"


async def test_embeddings() -> None:
    """The openai SDK unpacks one vector for each input; a floats request gives the same numbers."""
    provider = FakeProvider()
    async with asking(provider) as (client, _):
        model, texts = "text-embedding-3-small", ["one toll", "another"]
        packed = await client.embeddings.create(model=model, input=texts, dimensions=4)
        floats = await client.embeddings.create(model=model, input=texts, dimensions=4, encoding_format="float")

    assert [len(item.embedding) for item in packed.data] == [4, 4]
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding)
    assert packed.usage.prompt_tokens == provider.bill[0].usage.input == 4


async def test_messages_whole_and_streamed_agree() -> None:
    """The anthropic SDK reads the same text and usage from a message and from its stream; caches stand apart."""
    provider = FakeProvider(cached_tokens=2)
    system: Any = [
        {"type": "text", "text": "a" * 40, "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b" * 80, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    async with asking(provider) as (_, client):
        whole = await client.messages.create(**MESSAGES, system=system)
        async with client.messages.stream(**MESSAGES, system=system) as stream:
            names = [event.type async for event in stream]
            streamed = await stream.get_final_message()

    assert whole.content[0].to_dict()["text"] == streamed.content[0].to_dict()["text"]
    assert whole.usage == streamed.usage
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    first, second = provider.bill
    assert first.usage == second.usage
    assert first.usage.cache_read == whole.usage.cache_read_input_tokens == 2
    assert (first.usage.cache_write_5m, first.usage.cache_write_1h) == (10, 20)
    assert whole.usage.cache_creation_input_tokens == 30
    assert first.usage.input == whole.usage.input_tokens
    assert first.usage.output == whole.usage.output_tokens


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_refusals(path: str, status: int) -> None:
    """An error status has the dialect's own body and costs nothing; Retry-After goes along."""
    provider = FakeProvider([Refuse(status, retry_after="7")])
    async with posting(provider, BODIES[path], path) as response:
        body = await response.json()

    assert response.status == status
    assert response.headers["Retry-After"] == "7"
    assert body["error"]["message"]
    assert ("request_id" in body) == (path == "/v1/messages")
    assert provider.bill == []
    assert len(provider.requests) == 1


async def test_sdk_errors() -> None:
    """The SDKs raise their own classes for what the provider refuses by itself: a wrong key, a missing field."""
    async with asking(FakeProvider(key="sk-ant-test")) as (chat, messages):
        with pytest.raises(openai.AuthenticationError):
            await chat.chat.completions.create(**CHAT)
        with pytest.raises(anthropic.BadRequestError):
            await messages.messages.create(**(MESSAGES | {"messages": []}))
        assert (await messages.messages.create(**MESSAGES)).usage.output_tokens > 0


@pytest.mark.parametrize("events", [0, 1, 5])
async def test_cut_after_events(events: int) -> None:
    """A cut stream breaks off without an end; the bill stops at what was generated."""
    provider = FakeProvider([Cut(events)])
    async with posting(provider, CHAT | {"stream": True}) as response:
        read, whole = await until_cut(response)

    assert response.status == 200
    assert not whole
    assert read.count(b"\n\n") == events
    assert b"[DONE]" not in read
    assert provider.bill[0].usage.output == max(0, events - 1)
    assert not provider.bill[0].complete


@pytest.mark.parametrize("stream", [True, False])
async def test_cut_after_bytes(stream: bool) -> None:
    """A cut by bytes lets exactly so many of them through."""
    async with posting(FakeProvider([Cut(33, "bytes")]), CHAT | {"stream": stream}) as response:
        read, whole = await until_cut(response)

    assert (len(read), whole) == (33, False)


async def test_no_answer_at_all() -> None:
    """A connection that closes without headers is a disconnect, not a 500."""
    with pytest.raises(aiohttp.ServerDisconnectedError):
        async with posting(FakeProvider([Cut(headers=False)])):
            pass


@pytest.mark.parametrize("after", [0, 2])
async def test_stall(after: int) -> None:
    """A stall lasts until its release, before the first byte or between two events; then the reply comes whole."""
    stall = Stall(after)
    provider = FakeProvider([stall])
    async with serving(provider) as url, aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}))
        await stall.reached.wait()
        assert provider.bill[0].usage.output == max(0, after - 1)
        assert after or not asking.done()
        stall.release.set()
        body = await (await asking).read()

    assert body.endswith(b"data: [DONE]\n\n")
    assert provider.bill[0].complete


async def test_client_that_leaves() -> None:
    """A stream that never ends does end when its client leaves, and so does a stall."""
    provider = FakeProvider([Endless(2), Stall(1)])
    for _ in range(2):
        async with posting(provider, CHAT | {"stream": True}) as response:
            await response.content.readany()
            response.close()

    assert [billed.complete for billed in provider.bill] == [False, False]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_error_inside_a_stream(path: str) -> None:
    """An error event follows good events with status 200, and no end marker follows it."""
    async with posting(FakeProvider([ErrorEvent(3)]), BODIES[path] | {"stream": True}, path) as response:
        *good, error, rest = (await response.read()).split(b"\n\n")

    assert response.status == 200
    assert len(good) == 3
    assert b"verloaded" in error
    assert error.startswith(b'data: {"error":' if "chat" in path else b"event: error\n")
    assert rest == b""


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_no_usage(path: str) -> None:
    """A reply may keep silent about its usage; the bill does not."""
    provider = FakeProvider([NoUsage()])
    async with posting(provider, BODIES[path], path) as response:
        body = await response.json()

    assert "usage" not in body
    assert provider.bill[0].usage.input > 0


@pytest.mark.parametrize("times", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", GOOGLE])
async def test_lie(path: str, stream: bool, times: int) -> None:
    """A lie is about every count of tokens, so that they agree; the text and the bill stay what they are."""
    body = BODIES.get(path, CONTENTS) | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    path = path.replace("generate", "streamGenerate") + "?alt=sse" if stream and path == GOOGLE else path
    provider = FakeProvider([None, Lie(times)])
    async with serving(provider) as url, aiohttp.ClientSession() as session:
        true, lied = [(await (await session.post(url + path, json=body)).read()).decode() for _ in range(2)]

    counts = re.findall(r'_tokens":(\d+)|okenCount":(\d+)', true)
    stated = re.findall(r'_tokens":(\d+)|okenCount":(\d+)', lied)
    assert [int("".join(each)) for each in stated] == [times * int("".join(each)) for each in counts]
    assert any(int("".join(each)) for each in counts)
    assert provider.bill[0].usage == provider.bill[1].usage
    assert provider.bill[1].complete


REPLAYED = b'data: {"a":1}\n\n: ping\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("chunk", [0, 1, 7])
async def test_replay(chunk: int) -> None:
    """Recorded bytes come out as they went in, with their status and headers, and are not billed."""
    headers = (("Content-Type", "text/event-stream"), ("content-encoding", "gzip"), ("x-recorded", "yes"))
    provider = FakeProvider([Replay(REPLAYED, 203, headers, chunk)])
    async with posting(provider, {}) as response:
        assert await response.read() == REPLAYED

    assert response.status == 203
    assert response.headers["x-recorded"] == "yes"
    assert provider.bill == []


STREAM = [Piece(b'data: {"n":%d}\n\n' % n, 1) for n in range(3)]
BODY = [Piece(b'{"n":0}', 3)]


@pytest.mark.parametrize(
    ("pieces", "faults", "raw", "ends"),
    [
        (STREAM, (), b'data: {"n":0}\n\ndata: {"n":1}\n\ndata: {"n":2}\n\n', True),
        (STREAM, (Cut(1),), b'data: {"n":0}\n\n', False),
        (STREAM, (Cut(20, "bytes"),), b'data: {"n":0}\n\ndata:', False),
        (STREAM, (WrongJson(1), Cut(2)), b'data: {"n":0}\n\ndata: \n\n', False),
        (STREAM, (Huge(3, 1),), b'data: {"n":0}\n\ndata:    {"n":1}\n\ndata: {"n":2}\n\n', True),
        (STREAM, (ErrorEvent(1),), b'data: {"n":0}\n\n!', True),
        ([Piece(b'{"input_tokens":21}', 3)], (Lie(2),), b'{"input_tokens":42}', True),
        (BODY, (WrongJson(),), b'{"n', True),
        (BODY, (Huge(2),), b'  {"n":0}', True),
        (BODY, (Cut(3, "bytes"),), b'{"n', False),
    ],
)
def test_distort(pieces: list[Piece], faults: tuple[Fault, ...], raw: bytes, ends: bool) -> None:
    """Each fault changes the pieces of a reply as its name says, and the tokens of those that stay are kept."""
    distorted = distort(pieces, faults, Piece(b"!"))

    assert b"".join(piece.raw for piece in distorted.pieces) == raw
    assert distorted.ends is ends


async def test_script_order() -> None:
    """`next` comes before the script, the script before `always`, one step for each request."""
    provider = FakeProvider([Refuse(500), None], always=Refuse(529))
    provider.next(Refuse(429))
    async with serving(provider) as url, aiohttp.ClientSession() as session:
        seen = []
        for _ in range(5):
            async with session.post(f"{url}/v1/chat/completions", json=CHAT) as response:
                seen.append(response.status)

    assert seen == [429, 500, 200, 529, 529]


async def test_requests_are_kept() -> None:
    """Headers and body of a request are there to assert on."""
    provider = FakeProvider()
    async with asking(provider) as (client, _):
        await client.chat.completions.create(**CHAT, extra_headers={"X-Team": "blue"})

    (got,) = provider.requests
    assert got.headers["x-team"] == "blue"
    assert got.headers["authorization"] == "Bearer sk-test"
    assert got.json() == CHAT
    assert got.request_id == provider.bill[0].request_id


async def test_process() -> None:
    """As a process of its own it says where it is, shows its bill, and stops on SIGTERM."""
    command = (sys.executable, "-m", "tollkeeper.testing.provider", "--port", "0")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).split()[3].decode()
        async with aiohttp.ClientSession() as session:
            await (await session.post(f"{url}/chat/completions", json=CHAT)).read()
            bill = await (await session.get(url.removesuffix("/v1") + "/bill")).json()
    finally:
        process.terminate()

    assert await process.wait() == 0
    assert [billed["model"] for billed in bill] == ["gpt-4o-mini-2024-07-18"]
    assert bill[0]["complete"]


async def test_a_port_in_use() -> None:
    """I2: a taken port is a line, not a traceback."""
    async with serving(FakeProvider()) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tollkeeper.testing.provider", "--port", url.rpartition(":")[2],
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"--host, --port: cannot listen on 127.0.0.1:" in err
    assert b"Traceback" not in err
