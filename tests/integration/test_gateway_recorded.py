"""Every recorded exchange of our dialects, replayed through the real gateway by a fake provider.

What must be booked is worked out from the recorded bodies alone (tests/conformance/test_recorded.py), not by the gateway.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.test_recorded import (
    EXCHANGES,
    EXPECTED,
    IDS,
    dialect_of,
    inclusive,
    is_array,
    is_stream,
    payloads,
    stated_costs,
)
from tests.gateway import BODIES, Gateway, gateway, until

from tollkeeper.api import CALLS
from tollkeeper.config.providers import presets
from tollkeeper.testing.provider import FakeProvider, Replay
from tollkeeper.values import Entry

PATHS = {dialect: path for path, dialect in CALLS.items()}
CHUNK = 61
#: Models that the price data do not know, and kinds that they have no rate for.
NO_PRICE = {
    ("ollama", "gpt-oss:20b"), ("copilot", "gpt-4o-2024-11-20"), ("groq", "allam-2-7b"),
    ("llamacpp", "Qwen3-1.7B-Q4_K_M.gguf"),
}  # fmt: skip
NO_RATE = {
    "mistral-large-latest": ("cache_read",),
    "voxtral-small-latest": ("input_audio",),
}


def vendor(exchange: Any) -> str:
    """Who answered, by the name of its preset: the first word of the tag, such as "groq"."""
    word = str(exchange.tag.partition(" ")[0])
    names = {"openai-chat": "openai", "openai-responses": "openai", "z.ai": "zai", "llama.cpp": "llamacpp"}
    return (names | {"gemini": "google"}).get(word, word)


@cache
def providers() -> str:
    """Every vendor of the recordings as a provider at the fake's URL, by its preset where there is one."""
    known, tables = presets(), ""
    for name in sorted({vendor(exchange) for exchange in EXCHANGES}):
        preset = known.get(name)
        tables += f'[providers."{name}"]\nbase_url = "{{url}}/v1"\napi_key_env = "PROVIDER_KEY"\n'
        if preset is None:
            tables += 'dialects = ["openai-chat"]\n'
    return tables


def place(exchange: Any) -> str:
    """The path to ask at: Google's names the model, and how the reply is to come."""
    dialect = str(dialect_of(exchange.tag))
    if dialect != "google-generate":
        return PATHS[dialect]
    named = re.search(r"models/([^:]+):", exchange.url)
    model = f"google/{named[1] if named else 'gemini-2.5-flash'}"
    if not is_stream(exchange.body):
        return f"/v1beta/models/{model}:generateContent"
    return f"/v1beta/models/{model}:streamGenerateContent" + ("" if is_array(exchange.body) else "?alt=sse")


def question(exchange: Any, stream: bool, ask_usage: bool) -> dict[str, Any]:
    """The recorded request where there is one, for its vendor; whether it asks for usage is ours to say."""
    dialect = str(dialect_of(exchange.tag))
    recorded = exchange.request if isinstance(exchange.request, dict) else {}
    if dialect == "google-generate":
        return BODIES[dialect] | recorded
    body = {
        **BODIES[dialect],
        **recorded,
        "model": f"{vendor(exchange)}/{recorded.get('model') or 'claude-sonnet-4-6'}",
    }
    for name in ("stream", "stream_options"):
        body.pop(name, None)
    if stream:
        body["stream"] = True
        if dialect == "openai-chat" and ask_usage:
            body["stream_options"] = {"include_usage": True}
    return body


async def replayed(gw: Gateway, exchange: Any, chunk: int, ask_usage: bool) -> tuple[int, bytes, Entry]:
    """Status and bytes that the client got, and the entry that was booked."""
    before = len(await gw.entries())
    gw.fake.next(Replay(exchange.body, exchange.status, tuple(exchange.headers.items()), chunk))
    stream = "text/event-stream" in exchange.headers.get("content-type", "")
    body = question(exchange, stream, ask_usage)
    async with gw.post(place(exchange), body) as response:
        relayed = await response.read()
    await until(lambda: gw.booked(before + 1))
    return response.status, relayed, (await gw.entries())[-1]


def shown(body: bytes) -> list[dict[str, Any]]:
    """The payloads of a stream that a client sees who did not ask for usage."""
    kept = [doc for doc in payloads(body) if not (doc.get("usage") and doc.get("choices") == [])]
    return [{name: value for name, value in doc.items() if (name, value) != ("usage", None)} for doc in kept]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
async def test_recorded_traffic(tmp_path: Path, exchange: Any) -> None:
    """A9: whole and in small chunks, usage shown or hidden, a recorded reply is booked as its body states and relayed."""
    async with gateway(tmp_path, FakeProvider(), providers=providers()) as gw:
        entries = []
        for chunk, ask_usage in ((0, True), (CHUNK, False)):
            status, relayed, entry = await replayed(gw, exchange, chunk, ask_usage)
            entries.append(entry)
            check_relayed(exchange, status, relayed, ask_usage)
            check_entry(exchange, entry)
        assert await gw.live() == []
        assert len(await gw.entries()) == 2
    one, other = entries
    assert one.usage.output == other.usage.output
    if one.charge.status != "estimated":  # an estimate bounds the prompt by the request's bytes, and those differ
        assert (one.usage, one.charge) == (other.usage, other.charge)


def check_relayed(exchange: Any, status: int, relayed: bytes, ask_usage: bool) -> None:
    """Status and bytes as the provider sent them: its own 401 alone, and an error before all content, become our 502."""
    if exchange.status == 401:
        assert status == 502
        assert b"check its base_url and key" in relayed
        return
    if status == 502:
        assert b"answered with an error: insufficient_quota" in relayed
        assert exchange.tag == "openai-responses stream error"
        return
    assert status == exchange.status
    if is_stream(exchange.body) and exchange.status == 200 and not ask_usage:
        assert payloads(relayed) == shown(exchange.body)
        assert relayed.count(b"[DONE]") == exchange.body.count(b"[DONE]")
    else:
        assert relayed.rstrip(b"\n") == exchange.body.rstrip(b"\n")


def check_entry(exchange: Any, entry: Entry) -> None:
    """What is booked is what the body states; what it does not state is marked."""
    assert (entry.http_status, entry.provider) == (exchange.status, vendor(exchange))
    charge = entry.charge
    assert (charge.amount_nanos is None) == (charge.status == "unpriced")
    if exchange.status != 200:
        assert (entry.outcome, charge.amount_nanos, entry.usage.tokens) == ("error", 0, 0)
        return
    docs = payloads(exchange.body)
    expected = EXPECTED[str(dialect_of(exchange.tag))](docs)
    failed = any(doc.get("error") for doc in docs)
    assert entry.outcome == ("error" if failed else "ok")
    if expected is None:
        assert charge.status in ("estimated", "unpriced")
        return
    read = inclusive(entry.usage)
    assert {name: read[name] for name in expected} == expected
    name = entry.served.rpartition("/")[2]
    without = tuple(kind for kind in NO_RATE.get(name, ()) if getattr(entry.usage, kind))
    gaps = tuple(
        gap for gap in charge.missing if gap == f"service_tier={(entry.tier or '').removeprefix('on_demand_')}"
    )
    assert charge.missing == without + gaps
    partial = charge.missing and charge.reported_nanos is None  # what the provider says that it charged is all of it
    assert charge.status == ("unpriced" if (entry.provider, name) in NO_PRICE else "partial" if partial else "priced")
    if charge.status == "priced" and any(expected.values()):
        assert charge.terms or charge.reported_nanos is not None
        assert (charge.amount_nanos or 0) > 0 or ":free" in entry.model
    if stated := stated_costs(docs):
        assert charge.reported_nanos == int((stated[-1] * 10**9).to_integral_value())


def test_corpus_is_there() -> None:
    """A9: the recordings are not passed over: there are many, from many vendors, and those not streamed are JSON."""
    assert len(EXCHANGES) >= 75
    assert len({vendor(exchange) for exchange in EXCHANGES}) >= 9
    assert all(is_stream(each.body) or json.loads(each.body) for each in EXCHANGES if each.status == 200)
