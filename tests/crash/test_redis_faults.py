"""Gateways that share a Redis, under every fault that it may have: nothing acknowledged is lost or doubled, no budget overrun."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from tests.crash.audit import Verdict
from tests.crash.campaign import campaign
from tests.crash.kinds import KINDS

#: Faults of one campaign.
FAULTS_MAX = 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault(kind: str, tmp_path: Path, redis_executable: str, rounds: int) -> None:
    """B1, B2, B4, B6, C1, C2: after any fault each acknowledged record counts once, in journals and Redis; budgets held."""
    every = Verdict()
    for number in count():
        faults = min(FAULTS_MAX, rounds - every.faults)
        if faults <= 0:
            break
        every.add(campaign(KINDS[kind], tmp_path / str(number), redis_executable, faults, number))
    print(every.line(kind))
    assert every.good, f"{every.line(kind)}\n{sorted(every.lost)[:5]} {sorted(every.doubled)[:5]}\n{every.over[:5]}"
