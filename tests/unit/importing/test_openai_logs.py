"""openai_logs: responses as they came, with their request, and the Batch API's output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from tests.logs import JSON, why

from tollkeeper.importing import openai_logs
from tollkeeper.importing.records import Given, Record
from tollkeeper.settlement import NO_USAGE
from tollkeeper.testing.clock import START_US
from tollkeeper.values import Usage

GIVEN = Given(project="shop", now_us=START_US)
AT_S = START_US // 1_000_000 - 100
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": AT_S, "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a toll"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020,
        "prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 5},
    },
    "service_tier": "default",
}  # fmt: skip
EMBEDDED: dict[str, Any] = {
    "object": "list", "model": "text-embedding-3-small", "data": [{"object": "embedding", "embedding": [0.1]}],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}  # fmt: skip
RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": AT_S, "status": "completed", "model": "gpt-4o-mini",
    "output": [], "user": "u-1",
    "usage": {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 110,
    },
}  # fmt: skip
CHAT_USAGE = Usage(input=600, cache_read=400, output=20, reasoning=5)


def read(line: object, given: Given = GIVEN) -> Record:
    return openai_logs.read(json.dumps(line).encode(), given)


def batch(body: dict[str, Any] | None, status: int = 200, **more: Any) -> dict[str, Any]:
    response = None if body is None else {"status_code": status, "request_id": "req-9", "body": body}
    return {"id": "batch_req_7", "custom_id": "request-3", "response": response, "error": None} | more


def test_a_chat_completion() -> None:
    """A1, A4: usage, served model, tier, time and id are the response's own, read by the gateway's reducer."""
    record = read(CHAT | {"service_tier": "flex"})
    assert (record.at_us, record.dialect, record.request_id) == (AT_S * 1_000_000, "openai-chat", "chatcmpl-1")
    assert (record.model, record.reading.model, record.reading.tier) == (CHAT["model"], CHAT["model"], "flex")
    assert (record.reading.usage, record.reading.final, record.outcome) == (CHAT_USAGE, True, "ok")
    assert (record.scopes.project, record.scopes.user, record.note) == ("shop", None, None)


def test_with_the_request() -> None:
    """The request names the model that was asked for, and the user."""
    user = '{"device": "' + "x" * 200 + '"}'
    record = read({"request": {"model": "gpt-4o-mini", "user": user}, "response": CHAT})
    assert (record.model, record.reading.model) == ("gpt-4o-mini", CHAT["model"])
    assert (record.scopes.user or "").startswith("sha256:")
    record = read({"request": {"body": {"model": "m", "safety_identifier": "u-2"}}, "response": {"body": CHAT}})
    assert (record.model, record.scopes.user, record.reading.tier) == ("m", "u-2", "default")


def test_batch_output() -> None:
    """A4: what the Batch API answered was served at the batch tier, whatever the body says."""
    record = read(batch(CHAT))
    assert (record.reading.tier, record.request_id, record.reading.usage) == ("batch", "chatcmpl-1", CHAT_USAGE)


def test_embeddings_have_no_time_of_their_own() -> None:
    """Their time comes from what is around them, or from beside the file; their id too."""
    with pytest.raises(ValueError, match="created: the response does not say when it was made"):
        read(EMBEDDED)
    record = read(batch(EMBEDDED), Given(project="p", now_us=START_US, at_us=START_US - 5))
    assert (record.at_us, record.dialect, record.request_id) == (START_US - 5, "openai-embeddings", "batch_req_7")
    assert record.reading.usage == Usage(input=7)
    record = read({"created_at": "2025-12-31T00:00:00Z", "response": EMBEDDED})
    assert (record.at_us, record.request_id) == (START_US - 86_400_000_000, None)


def test_a_response() -> None:
    """A4: the Responses API's object is read by its own reducer."""
    record = read(RESPONSE)
    assert (record.at_us, record.dialect, record.request_id) == (AT_S * 1_000_000, "openai-responses", "resp_1")
    assert record.reading.usage == Usage(input=60, cache_read=40, output=10, reasoning=2)
    assert record.scopes.user == "u-1"


def test_servers_that_leave_the_kind_out() -> None:
    """A body with choices is chat; the older completions count the same way."""
    bare = {name: value for name, value in CHAT.items() if name != "object"}
    assert read(bare).reading.usage == read(CHAT | {"object": "text_completion"}).reading.usage == CHAT_USAGE


def test_without_usage() -> None:
    """P4: a response that states no usage is a call whose cost is not known, and no zero."""
    record = read({name: value for name, value in CHAT.items() if name != "usage"})
    assert (record.reading.parts, record.is_free, record.note) == ((), False, NO_USAGE)


def test_errors() -> None:
    """A refusal without usage costs nothing; where nothing says what was asked it is left out."""
    error = {"error": {"type": "rate_limit_exceeded", "message": "the prompt was …"}}
    record = read({"request": {"model": "m"}, "response": {"status_code": 429, "body": error | {"created": AT_S}}})
    assert (record.outcome, record.is_free, record.note) == ("error", True, "rate_limit_exceeded")
    with pytest.raises(ValueError, match=r"model: neither the response of a call that failed \(rate_limit_exceeded\)"):
        read(batch(error, 429))
    record = read(CHAT | error)
    assert (record.outcome, record.is_free, record.reading.usage) == ("error", False, CHAT_USAGE)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (batch(None, error={"code": "batch_expired"}), "response: there is none: batch_expired"),
        ({"request": {"model": "m"}, "response": None}, "response: there is none: error"),
        (RESPONSE | {"status": "in_progress", "usage": None}, "in_progress; log it when it is done|object: expected"),
        (CHAT | {"object": "chat.completion.chunk"}, "object: expected .*; log whole responses, not the pieces"),
        ({"object": "model"}, "object: expected one of"),
        ({"type": "message", "usage": {}}, "object: expected one of .*, got None"),
        (
            CHAT | {"usage": {"prompt_tokens": -5, "completion_tokens": 1}},
            "usage: it has a count that no call can have",
        ),
        (CHAT | {"usage": {"prompt_tokens": 10**9 + 1}}, "usage: it has a count that no call can have"),
        (CHAT | {"usage": [1]}, "usage is not a JSON object"),
        (CHAT | {"model": None}, "model: neither the response nor a request beside it names one"),
        (CHAT | {"created": "yesterday"}, "created: expected an ISO 8601 time"),
        (CHAT | {"created": AT_S + 10**6}, "created: expected an instant from the year 2000"),
        (CHAT | {"created": -1}, "created: expected seconds since 1970"),
        (CHAT | {"id": "x" * 200}, "id: expected 1 to 128"),
        ({"response": 5}, "response is not a JSON object"),
    ],
)
def test_mistakes(line: object, says: str) -> None:
    """H4, I2: what cannot be booked says why, in one line."""
    with pytest.raises(ValueError, match=says):
        read(line)


@pytest.mark.parametrize(
    "usage",
    ['{"prompt_tokens": 1, "prompt_tokens": 9}', '{"prompt_tokens_details": {"cached_tokens": 1, "cached_tokens": 2}}'],
)
def test_a_count_twice(usage: str) -> None:
    """H4: a count that stands twice could be read either way, so it is not read."""
    raw = json.dumps(CHAT | {"usage": "HERE"}).replace('"HERE"', usage).encode()
    with pytest.raises(ValueError, match="names this member twice"):
        openai_logs.read(raw, GIVEN)


@generated(
    st.dictionaries(st.sampled_from([*CHAT, "response", "request", "custom_id", "error", "status", "body"]), JSON)
)
def test_any_line(changed: dict[str, Any]) -> None:
    """H4: any values in any of the fields that are read: a record within bounds, or one line of why not."""
    for line in (CHAT | changed, changed, batch(CHAT | changed), {"request": changed, "response": CHAT | changed}):
        record = why(lambda line=line: read(line))  # type: ignore[misc]
        assert "\n" not in record if isinstance(record, str) else record.reading.usage.tokens >= 0
