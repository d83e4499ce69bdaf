"""tollkeeper.stores.redis.census with census.lua: the cap holds over all gateways, and each of them says the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.slots import shared

from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.census import SharedCensus
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import an_entry
from tollkeeper.values import OTHER, Entry, Scopes


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    with shared(redis_server) as found:
        yield found


def of(agent: str, project: str = "alpha") -> Entry:
    return an_entry("a/1", scopes=Scopes(project=project, agent=agent, session="s"))


def test_one_cap_for_all(ours: Shared) -> None:
    """Two gateways with a cap of two: the first two ids have cells of their own, whoever saw them; both place the third alike."""
    one, other = (SharedCensus(2, ours.keys, ours.deadlines) for _ in range(2))
    seen = []
    for census, agent in ((one, "a"), (other, "b"), (one, "c"), (other, "c"), (one, "a"), (other, OTHER)):
        census.learn(ours.link, [of(agent)])
        seen.append(census.place(of(agent)))
    assert seen == [(), (), ("agent",), ("agent",), (), ()]


def test_projects_past_the_cap(ours: Shared) -> None:
    """A project past the cap counts under `_other`, and its agents with those of all such projects."""
    census = SharedCensus(1, ours.keys, ours.deadlines)
    placed = {}
    for project in ("alpha", "beta", "gamma"):
        census.learn(ours.link, [of("a", project)])
        placed[project] = census.place(of("a", project))
    assert placed == {"alpha": (), "beta": ("project",), "gamma": ("project",)}


def test_what_is_known_is_not_asked(redis_server: RedisServer, ours: Shared) -> None:
    """F3: the ids seen have a deadline; what is known here needs no Redis until it is forgotten."""
    census = SharedCensus(5, ours.keys, ours.deadlines)
    census.learn(ours.link, [of("a")])
    with redis_server.client() as client:
        keys = list(client.scan_iter("*:seen:*"))
        assert len(keys) == 3
        assert all(client.ttl(key) > 0 for key in keys)
        client.delete(*keys)
        census.learn(ours.link, [of("a")])
        assert list(client.scan_iter("*:seen:*")) == []
        census.forget()
        census.learn(ours.link, [of("a")])
        assert len(list(client.scan_iter("*:seen:*"))) == 3
