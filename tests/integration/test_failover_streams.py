"""D5 over real sockets: what fails before its first content is served elsewhere, and nothing of it reaches the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.failover import ASKS, MODEL, NAME, Several, several
from tests.gateway import pieces, until

from tollkeeper import attempt
from tollkeeper.call import Attempt
from tollkeeper.meter import Meter
from tollkeeper.testing.faults import Fault
from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, Replay, Stall
from tollkeeper.testing.responses_replies import FAILED

#: What a dialect sends before its first content, in events: a role, an empty block, a ping.
BEFORE = {"chat": 1, "messages": 3, "responses": 4, "stream": 1}
STREAMS: list[tuple[str, dict[str, Any], int]] = [
    (path + query, body if "models" in path else body | {"stream": True}, count)
    for path, body in ASKS
    for part, count in BEFORE.items()
    if part in path and "v1/models" not in path
    for query in (("?alt=sse", "") if part == "stream" else ("",))
]
EACH = pytest.mark.parametrize(("path", "body", "before"), STREAMS, ids=[path for path, _, _ in STREAMS])
ENDS = (b"[DONE]", b'"type":"message_stop"', b'"type":"response.completed"', b'"finishReason"')
FAULTS: dict[str, Callable[[int], Fault]] = {"stalls": Stall, "breaks off": Cut, "tells an error": ErrorEvent}
HOW = pytest.mark.parametrize("how", FAULTS)


class Counting(Meter):
    """Knows how many bytes it has read."""

    size = 0

    def feed(self, chunk: bytes) -> bytes:
        self.size += len(chunk)
        return super().feed(chunk)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Attempt]:
    """All attempts from now on."""
    made: list[Attempt] = []

    def make(**members: Any) -> Attempt:
        made.append(Attempt(**members))
        return made[-1]

    monkeypatch.setattr(attempt, "Attempt", make)
    monkeypatch.setattr(attempt, "Meter", Counting)
    return made


async def asked(sv: Several, path: str, body: Any, fault: Fault, attempts: list[Attempt], count: int) -> Any:
    """Ask; where the first provider stalls after so many events, its time is over once all of them were read."""
    sv.fakes[0].always = fault
    asking = asyncio.ensure_future(sv.ask(path, body))
    if isinstance(fault, Stall):
        await fault.reached.wait()
        sent = sum(map(len, pieces(path.replace(NAME, MODEL), named(body))[:count]))
        await until(lambda: read(attempts[0]) == sent)
        attempts[0].deadline.move(0)
    return await asyncio.wait_for(asking, 10)


def read(first: Attempt) -> int:
    """How many bytes of a reply the gateway has read."""
    return 0 if first.meter is None else getattr(first.meter, "size", 0)


def named(body: dict[str, Any]) -> dict[str, Any]:
    """The body as the providers get it, but for its stream options."""
    return body | {"model": MODEL} if "model" in body else body


async def direct(sv: Several, path: str, body: Any) -> bytes:
    """What the second provider sends to who asks it without a gateway; replies are numbered."""
    url = str(sv.gw.app.config.providers["two"].base_url)
    async with sv.gw.session.post(url + path.replace(NAME, MODEL), json=named(body)) as response:
        assert response.status == 200
        return (await response.read()).replace(b"00000002", b"00000001")


@EACH
@HOW
@pytest.mark.parametrize("at", ["before anything", "before content"])
async def test_before_content_another_serves(
    tmp_path: Path, attempts: list[Attempt], path: str, body: dict[str, Any], before: int, how: str, at: str
) -> None:
    """D5: the client gets the second provider's reply, byte for byte; pings and roles of the first are no content."""
    count = before if at == "before content" else 0
    async with several(tmp_path) as sv:
        status, told, through = await asked(sv, path, body, FAULTS[how](count), attempts, count)
        assert (status, told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == (200, "two", "2")
        assert through == await direct(sv, path, body)
        first, second = await sv.gw.entries()
    assert (first.provider, first.calls, first.outcome) == ("one", 1, "error" if how == "tells an error" else "cut")
    assert (second.provider, second.calls, second.outcome, second.attempt) == ("two", 0, "ok", 2)
    assert second.usage == sv.fakes[1].bill[0].usage
    assert first.usage.output >= sv.fakes[0].bill[0].usage.output


@EACH
@HOW
async def test_after_content_nobody_else_is_asked(
    tmp_path: Path, attempts: list[Attempt], path: str, body: dict[str, Any], before: int, how: str
) -> None:
    """D5: what was relayed cannot be called back: an error event, no end marker, one attempt, one entry."""
    async with several(tmp_path) as sv:
        status, told, through = await asked(sv, path, body, FAULTS[how](before + 2), attempts, before + 2)
        assert (status, told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == (200, "one", "1")
        assert through.count(b'"error":{') == 1
        assert not [end for end in ENDS if end in through]
        entry = await sv.gw.entry()
    assert sv.asked() == [1, 0]
    assert (entry.calls, entry.charge.status) == (1, "estimated")


@EACH
async def test_the_last_one_fails_too(tmp_path: Path, path: str, body: dict[str, Any], before: int) -> None:
    """D5: where nobody else is left the last one's events are not kept back; an error event in the dialect ends them."""
    fakes = [FakeProvider(always=Cut(before)) for _ in range(3)]
    async with several(tmp_path, *fakes) as sv:
        status, told, through = await sv.ask(path, body)
        entries = await sv.gw.entries()
    assert status == 200
    assert (told["x-tollkeeper-provider"], told["x-tollkeeper-attempts"]) == ("three", "3")
    assert through.count(b'"error":{') == 1
    assert not [end for end in ENDS if end in through]
    assert [entry.calls for entry in entries] == [1, 0, 0]
    assert sv.asked() == [1, 1, 1]


REFUSED = (
    b'{"type":"error","error":{"type":"overloaded_error","code":529,"status":"UNAVAILABLE","message":"Overloaded."}}'
)
LASTS = {
    "chat": b"data: " + REFUSED + b"\n\ndata: [DONE]\n\n",
    "messages": b"event: error\ndata: " + REFUSED + b'\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    "responses": b"event: error\ndata: " + REFUSED + b"\n\n" + FAILED.raw,
    "alt=sse": b"data: " + REFUSED + b"\r\n\r\n",
    "stream": b"[" + REFUSED + b"\n]\n",
}


@EACH
async def test_an_error_with_an_end_marker(tmp_path: Path, path: str, body: dict[str, Any], before: int) -> None:
    """D5: nor does an end marker behind the error make it a reply."""
    last = next(bytes_ for part, bytes_ in LASTS.items() if part in path)
    kind = "text/event-stream" if last[:1] in b"de" else "application/json"
    fault = Replay(last, headers=(("content-type", kind),))
    async with several(tmp_path) as sv:
        sv.fakes[0].always = fault
        status, told, through = await sv.ask(path, body)
        assert (status, told["x-tollkeeper-provider"]) == (200, "two")
        assert through == await direct(sv, path, body)
        first, _ = await sv.gw.entries()
    assert (first.outcome, first.charge.amount_nanos) == ("error", 0)


PING = b": ping\n\n"


async def test_what_is_kept_back_is_bounded(tmp_path: Path) -> None:
    """D5: past 64 KiB of pings the reply begins, so that a client is not kept waiting by them for ever; then it stays there."""
    pings = PING * (attempt.HELD_BACK_MAX // len(PING))
    few, many = (
        Replay(pings[:size], headers=(("content-type", "text/event-stream"),), chunk=4000)
        for size in (len(pings) // 2, len(pings))
    )
    async with several(tmp_path) as sv:
        for fault, provider, status in ((few, "two", 200), (many, "one", 200)):
            sv.fakes[0].next(fault)
            found = await sv.ask(*STREAMS[0][:2])
            assert (found[0], found[1]["x-tollkeeper-provider"]) == (status, provider)
        assert b"end marker" in found[2]
