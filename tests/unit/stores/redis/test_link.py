"""tollkeeper.stores.redis.link: one thread, one pipeline; every ask is answered once, whatever the servers do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import (
    AskError,
    ConnectionError,  # noqa: A004
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.link import LINK_LIFE, REDIRECTS_MAX, Link
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.redis_server import RedisServer, until

STATES = ("away", "recovering", "ready", "closed")
EVENTS = ("connected", "recovered", "doubted", "lost", "close")
GET = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
ASKING = b"*1\r\n$6\r\nASKING\r\n"


class FakeNode:
    """A server that answers by a function of the command; it is its own client, pool and connection."""

    def __init__(self, name: str, answer: Callable[[bytes], Any] = lambda command: b"OK") -> None:
        self.name, self.answer = name, answer
        self.sent: list[bytes] = []
        self.pipelines: list[list[bytes]] = []
        self.connects = 0
        self._answers: list[Any] = []
        self.connection_pool = self

    def connect(self) -> Any:
        self.connects += 1
        self._answers.clear()
        return self

    def get_connection(self) -> FakeNode:
        return self

    def get_connection_kwargs(self) -> dict[str, str]:
        return {"host": self.name.partition(":")[0]}

    def send_command(self, *command: str) -> None:
        self._answers.append(f"run_id:{self.name}-{self.connects}\r\n".encode())

    def send_packed_command(self, packed: list[bytes]) -> None:
        commands = [b"*" + each for each in b"".join(packed).split(b"*")[1:]]
        self.pipelines.append(commands)
        self.sent += commands
        self._answers += [self.answer(command) for command in commands]

    def read_response(self) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def disconnect(self) -> None:
        pass

    def close(self) -> None:
        pass


class FakeServers:
    """Every key is the first server's until `refresh` takes what stands in `then`."""

    def __init__(self, *nodes: FakeNode) -> None:
        self.known = list(nodes)
        self.others: list[FakeNode] = []
        self.refreshed = 0
        self.then: FakeNode | None = None

    def nodes(self) -> list[Any]:
        return self.known

    def node_of(self, key: str) -> Any:
        return self.known[0]

    def at(self, host: str, port: int) -> Any:
        return next(node for node in (*self.known, *self.others) if node.name == f"{host}:{port}")

    def refresh(self) -> None:
        self.refreshed += 1
        if self.refreshed > 1 and self.then is not None:
            self.known = [self.then]


@pytest.fixture
def links() -> Iterator[Callable[[Any], Link]]:
    """Links to fake or real servers, connected; closed at the end."""
    made: list[Link] = []

    def make(servers: Any) -> Link:
        link = Link(servers, lambda state, reason: None)
        made.append(link)
        link.start()
        assert link.wait(lambda state: state != "away", 5000)
        return link

    yield make
    for link in made:
        link.close()


def scripted(*answers: Any) -> Callable[[bytes], Any]:
    """These answers, one after the other, then OK for ever."""
    left = iter(answers)
    return lambda command: next(left, b"OK")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_life(state: Any, event: Any) -> None:
    """F2: every state and event; what is not in the table changes nothing, and nothing comes back from closed."""
    told: list[tuple[str, str]] = []
    link = Link(FakeServers(), lambda state, reason: told.append((state, reason)))
    link.state = state
    after = link.tell(event, "why")
    assert after == link.state == LINK_LIFE.get((state, event), state)
    assert told == ([(after, "why")] if after != state else [])
    assert state != "closed" or after == "closed"
    assert event != "lost" or after in ("away", "closed")
    assert after != "ready" or (state, event) == ("recovering", "recovered") or state == "ready"


def test_nothing_is_taken_while_away() -> None:
    """F2: a link that is not connected refuses at once, and says why."""
    link = Link(FakeServers(), lambda state, reason: None)
    with pytest.raises(StoreUnavailable, match="not connected yet"):
        link.run(Ask(("GET", "k")))


def test_a_pipeline(links: Callable[[Any], Link]) -> None:
    """What is asked together goes out together, and each answer comes to its own ask."""
    node = FakeNode("a:1", scripted(b"1", b"2", b"3"))
    assert links(FakeServers(node)).run(*(Ask(("GET", "k")) for _ in range(3))) == [b"1", b"2", b"3"]
    assert node.pipelines == [[GET] * 3]


def test_a_long_queue_is_cut(links: Callable[[Any], Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline has a bound, and what is beyond it follows."""
    monkeypatch.setattr("tollkeeper.stores.redis.link.PIPELINE_MAX", 4)
    node = FakeNode("a:1")
    assert links(FakeServers(node)).run(*(Ask(("GET", "k")) for _ in range(10))) == [b"OK"] * 10
    assert [len(each) for each in node.pipelines] == [4, 4, 2]


def test_an_unknown_script(links: Callable[[Any], Link]) -> None:
    """A script that a server does not know is sent whole, once, by who was refused; the others' answers stand."""
    script = Script("void")
    node = FakeNode("a:1", scripted(b"first", NoScriptError("NOSCRIPT"), b"mine"))
    assert links(FakeServers(node)).run(Ask(("GET", "k")), script(["k"], [])) == [b"first", b"mine"]
    assert [b"EVALSHA" in each or b"EVAL\r\n" in each for each in node.sent] == [False, True, True]
    assert script.text.encode().splitlines()[0] in b"".join(node.sent[-1:])


def test_a_refusal_is_one_asks(links: Callable[[Any], Link]) -> None:
    """An error that answers one command is told to who asked it; the link and the others go on."""
    link = links(FakeServers(FakeNode("a:1", scripted(b"1", ResponseError("WRONGTYPE no"), b"3"))))
    first, second, third = (Ask(("GET", "k")) for _ in range(3))
    with pytest.raises(StoreUnavailable, match="WRONGTYPE no"):
        link.run(first, second, third)
    assert (first.answer, third.answer) == (b"1", b"3")
    assert link.state == "recovering"
    assert link.run(Ask(("GET", "k"))) == [b"OK"]


@pytest.mark.parametrize(
    "error", [ConnectionError("gone"), TimeoutError("slow"), ReadOnlyError("READONLY"), OSError("broken")]
)
def test_a_lost_connection(links: Callable[[Any], Link], error: Exception) -> None:
    """F2: what was answered before stands, every other ask fails once, nothing is sent again, and a new connection is made."""
    node = FakeNode("a:1", scripted(b"1", error))
    link = links(FakeServers(node))
    first, second, third = (Ask(("GET", "k")) for _ in range(3))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        link.run(first, second, third)
    assert first.answer == b"1"
    assert [type(each.answer) for each in (second, third)] == [StoreUnavailable] * 2
    assert link.wait(lambda state: state == "recovering", 5000)
    assert (len(node.sent), node.connects, link.runs) == (3, 2, {"a:1": "a:1-2"})


def test_a_mistake_of_ours(links: Callable[[Any], Link], caplog: pytest.LogCaptureFixture) -> None:
    """A command that cannot be sent fails who asked and is logged; the thread lives, and nobody waits for ever."""
    link = links(FakeServers(FakeNode("a:1")))
    with pytest.raises(StoreUnavailable):
        link.run(Ask(("GET", "k")), Ask(("GET", object()), "k"))
    assert "could not be sent" in caplog.text
    assert link.wait(lambda state: state == "recovering", 5000)
    assert link.run(Ask(("GET", "k"))) == [b"OK"]


def test_a_text_that_cannot_be_sent(links: Callable[[Any], Link]) -> None:
    """H4: a lone surrogate in an id is its caller's error alone: the others are answered, and the connection stays."""
    node = FakeNode("a:1")
    link = links(FakeServers(node))
    asks = [Ask(("GET", "k")), Ask(("HGET", "k", "\ud800")), Ask(("GET", "k"))]
    with pytest.raises(UnicodeEncodeError):
        link.run(*asks)
    assert [ask.answer for ask in asks][::2] == [b"OK"] * 2
    assert link.run(Ask(("GET", "k"))) == [b"OK"]
    assert node.connects == 1


def test_a_slot_that_has_moved(links: Callable[[Any], Link]) -> None:
    """MOVED: the map is read again, once for all that were sent by the old one, and they go where it says."""
    new = FakeNode("b:2", scripted(b"1", b"2", b"3"))
    servers = FakeServers(FakeNode("a:1", lambda command: MovedError("5 b:2")), new)
    servers.then = new
    link = links(servers)
    assert link.run(*(Ask(("GET", "k")) for _ in range(3))) == [b"1", b"2", b"3"]
    assert servers.refreshed == 2  # the first was at the start
    assert new.sent == [GET] * 3
    assert new.connects == 1


def test_a_server_that_took_over(links: Callable[[Any], Link]) -> None:
    """B4: MOVED to a server that was no master before: what it has is not known, so it is connected to anew, and checked."""
    new = FakeNode("b:2")
    servers = FakeServers(FakeNode("a:1", lambda command: MovedError("5 b:2")))
    servers.then = new
    link = links(servers)
    with pytest.raises(StoreUnavailable, match="b:2 has taken the place of another server"):
        link.run(Ask(("GET", "k")))
    assert link.wait(lambda state: state == "recovering", 5000)
    assert link.run(Ask(("GET", "k"))) == [b"OK"]
    assert link.runs == {"b:2": "b:2-1"}


def test_a_slot_that_moves(links: Callable[[Any], Link]) -> None:
    """ASK: this one goes to the other server, which may have no slots yet, behind ASKING; the next ones do not."""
    old, new = FakeNode("a:1", scripted(AskError("5 b:2"))), FakeNode("b:2")
    new.answer = scripted(b"OK", b"there")
    servers = FakeServers(old)
    servers.others = [new]
    link = links(servers)
    assert link.run(Ask(("GET", "k"))) == [b"there"]
    assert new.sent == [ASKING, GET]
    assert link.run(Ask(("GET", "k"))) == [b"OK"]
    assert (len(old.sent), len(new.sent), servers.refreshed) == (2, 2, 1)


def test_a_slot_that_moves_to_a_server_without_a_name(links: Callable[[Any], Link]) -> None:
    """ASK of a server that does not know its own name: the other one is beside it, at the host where it was asked itself."""
    old, new = FakeNode("a:1", scripted(AskError("3999 :7001"))), FakeNode("a:7001")
    new.answer = scripted(b"OK", b"there")
    servers = FakeServers(old)
    servers.others = [new]
    assert links(servers).run(Ask(("GET", "k"))) == [b"there"]
    assert new.sent == [ASKING, GET]


def test_redirections_end(links: Callable[[Any], Link]) -> None:
    """A server that never takes it is given up after some tries; that ask alone fails."""
    node = FakeNode("a:1", lambda command: TryAgainError("TRYAGAIN"))
    link = links(FakeServers(node))
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        link.run(Ask(("GET", "k")))
    assert len(node.sent) == REDIRECTS_MAX + 1
    assert link.state == "recovering"


async def test_whoever_left(links: Callable[[Any], Link]) -> None:
    """D4: a task that is cancelled while it waits leaves no error behind, and the others get their own answers."""
    held, go = threading.Event(), threading.Event()

    def answer(command: bytes) -> bytes:
        held.set()
        assert go.wait(5)
        return b"OK"

    link = links(FakeServers(FakeNode("a:1", answer)))
    gone = asyncio.create_task(link.asks([Ask(("GET", "k")), Ask(("GET", "k"))]))
    stays = asyncio.create_task(link.ask(Ask(("GET", "k"))))
    await asyncio.to_thread(held.wait, 5)
    gone.cancel()
    await asyncio.sleep(0)
    go.set()
    assert await stays == b"OK"
    assert gone.cancelled()


def test_several_loops(links: Callable[[Any], Link]) -> None:
    """Each event loop gets the answers of its own tasks; one that has ended disturbs nobody."""
    values = iter(range(1000))
    link = links(FakeServers(FakeNode("a:1", lambda command: next(values))))

    async def some() -> list[int]:
        return await link.asks([Ask(("GET", "k")) for _ in range(50)])

    async def leave() -> None:
        task = asyncio.create_task(some())
        await asyncio.sleep(0)
        task.cancel()

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(asyncio.run(some()))) for _ in range(4)]
    asyncio.run(leave())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 200


def test_close_answers_what_waits(links: Callable[[Any], Link]) -> None:
    """Whatever was asked before it was closed is answered; then it refuses."""
    node = FakeNode("a:1")
    link = links(FakeServers(node))
    asks = [Ask(("GET", "k")) for _ in range(1000)]
    threads = [threading.Thread(target=lambda ask=ask: link.run(ask)) for ask in asks[:20]]
    for thread in threads:
        thread.start()
    until(lambda: len(node.sent) >= 20, "they are sent")
    link.close()
    for thread in threads:
        thread.join(5)
    assert [ask.answer for ask in asks[:20]] == [b"OK"] * 20
    with pytest.raises(StoreUnavailable, match="closed"):
        link.run(asks[-1])


def test_a_real_server(links: Callable[[Any], Link], own_redis: RedisServer) -> None:
    """A script by its hash on a server that has never seen it; a server that is killed is another one when it is back."""
    link = links(Servers(parse(own_redis.url)))
    assert link.run(Script("census")(["k"], [1, 2**33, "a", "b"])) == [[1, 0]]
    runs = dict(link.runs)
    own_redis.kill()
    with pytest.raises(StoreUnavailable):
        link.run(Ask(("GET", "k")))
    own_redis.restart()
    assert link.wait(lambda state: state == "recovering", 10_000)
    assert link.runs.keys() == runs.keys()
    assert link.runs != runs


def test_a_name_that_cannot_be_a_host() -> None:
    """F1, I3: what fails while connecting, whatever it is, is told as the reason and tried again: the thread lives on."""
    link = Link(Servers(parse("redis://a..b:6379/0")), lambda state, reason: None)
    link.start()
    try:
        until(lambda: link.reason != "not connected yet", "it says why")
        assert "label" in link.reason
        assert link._thread.is_alive()
        with pytest.raises(StoreUnavailable, match="label"):
            link.run(Ask(("GET", "k")))
    finally:
        link.close()
