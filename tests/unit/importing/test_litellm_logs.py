"""litellm_logs: rows of LiteLLM_SpendLogs, from JSON and CSV. The rows are made up; the columns are its schema's."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from tests.logs import JSON, why

from tollkeeper.importing import litellm_logs
from tollkeeper.importing.lines import CsvCutter
from tollkeeper.importing.records import Given, Record
from tollkeeper.testing.clock import START_US
from tollkeeper.values import Scopes, Usage

GIVEN = Given(project="shop", now_us=START_US)
HASH = "ab" * 32
ROW: dict[str, Any] = {
    "request_id": "chatcmpl-9", "call_type": "acompletion", "api_key": HASH, "spend": 0.00123, "total_tokens": 1100,
    "prompt_tokens": 1000, "completion_tokens": 100, "startTime": "2025-12-31T12:00:00.500Z",
    "endTime": "2025-12-31T12:00:02.000Z", "model": "gpt-4o-mini", "model_group": "small", "custom_llm_provider": "openai",
    "user": "admin", "end_user": "u-7", "team_id": "t-1", "agent_id": None, "session_id": "s-1", "cache_hit": "False",
    "request_tags": ["nightly", "User-Agent: tests"], "status": "success", "messages": {}, "response": {},
    "metadata": {
        "user_api_key_alias": "ci",
        "usage_object": {
            "prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
            "prompt_tokens_details": {"cached_tokens": 300, "audio_tokens": 50},
            "completion_tokens_details": {"reasoning_tokens": 60, "audio_tokens": 10},
        },
    },
}  # fmt: skip


def read(**changed: Any) -> Record:
    return litellm_logs.read(json.dumps(ROW | changed).encode(), GIVEN)


def used(**usage: Any) -> dict[str, Any]:
    return {"usage_object": usage}


def test_a_row() -> None:
    """Who, what and when are the row's; what it computed stands in the note and never counts."""
    record = read()
    assert record.at_us == START_US - 43_200_000_000 + 500_000
    assert record.scopes == Scopes(
        project="t-1", session="s-1", user="u-7", key=HASH, tags=("User-Agent: tests", "nightly")
    )
    assert (record.request_id, record.model, record.reading.model) == ("chatcmpl-9", "small", "gpt-4o-mini")
    assert (record.provider, record.dialect, record.outcome) == ("openai", "litellm", "ok")
    assert record.reading.usage == Usage(
        input=650, cache_read=300, input_audio=50, output=90, output_audio=10, reasoning=60
    )
    assert (record.reading.reported_usd, record.other_usd) == (None, Decimal("0.00123"))
    assert record.note == "LiteLLM computed $0.00123"


def test_a_row_of_csv() -> None:
    """The same row as CSV, where everything is text and JSON is inside it, is the same record."""
    inner = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in ROW.items()}
    columns = [name for name in inner if inner[name] is not None]
    quoted = ['"' + str(inner[name]).replace('"', '""') + '"' for name in columns]
    (piece,) = CsvCutter().feed((",".join(columns) + "\n" + ",".join(quoted) + "\n").encode())
    assert litellm_logs.read(piece.raw, GIVEN) == read()


@pytest.mark.parametrize("time", ["2025-12-31 12:00:00.5", "2025-12-31 12:00:00.5+00", "2025-12-31T13:00:00.500+01:00"])
def test_times(time: str) -> None:
    """Its database has UTC without saying so."""
    assert read(startTime=time).at_us == read().at_us


@pytest.mark.parametrize(
    ("row", "usage"),
    [
        ({"metadata": {}}, Usage(input=1000, output=100)),
        ({"metadata": None}, Usage(input=1000, output=100)),
        ({"metadata": used(cache_read_input_tokens=700)}, Usage(input=300, cache_read=700, output=100)),
        ({"metadata": {"additional_usage_values": {"cache_creation_input_tokens": 250}}},
         Usage(input=750, cache_write_5m=250, output=100)),
        ({"metadata": used(cache_read_input_tokens=72_960, cache_creation_input_tokens=10), "prompt_tokens": 56_322},
         Usage(input=56_322, cache_read=72_960, cache_write_5m=10, output=100)),
        ({"metadata": used(cache_creation_input_tokens=500, server_tool_use={"web_search_requests": 2}, prompt_tokens_details={
            "cache_creation_tokens": 500, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 200}})},
         Usage(input=500, cache_write_5m=300, cache_write_1h=200, web_search=2, output=100)),
    ],
    ids=["none", "null", "read", "older", "beside the prompt", "one hour"],
)  # fmt: skip
def test_usage(row: dict[str, Any], usage: Usage) -> None:
    """A2: cached tokens are taken out of the prompt, or were never in it; writes for an hour are apart."""
    assert read(**row).reading.usage == usage


def test_tiers() -> None:
    """A4: a batch is one by its call type; else the tier is what the usage says."""
    assert read(call_type="aretrieve_batch").reading.tier == "batch"
    reading = read(metadata=used(service_tier="priority", speed="fast", inference_geo="us")).reading
    assert (reading.tier, reading.speed, reading.geo) == ("priority", "fast", "us")


def test_what_costs_nothing() -> None:
    """A hit of its cache called nobody, and a failure without tokens cost nothing; neither note has text of the error."""
    record = read(cache_hit="True", spend=0)
    assert (record.is_free, record.reading.usage, record.outcome) == (True, Usage(), "ok")
    assert record.note == "answered from LiteLLM's cache; LiteLLM computed $0"
    error = {"error_information": {"error_class": "RateLimitError", "error_message": "canary prompt"}}
    record = read(
        status="failure", prompt_tokens=0, completion_tokens=0, spend=0, metadata=error, model="", model_group=""
    )
    assert (record.is_free, record.outcome, record.model) == (True, "error", "unknown")
    assert record.note == "RateLimitError; LiteLLM computed $0"
    record = read(status="failure")
    assert (record.is_free, record.outcome, record.reading.usage.output) == (False, "error", 90)
    assert (read(status="failure", metadata={}, spend=None).note) == "failure"


def test_what_is_not_counted_in_tokens() -> None:
    """P4: an image or a page without tokens is a call of unknown cost, and no zero."""
    record = read(prompt_tokens=0, completion_tokens=0, metadata={}, call_type="aimage_generation")
    assert (record.is_free, record.reading.parts) == (False, ())


@pytest.mark.parametrize(
    ("key", "kept"), [("", None), (HASH, HASH), ("litellm_proxy_master_key", "litellm_proxy_master_key")]
)
def test_keys(key: str, kept: str | None) -> None:
    """A key's id is its hash."""
    assert read(api_key=key).scopes.key == kept


def test_a_key_that_is_no_hash() -> None:
    """H2: what may be a secret is hashed before anybody sees it."""
    key = read(api_key="sk-canary-1").scopes.key
    assert key is not None
    assert key.startswith("sha256:")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"startTime": None}, "startTime: expected `str`"),
        ({"startTime": "soon"}, "startTime: expected an ISO 8601 time"),
        ({"request_id": ""}, "request_id: expected 1 to 128"),
        ({"prompt_tokens": -1}, "prompt_tokens: expected"),
        ({"completion_tokens": 10**10}, "completion_tokens: expected"),
        ({"spend": -1}, "spend: expected dollars"),
        ({"spend": "NaN"}, "spend: expected dollars"),
        ({"model": "", "model_group": ""}, "model: expected 1 to 256"),
        ({"metadata": used(cache_read_input_tokens=-5)}, "usage_object.cache_read_input_tokens: expected"),
        ({"metadata": "{"}, "metadata is not JSON"),
        ({"metadata": [1]}, "metadata: expected"),
        ({"request_tags": "[1]"}, "request_tags"),
        ({"request_tags": [str(number) for number in range(17)]}, "request_tags: expected at most 16"),
    ],
    ids=str,
)
def test_mistakes(changed: dict[str, Any], says: str) -> None:
    """H4, I2: what cannot be booked says why by its column."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read(**changed)
    assert str(caught.value).startswith(says)


@generated(st.dictionaries(st.sampled_from(list(ROW)), JSON), st.dictionaries(st.sampled_from(["usage_object"]), JSON))
def test_any_row(changed: dict[str, Any], metadata: dict[str, Any]) -> None:
    """H4: any values in any column: a record within bounds, or one line of why not."""
    for row in (changed, changed | {"metadata": metadata}, {"metadata": json.dumps(metadata)} | changed):
        record = why(lambda row=row: read(**row))  # type: ignore[misc]
        assert "\n" not in record if isinstance(record, str) else record.reading.usage.tokens >= 0


def test_fits() -> None:
    """Its columns are told apart from other logs."""
    assert litellm_logs.fits(dict.fromkeys(ROW, b""))
    assert not litellm_logs.fits({"request_id": b"", "at": b""})
