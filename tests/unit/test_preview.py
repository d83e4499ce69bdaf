"""tollkeeper.preview: what a call would cost and meet is what the gateway then does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from tollkeeper.app import limits, routes
from tollkeeper.config import Config, load
from tollkeeper.density import Densities
from tollkeeper.errors import BadRequest, BudgetExceeded, NotAllowed, RequestTooLarge, UnknownModel
from tollkeeper.preview import Draft, Preview, aim, document, preview, standings_in
from tollkeeper.prices import PriceBook
from tollkeeper.stores import Reader
from tollkeeper.stores.opening import open_store
from tollkeeper.values import Ask, Budget, Charge, Entry, Hold, Scopes, Standing

NOW_US = 1_795_305_600_000_000
KEYS = {"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "y"}
SCOPES = Scopes(project="p", agent="a", session="s")
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello."}]}


def configured(tmp_path: Path, text: str = "") -> Config:
    """A configuration with both usual providers."""
    path = tmp_path / "tollkeeper.toml"
    path.write_text(text)
    return load(path, KEYS)


async def seen(
    config: Config, draft: Draft, reader: Reader | None = None, densities: Densities | None = None
) -> Preview:
    prices = PriceBook.load(config.prices)
    aimed = aim(draft, routes(config, prices), prices, NOW_US)
    ask = aimed.ask()
    standings = await standings_in(reader, config.budgets, SCOPES, ask.model, NOW_US)
    return preview(
        ask, aimed.routes, SCOPES, standings, prices=prices, limits=limits(config), densities=densities or Densities(),
        now_us=NOW_US,
    )  # fmt: skip


def text(model: str = "gpt-4o-mini", **more: Any) -> Draft:
    return Draft(data=b"Say hello.", bare=True, model=model, **more)


def body(**fields: Any) -> Draft:
    return Draft(data=msgspec.json.encode(fields))


@pytest.mark.parametrize(
    ("draft", "dialect", "provider"),
    [
        (text(), "openai-chat", "openai"),
        (text("claude-haiku-4-5", max_tokens=9), "anthropic-messages", "anthropic"),
        (text("anthropic/claude-haiku-4-5", max_tokens=9), "anthropic-messages", "anthropic"),
        (text("text-embedding-3-small", dialect="openai-embeddings"), "openai-embeddings", "openai"),
        (body(model="text-embedding-3-small", input="x"), "openai-embeddings", "openai"),
        (structs.replace(body(**CHAT), model="gpt-4o"), "openai-chat", "openai"),
        (body(**CHAT), "openai-chat", "openai"),
        (body(**CHAT | {"model": "claude-haiku-4-5", "max_tokens": 9}), "anthropic-messages", "anthropic"),
    ],
)  # fmt: skip
async def test_a_file_is_a_prompt_or_a_body(tmp_path: Path, draft: Draft, dialect: str, provider: str) -> None:
    """A prompt goes out in the dialect in which its model has a price; a body in JSON says its own."""
    found = await seen(configured(tmp_path), draft)
    assert (found.ask.dialect, found.route.provider.name, found.admitted) == (dialect, provider, True)
    assert found.is_priced
    assert found.cost.low_nanos is not None
    assert found.cost.expected_nanos is not None
    assert found.cost.high_nanos is not None
    assert 0 < found.cost.low_nanos <= found.cost.expected_nanos <= found.cost.high_nanos


def aimed(draft: Draft, **more: Any) -> Ask:
    config = load({}, KEYS)
    return aim(draft, routes(config, PriceBook()), PriceBook(), NOW_US, **more).ask()


def test_a_body_is_read_as_it_is() -> None:
    """The bound is that of the very bytes: white space counts as it would on the way to the provider."""
    data = msgspec.json.format(msgspec.json.encode(CHAT), indent=4)
    assert aimed(Draft(data=data)).prompt_bound == len(data) + 256
    assert aimed(Draft(data=data, bare=True)) == aimed(Draft(data=data))


def test_max_tokens_go_over_the_body() -> None:
    """The option's output limit replaces the one in the body, whatever its name there; embeddings have none."""
    assert aimed(structs.replace(body(**CHAT, max_completion_tokens=5000), max_tokens=7)).output_cap == 7
    embedding = body(model="text-embedding-3-small", input="x")
    assert aimed(structs.replace(embedding, max_tokens=7)).output_cap == 0


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
        (Draft(data=b"hello", bare=True), BadRequest, "model: is required; name one in the body"),
        (Draft(data=b"\xff\xfe", bare=True, model="gpt-4o"), BadRequest, "FILE: is not text"),
        (Draft(data=b"hello", model="gpt-4o"), BadRequest, "The body is not JSON"),
        (Draft(data=b'{"model":"m","model":"n"}', bare=True), BadRequest, "names this member twice"),
        (Draft(data=b'{"a":' * 5000), RequestTooLarge, "nested too deep"),
        (Draft(data=b'{"model":7}', bare=True), BadRequest, "model: expected the name of a model"),
        (text(dialect="morse"), BadRequest, "dialect: is not known; expected one of openai-chat"),
        (text("gpt-4o", dialect="anthropic-messages", max_tokens=1), UnknownModel, "does not speak anthropic-messages"),
        (text("groq/llama"), UnknownModel, "goes to groq, which does not speak openai-chat"),
    ],
)
async def test_drafts_that_lead_nowhere(tmp_path: Path, draft: Draft, error: type[Exception], says: str) -> None:
    """I2: what cannot be estimated says which argument, and what would be right."""
    config = configured(tmp_path, EMBEDDER)
    with pytest.raises(error, match=says):
        await seen(config, draft)


def test_a_keys_models_hold() -> None:
    """H5: a key that may not use a model gets no estimate of it."""
    with pytest.raises(NotAllowed):
        aimed(body(**CHAT), allowed_models=frozenset({"gpt-4o-mini"}))


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
    found = await seen(config, text(max_tokens=100), store)
    assert [(each.standing.budget.scope, each.standing.spent, each.asked) for each in found.verdicts] == [
        ("project", 4_000_000, found.quote.amount_nanos), ("session", 0, found.quote.amount_nanos), ("model", 0, 1),
    ]  # fmt: skip
    hold = Hold(
        id="h/1", call="h", attempt=1, scopes=SCOPES, dialect="openai-chat", provider="openai", model="gpt-4o-mini",
        quote_nanos=found.quote.amount_nanos, quote_usage=found.quote.usage, at_us=NOW_US, deadline_us=NOW_US + 1,
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
    assert (unpriced.cost.high_nanos, unpriced.admitted, unpriced.is_priced) == (None, False, False)
    assert "has no price" in str(unpriced.verdicts[0].refusal)
    unbounded = await seen(configured(tmp_path, 'default_output_cap = "none"\n' + hard), text())
    assert (unbounded.cost.high_nanos, unbounded.admitted, unbounded.is_priced) == (None, False, True)
    assert "needs an output cap" in str(unbounded.verdicts[0].refusal)
    ceiling = 'default_output_cap = "none"\noutput_ceilings = { gpt-4o-mini = 16384 }\n'
    assert (await seen(configured(tmp_path, ceiling + hard), text())).admitted


@pytest.mark.parametrize("quote", ["bound", "typical"])
async def test_what_was_learned_is_expected(tmp_path: Path, quote: str) -> None:
    """Low and expected go by what such prompts have; high does so where quotes are typical, and is the bound else."""
    config, densities = configured(tmp_path, f'quote = "{quote}"\n'), Densities()
    guessed = (await seen(config, body(**CHAT, max_tokens=10), densities=densities)).cost
    ask = aimed(body(**CHAT, max_tokens=10))
    route = routes(config, PriceBook()).candidates("gpt-4o", "openai-chat").routes[0]
    for _ in range(100):
        densities.learn(route, ask, 11)
    found = await seen(config, body(**CHAT, max_tokens=10), densities=densities)
    assert found.cost.low_nanos == 12 * 2500  # 11 tokens, rounded up to their bucket
    assert found.cost.expected_nanos == 12 * 2500 + 5 * 10_000
    high = (12 if quote == "typical" else ask.prompt_bound) * 2500 + 10 * 10_000
    assert found.cost.high_nanos == found.quote.amount_nanos == high
    assert guessed.low_nanos == -(-ask.prompt_bound // 4) * 2500


async def test_document(tmp_path: Path) -> None:
    """The answer has exact decimal text, null for what is not known, and nothing of a 0 that would be a guess."""
    tokens = '[[budgets]]\nscope="project"\nmeasure="tokens"\nlimit=1000\n'
    found = await seen(configured(tmp_path, BUDGETS.format(limit="none") + tokens), text(max_tokens=100))
    told = document(found, held_known=True)
    assert (told["model"], told["provider"], told["dialect"]) == ("gpt-4o-mini", "openai", "openai-chat")
    assert (told["output_cap"], told["priced"], told["admitted"]) == (100, True, True)
    project, session, model, counted = told["budgets"]
    assert project == {
        "scope": "project", "id": "p", "project": "p", "measure": "usd", "window": "month", "limit": "0.01", "spent": "0",
        "held": "0", "remaining": "0.01", "asked": told["high_usd"], "resets_at": "2026-12-01T00:00:00Z", "admitted": True,
        "refusal": None,
    }  # fmt: skip
    assert (session["limit"], session["remaining"], session["resets_at"]) == (None, None, None)
    assert (model["limit"], model["asked"], model["held"]) == (1, 1, 0)
    assert (counted["limit"], counted["asked"]) == (1000, found.ask.prompt_bound + 100)
    assert document(found, held_known=False)["budgets"][0]["held"] is None
    unknown = document(await seen(configured(tmp_path), text("acme-1", dialect="openai-chat")), held_known=True)
    assert (unknown["low_usd"], unknown["expected_usd"], unknown["high_usd"], unknown["priced"]) == (
        None,
        None,
        None,
        False,
    )


def test_the_example_is_true() -> None:
    """The body and the answer in the reference are what comes out; the version of the prices aside."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
    section = page.partition("## Ask before you call\n")[2].partition("\n## ")[0]
    sent = next(line.strip() for line in section.splitlines() if line.startswith("    {"))
    found = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert found is not None
    shown = msgspec.json.decode(found[1])
    standing = Standing(
        budget=Budget(scope="session", window="total", limit=10_000_000), id="run-1", project="shop", window_start_us=0,
        resets_at_us=None, spent=9_800_000, held=0,
    )  # fmt: skip
    config, prices = load({}, KEYS), PriceBook()
    going = aim(Draft(data=sent.encode()), routes(config, prices), prices, NOW_US)
    told = preview(
        going.ask(), going.routes, Scopes(project="shop", session="run-1"), [standing], prices=prices, limits=limits(config),
        densities=Densities(), now_us=NOW_US,
    )  # fmt: skip
    assert document(told, held_known=True) | {"price_version": shown["price_version"]} == shown
