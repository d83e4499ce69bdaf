"""tollkeeper.tracker.streaming: chunks unchanged, and one entry however the stream ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.tracking import booked, tracker

from tollkeeper.errors import Conflict, StoreUnavailable
from tollkeeper.settlement import NO_USAGE
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.tracker import CostTracker
from tollkeeper.tracker.streaming import RecordedStream
from tollkeeper.values import Entry, Usage

ID = "chatcmpl-0123456789abcdefghij"
CHUNKS: list[dict[str, Any]] = [
    {"id": ID, "model": "tenth", "choices": [{"delta": {"content": "Hello"}}]},
    {"id": ID, "model": "tenth", "choices": [{"delta": {"content": " you"}, "finish_reason": "stop"}]},
    {
        "id": ID,
        "model": "tenth",
        "choices": [],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1000, "total_tokens": 1010},
    },
]
WHO: dict[str, Any] = {"project_id": "p", "agent_id": "a", "model": "tenth"}


class Boom(Exception):
    """What goes wrong in a caller's or a provider's code."""


async def live(chunks: list[Any], *, fails: BaseException | None = None) -> AsyncIterator[Any]:
    """An SDK's stream: each chunk comes a moment later."""
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if fails is not None:
        raise fails


def lazily(chunks: list[Any]) -> Iterator[Any]:
    yield from chunks


def stream(costs: CostTracker, chunks: Any, **more: Any) -> RecordedStream[Any]:
    return costs.record_stream("openai-chat", chunks, **WHO | more)


@pytest.mark.parametrize("make", [live, lazily, list])
async def test_handed_through_and_booked(tmp_path: Path, make: Any) -> None:
    """Each chunk is the caller's very object; when the loop ends the call is booked exactly, under the provider's id."""
    async with tracker(tmp_path) as costs:
        replies = stream(costs, make(CHUNKS))
        assert replies.recorded is None
        given = [chunk async for chunk in replies]
        assert all(one is other for one, other in zip(given, CHUNKS, strict=True))
        assert replies.recorded is not None
        assert (replies.recorded.amount_usd, replies.recorded.booked) == (Decimal("0.1"), "booked")
        (entry,) = await booked(costs)
        assert (entry.call, entry.outcome, entry.usage) == (ID, "ok", Usage(input=10, output=1000))
        await replies.aclose()
        assert (await costs.record_response("openai-chat", CHUNKS, **WHO)).booked == "repeated"


def is_left(entry: Entry, *, outcome: str = "left", seen: int = 5, prompt: int = 50) -> None:
    """Booked as an estimate of what was seen, and marked so."""
    assert (entry.outcome, entry.charge.status, entry.usage) == (
        outcome, "estimated", Usage(input=prompt, output=seen),
    )  # fmt: skip
    assert entry.note == "stream_broken"


async def test_left_by_its_user(tmp_path: Path) -> None:
    """D1: left by a break, an exception or a closing, what was seen is booked at once inside `async with`."""
    async with tracker(tmp_path) as costs:
        async with stream(costs, live(CHUNKS), prompt_tokens=50) as replies:
            async for _ in replies:
                break
        assert replies.recorded is not None
        is_left(replies.recorded.entry)

        async def fail() -> None:
            async with stream(costs, live(CHUNKS), prompt_tokens=50, request_id="2") as replies:
                async for _ in replies:
                    raise Boom

        with pytest.raises(Boom):
            await fail()
        async with aclosing(stream(costs, live(CHUNKS), prompt_tokens=50, request_id="3")) as replies:
            assert await anext(replies) is CHUNKS[0]
        entries = await booked(costs)
        assert [entry.call for entry in entries] == [ID, "2", "3"]
        for entry in entries:
            is_left(entry)


async def test_left_without_a_word(tmp_path: Path) -> None:
    """D1: a loop that is left and forgotten is booked when Python lets go of it."""
    async with tracker(tmp_path) as costs:
        assert await booked(costs) == []
        others = asyncio.all_tasks()
        async for _ in stream(costs, live(CHUNKS), prompt_tokens=50):
            break
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.gather(*asyncio.all_tasks() - others)
        (entry,) = await booked(costs)
        is_left(entry)


async def test_cancelled(tmp_path: Path) -> None:
    """D4: cancelled while it waits for a chunk, at any step, it is one entry, and the cancellation is what the task ends with."""
    for steps in range(12):
        async with tracker(tmp_path) as costs:
            waiting = asyncio.Event()

            async def hang() -> AsyncIterator[Any]:
                yield CHUNKS[0]
                await waiting.wait()  # noqa: B023 awaited within the round

            async def read() -> None:
                async with stream(costs, hang(), prompt_tokens=50) as replies:
                    async for _ in replies:
                        pass

            task = asyncio.ensure_future(read())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            entries = await booked(costs)
            assert len(entries) == (1 if steps else 0)
            assert all(entry.outcome == "left" for entry in entries)


async def test_cancelled_while_booking(tmp_path: Path) -> None:
    """D4: a cancellation between the last chunk and the booking's answer loses nothing."""
    for steps in range(1, 40):
        async with tracker(tmp_path, f"sqlite:///{tmp_path}/{steps}.sqlite") as costs:

            async def read() -> None:
                async for _ in stream(costs, live(CHUNKS)):
                    pass

            task = asyncio.ensure_future(read())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            (entry,) = await booked(costs)
            assert (entry.outcome, entry.charge.amount_nanos) in (("left", None), ("left", 10**8), ("ok", 10**8))


@pytest.mark.parametrize("error", [Boom("lost"), OSError("reset")])
async def test_broken_off_by_the_provider(tmp_path: Path, error: Exception) -> None:
    """D3: an error of the stream is the caller's, and what was seen before it is booked as cut."""
    async with tracker(tmp_path) as costs:
        replies = stream(costs, live(CHUNKS[:1], fails=error), prompt_tokens=50)
        with pytest.raises(type(error)):
            _ = [chunk async for chunk in replies]
        (entry,) = await booked(costs)
        is_left(entry, outcome="cut")
        assert replies.recorded is not None


async def test_usage_that_came_counts(tmp_path: Path) -> None:
    """D1: left or broken off after its usage, it is exact."""
    async with tracker(tmp_path) as costs:
        with pytest.raises(Boom):
            _ = [chunk async for chunk in stream(costs, live(CHUNKS, fails=Boom()))]
        (entry,) = await booked(costs)
        assert (entry.outcome, entry.charge.status, entry.charge.amount_nanos) == ("cut", "priced", 10**8)


async def test_nothing_known_is_unpriced(tmp_path: Path) -> None:
    """A5: without usage and without a bound of its prompt a stream is unpriced, never 0; closed unread it is booked too."""
    async with tracker(tmp_path) as costs:
        assert len([chunk async for chunk in stream(costs, CHUNKS[:2])]) == 2
        unread = stream(costs, CHUNKS, request_id="unread")
        await unread.aclose()
        assert unread.recorded is not None
        entries = await booked(costs)
        assert [(entry.charge.amount_nanos, entry.charge.status) for entry in entries] == [(None, "unpriced")] * 2
        assert [(entry.outcome, entry.note) for entry in entries] == [("ok", NO_USAGE), ("left", "stream_broken")]


async def test_bytes_of_a_stream(tmp_path: Path) -> None:
    """Raw bytes are handed through as they are cut, and need their end marker to be whole."""
    body = b'data: {"model":"tenth","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":10}}\n\n'
    async with tracker(tmp_path) as costs:
        for end, outcome in ((b"data: [DONE]\n\n", "ok"), (b"", "cut")):
            pieces = [body[:30], body[30:] + end]
            replies = stream(costs, live(pieces))
            assert [piece async for piece in replies] == pieces
            assert replies.recorded is not None
            assert (replies.recorded.entry.outcome, replies.recorded.amount_usd) == (outcome, Decimal("0.001"))


async def test_chunks_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no chunk at all is handed through; it is said once, and the call is not booked as if it cost nothing."""
    odd = [object(), 7, *CHUNKS[:1]]
    async with tracker(tmp_path) as costs:
        with caplog.at_level(logging.WARNING, "tollkeeper"):
            assert [chunk async for chunk in stream(costs, odd)] == odd
        assert [record.getMessage()[:41] for record in caplog.records] == ["a chunk of a stream cannot be metered: bo"]
        (entry,) = await booked(costs)
        assert (entry.charge.status, entry.note) == ("unpriced", NO_USAGE)


async def test_bad_arguments_are_told_at_once(tmp_path: Path) -> None:
    """A mistake is a ValueError before the stream is touched."""
    async with tracker(tmp_path) as costs:
        for bad, argument in (({"model": ""}, "model"), ({"project_id": ""}, "project_id"), ({"tier": ""}, "tier")):
            with pytest.raises(ValueError, match=f"^{argument}: "):
                stream(costs, CHUNKS, **bad)
        with pytest.raises(ValueError, match=r"^dialect: "):
            costs.record_stream("nothing", CHUNKS, **WHO)
        with pytest.raises(ValueError, match=r"^chunks: expected a stream's chunks to iterate over, got dict; a whole"):
            stream(costs, {"stream": CHUNKS})
        with pytest.raises(ValueError, match=r"^chunks: .* got int"):
            stream(costs, 7)


class Failing(MemoryStore):
    """A ledger that does not take the next writes."""

    failures = 2

    async def settle(self, entry: Entry) -> Any:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the disk is full")
        return await super().settle(entry)


async def test_a_ledger_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """B6: the caller hears of it after the last chunk and may close again; while an error is under way it is logged."""
    store = Failing()
    async with tracker(tmp_path, store) as costs:
        replies, given = stream(costs, CHUNKS), list[Any]()

        async def read(replies: RecordedStream[Any]) -> None:
            async with replies:
                async for chunk in replies:
                    given.append(chunk)

        with pytest.raises(StoreUnavailable):
            await read(replies)
        assert (given, replies.recorded) == (CHUNKS, None)
        await replies.aclose()
        assert replies.recorded is not None
        store.failures = 9
        with caplog.at_level(logging.ERROR, "tollkeeper"), pytest.raises(Boom):
            await read(stream(costs, live(CHUNKS[:1], fails=Boom()), request_id="2"))
        assert "a stream is not booked: the disk is full" in caplog.text
        assert [entry.call for entry in await booked(costs)] == [ID]


async def test_a_conflict_is_told_at_the_end(tmp_path: Path) -> None:
    """B2: a stream under an id that was booked with other contents is a conflict, after its last chunk."""
    async with tracker(tmp_path) as costs:
        await costs.record_usage("p", "a", "tenth", 1, 1, request_id=ID)
        with pytest.raises(Conflict):
            _ = [chunk async for chunk in stream(costs, CHUNKS)]
