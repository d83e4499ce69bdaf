"""Redis stores under any order of events and failures: together they answer, hold and sum as the model does."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.redis_machine import Many

from tollkeeper.stores import redis_flush
from tollkeeper.testing.redis_server import RedisServer

EXAMPLE_STEPS = 25
WALK_STEPS = 60


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores that wait for each other look often."""
    monkeypatch.setattr(redis_flush, "RETRY_MS", 2)
    return


def test_redis_equals_the_model(own_redis: RedisServer, steps: int) -> None:
    """B2, B7, C1, C2, F3: entries, sums, holds and answers, whatever ends, is emptied, rolled back or away meanwhile."""

    class Machine(RuleBasedStateMachine):
        many: Many | None = None

        @initialize(data=st.data())
        def start(self, data: st.DataObject) -> None:
            self.many = Many(own_redis, lambda some: data.draw(st.sampled_from(some)))

        @rule(data=st.data())
        def step(self, data: st.DataObject) -> None:
            assert self.many is not None
            self.many.pick = lambda some: data.draw(st.sampled_from(some))
            self.many.step()

        def teardown(self) -> None:
            if self.many is not None:
                self.many.close_all()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max(1, steps // 4 // EXAMPLE_STEPS), stateful_step_count=EXAMPLE_STEPS, deadline=None,
            suppress_health_check=list(HealthCheck), database=None, print_blob=False,
        ),
    )  # fmt: skip


def test_redis_equals_the_model_for_long(own_redis: RedisServer, steps: int, seeds: range) -> None:
    """The same by seeds, which choose more evenly, to the end of every hold: --first-seed 7 --steps 1 replays the seventh."""
    for seed in range(seeds.start, seeds.start + max(1, steps * 3 // 4 // WALK_STEPS)):
        random = Random(seed)
        many = Many(own_redis, random.choice)
        try:
            for _ in range(WALK_STEPS):
                many.step()
            many.end()
        except Exception as error:
            error.add_note(f"seed {seed}, step {many.turn}")
            raise
        finally:
            many.close_all()
