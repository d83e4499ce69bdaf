"""latency: how soon places usually answer."""

from __future__ import annotations

from tollkeeper import latency
from tollkeeper.latency import KEPT, LEAST, Latencies
from tollkeeper.values import Place

HERE, THERE = Place("one", "", "m"), Place("two", "", "m")


def known(*seconds: float, stream: bool = True) -> Latencies:
    latencies = Latencies()
    for each in seconds:
        latencies.add(HERE, stream, each)
    return latencies


def test_the_p95() -> None:
    """Of 100 calls 95 took no longer; the order does not matter."""
    assert known(*range(1, 101)).usual_s(HERE, True) == 95
    assert known(*range(100, 0, -1)).usual_s(HERE, True) == 95
    assert known(*range(1, 21)).usual_s(HERE, True) == 19
    assert known(*[2] * 95, *[9] * 5).usual_s(HERE, True) == 2
    assert known(*[2] * 94, *[9] * 6).usual_s(HERE, True) == 9


def test_too_few() -> None:
    """Nothing is usual before LEAST calls."""
    assert known().usual_s(HERE, True) is None
    assert known(*[1] * (LEAST - 1)).usual_s(HERE, True) is None
    assert known(*[1] * LEAST).usual_s(HERE, True) == 1


def test_the_last_ones_count() -> None:
    """What is older than KEPT calls is forgotten."""
    assert known(*[9] * KEPT, *[1] * KEPT).usual_s(HERE, True) == 1


def test_places_and_streams_are_apart() -> None:
    """A whole reply's first byte comes when all of it is there."""
    latencies = known(*[1] * LEAST)
    for _ in range(LEAST):
        latencies.add(HERE, False, 7)
    assert (latencies.usual_s(HERE, True), latencies.usual_s(HERE, False)) == (1, 7)
    assert latencies.usual_s(THERE, True) is None


def test_places_are_bounded() -> None:
    """Clients may name models: the place that came first goes."""
    latencies = known(*[1] * LEAST)
    for number in range(latency.PLACES_MAX):
        latencies.add(Place("one", "", f"m{number}"), True, 1)
    assert len(latencies._of) == latency.PLACES_MAX
    assert latencies.usual_s(HERE, True) is None
