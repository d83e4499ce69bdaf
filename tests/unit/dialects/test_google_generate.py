"""Google's generateContent: the ask, the permitted changes and the refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.google_generate import broken, read_ask, refusal, write_body
from tollkeeper.dialects.json_body import TEMPLATE_TOKENS
from tollkeeper.errors import (
    BadRequest,
    BudgetExceeded,
    NotAuthenticated,
    RequestTooLarge,
    StreamBroken,
    TollkeeperError,
    UpstreamTimeout,
)
from tollkeeper.values import Ask, Budget, Refusal, Standing

NONE: frozenset[str] = frozenset()
AT = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
HI = b'{"contents":[{"parts":[{"text":"hi"}]}]}'


def written(ask: Ask, cap: int | None = None, model: str = "m") -> str:
    return write_body(ask, model=model, output_cap=cap, quirks=NONE).decode()


def test_ask() -> None:
    """An ask carries the path's model, and the body's cap, candidates and tier."""
    body = b'{"contents":[],"generationConfig":{"maxOutputTokens":9,"candidateCount":2},"serviceTier":"flex"}'
    ask = read_ask(body, AT)
    assert (ask.dialect, ask.model, ask.path) == (
        "google-generate",
        "gemini-2.5-flash",
        "/models/{model}:generateContent",
    )
    assert (ask.stream, ask.array, ask.free, ask.generates) == (False, False, False, True)
    assert (ask.output_cap, ask.choices, ask.tier, ask.wants_usage) == (9, 2, "flex", True)
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS


def test_snake_case() -> None:
    """Google takes either spelling, so both are read; where a count stands in both, the larger one bounds it."""
    ask = read_ask(b'{"generation_config":{"max_output_tokens":9,"candidate_count":2},"service_tier":"flex"}', AT)
    assert (ask.output_cap, ask.choices, ask.tier) == (9, 2, "flex")
    both = read_ask(b'{"generationConfig":{"max_output_tokens":9,"maxOutputTokens":5}}', AT)
    assert both.output_cap == 9


@pytest.mark.parametrize(
    ("query", "array", "path"),
    [
        ("?alt=sse", False, "/models/{model}:streamGenerateContent?alt=sse"),
        ("?key=secret&alt=sse&x=1", False, "/models/{model}:streamGenerateContent?alt=sse"),
        ("", True, "/models/{model}:streamGenerateContent"),
        ("?", True, "/models/{model}:streamGenerateContent"),
        ("?alt=json&key=secret", True, "/models/{model}:streamGenerateContent"),
        ("?%24alt=json;enum-encoding=int", True, "/models/{model}:streamGenerateContent"),
    ],
)
def test_streams(query: str, array: bool, path: str) -> None:
    """H2: of the query only `alt` passes, and it says how the stream comes; a key there goes nowhere."""
    ask = read_ask(HI, STREAM + query)
    assert (ask.stream, ask.array, ask.path) == (True, array, path)
    assert "secret" not in str(ask)


@pytest.mark.parametrize(
    ("method", "generates", "free"),
    [("embedContent", False, False), ("batchEmbedContents", False, False), ("countTokens", False, True)],
)
def test_other_methods(method: str, generates: bool, free: bool) -> None:
    """Embeddings generate nothing, and counting tokens is free."""
    ask = read_ask(b'{"content":{}}', f"/v1/models/e:{method}?alt=sse")
    assert (ask.generates, ask.free, ask.output_cap, ask.stream) == (generates, free, 0, False)
    assert ask.path == "/models/{model}:" + method


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("gemini-2.5-flash", "gemini-2.5-flash"),
        ("google/gemini-2.5-flash", "google/gemini-2.5-flash"),
        ("google%2Fgemini-2.5-flash", "google/gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("models%2Fgoogle%2Fgemini-2.5-flash", "google/gemini-2.5-flash"),
        ("llama3:8b", "llama3:8b"),
        ("mod%C3%A8le", "modèle"),
        ("a%3FgenerateContent", "a?generateContent"),
        ("x%2525", "x%25"),
    ],
)
def test_models_in_the_path(named: str, model: str) -> None:
    """A6: the model is what the path names, decoded once; a provider may stand before it."""
    assert read_ask(HI, f"/v1beta/models/{named}:generateContent").model == model


@pytest.mark.parametrize(
    "named",
    ["..", "a/../b", "google%2F..%2F..%2Fcached", "./a", "a//b", "/a", "a/", "%0d%0ax", "%ff", "m" * 257, "%00"],
)
def test_models_that_lead_elsewhere(named: str) -> None:
    """H3: a name with steps, empty parts, control characters or without UTF-8 is refused: it is a part of our path."""
    with pytest.raises(BadRequest, match="names no model"):
        read_ask(HI, f"/v1beta/models/{named}:generateContent")


@pytest.mark.parametrize(
    "path", ["/v1beta/models/m:predict", "/v1beta/models/m", "/v1beta/models/m%3AgenerateContent", "x"]
)
def test_methods_that_are_not_there(path: str) -> None:
    """A path without one of the methods is refused, naming them."""
    with pytest.raises(BadRequest, match="countTokens"):
        read_ask(HI, path)


@pytest.mark.parametrize(
    ("body", "target", "message"),
    [
        (b'{"generationConfig":{"maxOutputTokens":-1}}', AT, "^maxOutputTokens: expected"),
        (b'{"generationConfig":{"maxOutputTokens":1e3}}', AT, "^maxOutputTokens: expected"),
        (b'{"generationConfig":{"max_output_tokens":"5"}}', AT, "^max_output_tokens: expected"),
        (b'{"generationConfig":{"candidateCount":9}}', AT, "^candidateCount: expected"),
        (b'{"generationConfig":{"candidateCount":0}}', AT, "^candidateCount: expected"),
        (b'{"generationConfig":{"maxOutputTokens":9,"maxOutputTokens":1}}', AT, "^maxOutputTokens: .* twice"),
        (b'{"generationConfig":7}', AT, "^generationConfig: expected an object"),
        (b'{"generationConfig":{},"generation_config":{}}', AT, "^generationConfig: .* two spellings"),
        (b'{"contents":[],"contents":[]}', AT, "^contents: the body names this member twice"),
        (b'{"requests":{}}', AT, "^requests: expected"),
        (b'{"serviceTier":7}', AT, "^serviceTier: expected text"),
        (b"{}", STREAM + "?alt=proto", "^alt: expected sse"),
        (b"{}", STREAM + "?alt=sse&alt=json", "^alt: expected sse"),
        (b"{}", "", "^model: expected"),
    ],
)
def test_bad_asks(body: bytes, target: str, message: str) -> None:
    """H4: what is wrong in the body or the query is named."""
    with pytest.raises(BadRequest, match=message):
        read_ask(body, target)


def test_deep_bodies() -> None:
    """H4: nesting beyond reading is a refusal of its own."""
    with pytest.raises(RequestTooLarge):
        read_ask(b'{"contents":' + b"[" * 5000 + b"]" * 5000 + b"}", AT)


def test_without_a_target() -> None:
    """For an estimate of a body alone its `model` stands in, and is not sent; its members tell what is asked."""
    ask = read_ask(b'{"model":"models/gemini-2.5-pro","contents":[]}')
    assert (ask.model, ask.path, ask.stream) == ("gemini-2.5-pro", "/models/{model}:generateContent", False)
    assert written(ask) == '{"contents":[]}'
    assert not read_ask(b'{"model":"e","content":{}}').generates
    assert read_ask(b'{"model":"e","requests":[]}').path == "/models/{model}:batchEmbedContents"


def test_bytes_are_kept() -> None:
    """Every value keeps its bytes; without need nothing is added."""
    body = '{"contents":[{"parts": [{"text": "h\\u00e9"}]}],"generationConfig":{"temperature": 1.50},"x":1e2}'
    ask = read_ask(body.encode(), AT)
    assert written(ask) == body


@pytest.mark.parametrize(
    ("config", "after"),
    [
        ("", '"generationConfig":{"maxOutputTokens":7}'),
        (
            '"generationConfig":{"temperature": 1.50,"stopSequences":[ "\\u00e9" ]}',
            '"generationConfig":{"temperature":1.50,"stopSequences":[ "\\u00e9" ],"maxOutputTokens":7}',
        ),
        ('"generation_config":{"top_k":1}', '"generation_config":{"top_k":1,"maxOutputTokens":7}'),
        ('"generationConfig":null', '"generationConfig":{"maxOutputTokens":7}'),
        ('"generationConfig":{"max_output_tokens":null}', '"generationConfig":{"maxOutputTokens":7}'),
        ('"generationConfig":{"maxOutputTokens":null}', '"generationConfig":{"maxOutputTokens":7}'),
        ('"generationConfig":{"maxOutputTokens":5}', '"generationConfig":{"maxOutputTokens":5}'),
    ],
)
def test_cap(config: str, after: str) -> None:
    """C3: a cap is written where none was set, and nothing else of the generation config changes."""
    assert written(read_ask(f"{{{config}}}".encode(), AT), 7) == f"{{{after}}}"


def test_models_in_the_body() -> None:
    """C6: wherever the body names a model it is the route's: no other one is asked past the budgets."""
    dear = '"model":"models/dear"'
    own = '"model":"models/m"'
    assert written(read_ask(f"{{{dear}}}".encode(), AT)) == f"{{{own}}}"
    batch = read_ask(f'{{"requests":[{{{dear},"content":{{}}}},{{"content":{{ }}}}]}}'.encode(), AT)
    assert written(batch) == f'{{"requests":[{{{own},"content":{{}}}},{{"content":{{ }},{own}}}]}}'
    counted = read_ask(f'{{"generateContentRequest":{{{dear},"contents":[ ]}}}}'.encode(), AT)
    assert written(counted) == f'{{"generateContentRequest":{{{own},"contents":[ ]}}}}'


# ---- refusals -------------------------------------------------------------------------------------------------------

BUDGET = Budget(scope="session", limit=10_000_000, window="total", id="s1", project="alpha")
STANDING = Standing(
    budget=BUDGET, id="s1", project="alpha", window_start_us=0, resets_at_us=None, spent=28_800, held=0
)  # fmt: skip


def test_refusal() -> None:
    """C7: Google's shape: code, message, status, and the budget's numbers as an ErrorInfo's metadata, all text."""
    document: Any = json.loads(refusal(BudgetExceeded(Refusal(standing=STANDING, asked=42_000_000)), "r1"))
    error = document["error"]
    assert (error["code"], error["status"], document["request_id"]) == (402, "RESOURCE_EXHAUSTED", "r1")
    assert "limit $0.01" in error["message"]
    (info,) = error["details"]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == ("BUDGET_EXCEEDED", "tollkeeper")
    assert info["metadata"] == {
        "reason": "over", "scope": "session", "id": "s1", "project": "alpha", "measure": "usd", "window": "total",
        "limit": "0.01", "spent": "0.0000288", "held": "0", "asked": "0.042",
    }  # fmt: skip
    assert list(document)[0] == "error"  # noqa: RUF015 - Google's SDK looks for it at the very start


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (NotAuthenticated("no"), 401, "UNAUTHENTICATED"),
        (RequestTooLarge("no"), 413, "INVALID_ARGUMENT"),
        (StreamBroken("no"), 502, "INTERNAL"),
        (UpstreamTimeout("no"), 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_statuses(error: TollkeeperError, code: int, status: str) -> None:
    """Every error has a status that Google's clients know."""
    document = json.loads(refusal(error, "r1"))["error"]
    assert (document["code"], document["status"], document["message"]) == (code, status, "no")


def test_broken_streams() -> None:
    """D3: a broken stream ends with its error: an event, or the last element of an array that stays good JSON."""
    error = StreamBroken("it broke off")
    sse = broken(error, "r1", read_ask(HI, STREAM + "?alt=sse"))
    assert json.loads(sse.removeprefix(b"data: "))["error"]["code"] == 502
    assert sse.endswith(b"\n\n")
    assert broken(error, "r1") == sse
    elements = json.loads(b'[{"candidates":[]}' + broken(error, "r1", read_ask(HI, STREAM)))
    assert [list(each)[0] for each in elements] == ["candidates", "error"]  # noqa: RUF015
