"""Streams through the gateway: usage asked for and hidden, cuts, errors inside, clients that are slow."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import BODIES, CHAT, STREAMS, Gateway, budget, gateway, parsed, pieces, request, until

from tollkeeper import attempt
from tollkeeper.money import format_nanos
from tollkeeper.testing.provider import Cut, Endless, ErrorEvent, FakeProvider, Huge, NoUsage, Replay, Stall

ENDS = (b"[DONE]", b'{"type":"message_stop"}', b'{"type":"response.completed"')
RESPONSES = "/v1/responses"  #: there the usage stands in the end marker itself
EACH = pytest.mark.parametrize(("path", "body"), STREAMS, ids=[path for path, _ in STREAMS])
SSE = (("content-type", "text/event-stream"),)


async def relayed(gw: Gateway, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """Status and the whole body of a reply."""
    async with gw.post(path, body) as response:
        return response.status, await response.read()


def errors(data: bytes) -> list[dict[str, Any]]:
    """The error events of a stream."""
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    return [doc["error"] for doc in map(json.loads, lines) if "error" in doc]


# ---- usage ----------------------------------------------------------------------------------------------------------


async def test_usage_is_asked_for_and_hidden(tmp_path: Path) -> None:
    """D2: a client that did not ask for usage sees none of it, and the ledger has all of it."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4)) as gw:
        async with gw.openai() as client:
            chunks = [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
        entry = await gw.entry()
    assert gw.fake.requests[0].json() == CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).count(" ") + 1 == entry.usage.output
    assert (entry.outcome, entry.usage, entry.charge.status) == ("ok", gw.fake.bill[0].usage, "priced")


async def test_hiding_leaves_no_trace(tmp_path: Path) -> None:
    """D2: what the client gets is, byte for byte, what the provider sends to one who does not ask for usage."""
    async with gateway(tmp_path) as gw:
        status, through = await relayed(gw, "/v1/chat/completions", CHAT | {"stream": True})
        async with gw.session.post(gw.fake_url + "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            direct = await response.read()
        await gw.entry()
    assert status == 200
    assert through == direct.replace(b"00000002", b"00000001")


async def test_usage_that_was_asked_for_comes(tmp_path: Path) -> None:
    """D2: a client that asks gets the usage chunk; other stream options pass."""
    options = {"include_usage": True, "include_obfuscation": False}
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            stream = await client.chat.completions.create(**CHAT, stream=True, stream_options=options)  # type: ignore[call-overload]
            chunks = [chunk async for chunk in stream]
        entry = await gw.entry()
    assert gw.fake.requests[0].json()["stream_options"] == options
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == entry.usage.tokens


LAST = b'data: {"id":"1","model":"gpt-4o-mini",%b}\n\n'
STOP = b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]'


@pytest.mark.parametrize(
    "last",
    [
        STOP + b',"usage":USAGE',
        b'"choices":[],"usage":USAGE',
        b'"choices":null,"usage":USAGE',
        STOP + b',"x_groq":{"usage":USAGE}',
    ],
    ids=["with choices", "alone", "choices null", "x_groq"],
)
async def test_usage_on_any_chunk(tmp_path: Path, last: bytes) -> None:
    """D2: usage is read on whichever chunk it stands, and chunks with choices always pass."""
    usage = b'{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}'
    word = LAST % b'"choices":[{"index":0,"delta":{"content":"toll"},"finish_reason":null}]'
    body = word + LAST % last.replace(b"USAGE", usage) + b"data: [DONE]\n\n"
    async with gateway(tmp_path, FakeProvider(always=Replay(body, headers=SSE))) as gw:
        _, through = await relayed(gw, "/v1/chat/completions", CHAT | {"stream": True})
        entry = await gw.entry()
    assert (entry.usage.input, entry.usage.output, entry.charge.status) == (11, 2, "priced")
    assert through.startswith(word)
    assert through.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"stop"' in through or b'"stop"' not in last


async def test_messages_stream_is_booked_as_billed(tmp_path: Path) -> None:
    """A3: message_start and message_delta overlay each other; the SDK's final message agrees with the ledger."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=5, reasoning_tokens=2)) as gw:
        async with gw.anthropic() as client, client.messages.stream(**BODIES["anthropic-messages"]) as stream:
            message = await stream.get_final_message()
        entry = await gw.entry()
    assert entry.usage == gw.fake.bill[0].usage
    assert (message.usage.output_tokens, message.usage.cache_read_input_tokens) == (entry.usage.output, 5)
    assert entry.outcome == "ok"


@EACH
async def test_cost_comment(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A stream tells its cost in SSE comments before its end, where the configuration says so."""
    async with gateway(tmp_path, settings="expose_cost_in_streams = true\n") as gw:
        _, through = await relayed(gw, path, body)
        entry = await gw.entry()
    lines = [line for line in through.split(b"\n") if line.startswith(b": ")]
    assert entry.charge.amount_nanos is not None
    assert lines[1] == b": x-tollkeeper-cost-status priced"
    assert lines[0] == b": x-tollkeeper-cost " + format_nanos(entry.charge.amount_nanos).encode()
    assert any(marker in through[through.rindex(b"data: ") :] for marker in ENDS)


@EACH
async def test_stream_in_one_piece(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A stream that arrives all at once is relayed and booked as any other, with its cost told alike."""
    events = b"".join(pieces(path, body))
    fake = FakeProvider(always=Replay(events, headers=SSE))
    async with gateway(tmp_path, fake, "expose_cost_in_streams = true\n") as gw:
        async with gw.post(
            path, body | ({"stream_options": {"include_usage": True}} if "chat" in path else {})
        ) as response:
            assert response.content_type == "text/event-stream"
            through = await response.read()
        entry = await gw.entry()
    assert b"".join(line + b"\n" for line in through.split(b"\n")[3:-1]) == events
    assert through.startswith(b": x-tollkeeper-cost 0.00")
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")


@EACH
async def test_stream_without_usage_is_estimated(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A good stream that never tells its usage is booked at an upper bound, marked as estimated."""
    async with gateway(tmp_path, FakeProvider(always=NoUsage())) as gw:
        await relayed(gw, path, body)
        entry = await gw.entry()
    billed = gw.fake.bill[0].usage
    assert (entry.outcome, entry.charge.status) == ("ok", "estimated")
    assert entry.usage.input >= billed.input
    assert entry.usage.output >= billed.output


# ---- breaking off ---------------------------------------------------------------------------------------------------


@EACH
async def test_cut_at_every_event(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D3: cut after any event: all before it is forwarded, an error event follows and no end marker; one entry each."""
    events = pieces(path, body)
    shown = [b"" if b'"choices":[]' in event else event.replace(b',"usage":null', b"") for event in events]
    async with gateway(tmp_path, settings=budget("project", "1000")) as gw:
        for count in range(len(events)):
            gw.fake.next(Cut(count))
            status, through = await relayed(gw, path, body)
            through = through.replace(b"%08d" % (count + 1), b"00000001")
            await until(lambda count=count: gw.booked(count + 1))  # type: ignore[misc]
            entry, billed = (await gw.entries())[-1], gw.fake.bill[-1].usage
            known = count == len(events) - 1 and path != RESPONSES  # all but the end marker: the usage was told
            status_of_charge = "priced" if known else "estimated"
            assert (entry.outcome, entry.charge.status, entry.note) == ("cut", status_of_charge, "stream_broken")
            assert entry.usage.output >= billed.output
            assert not known or entry.usage == billed
            assert entry.usage.input_tokens >= billed.input_tokens
            if count == 0:
                assert status == 502
                continue
            forwarded = b"".join(shown[:count])
            assert status == 200
            assert through.startswith(forwarded)
            (error,) = errors(through[len(forwarded) :])
            assert "end marker" in error["message"] or "broke off" in error["message"]
            assert b"[DONE]" not in through
            assert b"message_stop" not in through
        assert len(await gw.entries()) == len(events)


@EACH
async def test_cut_at_every_byte_of_an_event(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D3: cut inside an event: the whole events before it are forwarded, the half one is not; exactly one entry each."""
    events = pieces(path, body)
    before = sum(map(len, events[:4]))
    cuts = range(before, before + len(events[4]))
    async with gateway(tmp_path) as gw:
        for number, at in enumerate(cuts, 1):
            gw.fake.next(Cut(at, "bytes"))
            _, through = await relayed(gw, path, body)
            kept = through[: through.rindex(b"event: error" if b"event: error" in through else b"data: ")]
            assert kept.count(b"\n\n") in (4, 5)
            assert kept.endswith(b"\n\n")
            assert len(errors(through)) == 1
            assert b"[DONE]" not in through
            await until(lambda number=number: gw.booked(number))  # type: ignore[misc]
        entries = await gw.entries()
    assert len(entries) == len(cuts)
    assert {entry.outcome for entry in entries} == {"cut"}


@EACH
async def test_break_after_the_end_marker_is_no_break(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D2: a provider that has sent its end marker has done its work, however it closes."""
    async with gateway(tmp_path, FakeProvider(always=Cut(len(pieces(path, body))))) as gw:
        _, through = await relayed(gw, path, body)
        entry = await gw.entry()
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")
    assert entry.usage == gw.fake.bill[0].usage
    assert errors(through) == []


@EACH
async def test_provider_that_does_not_close(
    tmp_path: Path, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that keeps its stream open after the end marker does not keep the client waiting."""
    monkeypatch.setattr(attempt, "AFTER_END_S", 0.01)
    stall = Stall(after=len(pieces(path, body)))
    async with gateway(tmp_path, FakeProvider(always=stall)) as gw:
        status, through = await relayed(gw, path, body)
        entry = await gw.entry()
    assert (status, entry.outcome, entry.charge.status) == (200, "ok", "priced")
    assert any(marker in through[through.rindex(b"data: ") :] for marker in ENDS)


@EACH
async def test_error_instead_of_a_stream(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D5: a stream that begins with an error never becomes a 200."""
    async with gateway(tmp_path, FakeProvider(always=ErrorEvent())) as gw:
        async with gw.post(path, body) as response:
            assert response.status == 502
            assert response.content_type == "application/json"
            assert "answered with an error" in (await response.json())["error"]["message"]
        entry = await gw.entry()
    assert (entry.outcome, entry.note) == ("error", "upstream_refused")


@EACH
@pytest.mark.parametrize("status", [429, 500])
async def test_refusal_in_the_form_of_a_stream(tmp_path: Path, path: str, body: dict[str, Any], status: int) -> None:
    """D5: a provider that words its 4xx or 5xx as a stream is relayed with that status, and nothing is added."""
    event = b'event: error\ndata: {"type":"error","error":{"type":"x","message":"no"}}\n\n'
    async with gateway(tmp_path, FakeProvider(always=Replay(event, status, SSE))) as gw:
        assert await relayed(gw, path, body) == (status, event)
        entry = await gw.entry()
    assert (entry.outcome, entry.charge.amount_nanos) == ("error", 0)


@EACH
async def test_error_inside_a_stream(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D2: an error after content passes as the provider sent it, without a second one and without an end marker."""
    async with gateway(tmp_path, FakeProvider(always=ErrorEvent(6))) as gw:
        status, through = await relayed(gw, path, body)
        entry = await gw.entry()
    assert status == 200
    assert [error["message"] for error in errors(through)] == ["Overloaded."]
    assert b"[DONE]" not in through
    assert (entry.outcome, entry.charge.status) == ("error", "estimated")
    assert entry.usage.output >= gw.fake.bill[0].usage.output


@EACH
async def test_an_event_above_the_bound(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D3: an event above 16 MiB breaks the stream off; what came before was forwarded and is booked."""
    async with gateway(tmp_path, FakeProvider(always=Huge(17 << 20, after=5))) as gw:
        status, through = await relayed(gw, path, body)
        entry = await gw.entry()
    assert status == 200
    assert len(through) < 10_000
    assert len(errors(through)) == 1
    assert (entry.outcome, entry.charge.status) == ("cut", "estimated")


@EACH
async def test_stalled_stream(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D5: a provider that stops sending is given up after idle_timeout_s: an error event, an estimated entry."""
    async with gateway(tmp_path, FakeProvider(always=Stall(after=6)), "idle_timeout_s = 0.05\n") as gw:
        status, through = await relayed(gw, path, body)
        entry = await gw.entry()
    assert status == 200
    assert len(errors(through)) == 1
    assert (entry.outcome, entry.note, entry.charge.status) == ("cut", "upstream_timeout", "estimated")


async def test_a_slow_but_steady_stream_is_not_given_up(tmp_path: Path) -> None:
    """D5: idle_timeout_s counts from one piece to the next, not from the first."""
    async with gateway(tmp_path, FakeProvider(pause_s=0.01), "idle_timeout_s = 0.1\n") as gw:
        _, through = await relayed(gw, *STREAMS[0])
        entry = await gw.entry()
    assert through.endswith(b"[DONE]\n\n")
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")


# ---- slow clients ---------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    """D6: a client that does not read holds less than 1 MiB, stops its own provider, and slows no one else."""
    filler = Huge(50_000, after=3)
    async with gateway(tmp_path, settings='on_disconnect = "cancel"\n') as gw:
        gw.fake.next(None, [filler, Endless(4)])
        body = json.dumps(CHAT | {"stream": True}).encode()
        await relayed(gw, "/v1/embeddings", {"model": "text-embedding-3-small", "input": "warm"})
        gc.collect()
        tracemalloc.start()
        try:
            _, writer = await gw.connect(limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request(body))
            seen, same = -1, 0
            while same < 200:  # the provider's own loop stands still: nobody takes what it sends
                await asyncio.sleep(0)
                now = gw.fake.bill[-1].usage.output
                seen, same = now, same + 1 if now == seen else 0
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert seen > 4
        assert held < 1 << 20
        status, through = await relayed(gw, *STREAMS[-1])
        assert (status, errors(through)) == (200, [])
        assert gw.fake.bill[1].usage.output == seen
        writer.transport.abort()  # type: ignore[attr-defined]
        await until(lambda: gw.booked(3))


async def test_what_a_slow_client_gets_is_whole(tmp_path: Path) -> None:
    """D6: a client that reads in small sips gets every byte."""
    async with gateway(tmp_path) as gw:
        expected = (await relayed(gw, *STREAMS[0]))[1]
        reader, writer = await gw.connect(limit=64)
        writer.write(request(json.dumps(STREAMS[0][1]).encode()))
        answer = b""
        while sip := await reader.read(7):
            answer += sip
        writer.close()
        await writer.wait_closed()
        await until(lambda: gw.booked(2))
    status, headers, body = parsed(answer)
    assert status == 200
    assert (dechunked(body) if "transfer-encoding" in headers else body) == expected.replace(b"00000001", b"00000002")


def dechunked(body: bytes) -> bytes:
    """The content of a chunked body."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        content += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return content
