"""A slot of a cluster moves: a script that cannot have all of it does nothing, and is asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError
from tests.redis_promises import Asking

from tollkeeper.testing.redis_cluster import Cluster

SLOT = [f"p:{{a}}:{name}" for name in ("cursor", "shapes", "holds", "due", "index")]
BALANCE, OTHER = (f"p:{{a}}:balance:project:{measure}:total:UTC::0" for measure in ("usd", "tokens"))
IDS = ["p:{a}:ids:1", "p:{a}:ids:0"]
TO = 4_000_000_000


@pytest.fixture
def moving(tmp_path: Path, redis_executable: str) -> Iterator[Any]:
    """A client of the node that a slot is leaving; what a hold of that slot holds has gone already."""
    with Cluster(tmp_path, executable=redis_executable) as cluster:
        source = cluster.node_of(BALANCE)
        to = next(node for node in cluster.nodes if node is not source)
        with source.client() as client:
            client.hset(SLOT[0], mapping={"epoch": "e", "j": 7, "batch": 3})
            client.sadd(SLOT[1], "s")
            client.hset(SLOT[2], "held", f"{BALANCE} 3 #me\n{{}}")
            client.zadd(SLOT[3], {"held": 5})
            client.zadd(SLOT[4], {"x": 1})
            for key in IDS:
                client.hset(key, "0=other", "mark")
            client.hset(OTHER, "held", 0)
            client.hset(BALANCE, mapping={"spent": 1, "held": 3})
            client.hset("p:{a}:leases", "j b", 4)
            cluster.begin_move(BALANCE, to)
            client.migrate("127.0.0.1", to.port, [BALANCE, "p:{a}:leases"], 0, 1000)
            yield client


@pytest.mark.parametrize(("ended", "leased"), [(["held"], []), ([], [("j b", BALANCE, 4)])], ids=["a hold", "a lease"])
def test_a_batch_is_whole_or_not_at_all(moving: Any, ended: list[str], leased: list[Any]) -> None:
    """B4: a batch that ends a hold, or takes of a lease, whose balance has moved is refused before its cursor moves."""
    batch = (TO, [("j", 7, 9)], ["s"], 2, 1, TO, ["0=x"], [""], ["mark"], ended, [], [], leased)
    with pytest.raises(ResponseError, match="non local key"):
        Asking(moving).run("apply", (*SLOT, *IDS), msgspec.msgpack.encode(batch))
    assert moving.hget(SLOT[0], "j") == b"7"
    assert moving.hkeys(IDS[0]) == [b"0=other"]
    assert moving.hkeys(SLOT[2]) == [b"held"]


def test_a_hold_is_let_go_whole_or_not_at_all(moving: Any) -> None:
    """B4: the same for a hold that nothing is owed for."""
    with pytest.raises(ResponseError, match="non local key"):
        Asking(moving).run("void", (SLOT[2], SLOT[3]), "held")
    assert moving.hkeys(SLOT[2]) == [b"held"]
    assert moving.zcard(SLOT[3]) == 1


def test_a_hold_is_extended_whole_or_not_at_all(moving: Any) -> None:
    """B4: the same for one that is to hold of another balance instead."""
    with pytest.raises(ResponseError, match="non local key"):
        Asking(moving).run("reserve", (*SLOT, OTHER), "e", "j", 7, "held", "{}", 5, TO, "1", "#me", "s", 1, "", TO)
    assert moving.hget(SLOT[2], "held").startswith(BALANCE.encode())
    assert moving.hgetall(OTHER) == {b"held": b"0"}
