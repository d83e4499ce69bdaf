"""Recorded provider traffic, recorded through the library in every form in which a caller may have it, is one and the same entry.

What is expected is the gateway's: its meter over the bytes as they came, its settlement and its price book.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import types as anthropic
from google.genai.types import GenerateContentResponse
from openai.types import CreateEmbeddingResponse, chat, responses
from tests.fixtures_folder import reader

from tollkeeper.aws_events import MessageSplitter
from tollkeeper.dialects import DIALECTS, HOMES, METERED
from tollkeeper.meter import Meter
from tollkeeper.sse import Splitter
from tollkeeper.testing.clock import START_US, ManualClock
from tollkeeper.tracker import CostTracker
from tollkeeper.tracker.accounts import Recorded
from tollkeeper.values import Reading

#: The first word in a tag that decides, and the dialect that it says.
TAGS = {
    "cohere": "cohere-chat", "ollama native": None, "openai-compat": "openai-chat", "bedrock": "bedrock-converse",
    "embeddings": "openai-embeddings", "responses": "openai-responses", "gemini": "google-generate",
    "anthropic": "anthropic-messages", "": "openai-chat",
}  # fmt: skip
#: How a provider differs on the wire, or in its prices.
PROVIDERS = ("deepseek", "groq", "mistral", "openrouter", "perplexity", "xai")


def dialect_of(exchange: Any) -> str | None:
    return next(dialect for word, dialect in TAGS.items() if word in exchange.tag) if exchange.tag else None


EXCHANGES = [x for x in reader().exchanges() if dialect_of(x) in METERED and x.body]
IDS = [f"{x.file.rsplit('/', 1)[-1]}#{x.index}" for x in EXCHANGES]


def model_of(exchange: Any) -> str:
    """The model asked for: in the request, or in the path of those that name it there."""
    found = re.search(r"/models?/([^/:]+(?:%3A\d+)?)", exchange.url)
    return (exchange.request or {}).get("model") or (found[1].replace("%3A", ":") if found else "the-asked-one")


def is_whole(exchange: Any) -> bool:
    return exchange.body.lstrip().startswith(b"{")


def events(exchange: Any) -> list[dict[str, Any]]:
    """The events of a stream as an SDK decodes them."""
    if exchange.body.startswith(b"\0"):
        return [{event.name.decode(): json.loads(event.data)} for event in MessageSplitter().feed(exchange.body)]
    if exchange.body.startswith(b"["):
        return list(json.loads(exchange.body))
    found = [event.data for event in Splitter().feed(exchange.body + b"\n\n") if event.data]
    return [json.loads(data) for data in found if data != b"[DONE]"]


async def recorded(tmp_path: Path, exchange: Any, body: object, *, streamed: bool = False) -> Recorded:
    """A body recorded in a ledger of its own."""
    dialect = str(dialect_of(exchange))
    call: dict[str, Any] = {
        "project_id": "p", "model": model_of(exchange), "request_id": "r", "prompt_tokens": 10_000,
        "provider": next((name for name in PROVIDERS if name in exchange.tag), None),
    }  # fmt: skip
    async with CostTracker("memory:", {}, ManualClock()) as costs:
        if not streamed:
            return await costs.record_response(dialect, body, http_status=exchange.status, **call)
        stream = costs.record_stream(dialect, body, **call)
        assert [piece async for piece in stream] == list(body)
        assert stream.recorded is not None
        return stream.recorded


def metered(exchange: Any, quirks: frozenset[str]) -> Reading:
    """What the gateway's meter reads; AWS's streams, which no gateway speaks, straight from the reducer."""
    name = str(dialect_of(exchange))
    if name not in DIALECTS:
        reducer = METERED[name].reducer(stream=True, hide_usage=False, quirks=quirks)
        if is_whole(exchange):
            reducer.whole(exchange.body)
        else:
            splitter = MessageSplitter() if exchange.body.startswith(b"\0") else Splitter()
            for event in splitter.feed(exchange.body):
                reducer.event(event)
        return reducer.reading()
    array = exchange.body.startswith(b"[")
    meter = Meter(DIALECTS[name], stream=not is_whole(exchange), hide_usage=False, quirks=quirks, array=array)
    meter.feed(exchange.body)
    return meter.finish()


async def test_corpus_is_there() -> None:
    """A9: the recorded exchanges of every dialect that can be metered are read."""
    assert {dialect_of(x) for x in EXCHANGES} == set(METERED) - {
        "ollama-chat"
    }  # a stream of lines: test_recorded_others.py
    assert len(EXCHANGES) >= 85


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
async def test_charged_as_the_gateway_charges(tmp_path: Path, exchange: Any) -> None:
    """A9: recorded by its bytes, a reply has the usage, the parts and the charge of the gateway's meter and price book."""
    told = await recorded(tmp_path, exchange, exchange.body)
    entry, charge = told.entry, told.entry.charge
    async with CostTracker("memory:", {}, ManualClock()) as costs:
        name = next((name for name in PROVIDERS if name in exchange.tag), HOMES.get(entry.dialect))
        provider = costs._accounts.provider(name)
        reading = metered(exchange, frozenset() if provider is None else provider.quirks)
        prices = await costs._accounts.prices()
    assert entry.served == (reading.model or model_of(exchange))
    assert entry.http_status == exchange.status
    if reading.final:
        assert charge == prices.charge(reading, provider=provider, model=model_of(exchange), at_us=START_US)
        assert (entry.usage, entry.tier, entry.speed, entry.geo) == (
            reading.usage, reading.tier, reading.speed, reading.geo,
        )  # fmt: skip
        assert entry.parts == (reading.parts if len(reading.parts) > 1 else ())
    elif exchange.status >= 300:
        assert (entry.outcome, charge.amount_nanos, charge.status, entry.usage.tokens) == ("error", 0, "priced", 0)
    else:
        assert charge.status in ("estimated", "unpriced")
        assert entry.usage.input == (reading.usage.input if reading.parts else 10_000)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
async def test_every_form_is_the_same_entry(tmp_path: Path, exchange: Any) -> None:
    """A9: bytes, text, a dict, a list of events, pieces of bytes and 1-byte pieces are booked as one and the same entry."""
    body = exchange.body
    expected = (await recorded(tmp_path, exchange, body)).entry
    forms: list[object] = [
        [body[at : at + 1] for at in range(len(body))],
        iter([body[:50], body[50:]]),
        bytearray(body),
    ]
    if not body.startswith(b"\0"):
        forms.append(body.decode())
    stated = metered(exchange, frozenset()).final or exchange.status >= 300
    if is_whole(exchange) and stated:  # else what it used is estimated by the body's bytes, its blanks too
        forms.append(json.loads(body))
    for form in forms:
        assert (await recorded(tmp_path, exchange, form)).entry == expected, type(form)
    if is_whole(exchange):
        return
    entry = (await recorded(tmp_path, exchange, events(exchange))).entry
    assert entry == expected
    if entry.outcome == "ok":
        for chunks in ([body[at : at + 700] for at in range(0, len(body), 700)], events(exchange)):
            streamed = (await recorded(tmp_path, exchange, chunks, streamed=True)).entry
            assert (streamed.usage, streamed.charge, streamed.served) == (entry.usage, entry.charge, entry.served)


# ── the official SDKs' own objects ───────────────────────────────────────────────────────────────────────────────────

ANTHROPIC_EVENTS = {
    "message_start": anthropic.RawMessageStartEvent, "message_delta": anthropic.RawMessageDeltaEvent,
    "message_stop": anthropic.RawMessageStopEvent, "content_block_start": anthropic.RawContentBlockStartEvent,
    "content_block_delta": anthropic.RawContentBlockDeltaEvent, "content_block_stop": anthropic.RawContentBlockStopEvent,
}  # fmt: skip
WHOLE = {
    "openai-chat": chat.ChatCompletion, "openai-embeddings": CreateEmbeddingResponse,
    "openai-responses": responses.Response, "anthropic-messages": anthropic.Message,
}  # fmt: skip


def google(documents: list[dict[str, Any]]) -> list[object] | None:
    """As google-genai makes it of replies: what its version does not know is dropped, a serviceTier for one."""
    try:
        return [GenerateContentResponse._from_response(response=document, kwargs={}) for document in documents]
    except AttributeError:  # an enumeration as a number: recorded of another SDK, this one cannot read it
        return None


def sdk_body(exchange: Any) -> object | None:
    """A reply as its SDK gives it; None where it raises the reply as an error, or where there is no SDK to ask."""
    document = json.loads(exchange.body)
    if exchange.status >= 300 or document.get("error"):
        return None
    dialect = str(dialect_of(exchange))
    if dialect == "bedrock-converse":
        return document | {"ResponseMetadata": {"RequestId": "r", "RetryAttempts": 0}}
    if dialect == "google-generate":
        read = google([document])
        return None if read is None else read[0]
    return WHOLE[dialect].construct(**document) if dialect in WHOLE else None


def sdk_events(exchange: Any) -> list[object] | None:
    """A stream's chunks as its SDK gives them."""
    dialect, found = str(dialect_of(exchange)), events(exchange)
    if any(event.get("error") for event in found):
        return None
    match dialect:
        case "openai-chat":
            return [chat.ChatCompletionChunk.construct(**event) for event in found]
        case "anthropic-messages":
            return [ANTHROPIC_EVENTS[e["type"]].construct(**e) for e in found if e["type"] in ANTHROPIC_EVENTS]
        case "openai-responses":
            from openai._models import construct_type

            return [construct_type(type_=responses.ResponseStreamEvent, value=event) for event in found]
        case "google-generate":
            return google(found)
        case "bedrock-converse" | "cohere-chat":
            return list(found)
    return None


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
async def test_sdk_objects_are_the_same_entry(tmp_path: Path, exchange: Any) -> None:
    """A9: what the official SDKs make of a reply is booked with the same usage and charge as its bytes."""
    expected = (await recorded(tmp_path, exchange, exchange.body)).entry
    given = sdk_body(exchange) if is_whole(exchange) else sdk_events(exchange)
    if given is None:
        return

    async def stream() -> AsyncIterator[object]:
        assert isinstance(given, list)
        for event in given:
            yield event

    for form in [given] if is_whole(exchange) else [given, iter(given), stream()]:
        entry = (await recorded(tmp_path, exchange, form)).entry
        told = ("served", "tier", "speed", "geo", "outcome", "parts", "note")
        for name in told if b'"serviceTier"' not in exchange.body else set(told) - {"tier"}:
            assert getattr(entry, name) == getattr(expected, name), name
        assert entry.charge.status == expected.charge.status
        if metered(exchange, frozenset()).final:  # else the bytes of the text count, and its blanks
            assert (entry.usage, entry.charge) == (expected.usage, expected.charge)
