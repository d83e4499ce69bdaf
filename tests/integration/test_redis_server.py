"""Redis servers of tests: their lives, and that they end with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

import tollkeeper
from tollkeeper.testing import redis_server as module
from tollkeeper.testing.redis_server import RedisServer, find_redis, free_port, until


def test_found_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """redis-server is found before valkey-server, each on PATH or beside this Python; a named one before all."""
    monkeypatch.delenv("REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    assert find_redis() is None
    (tmp_path / "venv").mkdir()
    for path in (tmp_path / "valkey-server", tmp_path / "venv" / "redis-server"):
        path.touch(mode=0o755)
        assert find_redis() == str(path)
    monkeypatch.setenv("REDIS_SERVER", "/opt/valkey-server")
    assert find_redis() == "/opt/valkey-server"


def test_none_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a server on the machine, start says what to do."""
    monkeypatch.setattr(module, "find_redis", lambda: None)
    with pytest.raises(RuntimeError, match=r"install one, or name it by executable="):
        RedisServer(tmp_path).start()


def test_ports_are_not_those_of_clients() -> None:
    """A connection that goes out never gets the port of a server that is down."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(free_port() for _ in range(50)) < low


def test_waiting_is_bounded() -> None:
    """What does not come true is an error that names it; a Redis error is "not yet"."""
    with pytest.raises(TimeoutError, match="the moon: not within 0 s"):
        until(lambda: False, "the moon", within_s=0)
    answers = iter([redis.ConnectionError("away"), False, True])

    def ask() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    until(ask, "an answer")


def test_what_is_wrong_is_told(redis_executable: str, tmp_path: Path) -> None:
    """A server that ends at its start raises with its own log, and may be started again."""
    server = RedisServer(tmp_path, config={"maxmemori": "1"}, executable=redis_executable)
    with pytest.raises(RuntimeError, match="maxmemori"):
        server.start()
    with pytest.raises(RuntimeError, match="does not run"):
        server.pause()
    del server.config["maxmemori"]
    with server.start(), pytest.raises(RuntimeError, match="runs already"):
        server.start()


def test_defaults(redis_server: RedisServer) -> None:
    """A server is durable each second, evicts nothing and listens on loopback alone."""
    told = redis_server.client().config_get("*")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }
    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize("times", [1, 2])
def test_each_test_finds_it_empty(redis_server: RedisServer, times: int) -> None:
    """The session's server has nothing of the tests before."""
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("left", times)


def test_a_password_of_any_signs(redis_executable: str, tmp_path: Path) -> None:
    """F1: the url carries a password of any characters, and its client knows it."""
    with RedisServer(tmp_path, config={"requirepass": 'p@:/#%+ "\\é'}, executable=redis_executable) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with server.client() as client:
            assert client.ping()


def test_kill_and_restart_keep_the_file(own_redis: RedisServer) -> None:
    """B4: what was written survives kill -9; the server that comes back is another one on the same port."""
    with own_redis.client() as client:
        client.set("paid", "7")
        before = own_redis.pid, own_redis.port, client.info("server")["run_id"]
        own_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("paid")
        own_redis.start()
        assert client.get("paid") == b"7"
        after = own_redis.pid, own_redis.port, client.info("server")["run_id"]
    assert (after[0] != before[0], after[1] == before[1], after[2] != before[2]) == (True, True, True)
    assert own_redis.started == 2


def test_stopped_in_good_order(own_redis: RedisServer) -> None:
    """A stop writes and syncs what there is, also of a paused server."""
    with own_redis.client() as client:
        client.set("paid", "7")
        own_redis.pause()
        assert own_redis.restart() is own_redis
        assert client.get("paid") == b"7"
    assert "User requested shutdown" in own_redis.log
    own_redis.stop()
    own_redis.stop()  # no error where it does not run


def test_paused_and_resumed(own_redis: RedisServer) -> None:
    """F2: a paused server accepts and answers nothing; resumed, it does all that was sent to it meanwhile."""
    with own_redis.client(socket_timeout=0.05) as hasty, own_redis.client() as client:
        hasty.ping()  # connected, so that its command goes out
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            hasty.incr("sent")
        own_redis.resume()
        until(lambda: client.get("sent") == b"1", "the command of the client that went away")


def test_a_replica_is_promoted(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4: a replica has what its master wrote, and is a master of its own after that one's death."""
    with (
        RedisServer(tmp_path / "replica", executable=own_redis.executable) as replica,
        own_redis.client() as master,
        replica.client() as client,
    ):
        replica.replica_of(own_redis)
        master.set("paid", "7")
        replica.caught_up(own_redis)
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.set("paid", "8")
        own_redis.kill()
        replica.replica_of(None)
        assert client.incr("paid") == 8


def test_the_thread_that_starts_it_may_end(redis_executable: str, tmp_path: Path) -> None:
    """A server lives on when the thread that started it has ended."""
    server = RedisServer(tmp_path, executable=redis_executable)
    with server:
        thread = threading.Thread(target=server.restart)
        thread.start()
        thread.join()
        with server.client() as client:
            assert client.ping()
    assert server.started == 2


FORGETFUL = """
import sys, time
from tollkeeper.testing.redis_server import RedisServer
print(RedisServer(sys.argv[1]).start().pid, flush=True)
if sys.argv[2] == "killed":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_it_ends_with_its_test(redis_executable: str, tmp_path: Path, end: str) -> None:
    """A forgotten server is killed with the process that started it, also where that is killed itself."""
    source = Path(tollkeeper.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", FORGETFUL, str(tmp_path), end], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if end == "killed":
            process.send_signal(signal.SIGKILL)
        process.wait()
    status = Path(f"/proc/{pid}/stat")
    until(lambda: not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z", "the server's end")
