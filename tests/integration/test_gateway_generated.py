"""H4: more than 100,000 generated bad requests, by seed: no 5xx, nothing sent, nothing counted.

Half of them are bodies at the dialects' own door, half are bytes at the protocol of the real gateway, without sockets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.gateway import ASKS, BODIES, ENVIRON, PROVIDERS, budget
from uvicorn.server import ServerState

from tollkeeper import app, config
from tollkeeper.api import PAGES
from tollkeeper.dialects import DIALECTS
from tollkeeper.dialects.json_body import json_depth_ok
from tollkeeper.errors import RequestError
from tollkeeper.server import BoundedHttp
from tollkeeper.values import MAX_TOKENS, Scopes

BODIES_EACH = 20_000
HEADS = 50_000
BATCH = 200

NUMBERS = [
    "0",
    "-1",
    "1e400",
    "1.5",
    "NaN",
    "Infinity",
    "1000000001",
    "9" * 50,
    "true",
    "null",
    "-0",
    "1E2",
    "0x10",
    "07",
]
TEXTS = [
    '""',
    '"gpt-4o"',
    '"\\u0000"',
    '"\\ud800"',
    '"' + "m" * 300 + '"',
    '"\x00"',
    '"\u2028"',
    '"\\',
    '"a\nb"',
    '"yes"',
]
NAMES = ["model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n", "user", "metadata",
         "input", "tools", "system", "include_usage", "service_tier", "content", "type", "\\u006dodel", "x", "",
         "contents", "parts", "generationConfig", "generation_config", "maxOutputTokens", "candidateCount", "fileData",
         "requests"]  # fmt: skip
TARGETS = {"google-generate": "/v1beta/models/m:generateContent"}
MARKS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"\r\n", b"//", b"NaN"]
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b": ", b"\xff", b"%00", b"/../", b"0\r\n\r\n", b"5\r\n", b"\r\n\r\n",
    b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"content-length: 99999999999\r\n", b"HTTP/1.1",
    b"Content-Encoding: gzip\r\n", b"expect: 100-continue\r\n", b"upgrade: websocket\r\nconnection: upgrade\r\n",
    b"x-tollkeeper-agent: \xc3\x28\r\n", b"x-tollkeeper-tags: ,,,\r\n", b"authorization: Bearer \xf0\x9f\x98\x80\r\n",
    b"POST /v1/messages HTTP/1.1\r\n", b"GET /v1/models HTTP/1.1\r\n\r\n", b"connection: close\r\n", b"trailer: x\r\n",
]  # fmt: skip


def value(chance: random.Random, depth: int = 0) -> str:
    """JSON, or nearly."""
    kind = chance.random()
    if depth < 4 and kind < 0.25:
        members = [f'"{chance.choice(NAMES)}": {value(chance, depth + 1)}' for _ in range(chance.randrange(4))]
        return "{" + ", ".join(members) + "}"
    if depth < 4 and kind < 0.45:
        return "[" + ", ".join(value(chance, depth + 1) for _ in range(chance.randrange(4))) + "]"
    return chance.choice(NUMBERS if kind < 0.75 else TEXTS)


def mutated(chance: random.Random, data: bytes, tokens: list[bytes]) -> bytes:
    """A few cuts, copies, flips and insertions."""
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.randrange(1, 20))
        match chance.randrange(6):
            case 0:
                data = data[:at] + data[to:]
            case 1:
                data = data[:to] + data[at:]
            case 2:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 3:
                data = data[:at]
            case _:
                data = data[:at] + chance.choice(tokens) + data[at:]
    return data


def body_of(chance: random.Random, good: dict[str, Any]) -> bytes:
    """A body that is wrong in its fields, or in its bytes."""
    raw = json.dumps(good)
    if chance.random() < 0.6:
        fields = [f'"{chance.choice(NAMES)}": {value(chance)}' for _ in range(chance.randrange(1, 4))]
        raw = raw[:-1] + ", " + ", ".join(fields) + "}" if chance.random() < 0.5 else "{" + ", ".join(fields) + "}"
        return raw.encode(errors="surrogatepass")
    return mutated(chance, raw.encode(), MARKS)


@pytest.mark.parametrize("name", DIALECTS)
def test_generated_bodies(name: str) -> None:
    """H4: a generated body is refused by an error of the request's own, or is an ask within every bound."""
    chance = random.Random(name)
    dialect, good = DIALECTS[name], {"model": "m"} | BODIES[name]
    refusals = []
    for _ in range(BODIES_EACH):
        body = body_of(chance, good)
        json_depth_ok(body, 128)
        try:
            ask = dialect.read_ask(body)
        except RequestError as error:
            refusals.append((error.http_status, "\n" in str(error)))
            continue
        assert 0 < len(ask.model) <= 256
        assert ask.model.isprintable()
        assert len(body) <= ask.prompt_bound
        assert ask.output_cap is None or 0 <= ask.output_cap <= MAX_TOKENS
        assert 1 <= ask.choices <= 128
        written = dialect.write_body(ask, model="m", output_cap=7, quirks=frozenset())
        assert dialect.read_ask(written, TARGETS.get(name, "")).model == "m"
    assert {status for status, _ in refusals} <= {400, 413}
    assert not any(several_lines for _, several_lines in refusals)
    assert BODIES_EACH // 2 < len(refusals) < BODIES_EACH


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)})
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def request_of(chance: random.Random) -> bytes:
    """Bytes of a request, or two, with something wrong."""
    path, good = chance.choice(ASKS)
    body = json.dumps(good).encode() if chance.random() < 0.7 else body_of(chance, good)
    if chance.random() < 0.1:
        path = chance.choice(PAGES)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % path.encode()
    if chance.random() < 0.7:
        raw = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        raw = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    wrong = raw if chance.random() < 0.05 else mutated(chance, raw, TOKENS)
    return wrong + (raw if chance.random() < 0.1 else b"")


STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


async def test_generated_requests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """H4: generated bytes at the real gateway get a 4xx or nothing; no provider is asked, no balance moves, no task dies."""
    caplog.set_level(logging.ERROR)
    file = tmp_path / "tollkeeper.toml"
    settings = 'store = "memory:"\n' + budget("all", 0, measure="requests", window="total")
    file.write_text(settings + PROVIDERS.format(url="http://127.0.0.1:9"))
    built = app.build(
        config.load(file, ENVIRON)
    )  # it is not running: a call that came as far as the provider would fail
    served = uvicorn.Config(
        built.api, http=BoundedHttp, lifespan="off", log_config=None, ws="none", interface="asgi3", proxy_headers=False,
        access_log=False,
    )  # fmt: skip
    served.load()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a warning for each takes half the time
    chance = random.Random(4)
    seen: dict[int, int] = {}
    try:
        for _ in range(HEADS // BATCH):
            for sent, status in await batch(chance, served):
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, sent
                assert status >= 400 or status == 0 or b"GET /" in sent or b"HEAD /" in sent or status == 100, sent
        assert await built.gate.store.live() == []
        assert [entry async for entry in built.gate.store.entries(0, 2**60)] == []
        (standing,) = await built.gate.store.standings(
            Scopes(project="default"), "gpt-4o-mini", built.gate.clock.now_us()
        )
        assert (standing.spent, standing.held) == (0, 0)
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
        await built.gate.store.close()
    assert caplog.records == []
    assert all(seen.get(status, 0) > 100 for status in (0, 400, 402, 404)), seen


async def batch(chance: random.Random, served: uvicorn.Config) -> list[tuple[bytes, int]]:
    """Some connections at once: what each sent and every status that it got (0: none)."""
    state = ServerState()
    made: list[tuple[bytes, BoundedHttp, Wire]] = []
    for _ in range(BATCH):
        raw, wire, protocol = request_of(chance), Wire(), BoundedHttp(served, state, {})
        protocol.connection_made(wire)
        cut = chance.randrange(len(raw) + 1)
        for piece in (raw[:cut], raw[cut:]):
            if piece and not wire.closed:
                protocol.data_received(piece)
        made.append((raw, protocol, wire))
    for _ in range(8):
        await asyncio.sleep(0)
    for _, protocol, wire in made:
        wire.closed = True
        protocol.connection_lost(None)
    await asyncio.gather(*state.tasks)
    return [
        (raw, int(status)) for raw, _, wire in made for status in STATUS.findall(b"".join(wire.written)) or [b"0"]
    ]  # fmt: skip


def test_there_are_enough() -> None:
    """H4: at least 100,000 inputs in all."""
    assert BODIES_EACH * len(DIALECTS) + HEADS >= 100_000
