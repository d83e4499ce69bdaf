"""tollkeeper.stores.redis.holding with reserve.lua and void.lua: holds that stand, end and are found again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import structs
from tests.slots import shared

from tollkeeper.stores.redis.apply import Doubted, Shared
from tollkeeper.stores.redis.holding import Holding
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.legs import Held, Rules, slots_of
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import ALPHA, AT_US, DIME, USD, a_hold, usd
from tollkeeper.values import Budget, Hold

TAG = tag_of("alpha")
RULES = Rules([usd(USD), Budget(scope="all", limit=USD)])


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    with shared(redis_server) as found:
        for tag, shapes in ((TAG, RULES.shapes[:1]), (GLOBAL, RULES.shapes[1:])):
            open_slot(found, tag, "epoch-1", shapes)
        yield found


def holding(ours: Shared) -> Holding:
    return Holding(ours, "j", epoch=lambda: "epoch-1", applied=lambda tag: 0)


def held(id: str) -> Held:
    return held_of(a_hold(id))


def held_of(hold: Hold) -> Held:
    covering = RULES.covering(ALPHA, "m", AT_US)
    return Held(hold, covering.legs, covering.slots)


def stand(ours: Shared, mine: Holding, each: Held) -> list[object]:
    return ours.link.run(*(mine.ask(each, tag, slot) for tag, slot in each.slots.items()))


def sums(redis_server: RedisServer) -> list[int]:
    with redis_server.client() as client:
        return sorted(int(client.hget(key, "held") or 0) for key in client.scan_iter("*:balance:*"))


def test_stands_and_ends(redis_server: RedisServer, ours: Shared) -> None:
    """C2: a hold stands in each slot, is found by its owner and by who looks for the dead, and leaves nothing."""
    mine, other = holding(ours), holding(ours)
    for id in ("a/1", "b/1"):
        assert [answer[0] for answer in stand(ours, mine, held(id))] == [b"held"] * 2  # type: ignore[index]
    assert [answer[0] for answer in stand(ours, mine, held("a/1"))] == [b"known"] * 2  # type: ignore[index]
    assert sums(redis_server) == [2 * DIME] * 2
    assert {hold.id for hold in mine.live([TAG])} == {"a/1", "b/1"}
    deadline_us = a_hold("a/1").deadline_us
    assert mine.dead([TAG], deadline_us - 1000) == ([], [])
    dead, apart = mine.dead([TAG], deadline_us)
    assert ({hold.id for hold in dead}, apart) == ({"a/1", "b/1"}, [])
    assert {id for found in mine.own([TAG]).values() for id in found.values()} == {"a/1", "b/1"}
    assert not any(other.own([TAG]).values())
    ours.link.run(*mine.end_of("alpha", "a/1"))
    ours.link.run(*(mine.release(held("b/1"), tag) for tag in held("b/1").slots))
    assert sums(redis_server) == [0, 0]
    with redis_server.client() as client:
        assert [key for key in client.scan_iter() if key.endswith((b":holds", b":due"))] == []


@pytest.mark.parametrize("there", [TAG, GLOBAL])
def test_one_part_alone(redis_server: RedisServer, ours: Shared, there: str) -> None:
    """P3: a hold that stands in one of its two slots was never a call's; but for a slot that has begun since, it may have been."""
    mine, one = holding(ours), held("a/1")
    cursor = ours.keys.cursor(TAG if there == GLOBAL else GLOBAL)
    ours.link.run(mine.ask(one, there, one.slots[there]))
    deadline_us = one.hold.deadline_us
    with redis_server.client() as client:
        for begun, found in ((None, (["a/1"], [])), (AT_US + 1, (["a/1"], [])), (AT_US - 1, ([], ["a/1"]))):
            if begun is not None:
                client.hset(cursor, "begun", ours.deadlines.of_redis(begun))
            assert tuple([hold.id for hold in holds] for holds in mine.dead([TAG], deadline_us)) == found
    stand(ours, mine, one)
    assert [hold.id for hold in mine.dead([TAG], deadline_us)[0]] == ["a/1"]
    alone = Held(one.hold, tuple(one.slots[there].legs), {there: one.slots[there]})
    ours.link.run(*mine.end_of("alpha", "a/1"))
    ours.link.run(mine.ask(alone, there, alone.slots[there]))
    assert [hold.id for hold in mine.dead([TAG], deadline_us)[0]] == ["a/1"]


def test_one_id_of_two_projects(redis_server: RedisServer, ours: Shared) -> None:
    """C2: a part that is alone says nothing of another project's hold of the same id."""
    mine, one, beta = holding(ours), held("a/1"), tag_of("beta")
    open_slot(ours, beta, "epoch-1", RULES.shapes[:1])
    (leg,) = one.slots[TAG].legs
    legs = (leg._replace(key=leg.key._replace(project="beta")),)
    other = Held(a_hold("a/1", scopes=structs.replace(ALPHA, project="beta")), legs, slots_of(legs))
    with redis_server.client() as client:
        client.hset(ours.keys.cursor(GLOBAL), "begun", ours.deadlines.of_redis(AT_US - 1))
    ours.link.run(mine.ask(one, TAG, one.slots[TAG]), mine.ask(other, beta, other.slots[beta]))
    for tags in ([TAG, beta], [beta, TAG]):
        dead, apart = mine.dead(tags, one.hold.deadline_us)
        assert ([hold.scopes.project for hold in dead], [hold.scopes.project for hold in apart]) == (
            ["beta"],
            ["alpha"],
        )


@pytest.mark.parametrize("closed", ["epoch", "shapes"])
def test_a_slot_that_is_closed(redis_server: RedisServer, ours: Shared, closed: str) -> None:
    """C1: a slot of another epoch, or without the shape, is opened for the holds that are to stand in it again."""
    mine = holding(ours)
    with redis_server.client() as client:
        if closed == "epoch":
            client.hset(ours.keys.cursor(TAG), "epoch", "old")
            client.hdel(ours.keys.cursor(GLOBAL), f"open@{TAG}")
        else:
            client.delete(ours.keys.shapes(TAG))
    mine.stand_again([held("a/1"), held("b/1")])
    assert sums(redis_server) == [2 * DIME] * 2
    behind = Holding(ours, "j", epoch=lambda: "epoch-1", applied=lambda tag: 7)
    with pytest.raises(Doubted):
        behind.stand_again([held("c/1")])


def test_refused_where_it_does_not_fit(redis_server: RedisServer, ours: Shared) -> None:
    """P3: what is above the limit is refused with numbers and holds nothing, unless it must stand whatever the limit says."""
    mine = holding(ours)
    over = held_of(a_hold("a/1", USD + 1))
    assert [answer[:2] for answer in stand(ours, mine, over)] == [[b"refused", 1]] * 2  # type: ignore[index]
    assert sums(redis_server) == []
    for tag, slot in over.slots.items():
        ours.link.run(mine.ask(over, tag, slot, whatever=True))
    assert sums(redis_server) == [USD + 1] * 2
