"""tollkeeper.stores.redis.layout with move.lua on a real Redis: keys of an earlier layout are brought to today's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.slots import FakeJournal, applier, contents, shared

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import expired
from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.batch import mark_of
from tollkeeper.stores.redis.keys import hour_of, tag_of
from tollkeeper.stores.redis.layout import LAYOUT, bring_up
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, HOUR_US, a_hold, an_entry

TAG = tag_of("alpha")
NOW_US = START_US  # of the tests' clock


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    """A process on the session's Redis, in which the first layout's ids of a settlement and of an estimate are."""
    with shared(redis_server) as found, redis_server.client() as client:
        hours = [hour_of(NOW_US) - ago * HOUR_US for ago in (1, 20)]
        client.hset(found.keys.ids(TAG, hours[0]), "0=a/1", mark_of(an_entry("a/1")))
        client.hset(found.keys.ids(TAG, hours[1]), "0=b/1", mark_of(expired(a_hold("b/1"))))
        assert all(hour_us % (24 * HOUR_US) for hour_us in hours)
        yield found


def test_ids_are_found_again(redis_server: RedisServer, ours: Shared) -> None:
    """B2: what was booked before the layout changed is not booked again after, and an estimate is replaced."""
    bring_up(ours)
    journal = FakeJournal("j", an_entry("a/1"), an_entry("b/1", 3))
    applier(ours, journal).catch_up()
    with redis_server.client() as client:
        cells = [client.hgetall(key) for key in client.scan_iter("*:cells:month:project:*")]
        layout = client.get(ours.keys.layout)
        hours = [key for key in client.scan_iter("*:ids:*") if int(key.rpartition(b":")[2]) % (24 * HOUR_US)]
        assert all(client.ttl(key) > 0 for key in client.scan_iter("*:ids:*"))
    assert [sum(int(sum_) for name, sum_ in each.items() if name.endswith(b"|amount_nanos")) for each in cells] == [
        3 - DIME
    ]
    assert layout == b"%d" % LAYOUT
    assert hours == []


def test_again(redis_server: RedisServer, ours: Shared) -> None:
    """Whoever brings it up a second time, or in the middle of another's work, overwrites nothing that is newer."""
    bring_up(ours)
    (day,) = (ours.keys.ids(TAG, ours.deadlines.days(NOW_US)[0]),)
    with redis_server.client() as client:
        client.hset(day, "0=a/1", "newer")
        before = contents(redis_server)
        bring_up(ours)
        assert contents(redis_server) == before
        client.hset(ours.keys.ids(TAG, hour_of(NOW_US) - HOUR_US), "0=a/1", "older")
        client.delete(ours.keys.layout)
        bring_up(ours)
        assert client.hget(day, "0=a/1") == b"newer"


def test_a_newer_one(redis_server: RedisServer, ours: Shared) -> None:
    """I5: keys of a layout that this version does not know are left alone, and it is said what to do."""
    with redis_server.client() as client:
        client.set(ours.keys.layout, LAYOUT + 1)
        before = contents(redis_server)
        with pytest.raises(
            StoreUnavailable, match=r"layout 3, and this Tollkeeper knows up to 2: run the newer version"
        ):
            bring_up(ours)
        assert contents(redis_server) == before
