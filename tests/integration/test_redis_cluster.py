"""A cluster whose slots move, and what its clients see."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis

from tollkeeper.testing.redis_cluster import Cluster
from tollkeeper.testing.redis_server import until


@pytest.fixture(scope="module")
def cluster(redis_executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), executable=redis_executable) as cluster:
        yield cluster


def test_a_slot_moves_under_load(cluster: Cluster) -> None:
    """B4: a slot with its keys goes to another node while a client counts in it: nothing is lost or doubled."""
    source = cluster.node_of("{p}n")
    target = next(node for node in cluster.nodes if node is not source)
    done, stop = 0, threading.Event()

    def count() -> None:
        nonlocal done
        with cluster.client() as client:
            while not stop.is_set():
                client.incr("{p}n")
                done += 1

    thread = threading.Thread(target=count)
    thread.start()
    with cluster.client() as client:
        for index in range(300):
            client.set(f"{{p}}{index}", index)
        until(lambda: done > 10, "load")
        cluster.move_slot("{p}n", target, batch=50)
        moved = done
        until(lambda: done > moved + 10, "load after the move")
        stop.set()
        thread.join()
        assert cluster.node_of("{p}n") is target
        assert client.get("{p}n") == str(done).encode()
        assert [client.get(f"{{p}}{index}") for index in (0, 299)] == [b"0", b"299"]
    with target.client() as client, source.client() as old:
        assert client.dbsize() == 301
        with pytest.raises(redis.exceptions.MovedError):
            old.execute_command("GET", "{p}n")


def test_half_moved(cluster: Cluster) -> None:
    """B4: between two keys of a move, the one that has gone is asked for elsewhere, and a script over both is refused."""
    source = cluster.node_of("{q}1")
    target = next(node for node in cluster.nodes if node is not source)
    with cluster.client() as client, source.client() as direct:
        client.mset_nonatomic({"{q}1": 1, "{q}2": 2})
        cluster.begin_move("{q}1", target)
        assert cluster.move_keys("{q}1", target, count=1) == 1
        assert [client.get("{q}1"), client.get("{q}2")] == [b"1", b"2"]
        with pytest.raises(redis.exceptions.TryAgainError):
            direct.eval("#!lua\nreturn redis.call('MGET', KEYS[1], KEYS[2])", 2, "{q}1", "{q}2")
        assert cluster.move_keys("{q}1", target) == 1
        with pytest.raises(redis.exceptions.AskError):
            direct.eval("#!lua\nreturn redis.call('MGET', KEYS[1], KEYS[2])", 2, "{q}1", "{q}2")
        cluster.end_move("{q}1", target)
        assert client.mget("{q}1", "{q}2") == [b"1", b"2"]


def test_a_node_dies_and_comes_back(cluster: Cluster) -> None:
    """B4: a killed node takes its slots with it and brings them back, under the same id."""
    node = cluster.node_of("{r}n")
    with cluster.client(socket_timeout=1) as client:
        client.set("{r}n", 1)
        node.kill()
        with pytest.raises(redis.RedisError):
            client.get("{r}n")
        node.start()
        until(lambda: client.get("{r}n") == b"1", "the node's slots")
