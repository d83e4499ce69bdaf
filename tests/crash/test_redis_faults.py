"""Gateways that share a Redis, under every fault that it may have: nothing acknowledged is lost or doubled, no budget overrun."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Final

import pytest
from tests.crash.audit import Verdict
from tests.crash.campaign import campaign
from tests.crash.kinds import KINDS, SLICES

#: Faults of one campaign.
FAULTS_MAX: Final = 10
#: With fewer rounds a few of each fault are enough.
LONG: Final = 10
#: A naive store loses only if the fault hits it in the act.
TRIES: Final = 5
LOSING: Final = (
    "gateway", "redis, no file", "power cut of all", "lagging replica", "FLUSHALL", "old copy", "lost replies",
    "redis' disk full",
)  # fmt: skip
SOME_LOSING: Final = ("gateway", "lost replies")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which kinds are played is a question of time."""
    long = metafunc.config.getoption("--rounds") >= LONG
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS if long else SLICES)
    elif "losing" in metafunc.fixturenames:
        metafunc.parametrize("losing", LOSING if long else SOME_LOSING)


def test_every_fault(kind: str, tmp_path: Path, redis_executable: str, rounds: int) -> None:
    """B1, B2, B4, B6, C1, C2: after any fault each acknowledged record counts once, in journals and Redis; budgets held."""
    play, wanted = (KINDS[kind], rounds) if rounds >= LONG else SLICES[kind]
    every = Verdict()
    for number in count():
        faults = min(FAULTS_MAX, wanted - every.faults)
        if faults <= 0:
            break
        every.add(campaign(play, tmp_path / str(number), redis_executable, faults, number))
    print(every.line(kind))
    assert every.good, f"{every.line(kind)}\n{sorted(every.lost)[:5]} {sorted(every.doubled)[:5]}\n{every.over[:5]}"


def test_the_suite_sees_losses(losing: str, tmp_path: Path, redis_executable: str) -> None:
    """B1, B4: the usual counter in Redis, acknowledged before it is safe, loses or doubles under each of these faults."""
    every = Verdict()
    for number in range(TRIES):
        every.add(campaign(KINDS[losing], tmp_path / str(number), redis_executable, 1, number, "--naive"))
        if every.lost or every.doubled:
            break
    print(every.line(f"{losing}, naive"))
    assert every.lost or every.doubled


def test_the_suite_sees_a_journal_that_is_not_synced(tmp_path: Path, redis_executable: str) -> None:
    """B1: without its syncs the journal loses in a power cut: the test of that could fail."""
    every = Verdict()
    for number in range(TRIES):
        every.add(
            campaign(KINDS["power cut of all"], tmp_path / str(number), redis_executable, 1, number, "--careless")
        )
        if every.lost:
            break
    print(every.line("journal, not synced"))
    assert every.lost
