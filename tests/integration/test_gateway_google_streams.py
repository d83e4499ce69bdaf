"""Google's streams through the gateway, as events and as one JSON array."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import BODIES, Gateway, budget, gateway, pieces, until

from tollkeeper.keys import hash_secret
from tollkeeper.testing.provider import Cut, ErrorEvent, FakeProvider, NoUsage, Replay, Stall

MODEL = "gemini-2.5-flash"
ASK = BODIES["google-generate"]
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"
FORMS = pytest.mark.parametrize("path", [STREAM + "?alt=sse", STREAM], ids=["events", "array"])
RICH = budget("project", "1000")


def elements(path: str, data: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream, from its events or its array."""
    if "sse" not in path:
        return list(json.loads(data))
    return [
        json.loads(event[6:]) for event in data.split(b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n") if event.strip()
    ]


async def relayed(gw: Gateway, path: str, body: Any = ASK) -> tuple[int, bytes]:
    async with gw.post(path, body) as response:
        return response.status, await response.read()


@FORMS
async def test_streams_are_relayed_byte_for_byte(tmp_path: Path, path: str) -> None:
    """D2: the client gets the provider's bytes, in the form that it asked for."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=2)) as gw:
        async with gw.post(path, ASK | {"generationConfig": {"candidateCount": 2}}) as response:
            through = await response.read()
            assert response.content_type == ("text/event-stream" if "sse" in path else "application/json")
        async with gw.session.post(gw.fake_url + path, data=gw.fake.requests[0].body) as response:
            direct = await response.read()
        entry = await gw.entry()
    assert through == direct.replace(b"00000002", b"00000001")
    assert (entry.usage, entry.outcome, entry.charge.status) == (gw.fake.bill[0].usage, "ok", "priced")


@FORMS
async def test_a_key_in_the_query_goes_nowhere(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """H2: `key` of the query is neither taken for a key, nor passed on, nor logged."""
    caplog.set_level(logging.DEBUG)
    keys = f'[[keys]]\nid = "k"\nproject = "alpha"\nhash = "{hash_secret("tk_canary")}"\n'
    joint = "&" if "?" in path else "?"
    async with gateway(tmp_path, settings=keys) as gw:
        status, _ = await relayed(gw, f"{path}{joint}key=tk_canary")
        assert status == 401
        async with gw.post(f"{path}{joint}key=tk_canary", ASK, {"x-goog-api-key": "tk_canary"}) as response:
            assert response.status == 200
            await response.read()
        await gw.entry()
    assert "tk_canary" not in caplog.text
    assert "tk_canary" not in str([(got.path, got.headers, got.body) for got in gw.fake.requests])


@FORMS
async def test_cut_at_every_piece(tmp_path: Path, path: str) -> None:
    """D3: cut after any piece: what came is forwarded, the error follows, an array stays good JSON; one entry each."""
    events = pieces(path, ASK)
    async with gateway(tmp_path, settings=RICH) as gw:
        for count in range(len(events) - ("sse" in path)):  # after its last event nothing tells a cut from an end
            gw.fake.next(Cut(count))
            status, through = await relayed(gw, path)
            await until(lambda count=count: gw.booked(count + 1))  # type: ignore[misc]
            entry, billed = (await gw.entries())[-1], gw.fake.bill[-1].usage
            assert (entry.outcome, entry.note) == ("cut", "stream_broken")
            assert entry.usage.output >= billed.output
            assert entry.usage.input >= billed.input
            if count == 0:
                assert status == 502
                continue
            assert through.startswith(b"".join(events[:count]).replace(b"00000001", b"%08d" % (count + 1)))
            if "sse" in path:
                through = through.replace(b"\r\n\r\n", b"\n\n")
            *good, error = elements(path, through)
            assert (len(good), error["error"]["code"]) == (count, 502)
            known = count == len(events) - 1
            assert entry.charge.status == ("priced" if known else "estimated")


@FORMS
async def test_cut_at_every_byte(tmp_path: Path, path: str) -> None:
    """D3: cut inside a chunk: what was whole is forwarded, half of one is not; one entry, and the error at the end."""
    events = pieces(path, ASK)
    before = sum(map(len, events[:2]))
    async with gateway(tmp_path, settings=RICH) as gw:
        for number, at in enumerate(range(before + 1, before + len(events[2]), 7), 1):
            gw.fake.next(Cut(at, "bytes"))
            status, through = await relayed(gw, path)
            await until(lambda number=number: gw.booked(number))  # type: ignore[misc]
            if "sse" in path:
                through = through.replace(b"\r\n\r\n", b"\n\n")
            *good, error = elements(path, through)
            assert (status, len(good), list(error)) == (200, 2, ["error", "request_id"])
        assert {entry.outcome for entry in await gw.entries()} == {"cut"}


@FORMS
@pytest.mark.parametrize("after", [0, 3])
async def test_error_inside_a_stream(tmp_path: Path, path: str, after: int) -> None:
    """D5: a stream that opens with an error is a 502 that costs nothing; after content it is booked as an error."""
    async with gateway(tmp_path, FakeProvider(always=ErrorEvent(after, 503)), RICH) as gw:
        status, through = await relayed(gw, path)
        entry = await gw.entry()
    assert status == (200 if after else 502)
    assert (entry.outcome, b'"error"' in through) == ("error", True)
    assert entry.charge.status == ("estimated" if after else "priced")
    assert bool(entry.charge.amount_nanos) == bool(after)


@FORMS
async def test_stream_without_usage(tmp_path: Path, path: str) -> None:
    """A good stream that never tells its usage is booked at an upper bound, marked as estimated."""
    async with gateway(tmp_path, FakeProvider(always=NoUsage())) as gw:
        await relayed(gw, path)
        entry = await gw.entry()
    assert (entry.outcome, entry.charge.status) == ("ok", "estimated")
    assert entry.usage.output >= gw.fake.bill[0].usage.output


@FORMS
@pytest.mark.parametrize("after", [1, 4])
async def test_client_that_leaves(tmp_path: Path, path: str, after: int) -> None:
    """D1: a client that leaves does not end the metering: the rest is read, and booked as billed."""
    stall = Stall(after)
    async with gateway(tmp_path, FakeProvider(always=stall)) as gw:
        async with gw.post(path, ASK) as response:
            await response.content.readany()
            await stall.reached.wait()
            response.close()
        await until(lambda: gw.app.gate.draining == 1)
        stall.release.set()
        entry = await gw.entry()
    assert (entry.outcome, entry.usage) == ("left", gw.fake.bill[0].usage)


async def test_events_where_an_array_was_asked_for(tmp_path: Path) -> None:
    """D3: a provider that sends events all the same is read as it sends, and its stream ends as events do."""
    events = pieces(STREAM + "?alt=sse", ASK)
    always = Replay(b"".join(events), headers=(("content-type", "text/event-stream"),))
    async with gateway(tmp_path) as gw:
        gw.fake.next(always, Replay(b"".join(events[:2]), headers=always.headers))
        assert (await relayed(gw, STREAM))[1] == b"".join(events)
        _, through = await relayed(gw, STREAM)
        await until(lambda: gw.booked(2))
    *good, error = elements("sse", through.replace(b"\r\n\r\n", b"\n\n"))
    assert (len(good), error["error"]["code"]) == (2, 502)


async def test_a_cost_comment_ends_no_array(tmp_path: Path) -> None:
    """With expose_cost_in_streams an array stays an array: only events can carry a comment."""
    async with gateway(tmp_path, settings="expose_cost_in_streams = true\n") as gw:
        _, through = await relayed(gw, STREAM)
        await gw.entry()
    assert json.loads(through)


@pytest.mark.parametrize("usage", [{"promptTokenCount": 14, "totalTokenCount": 14}, {"trafficType": "ON_DEMAND"}])
async def test_blocked_prompt(tmp_path: Path, usage: dict[str, Any]) -> None:
    """A prompt that was blocked is booked at what its reply states, which may be nothing at all."""
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": MODEL, "usageMetadata": usage}
    async with gateway(tmp_path, FakeProvider(always=Replay(json.dumps(blocked).encode()))) as gw:
        reply = await gw.google().aio.models.generate_content(model=MODEL, contents="toll")
        entry = await gw.entry()
    assert reply.prompt_feedback is not None
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")
    assert entry.charge.amount_nanos == usage.get("promptTokenCount", 0) * 300
