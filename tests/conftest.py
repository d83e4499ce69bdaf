"""How long the long suites run, and what every test stands on."""

from __future__ import annotations

import hypothesis
import pytest

pytest_plugins = ["tests.redis_fixtures"]

# Deadlines measure the machine, not the code: on a busy one they fail good tests.
hypothesis.settings.register_profile("tollkeeper", deadline=None)
hypothesis.settings.load_profile("tollkeeper")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=5000, help="seeds that the simulation plays (tests/simulation)")
    parser.addoption("--first-seed", type=int, default=0, help="the first of them: with --seeds 1 it replays one")
    parser.addoption("--rounds", type=int, default=3, help="times that a process is killed (tests/crash)")
    parser.addoption("--steps", type=int, default=400, help="steps of the Redis stores and the model side by side")


@pytest.fixture(scope="session")
def steps(pytestconfig: pytest.Config) -> int:
    """How many steps the Redis machine takes: make crash STEPS=200000."""
    count: int = pytestconfig.getoption("--steps")
    return count


@pytest.fixture(scope="session")
def seeds(pytestconfig: pytest.Config) -> range:
    """The seeds to play: make simulate SEEDS=100000, or ARGS="--first-seed 4711 --seeds 1" for one."""
    first: int = pytestconfig.getoption("--first-seed")
    return range(first, first + pytestconfig.getoption("--seeds"))


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    """How often the crash tests kill: make crash ROUNDS=500."""
    count: int = pytestconfig.getoption("--rounds")
    return count
