"""Recorded replies as the official SDKs see them through the gateway: tools, refusals and errors, streamed and not.

A fake provider replays the recorded bytes. The SDK gets out of them what plain json finds there, and the ledger the usage.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google.genai import errors, types
from tests.conformance.test_recorded import (
    EXCHANGES,
    EXPECTED,
    IDS,
    dialect_of,
    inclusive,
    is_array,
    is_stream,
    payloads,
)
from tests.gateway import BODIES, Gateway, gateway, until
from tests.integration.test_gateway_recorded import providers, vendor

from tollkeeper.testing.provider import FakeProvider, Replay
from tollkeeper.values import Entry

Saying = list[Any]
"""What a reply says: its texts joined, and names of what else is in it, in order."""
Docs = list[dict[str, Any]]


# ---- what plain json finds --------------------------------------------------------------------------------------------


def said_by_chat(docs: Docs) -> Saying:
    texts, refusals, tools = "", "", []
    for choice in (choice for doc in docs for choice in doc.get("choices") or []):
        part = choice.get("delta") or choice.get("message") or {}
        texts += part.get("content") or "" if isinstance(part.get("content") or "", str) else ""
        refusals += part.get("refusal") or ""
        tools += [call["function"]["name"] for call in part.get("tool_calls") or [] if call["function"].get("name")]
    return [texts, refusals, tools]


def said_by_responses(docs: Docs) -> Saying:
    response = next((doc.get("response", doc) for doc in reversed(docs) if "output" in doc.get("response", doc)), {})
    pieces = [piece for item in response.get("output", []) for piece in item.get("content") or []]
    return [
        "".join(piece.get("text") or piece.get("refusal") or "" for piece in pieces),
        [item["type"] for item in response.get("output", [])],
        response.get("status"),
    ]


def said_by_anthropic(docs: Docs) -> Saying:
    blocks = [block for doc in docs for block in (*doc.get("content", []), doc.get("content_block")) if block]
    deltas = [doc.get("delta", {}).get("text", "") for doc in docs]
    stops = [doc.get("stop_reason") or doc.get("delta", {}).get("stop_reason") for doc in docs]
    texts = [block.get("text") or "" for block in blocks]
    return ["".join(texts + deltas), [block["type"] for block in blocks], [stop for stop in stops if stop]]


def said_by_google(docs: Docs) -> Saying:
    candidates = [candidate for doc in docs for candidate in doc.get("candidates") or []]
    parts = [part for candidate in candidates for part in (candidate.get("content") or {}).get("parts") or []]
    blocks = [(doc.get("promptFeedback") or {}).get("blockReason") for doc in docs]
    return [
        "".join(part.get("text") or "" for part in parts),
        [part["functionCall"]["name"] for part in parts if "functionCall" in part],
        [block for block in blocks if block],
    ]


# ---- what the SDKs find -----------------------------------------------------------------------------------------------


def plain(items: list[Any]) -> Docs:
    """SDK objects as they were on the wire."""
    return [item.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False) for item in items]


async def collected(reply: Any) -> list[Any]:
    """The events of a stream, or the one reply."""
    return (
        [event async for event in reply] if isinstance(reply, AsyncIterator) or hasattr(reply, "__aiter__") else [reply]
    )


async def ask_chat(gw: Gateway, model: str, stream: bool) -> list[Any]:
    async with gw.openai().with_options(max_retries=0) as client:
        ask = BODIES["openai-chat"]["messages"]
        return await collected(await client.chat.completions.create(model=model, messages=ask, stream=stream))


async def ask_embeddings(gw: Gateway, model: str, stream: bool) -> list[Any]:
    async with gw.openai().with_options(max_retries=0) as client:
        return [await client.embeddings.create(model=model, input="toll")]


async def ask_responses(gw: Gateway, model: str, stream: bool) -> list[Any]:
    async with gw.openai().with_options(max_retries=0) as client:
        return await collected(await client.responses.create(model=model, input="toll", stream=stream))


async def ask_anthropic(gw: Gateway, model: str, stream: bool) -> list[Any]:
    async with gw.anthropic().with_options(max_retries=0) as client:
        ask = BODIES["anthropic-messages"]["messages"]
        return await collected(await client.messages.create(model=model, max_tokens=20, messages=ask, stream=stream))


async def ask_google(gw: Gateway, model: str, stream: bool) -> list[Any]:
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="get_capital")])
    by_hand = types.AutomaticFunctionCallingConfig(disable=True)
    settings = types.GenerateContentConfig(tools=[tool], automatic_function_calling=by_hand)
    async with gw.google().aio as client:
        if stream:
            reply = await client.models.generate_content_stream(model=model, contents="toll", config=settings)
            return await collected(reply)
        return [await client.models.generate_content(model=model, contents="toll", config=settings)]


SDKS: dict[str, tuple[Callable[..., Any], Callable[[Docs], Saying]]] = {
    "openai-chat": (ask_chat, said_by_chat),
    "openai-embeddings": (ask_embeddings, lambda docs: [len(doc.get("data") or []) for doc in docs]),
    "openai-responses": (ask_responses, said_by_responses),
    "anthropic-messages": (ask_anthropic, said_by_anthropic),
    "google-generate": (ask_google, said_by_google),
}
REFUSED = (openai.APIError, anthropic.APIError, errors.APIError)
#: What Google's SDK asks for is events; the one recorded array numbers its enumerations, which that SDK cannot read.
CASES = [x for x in EXCHANGES if not is_array(x.body)]
CASE_IDS = [name for x, name in zip(EXCHANGES, IDS, strict=True) if not is_array(x.body)]


def model_of(exchange: Any) -> str:
    """The model asked for, where it goes by its own name to the vendor that answered."""
    named = re.search(r"/models/([^/:?]+)", exchange.url) if dialect_of(exchange.tag) == "google-generate" else None
    recorded = exchange.request if isinstance(exchange.request, dict) else {}
    model = named[1] if named else recorded.get("model") or "claude-sonnet-4-6"
    return f"{vendor(exchange)}/{model}"


def with_names(exchange: Any) -> bytes:
    """The body; some of Anthropic's were kept without the names of their events, which its SDK goes by."""
    body: bytes = exchange.body
    if dialect_of(exchange.tag) != "anthropic-messages" or not body.startswith(b"data: "):
        return body
    return re.sub(rb'(?m)^data: \{"type":\s*"(\w+)"', rb"event: \1\n\g<0>", body)


@asynccontextmanager
async def replaying(tmp_path: Path, exchange: Any) -> AsyncIterator[Gateway]:
    headers = dict(exchange.headers)
    headers.setdefault("content-type", "text/event-stream" if is_stream(exchange.body) else "application/json")
    async with gateway(tmp_path, FakeProvider(), providers=providers()) as gw:
        gw.fake.next(Replay(with_names(exchange), exchange.status, tuple(headers.items()), 0))
        yield gw


async def the_entry(gw: Gateway) -> Entry:
    await until(lambda: gw.booked(1))
    (entry,) = await gw.entries()
    return entry


@pytest.mark.parametrize("exchange", CASES, ids=CASE_IDS)
async def test_official_sdks_read_recorded_replies(tmp_path: Path, exchange: Any) -> None:
    """A9: each SDK gets a recorded reply's text, tools and refusal, or raises its error, and it is booked as stated."""
    dialect = str(dialect_of(exchange.tag))
    ask, said = SDKS[dialect]
    docs = payloads(exchange.body)
    failed = exchange.status != 200 or any(doc.get("error") for doc in docs)
    async with replaying(tmp_path, exchange) as gw:
        got: list[Any] = []
        with suppress(*REFUSED) if failed else nullcontext():
            got = await ask(gw, model_of(exchange), is_stream(exchange.body))
        entry = await the_entry(gw)
    if failed:
        assert entry.outcome == "error"
        return
    assert said(plain(got)) == said(docs)
    expected = EXPECTED[dialect](docs)
    if expected is not None:
        read = inclusive(entry.usage)
        assert {name: read[name] for name in expected} == expected


def test_tools_and_refusals_are_among_them() -> None:
    """The recordings have what the SDKs are to be shown: function calls, tools of the provider, refusals, blocks, errors."""
    found = {
        dialect: [SDKS[dialect][1](payloads(x.body)) for x in CASES if dialect_of(x.tag) == dialect] for dialect in SDKS
    }
    assert sum(bool(tools) for _, _, tools in found["openai-chat"]) >= 3
    assert sum(bool(refusal) for _, refusal, _ in found["openai-chat"]) >= 2
    assert any("function_call" in types for _, types, _ in found["openai-responses"])
    assert any("web_search_call" in types for _, types, _ in found["openai-responses"])
    assert any("refusal" in stops for _, _, stops in found["anthropic-messages"])
    assert any("server_tool_use" in types for _, types, _ in found["anthropic-messages"])
    assert any(calls for _, calls, _ in found["google-generate"])
    assert any(blocks for _, _, blocks in found["google-generate"])
    assert sum(x.status != 200 for x in CASES) >= 10
