"""Requests that no honest client sends: refused within bounds, no 5xx, nothing sent, nothing counted."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import ASKS, BODIES, CHAT, Gateway, budget, gateway, parsed, request, until

from tollkeeper import api
from tollkeeper.api import CALLS

LIMIT = 100_000
SETTINGS = f"body_limit = {LIMIT}\n" + budget("all", 10, measure="requests", window="total") + budget("project", "100")
GOOD = json.dumps(CHAT).encode()
EACH = pytest.mark.parametrize(("path", "body"), ASKS, ids=list(CALLS))


async def unmoved(gw: Gateway) -> bool:
    """Nothing sent, booked, held or counted; and the next honest call still passes."""
    if not await gw.untouched():
        return False
    async with gw.post("/v1/chat/completions", CHAT) as response:
        return response.status == 200 and response.headers["x-tollkeeper-budget-limit"] in ("10", "100")


def with_field(body: dict[str, Any], text: str) -> bytes:
    """The body with `text` as another member, as it stands."""
    return json.dumps(body)[:-1].encode() + b", " + text.encode() + b"}"


BAD_FIELDS = {
    "duplicate model": '"model": "gpt-4o"',
    "duplicate by escapes": '"\\u006dodel": "gpt-4o"',
    "NaN": '"temperature": NaN',
    "Infinity": '"temperature": -Infinity',
    "absurd max_tokens": '"max_tokens": 1000000001',
    "negative max_tokens": '"max_tokens": -1',
    "float max_tokens": '"max_tokens": 1e3',
    "huge max_tokens": '"max_tokens": 1' + "0" * 400,
    "text max_tokens": '"max_tokens": "5"',
    "true max_tokens": '"max_tokens": true',
    "text stream": '"stream": "yes"',
    "half a surrogate": '"x": "\\ud800"',
    "trailing comma": '"x": 1,',
    "comment": '"x": 1 /* y */',
    "control character": '"x": "\x01"',
    "half of it": '"x": "',
    "stray end": '"x": 1}}',
}


@EACH
@pytest.mark.parametrize("text", BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
async def test_bad_fields(tmp_path: Path, path: str, body: dict[str, Any], text: str) -> None:
    """H4: duplicate keys, what is not JSON, and counts that no call can have are a 400 in the dialect's shape."""
    if "responses" in path:
        text = text.replace("max_tokens", "max_output_tokens")
    without = {name: value for name, value in body.items() if not (name == "max_tokens" and name in text)}
    elsewhere = ("max_tokens", "stream", "odel")  # Google's dialect has these in the path, or under another name
    harmless = (
        ("embeddings" in path and ("max_tokens" in text or "stream" in text))
        or ("models" in path and any(word in text for word in elsewhere))
        or text == BAD_FIELDS["half a surrogate"]
    )
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        async with gw.post(path, with_field(without, text)) as response:
            if harmless and response.status == 200:
                return
            assert response.status == 400, await response.text()
            told = await response.json()
            assert "message" in told["error"]
            assert told["request_id"] == response.headers["x-tollkeeper-request-id"]
        assert await unmoved(gw)


BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "null": (b"null", 400),
    "a list": (b"[" + GOOD + b"]", 400),
    "text": (b'"' + b"x" * 9 + b'"', 400),
    "two of them": (GOOD + GOOD, 400),
    "no model": (b'{"messages": []}', 400),
    "empty model": (b'{"model": "", "messages": []}', 400),
    "a model of 10,000 characters": (b'{"model": "' + b"m" * 10_000 + b'", "messages": []}', 400),
    "a model with a line break": (b'{"model": "gpt-4o\\r\\nx: y", "messages": []}', 400),
    "not UTF-8": (b'{"model": "gpt-4o", "x": "\xff"}', 400),
    "UTF-16": (GOOD.decode().encode("utf-16"), 400),
    "NUL": (GOOD + b"\0", 400),
    "nested arrays": (b'{"model": "gpt-4o", "messages": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 413),
    "nested objects": (b'{"model": "gpt-4o", "messages": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 413),
    "nested and unfinished": (b'{"a":' * 10_000, 413),
    "one byte above the limit": (b" " * (LIMIT + 1 - len(GOOD)) + GOOD, 413),
}


@pytest.mark.parametrize(("body", "status"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", [path for path, _ in ASKS])
async def test_bad_bodies(tmp_path: Path, path: str, body: bytes, status: int) -> None:
    """H4: what is no ask is refused by 400 or, past a bound, 413; whole and in chunks alike."""
    if "models" in path and body.endswith(b'"messages": []}'):
        pytest.skip("the model stands in the path")

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 30_000):
            yield body[at : at + 30_000]

    async with gateway(tmp_path, settings=SETTINGS) as gw:
        answer = await gw.raw(request(body, path))
        assert answer[0] == status, answer
        assert "error" in json.loads(answer[2])
        if body:
            async with gw.post(path, chunks()) as response:
                assert response.status == status
        assert await unmoved(gw)


async def test_body_at_the_limit_passes(tmp_path: Path) -> None:
    """H4: the limit itself is allowed."""
    async with gateway(tmp_path, settings=f"body_limit = {LIMIT}\n") as gw:
        async with gw.post("/v1/chat/completions", GOOD + b" " * (LIMIT - len(GOOD))) as response:
            assert response.status == 200
        await gw.entry()


@pytest.mark.parametrize("size", [LIMIT + 1, 10**12, 10**18])
async def test_declared_too_large(tmp_path: Path, size: int) -> None:
    """H4: a body declared too large is refused before it is sent, and its connection closed."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, headers, _ = await gw.raw(request(b"{", length=size).replace(b"connection: close\r\n", b""))
        assert (status, headers["connection"]) == (413, "close")
        assert await unmoved(gw)


async def test_body_without_end(tmp_path: Path) -> None:
    """H4: a chunked body that never ends is refused when it passes the limit: no more of it is read."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        reader, writer = await gw.connect()
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        while not (answer := reader._buffer) and sent < 100 * LIMIT:  # type: ignore[attr-defined]
            writer.write(b"2710\r\n" + b" " * 10_000 + b"\r\n")
            sent += 10_000
            await asyncio.sleep(0)
        assert sent < 20 * LIMIT
        assert parsed(bytes(answer))[0] == 413
        writer.transport.abort()  # type: ignore[attr-defined]
        assert await unmoved(gw)


@pytest.mark.parametrize("path", ["/nowhere", "/healthz", "/v1/models"])
async def test_body_where_none_is_taken(tmp_path: Path, path: str) -> None:
    """H4: who posts without end where nothing is taken is answered and cut off."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" % path.encode()
        status, headers, _ = await gw.raw(head + b"x" * 1000)
        assert status in (404, 405)
        assert headers["connection"] == "close"
        assert await unmoved(gw)


@pytest.mark.parametrize("first", [b"", b"{", b"1\r\n{\r\n"], ids=["nothing", "a byte", "a chunk"])
async def test_body_that_does_not_come(tmp_path: Path, first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: a body that stops on its way is given up in time: 400 where some of it came, else the connection is closed."""
    monkeypatch.setattr("tollkeeper.server.HEAD_S", 0.05)
    monkeypatch.setattr(api, "BODY_S", 0.05)
    framing = b"transfer-encoding: chunked" if first.endswith(b"\n") else b"content-length: 99"
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n"
        status, _, body = await gw.raw(head + first)
        assert status == (400 if first else 0)
        assert (b"did not arrive" in body) == bool(first)
        assert await unmoved(gw)


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"POST /v1/mess", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: b"], ids=repr)
async def test_head_that_does_not_come(tmp_path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: a connection that never says what it wants is closed."""
    monkeypatch.setattr("tollkeeper.server.HEAD_S", 0.05)
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        assert (await gw.raw(sent))[0] == 0
        assert await unmoved(gw)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity", "x"])
@EACH
async def test_compressed_bodies(tmp_path: Path, path: str, body: dict[str, Any], encoding: str) -> None:
    """H4: a compressed body is refused by 415 without being unpacked."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        packed = gzip.compress(json.dumps(body).encode())
        answer = await gw.raw(request(packed, path, head=b"content-encoding: %b\r\n" % encoding.encode()))
        assert answer[0] == 415
        assert b"Content-Encoding" in answer[2]
        assert await unmoved(gw)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
SIZED = HEAD + b"content-length: %d\r\n" % len(GOOD)
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)

SMUGGLED = {
    "both framings": SIZED + b"transfer-encoding: chunked\r\n\r\n" + ONE_CHUNK,
    "both framings, other order": CHUNKED + b"content-length: 5\r\n\r\n" + ONE_CHUNK,
    "two lengths": SIZED + b"content-length: 5\r\n\r\n" + GOOD,
    "the same length twice": SIZED + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD,
    "a list of lengths": HEAD + b"content-length: 5, 5\r\n\r\n" + GOOD,
    "a signed length": HEAD + b"content-length: +%d\r\n\r\n" % len(GOOD) + GOOD,
    "a negative length": HEAD + b"content-length: -1\r\n\r\n" + GOOD,
    "a hex length": HEAD + b"content-length: 0x50\r\n\r\n" + GOOD,
    "an endless length": HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n" + GOOD,
    "chunked twice over": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + ONE_CHUNK,
    "another coding": HEAD + b"transfer-encoding: gzip\r\n\r\n" + ONE_CHUNK,
    "a coding with a tab": HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n" + ONE_CHUNK,
    "space before the colon": HEAD + b"content-length : %d\r\n\r\n" % len(GOOD) + GOOD,
    "a folded header": SIZED + b"x-a: b\r\n c\r\n\r\n" + GOOD,
    "a bare CR in a value": SIZED + b"x-a: b\rx-b: c\r\n\r\n" + GOOD,
    "a NUL in a value": SIZED + b"x-a: b\0c\r\n\r\n" + GOOD,
    "a NUL in a name": SIZED + b"x\0a: b\r\n\r\n" + GOOD,
    "no colon": SIZED + b"nonsense\r\n\r\n" + GOOD,
    "an empty name": SIZED + b": b\r\n\r\n" + GOOD,
    "a bad chunk size": CHUNKED + b"\r\nxyz\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"\r\n-5\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a chunk size of 2^64": CHUNKED + b"\r\n10000000000000000\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"\r\n%x\r\n" % len(GOOD) + GOOD + b"0\r\n\r\n",
    "another version": SIZED.replace(b"HTTP/1.1", b"HTTP/3.7") + b"\r\n" + GOOD,
    "no version": b"POST /v1/chat/completions\r\n\r\n" + GOOD,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 60 + b"\r\n\r\n",
    "a path with a space": SIZED.replace(b"/v1/chat", b"/v1/ chat") + b"\r\n" + GOOD,
    "a path with high bytes": SIZED.replace(b"/v1/chat", b"/v1/\xff\xfe") + b"\r\n" + GOOD,
    "no path": SIZED.replace(b"/v1/chat/completions", b"") + b"\r\n" + GOOD,
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n" + GOOD,
    "an unknown method": SIZED.replace(b"POST", b"TOLL") + b"\r\n" + GOOD,
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_smuggling(tmp_path: Path, sent: bytes) -> None:
    """H4: two framings, odd framings and broken heads are refused by a 4xx and the connection closed, never guessed at."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, headers, _ = await gw.raw(sent)
        assert 400 <= status < 500
        assert headers["connection"] == "close"
        assert await unmoved(gw)


async def test_bare_line_feeds(tmp_path: Path) -> None:
    """H4: line ends that some servers read otherwise are refused, or read as one plain request."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, _, _ = await gw.raw(SIZED.replace(b"\r\n", b"\n") + b"\n" + GOOD)
        assert status in (200, 400)
        await until(lambda: gw.booked(len(gw.fake.requests)))
        assert len(gw.fake.requests) == (status == 200)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
async def test_upgrades(tmp_path: Path, upgrade: str) -> None:
    """H4: nobody is upgraded to another protocol."""
    head = b"upgrade: %b\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n" % upgrade.encode()
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, _, _ = await gw.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + head + b"\r\n")
        assert status in (200, 400)
        assert await unmoved(gw)


LARGE_HEADS = {
    "10,000 headers": b"".join(b"x-%d: y\r\n" % number for number in range(10_000)),
    "a value of 1 MB": b"x-a: " + b"y" * 1_000_000 + b"\r\n",
    "a name of 1 MB": b"x" * 1_000_000 + b": y\r\n",
    "101 headers": b"".join(b"x-%d: y\r\n" % number for number in range(101)),
    "65 kB in all": b"x-a: " + b"y" * 40_000 + b"\r\nx-b: " + b"y" * 25_600 + b"\r\n",
}


@pytest.mark.parametrize("head", LARGE_HEADS.values(), ids=LARGE_HEADS.keys())
async def test_over_long_heads(tmp_path: Path, head: bytes) -> None:
    """H4: a head of too many bytes or fields is a 431, in one piece or in many, and never reaches the application."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        for step in (len(head), 30_000):
            reader, writer = await gw.connect()
            writer.write(HEAD)
            for at in range(0, len(head), step):
                writer.write(head[at : at + step])
                await asyncio.sleep(0)
            writer.write(b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD)
            try:
                answer = await asyncio.wait_for(reader.read(), 5)
                assert parsed(answer)[0] == 431
            except ConnectionResetError:  # closed while more was on its way
                pass
            writer.transport.abort()  # type: ignore[attr-defined]
        assert await unmoved(gw)


async def test_long_path(tmp_path: Path) -> None:
    """H4: an over-long path is a 431."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, _, _ = await gw.raw(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status == 431
        assert await unmoved(gw)


async def test_trailers_are_no_headers(tmp_path: Path) -> None:
    """H4: what follows a chunked body never changes whose call it is."""
    trailer = b"x-tollkeeper-project: stolen\r\nauthorization: Bearer x\r\n\r\n"
    async with gateway(tmp_path) as gw:
        sent = CHUNKED + b"x-tollkeeper-project: mine\r\n\r\n" + ONE_CHUNK.removesuffix(b"\r\n") + trailer
        assert (await gw.raw(sent))[0] == 200
        entry = await gw.entry()
    assert entry.scopes.project == "mine"


async def test_trailers_without_end(tmp_path: Path) -> None:
    """H4: trailers are bounded as headers are."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        body = b"5\r\n{{{{{\r\n0\r\n" + b"x-a: b\r\n" * 10_000
        status, _, _ = await gw.raw(CHUNKED + b"\r\n" + body + b"\r\n")
        assert status in (400, 431)
        assert await unmoved(gw)


async def test_pipelining(tmp_path: Path) -> None:
    """H4: requests sent ahead are answered one after the other, each a call of its own."""
    async with gateway(tmp_path) as gw:
        ahead = request(GOOD).replace(b"connection: close\r\n", b"")
        reader, writer = await gw.connect()
        writer.write(ahead + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + ahead + request(GOOD))
        answers = (await asyncio.wait_for(reader.read(), 5)).split(b"HTTP/1.1 ")[1:]
        writer.close()
        await until(lambda: gw.booked(3))
        assert [answer[:3] for answer in answers] == [b"200"] * 4
        assert len({entry.call for entry in await gw.entries()}) == len(gw.fake.requests) == 3


async def test_nonsense_after_a_call(tmp_path: Path) -> None:
    """H4: what cannot be parsed behind a good request ends the connection; the call is booked once all the same."""
    async with gateway(tmp_path) as gw:
        reader, writer = await gw.connect()
        writer.write(request(GOOD).replace(b"connection: close\r\n", b"") + b"\0\0\0 nonsense\r\n\r\n")
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert (await gw.entry()).charge.status == "priced"


BAD_HEADERS = {
    "empty": b"x-tollkeeper-project: \r\n",
    "129 characters": b"x-tollkeeper-agent: " + b"a" * 129 + b"\r\n",
    "control character": b"x-tollkeeper-session: a\tb\r\n",
    "not UTF-8": b"x-tollkeeper-user: \xff\r\n",
    "17 tags": b"x-tollkeeper-tags: " + b",".join(b"%d" % n for n in range(17)) + b"\r\n",
    "an empty tag": b"x-tollkeeper-tags: a,,b\r\n",
}


@pytest.mark.parametrize("head", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
async def test_bad_scope_headers(tmp_path: Path, head: bytes) -> None:
    """H4: a scope header that is no id is a 400 that names it."""
    async with gateway(tmp_path, settings=SETTINGS) as gw:
        status, _, body = await gw.raw(request(GOOD, head=head))
        assert status == 400
        assert head.partition(b":")[0] in body
        assert await unmoved(gw)


async def test_absurd_usage_is_not_counted(tmp_path: Path) -> None:
    """H4: counts that no call can have never reach the ledger, wherever a provider sends them."""
    from tollkeeper.testing.provider import FakeProvider, Replay

    absurd = (b"-5", b"1e400", b"NaN", b"true", b'"7"', b"10000000000", b"1.5", b"9" * 400)
    replies = [
        Replay(b'{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":%b,"completion_tokens":1}}' % each)
        for each in absurd
    ]
    async with gateway(tmp_path, FakeProvider(replies), SETTINGS) as gw:
        for count in range(1, len(absurd) + 1):
            async with gw.post("/v1/chat/completions", BODIES["openai-chat"] | {"max_tokens": 50}) as response:
                assert response.status == 200
            await until(lambda count=count: gw.booked(count))  # type: ignore[misc]
        for entry in await gw.entries():
            assert entry.charge.status == "estimated"
            assert 0 <= entry.usage.output <= 50
            assert 0 < entry.usage.input < 5000
