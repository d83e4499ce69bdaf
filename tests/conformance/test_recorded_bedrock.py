"""Recorded Bedrock traffic gives the usage that its bodies state, whole and in 1-byte chunks alike.

What is expected is worked out here from the raw bytes, by AWS's description of the encoding and with plain json, and not
through the splitter and the reducer.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from tests.fixtures_folder import reader

from tollkeeper.dialects import HOMES, METERED
from tollkeeper.prices import PriceBook
from tollkeeper.tracker.replies import Heard, ReplyReader
from tollkeeper.values import Provider, Usage

EXCHANGES = [x for x in reader().exchanges() if "bedrock" in x.tag]
IDS = [f"{x.file.rsplit('/', 1)[-1]}#{x.index}" for x in EXCHANGES]
AT_US = 1_795_608_000_000_000  # 2026-11-25
#: Dollars by hand, from the prices of AWS's list for us-east-1: a regional profile of Sonnet 4.5 costs a tenth more.
DOLLARS = {
    ("test_bedrock_cache_messages_with_document_as_last_content.yaml", 0): "0.0108174",
    ("test_bedrock_cache_messages_with_document_as_last_content.yaml", 1): "0.00354486",
    ("test_bedrock_cache_write_and_read.yaml", 0): "0.00554235",
    ("test_bedrock_cache_write_and_read.yaml", 1): "0.00052536",
    ("test_bedrock_model_stream.yaml", 0): "0.000011935",
    ("test_bedrock_model_thinking_part_stream.yaml", 0): "0.001203",
    ("raw_stream_emits_required_zero_arg_tool_call.yaml", 0): "0.00002676",
}


def is_stream(exchange: Any) -> bool:
    return "eventstream" in exchange.headers.get("content-type", "")


def messages(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Event type and payload of each message."""
    found = []
    while body:
        total, size = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
        headers, payload, body = body[12 : 12 + size], body[12 + size : total - 4], body[total:]
        values = {}
        while headers:
            at = 1 + headers[0]
            assert headers[at] == 7, "text"
            length = int.from_bytes(headers[at + 1 : at + 3])
            values[headers[1:at].decode()] = headers[at + 3 : at + 3 + length].decode()
            headers = headers[at + 3 + length :]
        found.append((values[":event-type"], json.loads(payload)))
    return found


def told(exchange: Any) -> dict[str, Any]:
    """What has the usage: a stream's metadata, else the body."""
    if not is_stream(exchange):
        return dict(json.loads(exchange.body))
    (metadata,) = [payload for kind, payload in messages(exchange.body) if kind == "metadata"]
    return metadata


def heard(exchange: Any, size: int) -> Heard:
    reply = ReplyReader(METERED["bedrock-converse"], frozenset())
    for at in range(0, len(exchange.body), size):
        reply.feed(exchange.body[at : at + size])
    return reply.finish(exchange.status, over=True)


def test_corpus_is_there() -> None:
    """A9: all recorded exchanges are read: five bodies, three streams, two errors."""
    assert [sum(map(is_stream, EXCHANGES)), sum(x.status >= 300 for x in EXCHANGES), len(EXCHANGES)] == [3, 2, 10]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_usage_is_what_the_body_states(exchange: Any) -> None:
    """A9, A4: the usage read is the usage stated, with caches beside the input and writes by lifetime; errors have none."""
    answer = heard(exchange, len(exchange.body))
    reading = answer.reading
    if exchange.status >= 300:
        assert (reading.parts, reading.error) == ((), json.loads(exchange.body)["message"][:200])
        return
    document = told(exchange)
    usage = document["usage"]
    read, written = usage.get("cacheReadInputTokens", 0), usage.get("cacheWriteInputTokens", 0)
    long = sum(each["inputTokens"] for each in usage.get("cacheDetails", ()) if each["ttl"] == "1h")
    assert reading.usage == Usage(
        input=usage["inputTokens"], cache_read=read, cache_write_5m=written - long, cache_write_1h=long,
        output=usage["outputTokens"],
    )  # fmt: skip
    assert reading.usage.tokens == usage["totalTokens"]
    assert reading.tier == document.get("serviceTier", {}).get("type")
    assert (reading.final, reading.inferred, reading.ended, answer.complete) == (True, False, True, True)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_one_byte_chunks_read_alike(exchange: Any) -> None:
    """A9: cut into 1-byte chunks the same is read."""
    whole, cut = heard(exchange, len(exchange.body)), heard(exchange, 1)
    assert (cut.reading, cut.content, cut.complete) == (whole.reading, whole.content, whole.complete)


@pytest.mark.parametrize("exchange", [x for x in EXCHANGES if is_stream(x)], ids=lambda x: x.file.rsplit("/", 1)[-1])
def test_text_is_bounded_from_above(exchange: Any) -> None:
    """D1: what was generated has at most as many bytes as were counted, and padding is not counted."""
    deltas = [payload["delta"] for kind, payload in messages(exchange.body) if kind == "contentBlockDelta"]
    text = sum(len(json.dumps(delta)) for delta in deltas)
    said = sum(
        len(str(delta.get("text", delta.get("reasoningContent", {}).get("text", ""))).encode()) for delta in deltas
    )
    padded = sum(len(json.dumps(payload)) for _, payload in messages(exchange.body))
    assert said <= heard(exchange, 100).reading.output_bytes < max(text, 100) < padded


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_charge_is_that_of_the_region(exchange: Any) -> None:
    """A4: priced at AWS's own price for the model in the path, the regional tenth included; a tier without a price is told."""
    if exchange.status >= 300:
        return
    home = HOMES["bedrock-converse"]
    provider = Provider(name=home, base_url="", dialects=frozenset(), prices=home)
    model = exchange.url.split("/model/")[1].rsplit("/", 1)[0].replace("%3A", ":")
    charge = PriceBook().charge(heard(exchange, 100).reading, provider=provider, model=model, at_us=AT_US)
    expected = DOLLARS.get((exchange.file.rsplit("/", 1)[-1], exchange.index))
    if expected is None:
        assert (charge.status, charge.missing) == ("partial", ("service_tier=flex",))
    else:
        assert charge.status == "priced"
        assert charge.amount_nanos == Decimal(expected) * 10**9
