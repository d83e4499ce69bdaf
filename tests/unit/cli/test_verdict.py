"""verdict: what a call would cost and meet is what the gateway then does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tollkeeper.app import routes
from tollkeeper.cli.verdict import Draft, Preview, preview, read_draft
from tollkeeper.config import Config, load
from tollkeeper.errors import BadRequest, BudgetExceeded, UnknownModel
from tollkeeper.prices import PriceBook
from tollkeeper.stores import open_store
from tollkeeper.values import Charge, Entry, Hold, Scopes, Usage

NOW_US = 1_795_305_600_000_000
KEYS = {"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "y"}
SCOPES = Scopes(project="p", agent="a", session="s")


def configured(tmp_path: Path, text: str = "") -> Config:
    """A configuration with both usual providers."""
    path = tmp_path / "tollkeeper.toml"
    path.write_text(text)
    return load(path, KEYS)


async def seen(config: Config, draft: Draft) -> Preview:
    return await preview(config, None, draft, SCOPES, NOW_US)


def text(model: str = "gpt-4o-mini", **more: Any) -> Draft:
    return Draft(data=b"Say hello.", model=model, **more)


@pytest.mark.parametrize(
    ("draft", "dialect", "provider"),
    [
        (text(), "openai-chat", "openai"),
        (text("claude-haiku-4-5", max_tokens=9), "anthropic-messages", "anthropic"),
        (text("anthropic/claude-haiku-4-5", max_tokens=9), "anthropic-messages", "anthropic"),
        (text("text-embedding-3-small", dialect="openai-embeddings"), "openai-embeddings", "openai"),
        (Draft(data=b'{"model":"text-embedding-3-small","input":"x"}'), "openai-embeddings", "openai"),
        (Draft(data=b'{"input":"x"}', model="gpt-4o", max_tokens=9), "openai-responses", "openai"),
        (Draft(data=b'{"prompt":{"id":"p"}}', model="gpt-4o", max_tokens=9), "openai-responses", "openai"),
        (text(dialect="openai-responses", max_tokens=9), "openai-responses", "openai"),
        (Draft(data=b'{"model":"m","messages":[{"role":"user","content":"x"}]}', model="gpt-4o"), "openai-chat", "openai"),
    ],
)  # fmt: skip
async def test_a_file_is_a_prompt_or_a_body(tmp_path: Path, draft: Draft, dialect: str, provider: str) -> None:
    """A prompt goes out in the dialect in which its model has a price; a body in JSON says its own."""
    found = await seen(configured(tmp_path), draft)
    assert (found.ask.dialect, found.route.provider.name, found.admitted) == (dialect, provider, True)
    assert found.cost.low_nanos is not None
    assert found.cost.expected_nanos is not None
    assert found.cost.high_nanos is not None
    assert 0 < found.cost.low_nanos <= found.cost.expected_nanos <= found.cost.high_nanos


def test_max_tokens_go_over_the_body() -> None:
    """The option's output limit replaces the one in the body, whatever its name there."""
    body = msgspec.json.encode({"model": "m", "messages": [], "max_completion_tokens": 5000})
    config = load(None, KEYS)
    ask, _ = read_draft(Draft(data=body, model="gpt-4o", max_tokens=7), routes(config, PriceBook()), lambda route: True)
    assert ask.output_cap == 7


EMBEDDER = """
[providers.openai]
[providers.groq]
base_url = "https://groq.example"
api_key_env = "OPENAI_API_KEY"
dialects = ["openai-embeddings"]
"""


@pytest.mark.parametrize(
    ("draft", "error", "says"),
    [
        (Draft(data=b"hello"), BadRequest, "--model: is required where FILE names none"),
        (Draft(data=b"\xff\xfe", model="gpt-4o"), BadRequest, "FILE: is not text"),
        (text(dialect="morse"), BadRequest, "--dialect: 'morse' is not known; expected one of openai-chat"),
        (text("gpt-4o", dialect="anthropic-messages", max_tokens=1), UnknownModel, "does not speak anthropic-messages"),
        (text("groq/llama"), UnknownModel, "goes to groq, which does not speak openai-chat"),
    ],
)
async def test_drafts_that_lead_nowhere(tmp_path: Path, draft: Draft, error: type[Exception], says: str) -> None:
    """I2: what cannot be estimated says which argument, and what would be right."""
    config = configured(tmp_path, EMBEDDER)
    with pytest.raises(error, match=says):
        await seen(config, draft)


BUDGETS = """
[[budgets]]
scope = "project"
limit = "0.01"
[[budgets]]
scope = "session"
window = "total"
limit = "{limit}"
[[budgets]]
scope = "model"
measure = "requests"
window = "minute"
limit = 1
[[budgets]]
scope = "agent"
id = "someone-else"
limit = "0"
"""


@pytest.mark.parametrize("limit", ["0.0000001", "0.01", "none"])
async def test_a_verdict_is_what_the_gateway_does(tmp_path: Path, limit: str) -> None:
    """C7: a call is admitted by its preview just where the store admits it, and refused in the same words."""
    config = configured(tmp_path, BUDGETS.format(limit=limit))
    store = open_store("memory:", budgets=config.budgets)
    charge = Charge(amount_nanos=4_000_000, computed_nanos=4_000_000, status="priced")
    await store.settle(
        Entry(
            id="1/1", call="1", at_us=NOW_US, scopes=Scopes(project="p"), dialect="openai-chat", provider="openai",
            model="other", served="other", charge=charge,
        )
    )  # fmt: skip
    found = await preview(config, store, text(max_tokens=100), SCOPES, NOW_US)
    assert [(each.standing.budget.scope, each.standing.spent) for each in found.verdicts] == [
        ("project", 4_000_000), ("session", 0), ("model", 0),
    ]  # fmt: skip
    hold = Hold(
        id="h/1", call="h", attempt=1, scopes=SCOPES, dialect="openai-chat", provider="openai", model="gpt-4o-mini",
        quote_nanos=found.quote.amount_nanos, quote_usage=Usage(input=found.ask.prompt_bound, output=100), at_us=NOW_US,
        deadline_us=NOW_US + 1,
    )  # fmt: skip
    told = next((each.refusal for each in found.verdicts if each.refusal is not None), None)
    assert found.admitted == (limit != "0.0000001")
    if found.admitted:
        assert told is None
        await store.reserve(hold)
    else:
        with pytest.raises(BudgetExceeded) as refusal:
            await store.reserve(hold)
        assert str(refusal.value) == told


async def test_unpriced_and_unbounded_are_refused(tmp_path: Path) -> None:
    """A5, C3: under a hard usd budget a model without a price, or a call without an output limit, does not pay."""
    hard = '[[budgets]]\nscope="all"\nlimit="5"\n'
    unpriced = await seen(configured(tmp_path, hard), text("acme-1", dialect="openai-chat"))
    assert (unpriced.cost.high_nanos, unpriced.admitted) == (None, False)
    assert "has no price" in str(unpriced.verdicts[0].refusal)
    unbounded = await seen(configured(tmp_path, 'default_output_cap = "none"\n' + hard), text())
    assert (unbounded.cost.high_nanos, unbounded.admitted) == (None, False)
    assert "needs an output cap" in str(unbounded.verdicts[0].refusal)
