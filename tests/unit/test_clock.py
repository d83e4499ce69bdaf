"""The two clocks."""

from __future__ import annotations

import pytest

from tollkeeper.clock import Clock, SystemClock, new_id
from tollkeeper.testing.clock import START_US, ManualClock


def test_system_clock() -> None:
    """The wall clock counts microseconds since 1970, the monotonic one never goes back."""
    clock: Clock = SystemClock()
    before, after = clock.monotonic_s(), clock.monotonic_s()

    assert clock.now_us() > START_US - 40 * 365 * 86_400_000_000
    assert clock.now_us() < START_US + 100 * 365 * 86_400_000_000
    assert after >= before


def test_manual_clock() -> None:
    """Time stands until it is advanced, never goes back, and the wall alone can be turned."""
    clock = ManualClock()
    assert (clock.now_us(), clock.monotonic_s()) == (START_US, 0)

    assert clock.advance(1.5, us=1) == START_US + 1_500_001
    assert clock.monotonic_s() == pytest.approx(1.500001)
    clock.set_wall(START_US - 1)
    assert (clock.now_us(), clock.monotonic_s()) == (START_US - 1, pytest.approx(1.500001))
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_ids_are_unique_and_in_order() -> None:
    """A later call's id sorts after an earlier one's, also within one microsecond, and none comes twice."""
    ids = [new_id(now_us) for now_us in (1, 1, 2, 1_800_000_000_000_000, 1_800_000_000_000_001)]
    assert ids == sorted(set(ids))
    assert {len(each) for each in ids} == {36}
