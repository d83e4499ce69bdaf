"""tollkeeper.stores.redis.fill on a real Redis: balances that begin with what the entries say, however many there are of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from tests.slots import FakeJournal, applier, shared

from tollkeeper.ledger import BalanceKey, Shape, window_of
from tollkeeper.stores.redis import fill
from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.fill import Filling
from tollkeeper.stores.redis.keys import GLOBAL, balance_tag, tag_of
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DIME, an_entry
from tollkeeper.values import Entry, Scopes

TAG = tag_of("alpha")
AGENT = Shape("agent", "usd", "month", "UTC")
KEY = Shape("key", "usd", "month", "UTC")
START_US = window_of("month", "UTC", AT_US)[0]


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    with shared(redis_server) as found:
        yield found


def call(number: int, agents: int = 10, project: str = "alpha") -> Entry:
    return an_entry(f"{number}/1", scopes=Scopes(project=project, agent=f"a{number % agents}", key=f"k{number % 3}"))


def spent(server: RedisServer, ours: Shared, shape: Shape, ids: set[str]) -> dict[str, int]:
    """What Redis has of the balances of some ids."""
    with server.client() as client:
        assert [key for key in client.scan_iter() if client.ttl(key) < 0] == []
        keys = {id: BalanceKey(shape, "" if shape is KEY else "alpha", id, START_US) for id in ids}
        assert {balance_tag(key) for key in keys.values()} == {GLOBAL if shape is KEY else TAG}
        return {id: int(client.hget(ours.keys.balance(key), "spent") or 0) for id, key in keys.items()}


def test_in_steps(redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: many balances are written a few at a time; the slot keeps the shape with the last of them, and what came between."""
    monkeypatch.setattr(fill, "STEP", 3)
    journal = FakeJournal("a", *map(call, range(20)))
    applier(ours, journal).catch_up()
    filling = Filling(ours, TAG, AGENT)
    filling.read()
    assert [filling.write("epoch-1") for _ in range(2)] == ["more", "more"]
    with redis_server.client() as client:
        assert client.smembers(ours.keys.shapes(TAG)) == set()
    journal.book(call(20), call(21))
    applier(ours, journal).catch_up()
    assert filling.write("epoch-1") == "moved"
    filling.read()
    told = [filling.write("epoch-1") for _ in range(2)]
    assert told == ["more", "filled"]
    right = Counter(f"a{number % 10}" for number in range(22))
    assert spent(redis_server, ours, AGENT, set(right)) == {id: count * DIME for id, count in right.items()}


def test_a_step_is_short(redis_server: RedisServer, ours: Shared) -> None:
    """F2: while 5,000 balances are filled Redis does nothing else for less than a tenth of what a client waits for."""
    applier(ours, FakeJournal("a", *(call(number, 5_000) for number in range(5_000)))).catch_up()
    with redis_server.client() as client:
        client.config_resetstat()
        filling = Filling(ours, TAG, AGENT)
        filling.read()
        told = [filling.write("epoch-1") for _ in range(10)]
        steps = client.info("commandstats")
    assert told == ["more"] * 9 + ["filled"]
    calls = [each for name, each in steps.items() if name in ("cmdstat_eval", "cmdstat_evalsha")]
    assert sum(each["usec"] for each in calls) / 10 < 100_000


@pytest.mark.parametrize("shape", [AGENT, KEY], ids=["project", "no project"])
@pytest.mark.parametrize("seed", range(15))
def test_in_any_order(
    redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch, seed: int, shape: Shape
) -> None:
    """P3: two processes that fill the same shape while entries of two journals are applied: each entry is in its balance once."""
    monkeypatch.setattr(fill, "STEP", 2)
    rng = Random(seed)
    ours.register(["beta"])
    tag = GLOBAL if shape is KEY else TAG
    journals = [FakeJournal(name, call(number)) for number, name in enumerate("ab")]
    appliers = [applier(ours, journal) for journal in journals]
    fillings = [Filling(ours, tag, shape) for _ in range(2)]
    booked, open_ = 2, dict.fromkeys(range(2), "moved")
    for each in appliers:
        each.catch_up()
    while open_:
        if rng.random() < 0.4 and booked < 60:
            project = rng.choice(["alpha", "alpha", "beta"])
            which = rng.randrange(2)
            journals[which].book(call(booked, project=project))
            booked += 1
            appliers[which].catch_up()
            continue
        which = rng.choice(list(open_))
        if open_[which] == "moved" or rng.random() < 0.2:
            fillings[which].read()
            open_[which] = "read"
        elif (told := fillings[which].write("epoch-1")) == "filled":
            del open_[which]
        else:
            open_[which] = told
    entries = [entry for journal in journals for _, entry in journal.placed]
    right: Counter[str] = Counter()
    for entry in entries:
        id = entry.scopes.key if shape is KEY else entry.scopes.agent
        if id is not None and (shape is KEY or entry.scopes.project == "alpha"):
            right[id] += DIME
    assert spent(redis_server, ours, shape, set(right)) == dict(right)
