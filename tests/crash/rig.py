"""Gateways that share a ledger, in processes of their own; what they have acknowledged; and a watcher of their budgets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import redis
from redis.exceptions import RedisClusterException, RedisError
from tests.crash.shared_gateway import FREE, KEY_LIMIT, PROJECTS, QUOTE, SESSION_LIMIT, scopes

import tollkeeper
from tollkeeper.ledger import BalanceKey, Shape, window_of
from tollkeeper.stores.redis.keys import Keys
from tollkeeper.values import Scopes

ROOT: Final = Path(__file__).parents[2]
#: Bounds failures only.
PATIENCE_S: Final = 60.0


def until(true: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
    """Poll until it is true. Raises TimeoutError that says what was waited for."""
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(0.005)


Account = tuple[str, str, str]
"""A hard budget: its scope, project and id."""


class Notes:
    """The oracle: what the gateways of a folder have been told, read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.settled: set[str] = set()
        self.others: dict[str, set[str]] = {"voided": set(), "refused": set(), "unheld": set(), "left": set()}
        self.newest = dict.fromkeys(PROJECTS, 0)  #: the newest session in which something was settled
        self.started: set[str] = set()

    def read(self) -> int:
        """Read what is new; how many records have been acknowledged."""
        with self._lock:
            for path in self._folder.glob("*.notes"):
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    lines, _, _ = file.read().rpartition(b"\n")
                if lines:
                    self._read[path] = self._read.get(path, 0) + len(lines) + 1
                    for line in lines.decode().split("\n"):
                        self._take(path, *line.split())
            return len(self.settled)

    @property
    def let_go(self) -> set[str]:
        """Ids of calls that were not made."""
        return self.others["voided"] | self.others["refused"] | self.others["unheld"]

    def _take(self, path: Path, what: str, *words: str) -> None:
        if what == "started":
            self.started.add(path.stem)
        elif what == "settled":
            id, project, session = words
            assert id not in self.settled, f"{id} was acknowledged twice"
            self.settled.add(id)
            self.newest[project] = max(self.newest[project], int(session))
        else:
            self.others[what].add(words[0])


class Gateways:
    """Processes on one ledger: their notes and logs are in one folder, as are their journals, if they have no other one."""

    def __init__(
        self, url: str, folder: Path, *options: str, env: dict[str, str] | None = None, journals: Path | None = None
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.url, self.folder, self.options = url, folder, options
        self.journals = journals or folder
        self.notes = Notes(folder)
        self.env = env or {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.died: dict[str, float] = {}
        self._names = count()

    def start(self) -> str:
        """One more gateway; its name."""
        name = f"g{next(self._names)}"
        self.notes.read()
        session = max(self.notes.newest.values())
        source = Path(tollkeeper.__file__).parents[1]
        with (self.folder / f"{name}.err").open("wb") as errors:
            self.running[name] = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.crash.shared_gateway", self.url, self.journals, self.folder, name, str(session),
                    *self.options,
                ],
                cwd=ROOT, stderr=errors, stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": f"{source}"} | self.env,
            )  # fmt: skip
        return name

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._alive()
        process = self.running.pop(name)
        process.kill()
        process.wait()
        self.died[name] = time.time()

    def recovering(self, *begins: str) -> list[tuple[float, float]]:
        """When some gateway was without Redis, or compared what that has with its journal: from, to.

        `begins`: with what lines of its log that begins.
        """
        begins = begins or ("store: Redis is away", "store: Redis is checked")
        found = []
        for path in self.folder.glob("*.log"):
            since = None
            for line in path.read_text().splitlines():
                at, _, said = line.partition(" ")
                if said.startswith(begins) and since is None:
                    since = float(at)
                elif said.startswith("store: Redis is ready") and since is not None:
                    found.append((since, float(at)))
                    since = None
            if since is not None:
                found.append((since, self.died.get(path.stem, time.time())))
        return found

    def stop(self) -> None:
        """SIGTERM to all, and wait: what is under way is finished."""
        for name in self.running:
            self.up(name)
        for process in self.running.values():
            process.terminate()
        for name, process in self.running.items():
            process.wait(PATIENCE_S)
            assert process.returncode == 0, self._said(name)
        self.running.clear()
        self.notes.read()

    def more(self, records: int, within_s: float = PATIENCE_S) -> None:
        """Wait until so many more records are acknowledged."""
        goal = self.notes.read() + records
        until(lambda: self._alive() and self.notes.read() >= goal, f"{records} more records", within_s)

    def up(self, name: str) -> None:
        """Wait until a gateway works."""
        until(lambda: self._alive() and self.notes.read() >= 0 and name in self.notes.started, f"the start of {name}")

    def busy(self) -> None:
        """Wait until records of hard budgets are acknowledged again: Redis is back."""
        if "--naive" in self.options:
            self.more(20)
            return
        sessions = dict(self.notes.newest)
        until(
            lambda: (
                self._alive()
                and self.notes.read() >= 0
                and any(self.notes.newest[each] > sessions[each] for each in PROJECTS if each != FREE)
            ),
            "sessions that go on",
        )

    def _alive(self) -> bool:
        for name, process in self.running.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}: {self._said(name)}"
        return True

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()[-3000:]

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.running.values():
            process.kill()
            process.wait()
        self.running.clear()


def accounts(scopes: Scopes) -> dict[Account, int]:
    """The hard budgets of a call, and their limits."""
    if scopes.session is None or scopes.key is None:
        return {}
    return {("session", scopes.project, scopes.session): SESSION_LIMIT, ("key", "", scopes.key): KEY_LIMIT}


#: A sample so shortly before a gateway has noticed, or after it has recovered, is not yet what it goes by.
MARGIN_S: Final = 0.1


class Watcher:
    """Samples the budgets in which the gateways spend just now."""

    def __init__(self, gateways: Gateways, direct: Callable[[], Any]) -> None:
        self._notes, self._direct = gateways.notes, direct
        self._over: list[tuple[float, Account, int]] = []
        self.samples = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self._client: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._thread.join()
            self._drop()

    def _work(self) -> None:
        while not self._ending.wait(0.02):
            try:
                self._sample()
            except (RedisError, RedisClusterException, OSError):
                self._drop()  # it is away, or another server now

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _sample(self) -> None:
        if self._client is None:
            self._client = self._direct()
        self._notes.read()
        names = dict(self._names())
        with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(name, "spent", "held")
            for (budget, limit), (spent, held) in zip(names.values(), pipeline.execute(), strict=True):
                self.samples += spent is not None
                above = int(spent or 0) + int(held or 0) - limit
                if above > 0:
                    self._over.append((time.time(), budget, above))

    def over(self, recovering: list[tuple[float, float]], back: Counter[Account]) -> list[str]:
        """Balances above their limit while all gateways admitted by them.

        A Redis that has gone back has old holds beside new spending, until the gateways have put that right. `back`: how many
        holds have come back so for good, because nobody who knew better lived.
        """
        return [
            f"{budget}: {above} above its limit at {at:.3f}"
            for at, budget, above in self._over
            if above > back[budget] * QUOTE
            and not any(since - MARGIN_S <= at <= to + MARGIN_S for since, to in recovering)
        ]

    def _names(self) -> Iterator[tuple[str, tuple[Account, int]]]:
        keys = Keys()
        start_us, _ = window_of("month", "UTC", time.time_ns() // 1000)
        for project in PROJECTS:
            if project == FREE:
                continue
            newest = self._notes.newest[project]
            for session in range(max(0, newest - 2), newest + 3):
                for name, limit in accounts(scopes(project, session)).items():
                    kind, its, id = name
                    shape = Shape(kind, "usd", "month", "UTC")  # type: ignore[arg-type]
                    yield keys.balance(BalanceKey(shape, its, id, start_us)), (name, limit)


def redis_of(url: str) -> redis.Redis:
    """A client that waits for nobody long."""
    return redis.Redis.from_url(url.partition("?")[0], socket_timeout=2, socket_connect_timeout=1)
