"""The sockets to providers: what is sent, what comes back, and what is said when it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from tollkeeper.connections import PIECE
from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.testing.provider import serving
from tollkeeper.upstream import REQUEST_HEADERS, RESPONSE_HEADERS, HttpUpstream
from tollkeeper.values import Credential, Provider, Route


@asynccontextmanager
async def upstream(**more: Any) -> AsyncIterator[HttpUpstream]:
    opened = HttpUpstream(connect_timeout_s=1, **more)
    try:
        yield opened
    finally:
        await opened.close()


def route(url: str, key: Credential | None = None, **more: Any) -> Route:
    return Route(Provider(name="p", base_url=url, dialects=frozenset(), **more), "m", key)


class Application:
    """An ASGI application that keeps its requests and answers as it is told."""

    def __init__(self, *pieces: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self._pieces, self._headers = pieces or (b"{}",), headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": list(self._headers)})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """A server that answers whatever comes with these bytes, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_all(answer: Any) -> bytes:
    data = b""
    while chunk := await answer.read():
        assert len(chunk) <= PIECE
        data += chunk
    return data


@pytest.mark.parametrize(
    ("credential_header", "expected"),
    [("authorization", "Bearer sk-1"), ("x-api-key", "sk-1"), ("api-key", "sk-1"), ("Authorization", "Bearer sk-1")],
)
async def test_what_a_provider_gets(credential_header: str, expected: str) -> None:
    """H3: the provider's own credential, the headers of the allow-list, and the bytes of the body; nothing else."""
    app = Application()
    client = dict.fromkeys(REQUEST_HEADERS, b"v") | {
        b"authorization": b"Bearer tk", b"x-api-key": b"tk", b"cookie": b"a=b", b"host": b"evil", b"x-other": b"1",
        b"content-type": b"text/evil", b"connection": b"upgrade", b"transfer-encoding": b"chunked", b"user-agent": b"e",
    }  # fmt: skip
    async with serving(app) as url, upstream() as opened:
        there = route(url + "/v1", Credential("KEY", "sk-1"), credential_header=credential_header)
        async with opened.open(there, "openai-chat", "/chat", b'{"a": 1 }', client) as answer:
            assert await read_all(answer) == b"{}"
    sent = {name.decode(): value.decode() for name, value in app.scopes[0]["headers"]}
    assert len(sent) == len(app.scopes[0]["headers"])
    assert sent.pop("host") == url.removeprefix("http://")
    assert sent.pop(credential_header.lower()) == expected
    assert {name: sent.pop(name.decode()) for name in REQUEST_HEADERS} == dict.fromkeys(REQUEST_HEADERS, "v")
    assert sent == {
        "content-type": "application/json", "content-length": "9", "user-agent": "tollkeeper",
        "accept-encoding": "identity",
    }  # fmt: skip
    assert app.scopes[0]["path"] == "/v1/chat"
    assert app.bodies == [b'{"a": 1 }']


async def test_the_key_is_that_of_the_route() -> None:
    """H3: of a provider's keys the one of the route is sent, also where a changed one has the name of another."""
    app = Application()
    async with serving(app) as url, upstream() as opened:
        first = route(url, Credential("A", "sk-a"))
        second = structs.replace(first, credential=Credential("B", "sk-b"))
        changed = structs.replace(first, credential=Credential("A", "sk-new"))
        for there in (first, second, first, changed, structs.replace(first, credential=None)):
            async with opened.open(there, "openai-chat", "/m", b"", {}) as answer:
                await read_all(answer)
    sent = [dict(scope["headers"]).get(b"authorization") for scope in app.scopes]
    assert sent == [b"Bearer sk-a", b"Bearer sk-b", b"Bearer sk-a", b"Bearer sk-new", None]


async def test_configured_headers() -> None:
    """A provider's configured header is sent, and gives way to a client's of the same name; no credential, no header."""
    app = Application()
    async with serving(app) as url, upstream() as opened:
        there = route(url, headers=(("anthropic-version", "2023-06-01"), ("x-team", "tolls")))
        for headers in ({}, {b"anthropic-version": b"2024-01-01"}):
            async with opened.open(there, "openai-chat", "/m", b"", headers) as answer:
                await read_all(answer)
    sent = [dict(scope["headers"]) for scope in app.scopes]
    assert [each[b"anthropic-version"] for each in sent] == [b"2023-06-01", b"2024-01-01"]
    assert {each[b"x-team"] for each in sent} == {b"tolls"}
    assert not [each for each in sent if b"authorization" in each]


async def test_what_comes_back() -> None:
    """H3: status, allowed headers and bytes come back; a stream is known by its content type, in any letter case."""
    shown = tuple((name, b"v") for name in sorted(RESPONSE_HEADERS - {b"content-type"}))
    limits = ((b"x-ratelimit-reset", b"1s"), (b"anthropic-ratelimit-x", b"2"))
    hidden = ((b"set-cookie", b"a=b"), (b"server", b"x"), (b"x-tollkeeper-cost", b"9"), (b"connection", b"keep-alive"))
    for kind, streams in (
        (b"text/event-stream; charset=utf-8", True),
        (b"Text/Event-Stream", True),
        (b"application/json", False),
    ):
        app = Application(b"ab", b"cd", headers=((b"content-type", kind), *shown, *limits, *hidden))
        async with (
            serving(app) as url,
            upstream() as opened,
            opened.open(route(url), "openai-chat", "/", b"", {}) as answer,
        ):
            assert answer.status == 200
            assert answer.is_stream == streams
            assert sorted(answer.headers) == sorted(((b"content-type", kind), *shown, *limits))
            assert await read_all(answer) == b"abcd"
            assert await answer.read() == b""


async def test_long_replies_come_in_pieces() -> None:
    """D6: a reply is read in pieces of at most PIECE bytes, whatever has arrived."""
    app = Application(b"x" * 3_000_000)
    async with (
        serving(app) as url,
        upstream() as opened,
        opened.open(route(url), "openai-chat", "/", b"", {}) as answer,
    ):
        assert len(await read_all(answer)) == 3_000_000


async def test_connections_are_kept_if_read_to_the_end() -> None:
    """A connection is used again after a whole reply, and closed after half of one."""
    app = Application(b"x" * 1_000_000)
    async with serving(app) as url, upstream() as opened:
        for whole in (True, True, False, True):
            async with opened.open(route(url), "openai-chat", "/", b"", {}) as answer:
                await (read_all(answer) if whole else answer.read())
    ports = [scope["client"][1] for scope in app.scopes]
    assert ports[0] == ports[1] == ports[2] != ports[3]


async def test_redirects_are_answers() -> None:
    """H3: a redirect is an answer like any other."""
    async with (
        answering(b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nhi") as url,
        upstream() as opened,
        opened.open(route(url), "openai-chat", "/", b"{}", {}) as answer,
    ):
        assert (answer.status, answer.headers) == (307, [])
        assert await read_all(answer) == b"hi"


async def test_unreachable() -> None:
    """Nobody listens, or there is no such name: nothing was sent, nothing is owed, and the address is not told."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with upstream() as opened:
            for url in (f"http://127.0.0.1:{taken.getsockname()[1]}", "https://no-such-host.invalid"):
                opening = opened.open(route(url), "openai-chat", "/", b"", {})
                with pytest.raises(UpstreamUnreachable) as error:
                    async with opening:
                        pass
                assert not opening.sent
                assert error.value.owed == "no"
                assert str(error.value).startswith("provider p cannot be reached: ")
                assert url.split("/")[-1] not in str(error.value)


async def test_cut_off_before_and_after_it_was_sent() -> None:
    """B5: whether a provider may have seen a request is known also where nobody waited for the connection."""
    heard = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server, upstream() as opened:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for wait, sent in ((asyncio.sleep(0), False), (heard.wait(), True)):
            opening = opened.open(route(url), "openai-chat", "/", b"{}", {})
            entering = asyncio.ensure_future(opening.__aenter__())
            await wait
            entering.cancel()
            await asyncio.wait([entering])
            assert (entering.cancelled(), opening.sent) == (True, sent)


async def test_no_tls_where_it_should_be() -> None:
    """An https provider that does not speak TLS was not sent anything."""
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as url, upstream() as opened:
        with pytest.raises(UpstreamUnreachable):
            async with opened.open(route(url.replace("http:", "https:")), "openai-chat", "/", b"", {}):
                pass


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nx\0: y\r\n\r\n"], ids=repr
)
async def test_broken_before_the_answer(reply: bytes) -> None:
    """A request that was sent and got no answer may be owed."""
    async with answering(reply) as url, upstream() as opened:
        with pytest.raises(StreamBroken) as error:
            async with opened.open(route(url), "openai-chat", "/", b"", {}):
                pass
        assert error.value.owed == "unknown"


@pytest.mark.parametrize(
    "framing",
    [b"content-length: 9\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"],
)
async def test_broken_in_the_body(framing: bytes) -> None:
    """D3: what came before a break is read; then the break is told."""
    async with answering(b"HTTP/1.1 200 OK\r\n" + framing) as url, upstream() as opened:
        async with opened.open(route(url), "openai-chat", "/", b"", {}) as answer:
            with pytest.raises(StreamBroken) as error:
                await read_all(answer)
        assert error.value.owed == "yes"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_compressed_replies(encoding: str) -> None:
    """A reply that is compressed against our asking cannot be metered: it is an error, and may be owed."""
    reply = f"HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: 2\r\n\r\nhi".encode()
    async with answering(reply) as url, upstream() as opened:
        with pytest.raises(StreamBroken, match="compression") as error:
            async with opened.open(route(url), "openai-chat", "/", b"", {}):
                pass
        assert error.value.owed == "yes"
    plain = reply.replace(encoding.encode(), b"Identity")
    async with (
        answering(plain) as url,
        upstream() as opened,
        opened.open(route(url), "openai-chat", "/", b"", {}) as answer,
    ):
        assert await read_all(answer) == b"hi"


async def test_odd_header_values_do_no_harm() -> None:
    """A provider's header that could not be sent on is changed or left out, never an error."""
    reply = b"HTTP/1.1 200 OK\r\nx-request-id: a\tb\r\nopenai-model: \xe9\xff\r\ncontent-length: 2\r\n\r\nhi"
    async with (
        answering(reply) as url,
        upstream() as opened,
        opened.open(route(url), "openai-chat", "/", b"", {}) as answer,
    ):
        for name, value in answer.headers:
            assert not [byte for byte in name + value if byte < 32 or byte == 127]
        assert await read_all(answer) == b"hi"


async def found(monkeypatch: pytest.MonkeyPatch, allow: frozenset[str], *addresses: str) -> list[str]:
    """What a name leads to that resolves to these addresses."""

    async def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        return [(2, 1, 6, "", (each, port)) for each in addresses]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return await HttpUpstream(connect_timeout_s=1, allow_hosts=allow)._addresses("provider.example", 443)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.1.1", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254"]
)
async def test_names_that_lead_to_metadata(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """H3: a name that resolves to a link-local or metadata address is refused, unless the configuration allows that host."""
    with pytest.raises(OSError, match="allow_hosts"):
        await found(monkeypatch, frozenset(), address)
    assert await found(monkeypatch, frozenset(), address, "192.0.2.1") == ["192.0.2.1"]
    assert await found(monkeypatch, frozenset({"provider.example"}), address) == [address]
