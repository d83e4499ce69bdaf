"""One thread talks to Redis: whatever waits goes out as one pipeline to each server, and each answer to whoever asked.

Callers ask from any event loop (`ask`) or thread (`run`). Nothing is sent twice on our own account but where Redis has said
that it did nothing: a script that it does not know, a slot that has moved. When a server does not answer, every ask under way
fails with StoreUnavailable, what it did being unknown; the thread then tries to connect again, and says so when it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, Final, Literal, Protocol

import redis
from hiredis import pack_command
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 redis-py's
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores import SharedState
from tollkeeper.stores.redis.ask import NONE_YET, Ask

log = logging.getLogger("tollkeeper")

State = SharedState
Event = Literal["connected", "recovered", "doubted", "lost", "close"]
#: (state, event) → state. `doubted`: what Redis has is not what it had; all of it is checked before anything is admitted again.
LINK_LIFE: Final[dict[tuple[State, Event], State]] = {
    ("away", "connected"): "recovering",
    ("away", "lost"): "away",
    ("away", "doubted"): "away",
    ("recovering", "recovered"): "ready",
    ("recovering", "doubted"): "recovering",
    ("recovering", "lost"): "away",
    ("ready", "doubted"): "recovering",
    ("ready", "lost"): "away",
    ("away", "close"): "closed",
    ("recovering", "close"): "closed",
    ("ready", "close"): "closed",
}
#: Milliseconds between two tries to connect.
RETRY_MS: Final = 250
#: Redirections that one ask may take, each after a look at the cluster's map.
REDIRECTS_MAX: Final = 8
#: A server that answers so cannot serve just now, whatever it is asked.
_LOST: Final = (ConnectionError, TimeoutError, ReadOnlyError, ClusterDownError, MasterDownError)
#: Asks in one pipeline: a longer queue goes out in several, so that one reply's size stays bounded.
PIPELINE_MAX: Final = 512


class Node(Protocol):
    """One server."""

    @property
    def name(self) -> str: ...

    def connect(self) -> redis.Redis: ...


class Servers(Protocol):
    """Where Redis is."""

    def nodes(self) -> list[Any]: ...

    def node_of(self, key: str) -> Any: ...

    def at(self, host: str, port: int) -> Any: ...

    def refresh(self) -> None: ...


class Link:
    """The connection(s), their state, and the thread that owns them.

    `changed(state, reason)` is called on the thread at every change of state, before anyone is answered by the new one.
    """

    def __init__(
        self, servers: Servers, changed: Callable[[State, str], None], *, name: str = "tollkeeper-redis"
    ) -> None:
        self._servers = servers
        self._changed = changed
        self._asks: deque[Ask] = deque()
        self._lock = Condition()
        self._wires: dict[str, _Wire] = {}
        self._moved = False  # a server has said that the map of the cluster is an old one
        self.state: State = "away"
        self.reason = "not connected yet"
        self.runs: dict[str, str] = {}  #: server → its run id: another one has another memory
        self._thread = Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    # ── for callers ──

    async def ask(self, ask: Ask) -> Any:
        """The answer. Raises StoreUnavailable: Redis refused it, or does not answer and what it did is not known."""
        return (await self.asks((ask,)))[0]

    async def asks(self, asks: Sequence[Ask]) -> list[Any]:
        """The answers of several, once each has its own. Raises as `ask`, the first failure."""
        loop = asyncio.get_running_loop()
        for ask in asks:
            ask.waiter = loop.create_future()
        self._queue(asks)
        return _given([await ask.waiter for ask in asks])  # type: ignore[misc]

    def run(self, *asks: Ask) -> list[Any]:
        """The same for a thread that may wait."""
        for ask in asks:
            ask.waiter = Future()
        self._queue(asks)
        return _given([ask.waiter.result() for ask in asks])

    def tell(self, event: Event, reason: str = "", runs: dict[str, str] | None = None) -> State:
        """Something happened that may change the state; the state that it is now.

        `runs`: those of the connection that it is about; of an earlier one it changes nothing.
        """
        with self._lock:
            before = self.state
            if runs is None or runs is self.runs:
                self.state = LINK_LIFE.get((before, event), before)
            if reason:
                self.reason = reason
            state, changed = self.state, self.state != before
            self._lock.notify_all()
        if changed:
            self._changed(state, reason)
        return state

    def wait(self, wanted: Callable[[State], bool], within_ms: int) -> bool:
        """Wait until the state is one that is wanted; whether it is. For a thread that may wait."""
        with self._lock:
            return self._lock.wait_for(lambda: wanted(self.state), within_ms / 1000)

    def close(self) -> None:
        self.tell("close", "closed")
        self._thread.join()

    def _queue(self, asks: Iterable[Ask]) -> None:
        with self._lock:
            if self.state in ("away", "closed"):
                raise self.unavailable()
            self._asks.extend(asks)
            self._lock.notify_all()

    def unavailable(self) -> StoreUnavailable:
        """What callers are told while nothing can be asked."""
        return StoreUnavailable(f"store: Redis does not answer ({self.reason}); it is tried again by itself")

    # ── the thread ──

    def _work(self) -> None:
        while True:
            with self._lock:
                if self.state == "closed" and not self._asks:
                    break
                if self.state == "away":
                    connect = True
                else:
                    connect = False
                    if not self._asks:
                        self._lock.wait()
                    asks = [self._asks.popleft() for _ in range(min(len(self._asks), PIPELINE_MAX))]
            if connect:
                if not self._connect():
                    with self._lock:
                        if self.state == "away":
                            self._lock.wait(RETRY_MS / 1000)
            elif asks:
                self._send(asks)
        for wire in self._wires.values():
            wire.close()

    def _connect(self) -> bool:
        """A connection to each server."""
        for wire in self._wires.values():
            wire.close()
        self._wires = {}
        try:
            self._servers.refresh()
            runs = {}
            for node in self._servers.nodes():
                wire = self._wires[node.name] = _Wire(node)
                runs[node.name] = wire.run_id()
        except Exception as error:  # also such as a host's name that cannot be one: it is told, and tried again
            with self._lock:
                self.reason = _said(error)
            return False
        self.runs = runs
        self.tell("connected")
        return True

    def _send(self, asks: list[Ask]) -> None:
        """Send to every server, then read from every server: each answer to its ask."""
        while asks:
            by_wire: dict[_Wire, list[Ask]] = {}
            try:
                for ask in filter(_packed, asks):
                    by_wire.setdefault(self._wire(ask), []).append(ask)
                for wire, its in by_wire.items():
                    wire.send(its)
                again = [ask for wire, its in by_wire.items() for ask in its if not self._answered(ask, wire)]
                if self._moved:
                    self._moved = False
                    self._servers.refresh()
            except (*_LOST, OSError) as error:
                self._lose(asks, error)
                return
            except Exception as error:  # a mistake of ours: whoever waits must hear of it, and the thread go on
                log.exception("store: a command could not be sent to Redis")
                self._lose(asks, error)
                return
            _tell(ask for ask in asks if ask.answer is not NONE_YET)
            asks = again

    def _wire(self, ask: Ask) -> _Wire:
        node = ask.node if ask.node is not None else self._servers.node_of(ask.key)
        wire = self._wires.get(node.name)
        if wire is None:
            if ask.node is None:  # a replica that took over may lack what its master had: all of it is checked
                raise ConnectionError(f"{node.name} has taken the place of another server")
            wire = self._wires[node.name] = _Wire(node)  # a slot is moved there, with all that it has
            self.runs[node.name] = wire.run_id()
        return wire

    def _answered(self, ask: Ask, wire: _Wire) -> bool:
        """Give an ask the next answer; False: it is to be sent again, since nothing was done."""
        answer = wire.read()
        if not isinstance(answer, Exception):
            ask.answer = answer
            return True
        if isinstance(answer, _LOST):
            raise answer
        if isinstance(answer, (NoScriptError, MovedError, AskError, TryAgainError)) and ask.tries < REDIRECTS_MAX:
            ask.tries += 1
            if isinstance(answer, NoScriptError):
                assert ask.script is not None
                ask.command = ("EVAL", ask.script.text, *ask.command[2:])
            elif isinstance(answer, MovedError):
                ask.node, self._moved = None, True
            elif isinstance(answer, AskError):
                ask.node = self._servers.at(answer.host or wire.host, answer.port)
                self._wire(ask).asking.add(ask)
            return False
        if isinstance(answer, RedisError):
            answer = StoreUnavailable(f"store: Redis refused a command ({_said(answer)}); see its log and settings")
        ask.answer = answer
        return True

    def _lose(self, asks: list[Ask], error: Exception) -> None:
        for wire in self._wires.values():
            wire.close()
        self._wires = {}
        self.tell("lost", _said(error))
        with self._lock:
            asks = [*asks, *self._asks]
            self._asks.clear()
        for ask in asks:
            if ask.answer is NONE_YET:
                ask.answer = self.unavailable()
        _tell(asks)


class _Wire:
    """One connection."""

    def __init__(self, node: Node) -> None:
        self._client = node.connect()
        self._connection: Any = self._client.connection_pool.get_connection()  # its methods have no types
        self.asking: set[Ask] = set()
        self._owed: deque[bool] = deque()

    @property
    def host(self) -> str:
        """Where the server is: it may leave that out where it names another one beside itself."""
        return str(self._client.get_connection_kwargs()["host"])

    def run_id(self) -> str:
        """Which process this is. Where INFO is forbidden, none: then every connection is taken for another memory.

        Raises ConnectionError for one that is not there yet: it answers INFO while it reads its own files.
        """
        self._connection.send_command("PING")
        self._connection.read_response()
        self._connection.send_command("INFO", "server")
        try:
            info = self._connection.read_response()
        except ResponseError:
            return ""
        text = info.decode() if isinstance(info, bytes) else str(info)
        return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("run_id:")), "")

    def send(self, asks: list[Ask]) -> None:
        commands: list[bytes] = []
        for ask in asks:
            if ask in self.asking:
                self.asking.discard(ask)
                commands.append(pack_command(("ASKING",)))
                self._owed.append(True)
            commands.append(ask.packed)
            self._owed.append(False)
        self._connection.send_packed_command([b"".join(commands)])

    def read(self) -> Any:
        """The next answer; a refusal is answered, not raised."""
        while self._owed.popleft():
            self._connection.read_response()
        try:
            return self._connection.read_response()
        except (ConnectionError, TimeoutError):
            raise
        except RedisError as refusal:
            return refusal

    def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            self._connection.disconnect()
            self._client.close()


def _packed(ask: Ask) -> bool:
    """Make an ask ready to be sent; one with a text that is none (a lone surrogate in an id) fails alone."""
    try:
        ask.packed = pack_command(ask.command)
    except UnicodeEncodeError as error:
        ask.answer = error
        return False
    return True


def _tell(asks: Iterable[Ask]) -> None:
    """Wake who waits, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Ask]] = {}
    for ask in asks:
        if isinstance(ask.waiter, Future):
            _resolve([ask])
        else:
            loops.setdefault(ask.waiter.get_loop(), []).append(ask)
    for loop, its in loops.items():
        with contextlib.suppress(RuntimeError):  # it has ended, and nobody waits any more
            loop.call_soon_threadsafe(_resolve, its)


def _resolve(asks: list[Ask]) -> None:
    """Failures are results, too: nobody need fetch each of them."""
    for ask in asks:
        if not ask.waiter.done():
            ask.waiter.set_result(ask.answer)


def _given(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
