"""Work that is finished although its caller is cancelled, and work that ends in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tollkeeper.cancellation import Deadline, to_its_end
from tollkeeper.testing.virtual_loop import VirtualLoop


async def test_answers_and_errors_pass() -> None:
    """Undisturbed it is a plain await."""

    async def work(fail: bool) -> int:
        if fail:
            raise KeyError("no")
        return 7

    assert await to_its_end(work(False)) == 7
    with pytest.raises(KeyError, match="no"):
        await to_its_end(work(True))


@pytest.mark.parametrize("fail", [False, True])
async def test_cancelled_again_and_again(fail: bool) -> None:
    """The work ends, whatever cancels its caller; then the caller is cancelled."""
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(1)
        if fail:
            raise KeyError("no")

    task = asyncio.ensure_future(to_its_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert (task.done(), done) == (False, [])
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def within(deadline: Deadline, seconds: float | None, work: Awaitable[Any]) -> Any:
    async with deadline:
        deadline.move(None if seconds is None else asyncio.get_running_loop().time() + seconds)
        return await work


def test_a_deadline_ends_the_work() -> None:
    """What takes longer than its deadline is cancelled and told as TimeoutError, at that time."""
    loop = VirtualLoop()

    async def play() -> None:
        deadline = Deadline()
        with pytest.raises(TimeoutError):
            await within(deadline, 90.0, asyncio.sleep(100))
        assert deadline.expired
        assert loop.time() == pytest.approx(90.0)
        assert await within(Deadline(), 90.0, asyncio.sleep(80, "done")) == "done"
        assert await within(Deadline(), None, asyncio.sleep(1e6, "done")) == "done"

    loop.play(play())


@pytest.mark.parametrize(("moves", "ends"), [((50, 200), 200), ((200, 50), 50), ((10, 20, 5), 5), ((40, 41, 42), 42)])
def test_a_deadline_is_moved(moves: tuple[int, ...], ends: int) -> None:
    """The last move counts, later or earlier, however far the timer was set before."""
    loop = VirtualLoop()

    async def play() -> None:
        async with Deadline() as deadline:
            for move in moves:
                deadline.move(move)
            await asyncio.sleep(1000)

    with pytest.raises(TimeoutError):
        loop.play(play())
    assert loop.time() == pytest.approx(ends)


def test_a_deadline_leaves_other_cancellations_alone() -> None:
    """A task that is cancelled by someone else stays cancelled, also when its deadline passes at that moment."""
    loop = VirtualLoop()

    async def play() -> None:
        work = asyncio.ensure_future(within(Deadline(), 10.0, asyncio.sleep(100)))
        await asyncio.sleep(5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        late = asyncio.ensure_future(within(Deadline(), 5.0, asyncio.sleep(100)))
        loop.call_later(5.0, late.cancel)
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await late

    loop.play(play())
