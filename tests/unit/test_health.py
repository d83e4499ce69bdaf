"""The registry of breakers: which level learns what, all levels or none, and what is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tollkeeper.breaker import Bounds
from tollkeeper.health import LEVELS, MODELS_MAX, Change, Health, Level, Name
from tollkeeper.values import Place

A = Place("openai", "first", "gpt")
SAME_KEY = Place("openai", "first", "mini")
OTHER_KEY = Place("openai", "second", "gpt")
OTHER = Place("groq", "", "llama")
ALL = (A, SAME_KEY, OTHER_KEY, OTHER)


class Rig:
    """A registry with a clock in hand."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.now_s = 0.0
        self.changes: list[Change] = []
        self.health = Health(bounds or Bounds(), lambda: self.now_s, self.changes.append)

    def call(
        self,
        place: Place,
        failed: Level | None = None,
        *,
        ignore: bool = False,
        first_byte_s: float | None = None,
        reason: str = "",
    ) -> bool:
        """One call; whether it had leave."""
        given = self.health.admit(place)
        if given is not None:
            self.health.report(given, failed=failed, ignore=ignore, first_byte_s=first_byte_s, reason=reason)
        return given is not None

    def allowed(self) -> list[Place]:
        return [place for place in ALL if self.health.allows(place)]

    def phases(self) -> dict[tuple[str, ...], str]:
        """Of those that are not closed."""
        return {
            (each.level, each.provider, each.key, each.model): each.state
            for each in self.health.states()
            if each.state != "closed"
        }


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("failed", "left"),
    [
        ("model", [SAME_KEY, OTHER_KEY, OTHER]),
        ("key", [OTHER_KEY, OTHER]),
        ("provider", [OTHER]),
    ],
)
def test_a_level_takes_its_places_with_it(rig: Rig, failed: Level, left: list[Place]) -> None:
    """A model that fails closes one place, a key all of its models, a provider all of its keys."""
    for _ in range(3):
        assert rig.call(A, failed)
    assert rig.allowed() == left
    assert not rig.call(A)


@pytest.mark.parametrize("failed", LEVELS)
def test_one_level_fails_at_a_time(rig: Rig, failed: Level) -> None:
    """A level above is well when it answered, and a level below says nothing; only the failed one opens."""
    for _ in range(3):
        rig.call(A, failed)
    names = ("openai", "first" if failed != "provider" else "", "gpt" if failed == "model" else "")
    assert rig.phases() == {(failed, *names): "open"}
    calls = {each.level: each.calls for each in rig.health.states()}
    assert calls == {level: 3 * (LEVELS.index(level) <= LEVELS.index(failed)) for level in LEVELS}


def test_failures_of_two_models_are_no_failure_of_their_key(rig: Rig) -> None:
    """E3: each has its own row of failures."""
    for _ in range(2):
        assert rig.call(A, "model")
        assert rig.call(SAME_KEY, "model")
    assert rig.allowed() == list(ALL)


def test_ignored_calls_open_nothing(rig: Rig) -> None:
    """E3: whatever is said to have failed."""
    for _ in range(50):
        assert rig.call(A, None, ignore=True, first_byte_s=999)
    assert rig.phases() == {}
    assert rig.health.latency_s(A) is None


def test_all_levels_or_none(rig: Rig) -> None:
    """E2: a probe's place that a level gave is given back when a level below refuses."""
    rig.health.block(A, "provider", 10, "")
    rig.health.block(A, "key", 10, "")
    rig.health.block(A, "model", 20, "")
    rig.now_s = 10
    for _ in range(3):
        assert not rig.call(A)
    assert rig.call(SAME_KEY)  # provider and key are probed through another model
    assert rig.phases() == {("model", "openai", "first", "gpt"): "open"}
    rig.now_s = 20
    assert rig.call(A)
    assert rig.phases() == {}

    rig.health.block(A, "provider", 30, "")
    rig.health.block(A, "key", 40, "")
    rig.now_s = 30
    assert not rig.call(A)
    assert rig.call(OTHER_KEY)


def test_one_probe_of_a_provider(rig: Rig) -> None:
    """E2: a provider that is half-open has one probe, whatever key or model it is for."""
    rig.health.block(A, "provider", 10, "")
    rig.now_s = 10
    first = rig.health.admit(A)
    assert first is not None
    assert rig.allowed() == [OTHER]
    rig.health.report(first, failed="model")
    assert rig.allowed() == list(ALL)


@pytest.mark.parametrize("level", LEVELS)
def test_blocks(rig: Rig, level: Level) -> None:
    """E3: until max(existing, Retry-After), at the level that is named."""
    for until_s in (50, 20):
        rig.health.block(A, level, until_s, "busy")
    assert rig.health.open_until_s(A) == 50
    assert rig.health.open_until_s(OTHER) == 0
    assert [each.level for each in rig.health.states() if each.state == "open"] == [level]
    rig.now_s = 50
    assert rig.health.open_until_s(A) == 0
    assert rig.health.allows(A)


@pytest.mark.parametrize(
    ("level", "name"),
    [("provider", ("openai", "", "")), ("key", ("openai", "first", "")), ("model", ("openai", "first", "gpt"))],
)
def test_blocks_are_told_and_heeded(rig: Rig, level: Level, name: tuple[str, str, str]) -> None:
    """E3: a block is told with its names; another registry that heeds it stays away as long, and tells nobody."""
    other, told = Rig(), list[tuple[Name, float]]()
    rig.health.blocked = other.health.blocked = lambda *block: told.append(block)
    rig.health.block(A, level, 50, "busy")
    assert told == [((level, *name), 50)]
    for until_s in (50, 50.9, 20, 0):
        other.health.heed(*told[0])
        rig.health.heed((level, *name), until_s)
    assert len(told) == 1
    assert rig.phases() == other.phases() == {(level, *name): "open"}
    assert other.health.open_until_s(A) == rig.health.open_until_s(A) == 50
    assert [each.last_error for each in rig.health.states() if each.level == level] == ["busy"]
    assert [each.reason for each in other.changes] == ["another gateway was told"]
    rig.health.heed((level, *name), 60)
    assert rig.health.open_until_s(A) == 60


def test_the_latest_level_says_when_a_place_is_back(rig: Rig) -> None:
    """A place is back with the last of its levels; the first place that is back is the one to try, in the order given."""
    rig.health.block(A, "model", 30, "")
    rig.health.block(A, "key", 40, "")
    rig.health.block(OTHER_KEY, "model", 35, "")
    rig.health.block(OTHER, "model", 35, "")
    assert [rig.health.open_until_s(place) for place in ALL] == [40, 40, 35, 35]
    assert rig.health.first_back(ALL) == OTHER_KEY
    assert rig.health.first_back([OTHER, OTHER_KEY]) == OTHER
    assert rig.health.first_back([A]) == A
    with pytest.raises(ValueError, match="empty"):
        rig.health.first_back([])


@pytest.mark.parametrize("failed", [None, "model"])
def test_a_forced_call_moves_no_breaker_that_refuses(rig: Rig, failed: Level | None) -> None:
    """All places are ejected and one is tried all the same: the open level hears nothing of it, the others do."""
    rig.health.block(A, "model", 30, "")
    for _ in range(5):
        rig.health.report(rig.health.force(A), failed=failed)
    assert rig.phases() == {("model", "openai", "first", "gpt"): "open"}
    assert rig.health.open_until_s(A) == 30
    assert {each.level: each.calls for each in rig.health.states()} == {"provider": 5, "key": 5, "model": 0}


def test_a_forced_call_may_be_a_probe(rig: Rig) -> None:
    """Where a probe may go the forced call is one; while another has the place it is none."""
    rig.health.block(A, "model", 30, "")
    rig.now_s = 30
    probe, second = rig.health.force(A), rig.health.force(A)
    rig.health.report(second, failed="model")
    assert rig.phases() == {("model", "openai", "first", "gpt"): "half_open"}
    rig.health.report(probe, failed=None)
    assert rig.phases() == {}


def test_slow_first_bytes_open_the_model() -> None:
    """A first byte after `slow_s` or later is slow, for the model alone; without a bound none is."""
    for slow_s, phases in ((2, {("model", "openai", "first", "gpt"): "open"}), (None, {})):
        rig = Rig(Bounds(slow_s=slow_s))
        for _ in range(10):
            assert rig.call(A, first_byte_s=2)
        assert rig.phases() == phases


def test_latency_is_a_moving_average(rig: Rig) -> None:
    """The newest call has a fifth of the weight; what failed or was ignored has none, since failing is quick."""
    assert rig.health.latency_s(A) is None
    for first_byte_s, right in ((1, 1), (2, 1.2), (0.2, 1), (None, 1)):
        rig.call(A, first_byte_s=first_byte_s)
        assert rig.health.latency_s(A) == pytest.approx(right)
    rig.call(A, "model", first_byte_s=0.001)
    rig.call(A, ignore=True, first_byte_s=0.001)
    assert rig.health.latency_s(A) == pytest.approx(1)
    assert rig.health.latency_s(SAME_KEY) is None


def test_states_are_told(rig: Rig) -> None:
    """E5: each breaker with its level, names, times and counts, as JSON objects; providers, keys, models, by name."""
    assert rig.health.states() == []
    rig.call(A, "model", reason="503")
    rig.call(OTHER, first_byte_s=0.5)
    rig.health.block(A, "key", 9, "no quota")
    states = rig.health.states()
    assert [(each.level, each.provider, each.key, each.model) for each in states] == [
        ("provider", "groq", "", ""),
        ("provider", "openai", "", ""),
        ("key", "groq", "", ""),
        ("key", "openai", "first", ""),
        ("model", "groq", "", "llama"),
        ("model", "openai", "first", "gpt"),
    ]
    assert [each.latency_s for each in states] == [None, None, None, None, 0.5, None]
    assert msgspec.to_builtins(states[3]) == {
        "level": "key", "provider": "openai", "key": "first", "model": "", "state": "open", "open_until_s": 9,
        "calls": 1, "failures": 0, "slow": 0, "last_error": "no quota", "latency_s": None, "calls_total": 1,
        "failures_total": 0,
    }  # fmt: skip
    assert (states[5].calls, states[5].failures, states[5].last_error) == (1, 1, "503")


def test_each_change_is_one_line(rig: Rig) -> None:
    """E5: one for each change, with the level and its names; a look at the states tells that an open time is over."""
    rig.health.block(A, "key", 9, "no quota")
    rig.health.block(A, "key", 12, "no quota")
    rig.now_s = 12
    rig.health.states()
    rig.call(A)
    assert rig.changes == [
        ("key", "openai", "first", "", "closed", "open", 9, "no quota"),
        ("key", "openai", "first", "", "open", "half_open", 0, "the open time is over"),
        ("key", "openai", "first", "", "half_open", "closed", 0, "the probe went well"),
    ]


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads give way to each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_threads_share_one_breaker_of_a_name() -> None:
    """However many make a place at once, all count in the same breakers."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            rig = Rig()
            jobs = [pool.submit(lambda rig=rig: [rig.call(place) for place in ALL * 5]) for _ in range(8)]
            assert all(all(job.result()) for job in jobs)
            assert {each.calls for each in rig.health.states() if each.level == "model"} == {40}


def test_memory_is_bounded_by_the_places(rig: Rig) -> None:
    """I4: thousands of calls of the same places keep as much as one of each."""
    for place in ALL:
        rig.call(place)
    known = len(rig.health.states())
    for number in range(1000):
        rig.now_s = number
        for place in ALL:
            rig.call(Place(*place))
    assert len(rig.health.states()) == known == 2 + 3 + 4
    assert rig.changes == []


def test_models_are_bounded(rig: Rig) -> None:
    """I4: clients may name as many models as they like; those that came first are forgotten, keys and providers are not."""
    rig.call(A, "model")
    rig.health.block(A, "key", 9, "no quota")
    for number in range(3 * MODELS_MAX):
        rig.health.allows(Place("openai", "second", f"made-up-{number}"))
    states = rig.health.states()
    assert [each.level for each in states].count("model") == MODELS_MAX == len(rig.health._places)
    assert states[-1].model.startswith("made-up-2")
    assert rig.phases() == {("key", "openai", "first", ""): "open"}
    assert not rig.call(A)


def test_totals_count_every_call(rig: Rig) -> None:
    """E5: what went well or failed, for as long as the process lives: out of the window, late or forced too."""
    for failed in (None, "model", "model", "model"):
        rig.call(A, failed)  # type: ignore[arg-type]
    rig.call(A, ignore=True)
    rig.health.report(rig.health.force(A), failed="model")
    rig.now_s = 1000
    states = rig.health.states()
    assert [(each.calls, each.calls_total, each.failures_total) for each in states] == [
        (0, 5, 0), (0, 5, 0), (0, 5, 4),
    ]  # fmt: skip
