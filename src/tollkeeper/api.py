"""The data plane over HTTP: ASGI in, the line, ASGI out.

One table of routes; every POST there is a call on the line. Requests are bounded before anything is parsed: size while it
arrives, encoding, nesting. Health answers without a key; everything else needs one where the gateway has keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import msgspec

from tollkeeper import flow, headers, metrics
from tollkeeper.dialects import DIALECTS, Dialect
from tollkeeper.dialects.json_body import json_depth_ok
from tollkeeper.errors import (
    BadRequest,
    Draining,
    RequestTooLarge,
    TollkeeperError,
    UnsupportedEncoding,
)
from tollkeeper.health import State
from tollkeeper.keys import Key, credential, scopes_for
from tollkeeper.preview import Draft, aim, check_dialect, document, preview
from tollkeeper.routing import check_allowed
from tollkeeper.stores import Condition
from tollkeeper.values import iso_utc

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Path → dialect of every billable route: a POST there is a call on the line. {model} stands for a model's name.
CALLS: Final[dict[str, str]] = {
    "/v1/chat/completions": "openai-chat",
    "/v1/embeddings": "openai-embeddings",
    "/v1/messages": "anthropic-messages",
    "/v1/responses": "openai-responses",
    "/v1beta/models/{model}:generateContent": "google-generate",
    "/v1beta/models/{model}:streamGenerateContent": "google-generate",
    "/v1beta/models/{model}:embedContent": "google-generate",
    "/v1beta/models/{model}:batchEmbedContents": "google-generate",
    "/v1/models/{model}:generateContent": "google-generate",
    "/v1/models/{model}:streamGenerateContent": "google-generate",
    "/v1/models/{model}:embedContent": "google-generate",
    "/v1/models/{model}:batchEmbedContents": "google-generate",
}
#: The same for what costs nothing: passed through, neither held nor booked.
FREE: Final[dict[str, str]] = {
    "/v1/messages/count_tokens": "anthropic-messages",
    "/v1beta/models/{model}:countTokens": "google-generate",
    "/v1/models/{model}:countTokens": "google-generate",
}
#: Those of them whose path names a model: (what stands before it, what stands behind it, dialect).
_WITH_MODEL: Final = tuple((*path.split("{model}"), name) for path, name in (CALLS | FREE).items() if "{model}" in path)
#: Paths that answer a GET; those in OPEN need no key.
PAGES: Final = ("/v1/models", "/v1beta/models", "/v1/tollkeeper/providers", "/healthz", "/readyz", "/metrics")
#: Paths that answer a POST without calling anybody.
QUESTIONS: Final = ("/v1/tollkeeper/estimate",)
OPEN: Final = frozenset({"/healthz", "/readyz"})
#: Seconds that a request's body may take to arrive.
BODY_S: Final = 60.0
#: With replies that do not wait for the request's body: what is left of it is not read.
CLOSE: Final = (b"connection", b"close")
_encode = msgspec.json.Encoder().encode


def dialect_at(path: str) -> str | None:
    """The dialect of a call's path; None: no call is taken there."""
    found = CALLS.get(path) or FREE.get(path)
    if found is None:
        for before, behind, name in _WITH_MODEL:
            if path.startswith(before) and path.endswith(behind) and len(path) > len(before) + len(behind):
                return name
    return found


class Api:
    """The ASGI application. `body_limit` in bytes, `depth_limit` in levels of JSON."""

    def __init__(
        self,
        gate: flow.Gate,
        *,
        body_limit: int,
        depth_limit: int,
        models: Callable[[frozenset[str] | None], tuple[str, ...]],
    ) -> None:
        self._gate = gate
        self._body_limit = body_limit
        self._depth_limit = depth_limit
        self._models = models
        self.draining = False  #: the gateway is stopping: /readyz says so and new calls are refused

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, name = scope["path"], dialect_at(scope["path"])
        taken = ("GET", "HEAD") if path in PAGES else ("POST",) if name is not None or path in QUESTIONS else ()
        if not taken:
            known = ", ".join((*CALLS, *FREE, *QUESTIONS, *PAGES))
            await _answer(send, 404, _problem("not_found", f"There is no such path here; there are {known}."), [CLOSE])
        elif scope["method"] not in taken:
            problem, allow = _problem("method_not_allowed", f"{path} takes {taken[0]}."), ", ".join(taken).encode()
            await _answer(send, 405, problem, [(b"allow", allow), CLOSE])
        elif name is not None:
            await self._call(DIALECTS[name], scope, receive, send)
        elif path in QUESTIONS:
            await self._estimate(scope, receive, send)
        else:
            await self._page(path, scope, send)

    async def _call(self, dialect: Dialect, scope: Message, receive: Receive, send: Send) -> None:
        fields: Mapping[bytes, bytes] = dict(scope["headers"])
        try:
            body = await self._body(fields, receive)
        except TollkeeperError as error:
            await self._refuse(dialect, error, send)
            return
        if body is None:
            return
        reply = AsgiReply(receive, send)
        try:
            where = scope.get("raw_path") or quote(scope["path"], safe="/:").encode()
            target = (where + b"?" + scope["query_string"]).decode("latin-1")
            await flow.run(self._gate, flow.Request(dialect, fields, body, target), reply)
        finally:
            reply.close()

    async def _estimate(self, scope: Message, receive: Receive, send: Send) -> None:
        """What a call with this very body would cost and meet, for whoever asks. Nothing is held, nobody is called."""
        gate, fields = self._gate, dict(scope["headers"])
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        named = query.get("dialect") or fields.get(b"x-tollkeeper-dialect", b"").decode("latin-1") or None
        told_in, body = DIALECTS[named if named in DIALECTS else "openai-chat"], None
        try:
            if named is not None:
                check_dialect(named)
            body = await self._body(fields, receive)
            if body is None:
                return
            now_us, prices = gate.clock.now_us(), gate.prices
            key = gate.keys.identify(credential(fields), now_us)
            draft = Draft(data=body, dialect=named, model=query.get("model"))
            aimed = aim(draft, gate.table, prices, now_us, None if key is None else key.models)
            told_in = aimed.dialect
            ask = aimed.ask()
            check_allowed(ask.others, None if key is None else key.models)
            scopes = scopes_for(key, fields, ask.user, gate.limits.default_project)
            found = preview(
                ask, aimed.routes, scopes, await gate.store.standings(scopes, ask.model, now_us), prices=prices,
                limits=gate.limits, densities=gate.densities, now_us=now_us,
            )  # fmt: skip
        except TollkeeperError as error:
            await self._refuse(told_in, error, send, close=body is None)
            return
        await _answer(send, 200, _encode(document(found, held_known=True)))

    async def _refuse(self, dialect: Dialect, error: TollkeeperError, send: Send, *, close: bool = True) -> None:
        """The reply to a request that does not come to the line; it closes where the body was not read."""
        id = self._gate.new_id()
        told = [*headers.of_call(id, None, 0, None), *headers.of_refusal(error, 0)]
        await _answer(send, error.http_status, dialect.refusal(error, id), [*told, *([CLOSE] if close else [])])

    async def _body(self, fields: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The request's body; None if the client left before its end. Raises before it holds more than the limit."""
        if self.draining:
            raise Draining("The gateway is stopping; ask again in a moment.")
        if fields.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UnsupportedEncoding("The body is compressed; send it without Content-Encoding.")
        declared = fields.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self._body_limit:
            raise self._too_large()
        message = await receive()  # the server bounds the time until the first piece
        body: bytes = message.get("body", b"")
        if len(body) > self._body_limit:
            raise self._too_large()
        if message.get("more_body"):
            pieces = [body]
            size = len(body)
            try:
                async with asyncio.timeout(BODY_S):
                    while message.get("more_body"):
                        message = await receive()
                        pieces.append(message.get("body", b""))
                        size += len(pieces[-1])
                        if size > self._body_limit:
                            raise self._too_large()
            except TimeoutError:
                raise BadRequest(f"The body did not arrive within {BODY_S:g} seconds.") from None
            body = b"".join(pieces)
        if message["type"] == "http.disconnect":
            return None
        if not json_depth_ok(body, self._depth_limit):
            raise RequestTooLarge(f"The body is nested deeper than {self._depth_limit} levels (setting depth_limit).")
        return body

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The body is larger than {self._body_limit} bytes (setting body_limit).")

    async def _page(self, path: str, scope: Message, send: Send) -> None:
        gate = self._gate
        if path == "/healthz":
            await _answer(send, 200, b'{"status":"ok"}')
        elif path == "/readyz":
            trouble = "the gateway is stopping" if self.draining else gate.store.trouble
            await _answer(send, 200 if trouble is None else 503, _encode(_readiness(trouble, gate.store.condition)))
        else:
            fields = dict(scope["headers"])
            name = _reader(path, fields)
            try:
                key = gate.keys.identify(credential(fields), gate.clock.now_us())
            except TollkeeperError as error:
                await _answer(send, error.http_status, DIALECTS[name].refusal(error, ""))
                return
            if path == "/metrics":
                hedges = None if gate.latencies is None else (gate.hedges, gate.hedges_served)
                seen = self._seen(key)  # of many models: what to tell takes its time
                text = await asyncio.to_thread(metrics.exposition, gate.store, seen, hedges)
                await _answer(send, 200, text, kind=metrics.TEXT)
            elif path == "/v1/tollkeeper/providers":
                ahead_us = gate.clock.now_us() - round(gate.clock.monotonic_s() * 1_000_000)
                await _answer(send, 200, _encode({"breakers": [_breaker(each, ahead_us) for each in self._seen(key)]}))
            else:
                await _answer(send, 200, _encode(_listed(self._names(key), name)))

    def _names(self, key: Key | None) -> tuple[str, ...]:
        """The models that may be asked for."""
        return self._models(None if key is None else key.models)

    def _seen(self, key: Key | None) -> list[State]:
        """The breakers used so far, provider by provider; a provider that was not used yet has one that is closed.

        Clients may name models of their own making, such as one that is tuned for a tenant: where there are keys, only the
        models are seen that the key's list of models leads to.
        """
        gate = self._gate
        targets = None if gate.keys.is_open else gate.table.targets(self._names(key))
        found = [
            each
            for each in gate.health.states()
            if each.level != "model" or targets is None or (each.provider, each.model) in targets
        ]
        unused = {each.name for each in gate.table.providers} - {each.provider for each in found}
        found += [State(level="provider", provider=name, key="", model="") for name in unused]
        return sorted(found, key=lambda each: each.provider)  # those of one stay in the order of their levels


class AsgiReply:
    """A Reply over ASGI. Watches for the client leaving while the line works."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self.left = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def on_left(self, callback: Callable[[], None]) -> None:
        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.left = True
            callback()

        self._watch = asyncio.create_task(watch())

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()


def _reader(path: str, fields: Mapping[bytes, bytes]) -> str:
    """The dialect of who reads a list of models: they share a path, and their SDKs are told apart by their headers."""
    if path == "/v1beta/models" or b"x-goog-api-key" in fields:
        return "google-generate"
    return "anthropic-messages" if b"anthropic-version" in fields else "openai-chat"


def _listed(names: tuple[str, ...], dialect: str) -> dict[str, Any]:
    """Models as a dialect's SDKs read them."""
    if dialect == "google-generate":
        return {"models": [{"name": f"models/{each}", "displayName": each} for each in names]}
    data = [{"id": each, "object": "model", "created": 0, "owned_by": "tollkeeper"} for each in names]
    return {"object": "list", "data": data}


def _breaker(state: State, ahead_us: int) -> dict[str, Any]:
    """How a place that calls go to is; `ahead_us`: how far UTC is ahead of the clock by which it opens."""
    until_us = round(state.open_until_s * 1_000_000) + ahead_us
    return {
        "level": state.level, "provider": state.provider, "key": state.key or None, "model": state.model or None,
        "state": state.state, "open_until": iso_utc(until_us) if state.state == "open" else None,
        "calls": state.calls, "failures": state.failures, "slow": state.slow, "last_error": state.last_error or None,
        "latency_ms": None if state.latency_s is None else round(state.latency_s * 1000),
    }  # fmt: skip


def _readiness(trouble: str | None, condition: Condition | None) -> dict[str, Any]:
    """Why calls are refused; else whether what gateways share is as it should be; and how it is."""
    ready: dict[str, Any] = {"status": "ok"}
    if trouble is not None:
        ready = {"status": "unavailable", "reason": trouble}
    elif condition is not None and condition.state != "ready":
        ready = {"status": "degraded", "reason": condition.reason or condition.state}
    if condition is not None:
        store = msgspec.structs.asdict(condition)
        ready["store"] = store | {"since": iso_utc(store.pop("since_us"))}
    return ready


def _problem(code: str, message: str) -> bytes:
    return _encode({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    extra: list[tuple[bytes, bytes]] | None = None,
    *,
    kind: tuple[bytes, bytes] = headers.JSON,
) -> None:
    fields = [kind, headers.length(body), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})
