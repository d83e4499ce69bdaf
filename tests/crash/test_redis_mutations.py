"""Seeded mistakes in the Lua scripts: what the scripts promise, or the machine, notices each of them."""

from __future__ import annotations

import gc
from random import Random

import pytest
from redis.exceptions import ResponseError
from tests.redis_machine import Many
from tests.redis_mutations import MUTATIONS, QUICK, Mutation
from tests.redis_promises import PROMISES, Asking, shipped

from tollkeeper.stores import redis_flush
from tollkeeper.stores.redis_link import Script
from tollkeeper.testing.redis_server import RedisServer

WALKS, STEPS = 40, 60


def noticed(server: RedisServer, mutation: Mutation) -> str | None:
    """Which promise is broken."""
    text = mutation.text(shipped(mutation.script))
    with server.client() as client:
        for promise in PROMISES:
            try:
                promise(Asking(client, lambda name: text if name == mutation.script else shipped(name)))
            except (AssertionError, ResponseError, ValueError, IndexError):
                return promise.__name__
    return None


def test_promises(redis_server: RedisServer) -> None:
    """The scripts as they are keep what they promise."""
    with redis_server.client() as client:
        for promise in PROMISES:
            promise(Asking(client))


def test_mistakes_are_noticed(redis_server: RedisServer, rounds: int) -> None:
    """Each mutation breaks a promise; a few of them each time, all in make crash."""
    some = MUTATIONS if rounds > 3 else QUICK
    assert [mutation for mutation in some if noticed(redis_server, mutation) is None] == []


@pytest.mark.parametrize("mutation", [each for each in MUTATIONS if each.walks], ids=lambda each: f"{each.script}: {each.old}"[:60])
def test_the_machine_notices(
    own_redis: RedisServer, mutation: Mutation, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stores with a mistake in a script do not equal the model for long."""
    if rounds <= 3 and mutation not in QUICK:
        pytest.skip("in make crash")
    monkeypatch.setattr(redis_flush, "RETRY_MS", 2)
    text = mutation.text(shipped(mutation.script))
    for script in [each for each in gc.get_objects() if isinstance(each, Script) and each.name == mutation.script]:
        wrong = Script(mutation.script, text)
        monkeypatch.setattr(script, "text", wrong.text)
        monkeypatch.setattr(script, "sha", wrong.sha)
    for seed in range(WALKS):
        if walked(own_redis, seed) is not None:
            return
    pytest.fail(f"{WALKS} walks of {STEPS} steps noticed nothing")


def walked(server: RedisServer, seed: int) -> Exception | None:
    """What the machine has against a walk. It does not wait long for stores that cannot recover with such a script."""
    many: Many | None = None
    try:
        many = Many(server, Random(seed).choice, within_s=3)
        for _ in range(STEPS):
            many.step()
        many.end()
    except Exception as error:
        return error
    finally:
        if many is not None:
            many.close_all()
    return None
