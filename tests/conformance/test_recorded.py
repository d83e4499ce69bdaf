"""Recorded provider traffic gives the usage that its bodies state, whole and in 1-byte chunks alike.

What is expected is worked out here from the raw bodies with plain json, by the rules of facts/usage-and-prices.md §2, and
not through the reducers.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from tests.fixtures_folder import reader

from tollkeeper.dialects import DIALECTS
from tollkeeper.meter import Meter
from tollkeeper.values import Reading, Usage

OTHER_DIALECTS = ("bedrock", "cohere", "ollama native")


def dialect_of(tag: str) -> str | None:
    """The dialect of a manifest tag, None for dialects that are not spoken yet."""
    if not tag or any(other in tag for other in OTHER_DIALECTS):
        return None
    if "anthropic" in tag:
        return "anthropic-messages"
    if "responses" in tag:
        return "openai-responses"
    if "gemini" in tag and "compat" not in tag:
        return "google-generate"
    return "openai-embeddings" if "embeddings" in tag else "openai-chat"


def is_call(exchange: Any) -> bool:
    """Whether it is a call of a dialect: some of Google's recordings fetch a token, or keep a prompt, first."""
    return dialect_of(exchange.tag) is not None and not re.search(r"/token$|/cachedContents", exchange.url)


EXCHANGES = [x for x in reader().exchanges() if is_call(x)]
IDS = [f"{x.file.rsplit('/', 1)[-1]}#{x.index}" for x in EXCHANGES]
STREAMS = [x for x in EXCHANGES if not x.body.lstrip().startswith(b"{") and dialect_of(x.tag) != "google-generate"]


def is_stream(body: bytes) -> bool:
    """Whether a recorded body is a stream: content types are not in every recording."""
    return not body.lstrip().startswith(b"{")


def is_array(body: bytes) -> bool:
    """Whether a recorded stream is one JSON array."""
    return body.lstrip().startswith(b"[")


def payloads(body: bytes) -> list[dict[str, Any]]:
    """Every JSON payload of a body, streamed or not."""
    if not is_stream(body):
        return [json.loads(body, parse_float=Decimal)]
    if is_array(body):
        return list(json.loads(body, parse_float=Decimal))
    texts = [
        "\n".join(line[5:].strip() for line in block.splitlines() if line.startswith("data:"))
        for block in re.split(r"\r?\n\r?\n", body.decode())
    ]
    return [json.loads(text, parse_float=Decimal) for text in texts if text and text != "[DONE]"]


def thought_in_secret(usage: dict[str, Any]) -> int:
    """Thinking that Gemini's OpenAI-compatible endpoint counts in the total alone."""
    if usage.get("prompt_tokens_details") or usage.get("completion_tokens_details"):
        return 0
    return int(usage["total_tokens"] - usage["prompt_tokens"] - usage.get("completion_tokens", 0))


def openai_expected(docs: list[dict[str, Any]]) -> dict[str, int] | None:
    """The last usage object of a body, inclusive counts."""
    usages = [doc.get("usage") or (doc.get("x_groq") or {}).get("usage") for doc in docs]
    stated = [usage for usage in usages if usage]
    if not stated:
        return None
    usage = stated[-1]
    asked = usage.get("prompt_tokens_details") or {}
    given = usage.get("completion_tokens_details") or {}
    prompt, completion = usage["prompt_tokens"], usage.get("completion_tokens", 0)
    cached = asked.get("cached_tokens") or 0
    audio = asked.get("audio_tokens") or 0
    if cached > prompt:
        prompt += cached
    elif usage["total_tokens"] - prompt - completion == audio:
        prompt += audio
    hidden = thought_in_secret(usage)
    return {
        "input_tokens": prompt,
        "output_tokens": completion + hidden,
        "cache_read": cached,
        "cache_write": asked.get("cache_write_tokens") or 0,
        "input_audio": audio,
        "reasoning": hidden or min(completion, given.get("reasoning_tokens") or 0),
        "web_search": (usage.get("server_tool_use_details") or {}).get("web_search_requests") or 0,
    }


def anthropic_expected(docs: list[dict[str, Any]]) -> dict[str, int] | None:
    """The overlay of the start's and the deltas' usage, and every iteration where they are listed."""
    usage: dict[str, Any] = {}
    for doc in docs:
        if doc["type"] in ("message_start", "message", "message_delta"):
            latest = doc.get("usage") or doc.get("message", {}).get("usage") or {}
            usage.update({key: value for key, value in latest.items() if value is not None})
    if not usage:
        return None
    turns = usage.get("iterations") or [usage]

    def total(key: str) -> int:
        return sum(turn.get(key) or 0 for turn in turns)

    long = sum((turn.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0 for turn in turns)
    read, written = total("cache_read_input_tokens"), total("cache_creation_input_tokens")
    return {
        "input_tokens": total("input_tokens") + read + written,
        "output_tokens": total("output_tokens"),
        "cache_read": read,
        "cache_write": written,
        "cache_write_1h": long,
        "reasoning": (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
        "web_search": (usage.get("server_tool_use") or {}).get("web_search_requests") or 0,
    }


def responses_expected(docs: list[dict[str, Any]]) -> dict[str, int] | None:
    """The usage of the last response object, and the searches that it counts or lists; one that failed used nothing."""
    response = next((doc.get("response", doc) for doc in reversed(docs) if doc.get("response", doc).get("status")), {})
    usage = response.get("usage")
    if not usage:
        nothing = ("input_tokens", "output_tokens", "cache_read", "cache_write", "reasoning", "web_search")
        return dict.fromkeys(nothing, 0) if response.get("status") == "failed" else None
    items = [item for item in response["output"] if item["type"] == "web_search_call"]
    told = (response.get("tool_usage") or {}).get("web_search", {}).get("num_requests")
    asked, given = usage["input_tokens_details"], usage["output_tokens_details"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return {
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "cache_read": asked["cached_tokens"],
        "cache_write": asked.get("cache_write_tokens") or 0,
        "reasoning": given["reasoning_tokens"],
        "web_search": sum(item["action"]["type"] == "search" for item in items) if told is None else told,
    }


def google_expected(docs: list[dict[str, Any]]) -> dict[str, int] | None:
    """The last chunk's usage. What a count leaves out is 0; a reply with neither counts nor a block states nothing."""
    usages = [doc["usageMetadata"] for doc in docs if "usageMetadata" in doc]
    blocked = any((doc.get("promptFeedback") or {}).get("blockReason") for doc in docs)
    if not usages or not (blocked or "promptTokenCount" in usages[-1]):
        return None
    usage = usages[-1]

    def count(key: str, modality: tuple[str, int] | None = None) -> int:
        if modality is None:
            return int(usage.get(key, 0))
        return sum(each["tokenCount"] for each in usage.get(key, []) if each["modality"] in modality)

    queries = {
        query
        for doc in docs
        for candidate in doc.get("candidates", [])
        for query in candidate.get("groundingMetadata", {}).get("webSearchQueries", [])
        if query
    }
    return {
        "input_tokens": count("promptTokenCount") + count("toolUsePromptTokenCount"),
        "output_tokens": count("candidatesTokenCount") + count("thoughtsTokenCount"),
        "cache_read": count("cachedContentTokenCount"),
        "input_audio": count("promptTokensDetails", ("AUDIO", 4)),
        "reasoning": count("thoughtsTokenCount"),
        "web_search": len(queries),
    }


def shrank(docs: list[dict[str, Any]]) -> bool:
    """Whether Google's last chunk states fewer generated tokens than an earlier one."""
    usages = [doc["usageMetadata"] for doc in docs if "usageMetadata" in doc]
    keys = ("candidatesTokenCount", "thoughtsTokenCount")
    return any(usages[-1].get(key, 0) < max(usage.get(key, 0) for usage in usages) for key in keys if usages)


EXPECTED = {
    "anthropic-messages": anthropic_expected,
    "google-generate": google_expected,
    "openai-chat": openai_expected,
    "openai-embeddings": openai_expected,
    "openai-responses": responses_expected,
}


def inclusive(usage: Usage) -> dict[str, int]:
    """What was read, counted the way the expectations are."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read": usage.cache_read,
        "cache_write": usage.cache_write_5m + usage.cache_write_1h,
        "cache_write_1h": usage.cache_write_1h,
        "input_audio": usage.input_audio,
        "reasoning": usage.reasoning,
        "web_search": usage.web_search,
    }


def metered(exchange: Any, size: int, *, hide: bool = False) -> tuple[bytes, Reading]:
    """What a meter relays and reads, fed `size` bytes at a time."""
    meter = Meter(
        DIALECTS[str(dialect_of(exchange.tag))],
        stream=is_stream(exchange.body),
        hide_usage=hide,
        quirks=frozenset(["no_done"] if "perplexity" in exchange.tag else []),
        array=is_array(exchange.body),
    )
    body = exchange.body
    relayed = b"".join(meter.feed(body[at : at + size]) for at in range(0, len(body), size))
    reading = meter.finish()
    return (relayed if is_stream(body) else meter.body) + meter.tail, reading


def test_corpus_is_there() -> None:
    """A9: the recorded exchanges of these dialects are read, none is passed over by accident."""
    assert len(EXCHANGES) >= 75
    assert {dialect_of(x.tag) for x in EXCHANGES} == set(DIALECTS)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_usage_is_what_the_body_states(exchange: Any) -> None:
    """A9: the usage read is the usage stated; a body that states none has none."""
    docs = payloads(exchange.body)
    expected = EXPECTED[str(dialect_of(exchange.tag))](docs)
    _, reading = metered(exchange, len(exchange.body))
    if expected is None:
        assert reading.parts == ()
        return
    read = inclusive(reading.usage)
    assert {key: read[key] for key in expected} == expected
    assert reading.final
    assert reading.inferred == (shrank(docs) or "gemini openai-compat" in exchange.tag)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_one_byte_chunks_read_alike(exchange: Any) -> None:
    """A9: cut into 1-byte chunks the same is relayed and read, hidden usage or not."""
    for hide in (False, True):
        assert metered(exchange, 1, hide=hide) == metered(exchange, len(exchange.body), hide=hide)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_bytes_are_relayed_as_they_came(exchange: Any) -> None:
    """Without hiding, the client gets the provider's bytes; only a missing last blank line is added."""
    relayed, _ = metered(exchange, 1000)
    assert relayed.rstrip(b"\n") == exchange.body.rstrip(b"\n")
    if is_array(exchange.body):
        assert relayed == exchange.body


@pytest.mark.parametrize("exchange", STREAMS, ids=lambda x: f"{x.file.rsplit('/', 1)[-1]}#{x.index}")
def test_hidden_usage_leaves_every_choice(exchange: Any) -> None:
    """D2: hiding takes out usage-only chunks and `usage: null`, nothing else."""
    relayed, _ = metered(exchange, 1000, hide=True)
    before, after = payloads(exchange.body), payloads(relayed)
    kept = [doc for doc in before if not (doc.get("usage") and doc.get("choices") == [])]
    assert after == [{k: v for k, v in doc.items() if (k, v) != ("usage", None)} for doc in kept]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_ends_and_errors_are_recognised(exchange: Any) -> None:
    """D2: every recorded stream that was not broken by an error has its dialect's end; errors in bodies are seen."""
    _, reading = metered(exchange, 1000)
    docs = payloads(exchange.body)
    failed = any(doc.get("error") for doc in docs)
    assert (reading.error is not None) == failed
    if not failed:
        assert reading.ended


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_served_model_is_read(exchange: Any) -> None:
    """The model that served is the one that the body names last."""
    models = [
        doc.get("model") or doc.get("modelVersion") or (doc.get("message") or doc.get("response") or {}).get("model")
        for doc in payloads(exchange.body)
    ]
    _, reading = metered(exchange, 1000)
    assert reading.model == next((model for model in reversed(models) if model), None)


def test_prompt_bound_holds() -> None:
    """C3: no recorded prompt has more tokens than the bound of its request."""
    compared = 0
    for exchange in EXCHANGES:
        reading = metered(exchange, 1000)[1]
        if not exchange.request or not reading.parts:
            continue
        ask = DIALECTS[str(dialect_of(exchange.tag))].read_ask(json.dumps({"model": "m"} | exchange.request).encode())
        largest = max(part.usage.input_tokens for part in reading.parts)
        assert largest <= ask.prompt_bound, (exchange.file, largest, ask.prompt_bound)
        compared += 1
    assert compared >= 50


def stated_costs(docs: list[dict[str, Any]]) -> list[Decimal]:
    """What a provider says that it charged, in dollars."""
    usages = [doc.get("response", doc).get("usage") or {} for doc in docs]
    costs = [usage["cost"] for usage in usages if usage.get("cost") is not None]
    ticks = [Decimal(usage["cost_in_usd_ticks"]) / 10**10 for usage in usages if "cost_in_usd_ticks" in usage]
    return [Decimal(cost["total_cost"] if isinstance(cost, dict) else cost) for cost in costs] + ticks


def test_reported_costs_are_exact() -> None:
    """Provider-reported cost is read as written, to the last digit; xAI's ticks are 1e-10 dollars."""
    reported = {}
    for exchange in EXCHANGES:
        if stated := stated_costs(payloads(exchange.body)):
            reported[exchange.file, exchange.index] = (stated[-1], metered(exchange, 1000)[1].reported_usd)
    assert len(reported) >= 8
    assert all(stated == read for stated, read in reported.values()), reported


def test_iterations_are_parts() -> None:
    """Compaction, advisor and fall-back turns are each a part at its own model."""
    parts = {
        (exchange.file.rsplit("/", 1)[-1], exchange.index): [
            (part.model, part.usage.input_tokens, part.usage.output) for part in metered(exchange, 1000)[1].parts
        ]
        for exchange in EXCHANGES
        if "anthropic" in exchange.tag
    }
    assert parts["test_anthropic_advisor_tool.yaml", 0] == [
        ("claude-sonnet-5", 1128, 110),
        ("claude-opus-4-8", 2518, 22),
        ("claude-sonnet-5", 1262, 11),
    ]
    assert parts["anthropic-fallback.json", 0] == [("claude-fable-5", 408, 0), ("claude-opus-4-8", 412, 264)]
    assert parts["test_anthropic_compaction_usage_with_cache.yaml", 0] == [
        ("claude-sonnet-4-6", 55196, 131),
        ("claude-sonnet-4-6", 229, 5),
    ]
