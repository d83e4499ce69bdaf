"""Work that is finished although its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from tollkeeper.cancellation import to_its_end


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
