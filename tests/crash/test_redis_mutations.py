"""Seeded mistakes in the Lua scripts: what the scripts promise, or the machine, notices each of them."""

from __future__ import annotations

import gc
from random import Random

import pytest
from redis.exceptions import ResponseError
from tests.redis_machine import Many
from tests.redis_mutations import MUTATIONS, QUICK, Mutation
from tests.redis_promises import PROMISES, Asking, shipped

from tollkeeper.stores.redis import flush
from tollkeeper.stores.redis.ask import Script
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


def some(rounds: int) -> list[Mutation]:
    """A few of them in make test, all in make crash."""
    return list(MUTATIONS if rounds > 3 else QUICK)


def test_mistakes_are_noticed(redis_server: RedisServer, rounds: int) -> None:
    """Each mistake breaks a promise."""
    assert [mutation for mutation in some(rounds) if noticed(redis_server, mutation) is None] == []


def test_the_machine_notices(own_redis: RedisServer, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores with a mistake in a script do not equal the model for long."""
    monkeypatch.setattr(flush, "RETRY_MS", 2)
    unnoticed = []
    for mutation in [each for each in some(rounds) if each.walks]:
        with monkeypatch.context() as patch:
            wrong = Script(mutation.script, mutation.text(shipped(mutation.script)))
            for script in [each for each in gc.get_objects() if isinstance(each, Script) and each.name == wrong.name]:
                patch.setattr(script, "text", wrong.text)
                patch.setattr(script, "sha", wrong.sha)
            if all(walked(own_redis, seed) is None for seed in range(WALKS)):
                unnoticed.append(mutation)
    assert unnoticed == []


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
