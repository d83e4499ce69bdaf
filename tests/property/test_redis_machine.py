"""Redis stores under any order of events and failures: together they answer, hold and sum as the model does."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.redis_hosts import Hosts
from tests.redis_machine import Many

from tollkeeper.stores.redis import flush
from tollkeeper.testing.corrections import corrected, current
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import ALPHA, AT_US, DIME, a_hold, an_entry, usd

EXAMPLE_STEPS = 25
WALK_STEPS = 60


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores that wait for each other look often."""
    monkeypatch.setattr(flush, "RETRY_MS", 2)
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


@pytest.fixture
def hosts(redis_server: RedisServer) -> Iterator[Hosts]:
    """Two processes on a Redis that may be emptied, with a budget for each project."""
    hosts = Hosts(redis_server, lambda some: some[0])
    try:
        for store in hosts.stores:
            hosts.do(store.set_budgets([usd(DIME, id="*")]))
        yield hosts
    finally:
        hosts.close_all()


def test_a_hold_in_a_project_without_entries(hosts: Hosts) -> None:
    """C2: who has only looked at a project's budgets has listed it: its holds are found, also after Redis was emptied."""
    first, second = hosts.stores
    hosts.do(first.standings(ALPHA, "m", AT_US))
    hosts.do(first.reserve(a_hold("a/1")))
    assert [hold.id for hold in hosts.do(second.live())] == ["a/1"]
    hosts.raw.flushall()
    hosts.clock.s += 1
    hosts.quiet()
    assert [hold.id for hold in hosts.do(second.live())] == ["a/1"]


def test_a_correction_after_redis_was_emptied(hosts: Hosts) -> None:
    """B4: what was known of blocks that are gone misleads nobody, whichever journal has what is corrected."""
    first, second = hosts.stores
    for number in range(3):
        hosts.do(hosts.stores[number % 2].settle(an_entry(f"{number}/1")))
        hosts.quiet()
        assert hosts.do(first.correct(corrected(an_entry(f"{number}/1")))) == "corrected"
    hosts.raw.flushall()
    hosts.clock.s += 1
    hosts.quiet()
    hosts.do(first.settle(an_entry("3/1")))
    hosts.quiet()
    for number in range(4):
        old = hosts.do(second.entry("alpha", f"{number}/1"))
        assert hosts.do(second.correct(corrected(old, 7))) == "corrected"
    standing = hosts.loop.run_until_complete(current(second))
    assert [entry.charge.amount_nanos for entry in standing] == [7] * 4
    assert hosts.do(second.verify()) == []
