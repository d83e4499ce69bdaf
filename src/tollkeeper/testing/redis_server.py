"""A real redis-server (or valkey-server) for tests, to start, stop, kill, pause and replicate. Loopback only.

A server lives in a folder of its own, where its append-only file outlives `kill()` and `restart()`. It cannot outlive the
process that started it: the kernel kills it with that, also after a SIGKILL that leaves no time to tidy up.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

WITHIN_S: Final = 30.0
"""How long a server may take for anything that it is asked here: generous, because it bounds failures only."""

DEFAULTS: Final[Mapping[str, str]] = {
    "bind": "127.0.0.1",
    "daemonize": "no",
    "save": '""',
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",  # a replica of a test need not wait for others
}
"""What every server is configured with, where `config` does not say otherwise."""

# The kernel sends a parent-death signal when the *thread* that forked ends, not its process: so one thread starts all
# servers, and lives as long as the interpreter.
_starter = ThreadPoolExecutor(1, "redis-starter")


def find_redis() -> str | None:
    """The program that REDIS_SERVER names, else `redis-server`, else `valkey-server`, on PATH or beside this Python; else None."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return shutil.which("redis-server", path=path) or shutil.which("valkey-server", path=path)


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to outgoing connections.

    Such a connection could take the port of a server that is down; a client that tries to reach that one could even be
    connected to itself.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = SystemRandom().randrange(min(10_000, low // 2), low)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise RuntimeError("no free port on 127.0.0.1: 1,000 were tried")


def until(true: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    """Ask again and again until it is true. Raises TimeoutError that says `what` was waited for; Redis errors mean "not yet"."""
    end = time.monotonic() + within_s
    while True:
        try:
            if true():
                return
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(0.005)


class RedisServer:
    """One server process. `config` has the directives of redis.conf; `env` is added to the process's environment.

    Values are written as they are, but for `requirepass`, which is any text.
    `started` counts its starts. The server of a restart has the same port and folder, another pid and run id.
    """

    defaults: ClassVar[Mapping[str, str]] = DEFAULTS
    arguments: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        executable: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.port = port if port is not None else free_port()
        self.config = {**self.defaults, **(config or {})}
        self.env = dict(env or {})
        self.started = 0
        self.executable = executable
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """redis://127.0.0.1:PORT/0, with the password of `requirepass`, if any."""
        password = quote(self.config.get("requirepass", ""), safe="")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The pid of the server that runs. Raises RuntimeError where none does."""
        if self._process is None:
            raise RuntimeError(f"the server of port {self.port} does not run: start() it")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the servers in this folder have logged."""
        path = self.folder / "redis.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start it and wait until it answers, its data loaded. Raises RuntimeError with its log where it ends instead."""
        if self._process is not None:
            raise RuntimeError(f"the server of port {self.port} runs already, as pid {self._process.pid}")
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = {"port": str(self.port), "dir": f'"{self.folder}"', "logfile": '"redis.log"', **self.config}
        if password := self.config.get("requirepass"):
            lines["requirepass"] = '"' + password.replace("\\", "\\\\").replace('"', '\\"') + '"'
        path = self.folder / "redis.conf"
        path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self._process = _starter.submit(self._popen, path).result()
        self.started += 1
        try:
            until(self._answers, f"a PING to the new server on port {self.port}")
        except BaseException:
            self.kill()
            raise
        return self

    def _popen(self, conf: Path) -> subprocess.Popen[bytes]:
        command = self._command(conf)
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "redis.log").open("ab") as log:  # also what it says before it has read its settings
            process = subprocess.Popen(  # noqa: S603  the caller's own server
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.env},
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        atexit.register(process.kill)
        return process

    def _command(self, conf: Path) -> list[str]:
        executable = self.executable or find_redis()
        if executable is None:
            raise RuntimeError("no redis-server and no valkey-server on PATH: install one, or name it by executable=")
        return [executable, str(conf), *self.arguments]

    def _answers(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"the server of port {self.port} ended with {code} at its start; its log:\n{self.log}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-MASTERDOWN"))  # not -LOADING
        except OSError:
            return False

    def client(self, **options: Any) -> redis.Redis:
        """A client that tries nothing twice; `options` are redis-py's, `host` and `port` lead it through a proxy."""
        tries_once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
        return redis.Redis(**{
            "host": "127.0.0.1", "port": self.port, "password": self.config.get("requirepass"), **tries_once, **options,
        })  # fmt: skip

    def stop(self) -> None:
        """End it in good order (SIGTERM): what it has is written and synced. No error where it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it loses what it had not yet written. No error where it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)  # a paused one would not hear
        try:
            self._process.wait(WITHIN_S)
        finally:
            self._process.kill()
            self._process.wait()
            atexit.unregister(self._process.kill)
            self._process = None

    def restart(self, *, kill: bool = False) -> Self:
        """Stop (or kill) it and start it again on the same port and folder."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stand and are even accepted, but nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on, with all that was sent to it meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def replica_of(self, master: RedisServer | None) -> None:
        """Become a replica, and wait until it has what its master has; None promotes it to a master of its own."""
        with self.client() as client:
            if master is None:
                client.replicaof("NO", "ONE")
                return
            if password := master.config.get("requirepass"):
                client.config_set("masterauth", password)
            client.replicaof("127.0.0.1", str(master.port))
            until(lambda: client.info("replication")["master_link_status"] == "up", f"the link of replica {self.port}")
            self.caught_up(master)

    def caught_up(self, master: RedisServer) -> None:
        """Wait until this replica has applied all that its master had written by now."""
        with master.client() as told, self.client() as client:
            offset = told.info("replication")["master_repl_offset"]
            until(lambda: client.info("replication")["slave_repl_offset"] >= offset, f"replica {self.port} at {offset}")
