"""A proxy between a Redis client and its server whose network fails as the test says. Loopback only, in a thread of its own.

Faults are told in commands and replies, not in seconds: `lose_reply(3)` lets three replies pass, lets the server do
what follows, and swallows its answer. A fault told strikes once; it counts over all connections, and the greeting of a new
one (redis-py: HELLO) is a command with a reply too. Each method returns when what it says holds. What may not pass
stays in the sockets, but for 64 KiB, and its sender waits; it goes on when all passes again, also where its client has left.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self

from tollkeeper.testing.redis_server import WITHIN_S, free_port
from tollkeeper.testing.resp import Ends

Way = Literal["to_server", "to_client"]
How = Literal["reset", "close", "silence"]
"""How a connection ends: RST, FIN, or, for the client, not at all: the server has gone and nothing says so (half-open)."""
Kind = Literal["before_command", "lose_reply", "tear_reply", "after_reply"]

_RESET: Final = struct.pack("ii", 1, 0)  # linger for 0 s: close() sends RST
_CHUNK: Final = 1 << 16
_QUIET_S: Final = 0.02
"""A client that has sent nothing for so long has sent all of its pipeline."""


@dataclass(slots=True)
class _Plan:
    """What strikes next: `kind` once `left` more have passed; without a kind any, with a chance of one in `left`."""

    kind: Kind | None
    left: int
    how: How
    random: Random = field(default_factory=Random)


class _Struck(Exception):
    """The connection has been ended by a fault."""


class _Link:
    """One client's connection and the one to the server that was made for it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.commands = self.replies = 0
        self.asked: deque[int] = (
            deque()
        )  # of each command without a reply: how many had passed with it, of all connections
        self.lost: How | None = None  # its replies are swallowed from now on; so it ends when the last one has come
        self.midway = self.silent = False

    def last(self, piece: bytes) -> None:
        """Give the client a piece that leaves with the FIN: it never sees the one without the other."""
        self.client.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.client.write(piece)

    def end(self, how: How) -> None:
        self.silent = how == "silence"
        if how == "reset":
            with suppress(OSError):
                self.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.client.transport.abort()
        elif how == "close":
            self.client.close()
        self.server.close()


class FaultProxy:
    """Passes everything to 127.0.0.1:`server` until told otherwise. `server` may be changed: new connections go there.

    `commands` and `replies` count what has passed, `struck` the faults that have come true.
    """

    def __init__(self, server: int, *, port: int | None = None) -> None:
        self.server = server
        self.port = port if port is not None else free_port()
        self.commands = self.replies = self.struck = self.accepted = 0
        self._plan: _Plan | None = None
        self._stalled: set[Way] = set()
        self._behind = 0
        self._clients: dict[socket.socket, asyncio.Task[None]] = {}
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._listen)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End every connection and the thread."""
        self._call(self._leave)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def links(self) -> int:
        """Connections that stand."""
        return len(self._links)

    def pass_all(self) -> None:
        """Heal: no fault is planned, what was held back goes on, and new connections are taken."""

        async def heal() -> None:
            self._plan = None
            self._stalled.clear()
            self._behind = 0
            if self._listener is None:
                await self._listen()

        self._call(heal)

    def refuse(self) -> None:
        """Take no new connection (ECONNREFUSED). Those that stand go on: `cut()` ends them."""
        self._call(self._unlisten)

    def cut(self, how: How = "reset") -> None:
        """End all connections now."""

        async def strike() -> None:
            links = {link: task for link, task in self._links.items() if not link.silent}
            for link in links:
                self._end(link, how)
            if links and how != "silence":
                await asyncio.wait(links.values())

        self._call(strike)

    def away(self) -> None:
        """The server is down: connections end, new ones are refused."""
        self.refuse()
        self.cut()

    def stall(self, *ways: Way) -> None:
        """Connections stand and are accepted, but nothing passes: both ways, or those named."""

        async def hold() -> None:
            self._stalled.update(ways or ("to_server", "to_client"))

        self._call(hold)

    def delay(self, commands: int) -> None:
        """Each reply waits until so many more commands than its own, of any connection, have gone to the server."""

        async def hold() -> None:
            self._behind = commands

        self._call(hold)

    def cut_before_command(self, after: int = 0, how: How = "reset") -> None:
        """`after` commands pass; the one that follows never reaches the server."""
        self._tell(_Plan("before_command", after, how))

    def lose_reply(self, after: int = 0, how: How = "reset") -> None:
        """`after` replies pass; the server does all that it was sent, and the rest of its replies is lost with the connection."""
        self._tell(_Plan("lose_reply", after, how))

    def tear_reply(self, after: int = 0) -> None:
        """`after` replies pass; the one that follows breaks off in its middle, with the connection (FIN)."""
        self._tell(_Plan("tear_reply", after, "close"))

    def cut_after_reply(self, count: int = 1) -> None:
        """`count` replies pass, and with the last one the end of its connection (FIN): between two commands."""
        self._tell(_Plan("after_reply", count - 1, "close"))

    def at_random(self, seed: int, one_in: int) -> None:
        """Each of the faults above has a chance of one in `one_in` at each of its moments, until `pass_all`.

        The same on the same traffic: with one connection, whose client waits for each of its replies.
        """
        self._tell(_Plan(None, one_in, "close", Random(seed)))  # noqa: S311  a test's choices, no secret

    def _tell(self, plan: _Plan) -> None:
        async def tell() -> None:
            self._plan = plan

        self._call(tell)

    # In the proxy's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            await work()
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(0)  # asyncio closes what is aborted in the loop's next turn

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(WITHIN_S)

    # The listening is our own: asyncio's leaks what it was accepting when its server closes.

    async def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _leave(self) -> None:
        await self._unlisten()
        for task in self._clients.values():
            task.cancel()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it has left already
            return
        self.accepted += 1
        task = self._clients[connection] = self._loop.create_task(self._serve(connection))

        def over(_: asyncio.Task[None]) -> None:
            del self._clients[connection]
            connection.close()

        task.add_done_callback(over)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        from_client, client = await asyncio.open_connection(sock=connection)
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self.server)
        except (OSError, asyncio.CancelledError):  # nobody there: the client hears it late, since we had accepted it
            client.transport.abort()
            return
        link = _Link(client, server)
        self._links[link] = self._clients[connection]
        pumps = [
            asyncio.ensure_future(self._pump(from_client, link, "to_server")),
            asyncio.ensure_future(self._pump(from_server, link, "to_client")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if link.silent:  # the client may say what it likes, to nobody
                pumps[0].cancel()
                await asyncio.wait(pumps)
                with suppress(OSError):
                    while await from_client.read(_CHUNK):
                        pass
            for end in (server, client):
                end.close()
            for end in (server, client):  # what was on its way arrives, if it is read
                with suppress(OSError):
                    await end.wait_closed()
        finally:
            del self._links[link]
            for pump in pumps:
                pump.cancel()
            server.transport.abort()
            client.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, link: _Link, way: Way) -> None:
        ends = Ends()
        step = self._command if way == "to_server" else self._reply
        begins = True
        try:
            while data := await reader.read(_CHUNK):
                for piece, whole in _pieces(data, ends.feed(data)):
                    await self._until(lambda: way not in self._stalled)
                    await step(link, piece, begins, whole)
                    begins = whole
        except (OSError, _Struck):
            pass

    async def _command(self, link: _Link, piece: bytes, begins: bool, whole: bool) -> None:
        """Pass a piece of a command on: its beginning, its end, or both."""
        if begins and (how := self._due("before_command")):
            self._strike(link, how)
        link.midway = not whole
        if whole:  # counted first, since its reply may be here before drain() returns
            link.commands += 1
            self.commands += 1
            link.asked.append(self.commands)
            self._passed("before_command")
        link.server.write(piece)
        await link.server.drain()
        if whole and self._behind:
            async with self._changed:
                self._changed.notify_all()

    async def _reply(self, link: _Link, piece: bytes, begins: bool, whole: bool) -> None:
        """Pass a piece of a reply on, or not."""
        if begins and self._behind:
            asked = link.asked[0] if link.asked else 0
            await self._until(lambda: self.commands >= asked + self._behind or not self._behind)
        link.replies += whole
        if whole and link.asked:
            link.asked.popleft()
        if begins and link.lost is None:
            link.lost = self._due("lose_reply")
        if link.lost:
            if whole and link.replies >= (sent := link.commands):
                await asyncio.sleep(_QUIET_S)
                if link.commands == sent and not link.midway:
                    self._strike(link, link.lost)
            return
        if begins and (how := self._due("tear_reply")):
            link.last(piece[: len(piece) // 2])
            self._strike(link, how)
        self.replies += whole  # before it goes out: the test may look at once
        if whole and (how := self._due("after_reply")):
            link.last(piece)
            self._strike(link, how)
        if whole:
            self._passed("lose_reply", "tear_reply", "after_reply")
        link.client.write(piece)
        await link.client.drain()

    async def _until(self, true: Callable[[], bool]) -> None:
        if not true():
            async with self._changed:
                await self._changed.wait_for(true)

    def _due(self, kind: Kind) -> How | None:
        """How the fault strikes, if this is its moment; one that is planned strikes once."""
        plan = self._plan
        if plan is None:
            return None
        if plan.kind is None:
            return plan.how if plan.random.randrange(plan.left) == 0 else None
        if plan.kind != kind or plan.left > 0:
            return None
        self._plan = None
        return plan.how

    def _passed(self, *kinds: Kind) -> None:
        if self._plan is not None and self._plan.kind in kinds:
            self._plan.left -= 1

    def _end(self, link: _Link, how: How) -> None:
        self.struck += 1
        link.end(how)

    def _strike(self, link: _Link, how: How) -> NoReturn:
        self._end(link, how)
        raise _Struck


def _pieces(data: bytes, ends: list[int]) -> Iterator[tuple[bytes, bool]]:
    """What was read, cut where commands or replies end; False: the last one goes on in what follows."""
    begin = 0
    for end in ends:
        yield data[begin:end], True
        begin = end
    if begin < len(data):
        yield data[begin:], False
