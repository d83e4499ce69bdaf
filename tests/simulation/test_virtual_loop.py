"""testing/virtual_loop: time that is a number."""

from __future__ import annotations

import asyncio

import pytest

from tollkeeper.clock import MICROS
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.virtual_loop import Stuck, VirtualClock, VirtualLoop


def test_time_jumps_to_the_next_timer() -> None:
    """A thousand seconds pass at once, and every timer comes in its order."""

    async def main() -> list[float]:
        loop, came = asyncio.get_running_loop(), list[float]()

        async def nap(seconds: float) -> None:
            await asyncio.sleep(seconds)
            came.append(loop.time())

        await asyncio.gather(nap(1000), nap(0.5), nap(20))
        return came

    assert VirtualLoop().play(main()) == [0.5, 20, 1000]


def test_a_timeout_is_virtual_too() -> None:
    """asyncio.timeout ends a wait that nothing else ends."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await loop.create_future()
        return loop.time()

    assert VirtualLoop().play(main()) == 60


def test_nobody_can_go_on() -> None:
    """A wait that no timer can end is told, not waited for."""

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="no timer is set at 0"):
        VirtualLoop().play(main())


def test_a_run_without_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going round in circles is told as well."""
    monkeypatch.setattr("tollkeeper.testing.virtual_loop.STEPS_MAX", 1000)

    async def main() -> None:
        for _ in range(10**6):
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="1000 steps and no end"):
        VirtualLoop().play(main())


def test_something_between_two_steps() -> None:
    """at_step cuts in at every point where a task waits, and nowhere else."""
    seen: list[int] = []

    async def main() -> None:
        for number in range(5):
            seen.append(number)
            await asyncio.sleep(1)

    for step in range(1, 20):
        seen.clear()
        loop = VirtualLoop()
        task = loop.create_task(main())
        loop.at_step(step, task.cancel)
        loop.play(asyncio.wait((task,)))
        assert seen == list(range(len(seen)))
        if task.cancelled():
            assert len(seen) < 6
    assert len(seen) == 5


def test_what_nobody_caught_is_kept() -> None:
    """An exception in a callback is no log line but a fault of the run."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    loop = VirtualLoop()
    loop.play(main())
    assert len(loop.faults) == 1
    assert "ZeroDivisionError" in loop.faults[0]


def test_the_clock_is_the_loop() -> None:
    """VirtualClock tells microseconds since its start by the loop's time."""

    async def main() -> tuple[int, float]:
        clock = VirtualClock(asyncio.get_running_loop())
        await asyncio.sleep(2.5)
        return clock.now_us(), clock.monotonic_s()

    assert VirtualLoop().play(main()) == (START_US + 2_500_000, 2.5)
    assert MICROS == 1_000_000
