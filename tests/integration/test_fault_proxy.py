"""Each fault between a client and a real server, and what both sides then know."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from tollkeeper.testing.fault_proxy import FaultProxy, How
from tollkeeper.testing.redis_server import RedisServer, until

GONE = (redis.ConnectionError, redis.TimeoutError)


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(redis_server: RedisServer, proxy: FaultProxy) -> Iterator[redis.Redis]:
    """Through the proxy, and connected: the greeting is behind it."""
    with redis_server.client(port=proxy.port, socket_timeout=5) as client:
        client.ping()
        yield client


@pytest.fixture
def beside(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client that no fault meets: what the server really has."""
    with redis_server.client() as client:
        yield client


def hasty(server: RedisServer, proxy: FaultProxy) -> redis.Redis:
    """A client that is connected and then waits 50 ms for a reply."""
    client = server.client(port=proxy.port, socket_timeout=0.05)
    until(client.ping, "a first answer")
    return client


def test_everything_passes(client: redis.Redis, proxy: FaultProxy) -> None:
    """Commands, pipelines, errors and large values pass unchanged, and are counted."""
    commands, replies = proxy.commands, proxy.replies
    value = bytes(range(256)) * 8192  # 2 MiB
    assert client.set("large", value)
    assert client.get("large") == value
    with client.pipeline(transaction=True) as pipeline:
        assert pipeline.incr("n").incrby("n", 4).execute() == [1, 5]
    with pytest.raises(redis.ResponseError):
        client.incr("large")
    assert (proxy.commands - commands, proxy.replies - replies) == (7, 7)
    assert (proxy.struck, proxy.links) == (0, 1)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_lost_reply(client: redis.Redis, beside: redis.Redis, proxy: FaultProxy, how: How) -> None:
    """B4: the server has done it, the client has an error, and a repeat would count twice."""
    proxy.lose_reply(after=2, how=how)
    assert [client.incr("n"), client.incr("n")] == [1, 2]
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert (beside.get("n"), proxy.struck) == (b"3", 1)
    assert client.incr("n") == 4  # a fault strikes once; a new connection passes


def test_the_replies_of_a_pipeline_are_lost(client: redis.Redis, beside: redis.Redis, proxy: FaultProxy) -> None:
    """B4: all of a pipeline is done when its first reply is lost."""
    proxy.lose_reply()
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(5000):
            pipeline.incr("n")
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
    assert beside.get("n") == b"5000"


def test_a_reply_lost_in_silence(redis_server: RedisServer, beside: redis.Redis, proxy: FaultProxy) -> None:
    """B4: the same where nothing tells the client: it waits until its own time is over."""
    with hasty(redis_server, proxy) as client:
        proxy.lose_reply(how="silence")
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
    assert (beside.get("n"), proxy.struck) == (b"1", 1)


def test_cut_before_a_command(client: redis.Redis, beside: redis.Redis, proxy: FaultProxy) -> None:
    """B4: the client has the same error as of a lost reply, and the server has done nothing."""
    proxy.cut_before_command(after=1)
    client.incr("n")
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert beside.get("n") == b"1"


def test_a_torn_reply(client: redis.Redis, beside: redis.Redis, proxy: FaultProxy) -> None:
    """B4: half a reply is none, and never the beginning of the next one."""
    beside.set("long", b"x" * 1000)
    proxy.tear_reply()
    with pytest.raises(redis.ConnectionError):
        client.get("long")
    assert client.incr("n") == 1


def test_cut_after_a_reply(client: redis.Redis, proxy: FaultProxy) -> None:
    """B4: the reply of the n-th command arrives, then the connection ends between two commands."""
    proxy.cut_after_reply(2)
    assert [client.incr("n"), client.incr("n")] == [1, 2]
    until(lambda: proxy.links == 0, "the end of the connection")
    assert proxy.struck == 1


@pytest.mark.parametrize("how", ["reset", "close"])
def test_cut_now(client: redis.Redis, proxy: FaultProxy, how: How) -> None:
    """Connections that stand end; new ones are taken."""
    connection = client.connection_pool.get_connection()
    proxy.cut(how)
    assert proxy.links == 0
    with pytest.raises(redis.ConnectionError):
        connection.can_read()
    client.connection_pool.release(connection)
    assert client.ping()


def test_refused(client: redis.Redis, redis_server: RedisServer, proxy: FaultProxy) -> None:
    """A refusal is for new connections alone; with those that stand cut, the server is away. Healed, all is well."""
    proxy.refuse()
    assert client.ping()
    with redis_server.client(port=proxy.port) as second:
        with pytest.raises(redis.ConnectionError, match="refused"):
            second.ping()
        proxy.away()
        for each in (client, second):
            with pytest.raises(redis.ConnectionError):
                each.ping()
        proxy.pass_all()
        assert client.ping() == second.ping() is True


def test_half_open(redis_server: RedisServer, beside: redis.Redis, proxy: FaultProxy) -> None:
    """F2: the server's side has gone, the client's stands and takes what it says, and nothing comes back."""
    with hasty(redis_server, proxy) as client:
        until(lambda: clients(beside) == 2, "both connections")
        proxy.cut("silence")
        until(lambda: clients(beside) == 1, "the server's end of the connection")
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        assert beside.get("n") is None
        assert client.incr("n") == 1  # over a new connection


def clients(beside: redis.Redis) -> int:
    return len(beside.client_list(_type="normal"))


def test_stalled_replies(redis_server: RedisServer, beside: redis.Redis, proxy: FaultProxy) -> None:
    """F2: with the way back stalled the server does what it is told; the client only times out."""
    with hasty(redis_server, proxy) as client:
        proxy.stall("to_client")
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        until(lambda: beside.get("n") == b"1", "the command")
        with pytest.raises(redis.TimeoutError):  # also a new connection is accepted, and not answered
            client.incr("n")
        proxy.pass_all()
        assert client.incr("n") == 2


def test_a_command_arrives_late(redis_server: RedisServer, beside: redis.Redis, proxy: FaultProxy) -> None:
    """B4: what a client has given up may be done when the network comes back, after what it did since."""
    with hasty(redis_server, proxy) as client:
        proxy.stall("to_server")
        with pytest.raises(redis.TimeoutError):
            client.set("n", "old")
        beside.set("n", "new")
        proxy.pass_all()
        until(lambda: beside.get("n") == b"old", "the late command")


def test_what_is_stalled_is_bounded(proxy: FaultProxy) -> None:
    """A stalled connection takes what the sockets hold, and then its sender waits."""
    proxy.stall()
    with socket.create_connection(("127.0.0.1", proxy.port)) as link:
        link.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += link.send(bytes(1 << 16))
        assert 0 < sent < 64 << 20


def test_delayed_by_commands(redis_server: RedisServer, client: redis.Redis, proxy: FaultProxy) -> None:
    """A reply waits until two more commands have passed, of any connection; pass_all lets the rest go."""
    answers: list[int] = []
    with redis_server.client(port=proxy.port) as second:
        second.ping()
        proxy.delay(commands=2)
        thread = threading.Thread(target=lambda: answers.append(client.incr("n")))
        thread.start()
        until(lambda: proxy.commands - proxy.replies == 1, "the command")
        with second.pipeline(transaction=False) as pipeline:
            pipeline.ping()
            pipeline.ping()
            waiting = threading.Thread(target=pipeline.execute)
            waiting.start()
            thread.join()
            assert answers == [1]
            proxy.pass_all()
            waiting.join()


def test_a_server_that_is_down(own_redis: RedisServer) -> None:
    """B4: through the proxy too a dead server is an error and a restarted one answers; another one can take its place."""
    with FaultProxy(own_redis.port) as proxy, own_redis.client(port=proxy.port) as client:
        client.set("paid", "7")
        own_redis.kill()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.get("paid")
        own_redis.start()
        assert client.get("paid") == b"7"


def test_led_to_another_server(redis_server: RedisServer, own_redis: RedisServer) -> None:
    """B4: new connections go where `server` says: a fail-over behind one address."""
    with FaultProxy(redis_server.port) as proxy, redis_server.client(port=proxy.port) as client:
        client.set("where", "first")
        proxy.server = own_redis.port
        assert client.get("where") == b"first"
        proxy.cut()
        assert client.get("where") is None  # redis-py sees that the connection has ended before it sends


def outcomes(server: RedisServer, seed: int) -> list[tuple[int | None, int]]:
    """What a client hears of 60 INCRs among random faults, and what the server has each time."""
    told: list[tuple[int | None, int]] = []
    with FaultProxy(server.port) as proxy, server.client() as beside:
        beside.set("n", 0)
        with server.client(port=proxy.port) as client:
            client.ping()
            proxy.at_random(seed, one_in=12)
            for _ in range(60):
                try:
                    heard = client.incr("n")
                except GONE:
                    heard = None
                told.append((heard, int(beside.get("n") or 0)))
            assert proxy.struck > 3
    return told


def test_random_faults_repeat(redis_server: RedisServer) -> None:
    """One seed gives one story, another seed another; what is heard is true, and what is lost was done or was not."""
    first = outcomes(redis_server, 1)
    assert first == outcomes(redis_server, 1) != outcomes(redis_server, 2)
    assert all(heard == there for heard, there in first if heard is not None)
    done = sum(there != before for (heard, there), (_, before) in zip(first[1:], first, strict=False) if heard is None)
    assert 0 < done < sum(heard is None for heard, _ in first)
