"""HTTP in, HTTP out: the application itself, with scripted messages and no server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import ASKS, PROVIDERS, budget

from tollkeeper import api, app, config
from tollkeeper.api import CALLS, CLOSE, FREE, OPEN, PAGES, QUESTIONS, AsgiReply, dialect_at
from tollkeeper.dialects import DIALECTS
from tollkeeper.keys import hash_secret
from tollkeeper.stores import Condition
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.values import Place

LIMIT = 2000
GONE = {"type": "http.disconnect"}


@pytest.fixture
def built(tmp_path: Path) -> app.App:
    """A gateway whose budget is used up: every call that reaches the line is a 402."""
    file = tmp_path / "tollkeeper.toml"
    settings = f'store = "memory:"\nbody_limit = {LIMIT}\ndepth_limit = 8\n' + budget("all", 0, measure="requests")
    file.write_text(settings + PROVIDERS.format(url="http://127.0.0.1:9"))
    return app.build(config.load(file, {"PROVIDER_KEY": "sk"}))


def part(body: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def ask(
    built: app.App,
    path: str,
    *messages: dict[str, Any],
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> tuple[int | None, dict[str, str], Any]:
    """Status, headers and JSON (or text) of the reply; status None if there was none. After `messages` the client waits."""
    arriving, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        if not arriving:
            await asyncio.Event().wait()
        return arriving.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "query_string": b"", "headers": list(headers)}
    await built.api(scope, receive, send)
    if not sent:
        return None, {}, None
    start, body = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(told) == len(start["headers"])
    assert told["content-length"] == str(len(body["body"]))
    assert not body.get("more_body")
    text = body["body"].decode()
    return start["status"], told, json.loads(text) if told["content-type"] == "application/json" else text


GOOD = [(path, json.dumps(body).encode()) for path, body in ASKS]
EACH = pytest.mark.parametrize(("path", "body"), GOOD, ids=list(CALLS))


def test_tables_agree() -> None:
    """C6: every dialect has a path, every path a dialect, and open pages are pages."""
    assert set(CALLS.values()) == set(DIALECTS)
    assert set(PAGES) >= OPEN
    assert not set(CALLS) & set(PAGES)
    assert not set(QUESTIONS) & {*CALLS, *FREE, *PAGES}
    for path, name in (CALLS | FREE).items():
        own = DIALECTS[name].path
        assert path.startswith(("/v1" + own, "/v1beta" + own)), path


@pytest.mark.parametrize("path", [*CALLS, *FREE])
def test_paths_that_name_a_model(path: str) -> None:
    """C6: a path of the tables is known with any model in it, and with none it is not."""
    name = (CALLS | FREE)[path]
    assert dialect_at(path) == name
    if "{model}" in path:
        for model in ("gemini-2.5-flash", "google/gemini-2.5-flash", "llama3:8b", "a b", "é"):
            assert dialect_at(path.replace("{model}", model)) == name
        for other in (path.replace("{model}", ""), path + "x", path.replace(":", "/"), "/v2" + path, path.lower()):
            assert dialect_at(other) is None, other


@EACH
async def test_calls_go_to_the_line(built: app.App, path: str, body: bytes) -> None:
    """A whole body, in one piece or many, reaches the line: here its budget refuses it."""
    pieces = [part(body[at : at + 10], True) for at in range(0, len(body), 10)]
    for messages in ([part(body)], [*pieces, part()], [part(b"", True), part(body)]):
        status, told, document = await ask(built, path, *messages)
        assert status == 402
        assert "error" in document
        assert CLOSE[0].decode() not in told


@EACH
async def test_client_that_leaves_while_it_sends(built: app.App, path: str, body: bytes) -> None:
    """H4: half a body is no call: nothing is answered, nothing is reserved."""
    for messages in ([GONE], [part(body, True), GONE]):
        assert await ask(built, path, *messages) == (None, {}, None)
    assert await built.gate.store.live() == []


@EACH
@pytest.mark.parametrize("declared", [b"2001", b"9" * 5000, b"-1", b"1e3", b"0x1", b"", "²".encode()], ids=repr)
async def test_declared_lengths(built: app.App, path: str, body: bytes, declared: bytes) -> None:
    """H4: a length that is above the limit or no number is refused before anything is read."""
    status, told, document = await ask(built, path, headers=[(b"content-length", declared)])
    assert status == 413
    assert told["connection"] == "close"
    assert str(LIMIT) in document["error"]["message"]


@EACH
async def test_bodies_above_the_limit(built: app.App, path: str, body: bytes) -> None:
    """H4: the limit holds in one piece and over many; no more is read once it is passed."""
    filled = body + b" " * (LIMIT - len(body))
    assert (await ask(built, path, part(filled)))[0] == 402
    assert (await ask(built, path, part(filled + b" ")))[0] == 413
    assert (await ask(built, path, part(filled[:-1], True), part(b" ")))[0] == 402
    assert (await ask(built, path, part(filled[:-1], True), part(b"  ", True)))[0] == 413


@EACH
async def test_encodings(built: app.App, path: str, body: bytes) -> None:
    """H4: only the identity encoding is taken, whatever its letter case."""
    for encoding, expected in (
        (b"identity", 402),
        (b" Identity ", 402),
        (b"gzip", 415),
        (b"", 415),
        (b"identity, gzip", 415),
    ):
        status, told, _ = await ask(built, path, part(body), headers=[(b"content-encoding", encoding)])
        assert status == expected
        assert told["x-should-retry"] == "false"


@pytest.mark.parametrize("path", QUESTIONS)
async def test_questions_are_bounded_like_calls(built: app.App, path: str) -> None:
    """H4: size, encoding, nesting and time of a question's body have the bounds of a call's, and no status above 4xx."""
    _, body = GOOD[0]
    assert (await ask(built, path, part(body[:9], True), part(body[9:])))[0] == 200
    filled = body + b" " * (LIMIT - len(body))
    assert (await ask(built, path, part(filled)))[0] == 200
    for messages, headers, expected in (
        ([part(filled + b" ")], [], 413),
        ([part(filled, True), part(b" ")], [], 413),
        ([], [(b"content-length", b"2001")], 413),
        ([part(body)], [(b"content-encoding", b"gzip")], 415),
        ([part(b'{"model": "gpt-4o", "messages": ' + b"[" * 8 + b"]" * 8 + b"}")], [], 413),
        ([part(b"")], [], 400),
        ([part(b"[]")], [], 400),
        ([part(b"\xff")], [], 400),
        ([part(b'{"model":"a","model":"b"}')], [], 400),
        ([part(body)], [(b"x-tollkeeper-dialect", "mörse".encode())], 400),
        ([part(body)], [(b"x-tollkeeper-project", b"\x00")], 400),
        ([part(b'{"messages":[]}')], [], 400),
        ([part(b'{"model":"anthropic/x","input":"y"}')], [], 404),
    ):
        status, told, document = await ask(built, path, *messages, headers=headers)
        assert (status, told["x-should-retry"]) == (expected, "false"), messages
        assert document["error"]["code"]
        assert document["request_id"] == told["x-tollkeeper-request-id"] != ""
    assert await ask(built, path, part(body, True), GONE) == (None, {}, None)


async def test_depth(built: app.App) -> None:
    """H4: nesting up to depth_limit passes, one more is a 413."""
    for depth, expected in ((7, 402), (8, 413)):
        body = b'{"model": "gpt-4o", "messages": ' + b"[" * depth + b"]" * depth + b"}"
        status, _, document = await ask(built, "/v1/chat/completions", part(body))
        assert status == expected, document


async def test_slow_body(built: app.App, monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: a body that stops half way is a 400 after BODY_S seconds."""
    monkeypatch.setattr(api, "BODY_S", 0.01)
    status, told, document = await ask(built, "/v1/messages", part(b"{", True))
    assert (status, told["connection"]) == (400, "close")
    assert "0.01 seconds" in document["error"]["message"]


@EACH
async def test_refusals_carry_their_id(built: app.App, path: str, body: bytes) -> None:
    """A refusal before the line has a request id too, the same in its header and in its body."""
    _, told, document = await ask(built, path, part(b" " * (LIMIT + 1)))
    assert document["request_id"] == told["x-tollkeeper-request-id"] != ""


async def test_other_paths_and_methods(built: app.App) -> None:
    """An unknown path is a 404 that names the known ones, a wrong method a 405 that names the right ones, in Allow too."""
    status, told, document = await ask(built, "/v1/nothing", part())
    assert (status, told["connection"]) == (404, "close")
    assert all(path in document["error"]["message"] for path in (*CALLS, *QUESTIONS, *PAGES))
    assert "allow" not in told
    for paths, method, allow in (((*CALLS, *FREE, *QUESTIONS), "GET", "POST"), (PAGES, "POST", "GET, HEAD")):
        for path in paths:
            status, told, document = await ask(built, path, part(), method=method)
            assert (status, told["connection"], told["allow"]) == (405, "close", allow)
            assert f"takes {allow.partition(',')[0]}." in document["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_pages(built: app.App, method: str) -> None:
    """The pages answer GET and HEAD alike."""
    for path in PAGES:
        status, told, document = await ask(built, path, method=method)
        kind = "text/plain" if path == "/metrics" else "application/json"
        assert (status, told["content-type"].partition(";")[0]) == (200, kind)
        assert document


async def test_draining(built: app.App) -> None:
    """I3: a gateway that stops takes no new call, and says so where it is asked."""
    built.api.draining = True
    for path, body in [*GOOD, *((path, GOOD[0][1]) for path in QUESTIONS)]:
        status, _, document = await ask(built, path, part(body))
        assert (status, "stopping" in document["error"]["message"]) == (503, True)
    status, _, document = await ask(built, "/readyz", method="GET")
    assert (status, document["status"]) == (503, "unavailable")
    assert (await ask(built, "/healthz", method="GET"))[0] == 200


@pytest.mark.parametrize(
    ("trouble", "state", "status", "word"),
    [
        (None, "ready", 200, "ok"),
        (None, "away", 200, "degraded"),
        (None, "recovering", 200, "degraded"),
        ("never there", "away", 503, "unavailable"),
    ],
)
async def test_readiness_of_a_shared_ledger(
    built: app.App, monkeypatch: pytest.MonkeyPatch, trouble: str | None, state: Any, status: int, word: str
) -> None:
    """I3: 503 while calls are refused; while Redis is away 200 and why, because recording goes on; and how the store is."""
    condition = Condition(state=state, since_us=1_700_000_000_000_000, reason="cut off", waiting=7, peers=2)
    monkeypatch.setattr(MemoryStore, "condition", condition)
    monkeypatch.setattr(MemoryStore, "trouble", trouble)
    told, _, document = await ask(built, "/readyz", method="GET")
    assert (told, document["status"]) == (status, word)
    assert document.get("reason") == (None if word == "ok" else trouble or "cut off")
    shown = {"state": state, "since": "2023-11-14T22:13:20Z", "reason": "cut off", "waiting": 7, "peers": 2}
    assert document["store"] == shown


# ---- the providers --------------------------------------------------------------------------------------------------

KEYS = "".join(
    f'[[keys]]\nid = "{name}"\nproject = "{name}"\nhash = "{hash_secret(name)}"\n{more}'
    for name, more in (("any", ""), ("few", 'models = ["quick"]\n'))
)
ROUTE = 'store = "memory:"\nroutes = { quick = "openai/gpt-4o-mini" }\n'
FRESH = {
    "state": "closed",
    "open_until": None,
    "calls": 0,
    "failures": 0,
    "slow": 0,
    "last_error": None,
    "latency_ms": None,
}


def with_providers(folder: Path, settings: str = "") -> app.App:
    """A gateway whose clock stands."""
    file = folder / "tollkeeper.toml"
    file.write_text(ROUTE + settings + PROVIDERS.format(url="http://127.0.0.1:9"))
    return app.build(config.load(file, {"PROVIDER_KEY": "sk-secret"}), ManualClock())


async def rows(built: app.App, secret: str = "") -> dict[tuple[str, ...], dict[str, Any]]:
    """(level, provider, key, model) → the rest of each row."""
    headers = [(b"x-api-key", secret.encode())]
    status, _, document = await ask(built, "/v1/tollkeeper/providers", method="GET", headers=headers)
    assert status == 200
    found = document["breakers"]
    assert "sk-secret" not in json.dumps(document)
    return {tuple(row.pop(name) for name in ("level", "provider", "key", "model")): row for row in found}


async def test_providers(tmp_path: Path) -> None:
    """E5: each provider that is configured, each breaker used so far; instants in UTC, by the gateway's clock."""
    built = with_providers(tmp_path)
    health, place = built.gate.health, Place("openai", "PROVIDER_KEY", "gpt-4o-mini")
    unused = {("provider", name, None, None): FRESH for name in ("anthropic", "google", "openai")}
    assert await rows(built) == unused
    built.gate.clock.advance(100)  # type: ignore[attr-defined]
    given = health.admit(place)
    assert given is not None
    health.report(given, failed=None, first_byte_s=0.25)
    health.block(place, "key", 160, "no credit: 429 insufficient_quota")
    found = await rows(built)
    assert list(found) == [
        ("provider", "anthropic", None, None),
        ("provider", "google", None, None),
        ("provider", "openai", None, None),
        ("key", "openai", "PROVIDER_KEY", None),
        ("model", "openai", "PROVIDER_KEY", "gpt-4o-mini"),
    ]
    one = FRESH | {"calls": 1}
    assert found["provider", "openai", None, None] == one
    assert found["key", "openai", "PROVIDER_KEY", None] == one | {
        "state": "open", "open_until": "2026-01-01T00:02:40Z", "last_error": "no credit: 429 insufficient_quota",
    }  # fmt: skip
    assert found["model", "openai", "PROVIDER_KEY", "gpt-4o-mini"] == one | {"latency_ms": 250}


@pytest.mark.parametrize(
    ("keys", "secret", "models"),
    [
        ("", "", {"gpt-4o-mini", "gpt-4o", "ft:gpt-4o:b"}),
        (KEYS, "any", {"gpt-4o-mini", "gpt-4o"}),
        (KEYS, "few", {"gpt-4o-mini"}),
    ],
)
async def test_a_tenant_sees_no_name_of_another(tmp_path: Path, keys: str, secret: str, models: set[str]) -> None:
    """H5: a key sees the models that it may ask for and are known without asking others; without keys all are seen."""
    built = with_providers(tmp_path, keys)
    for model in ("gpt-4o-mini", "gpt-4o", "ft:gpt-4o:b"):
        built.gate.health.block(Place("openai", "PROVIDER_KEY", model), "model", 9, "rate limited: 429")
    found = await rows(built, secret)
    assert {model for level, _, _, model in found if level == "model"} == models
    assert len([row for row in found if row[0] != "model"]) == 4
    told = await ask(built, "/metrics", method="GET", headers=[(b"x-api-key", secret.encode())])
    assert {model for model in ("gpt-4o-mini", "gpt-4o", "ft:gpt-4o:b") if f'model="{model}"' in told[2]} == models


async def test_other_protocols(built: app.App) -> None:
    """Neither a lifespan nor a websocket is answered."""

    async def unused(*_: Any) -> Any:
        raise AssertionError

    for kind in ("lifespan", "websocket"):
        await built.api({"type": kind}, unused, unused)


# ---- the reply ------------------------------------------------------------------------------------------------------


async def test_reply_sends_in_order() -> None:
    """A reply is its start, its pieces, and one end."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    reply = AsgiReply(asyncio.Event().wait, send)  # type: ignore[arg-type]
    await reply.start(200, [(b"a", b"b")])
    await reply.send(b"one")
    await reply.end(b"two")
    assert [each.get("body", each.get("status")) for each in sent] == [200, b"one", b"two"]
    assert [each.get("more_body") for each in sent] == [None, True, False]


async def test_leaving_is_told_once() -> None:
    """D1: the callback comes when the client leaves, once, and not for what else it sends; never after close()."""
    arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    calls: list[str] = []
    reply = AsgiReply(arriving.get, None)  # type: ignore[arg-type]
    reply.on_left(lambda: calls.append("left"))
    arriving.put_nowait(part(b"late"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (calls, reply.left) == ([], False)
    arriving.put_nowait(GONE)
    for _ in range(3):
        await asyncio.sleep(0)
    assert (calls, reply.left) == (["left"], True)

    closed = AsgiReply(arriving.get, None)  # type: ignore[arg-type]
    closed.on_left(lambda: calls.append("late"))
    await asyncio.sleep(0)
    closed.close()
    arriving.put_nowait(GONE)
    for _ in range(3):
        await asyncio.sleep(0)
    assert calls == ["left"]
