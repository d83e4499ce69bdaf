"""A call before it is made, asked of a gateway over real sockets: what it says is what it then does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import ASKS, BODIES, CHAT, Gateway, budget, gateway, model_of, until

from tollkeeper.api import CALLS, QUESTIONS
from tollkeeper.keys import hash_secret
from tollkeeper.money import parse_usd
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import FakeProvider, Stall

(ESTIMATE,) = QUESTIONS
EACH = pytest.mark.parametrize(("path", "body"), ASKS, ids=list(CALLS))
DIALECT_OF = dict(zip((path for path, _ in ASKS), CALLS.values(), strict=True))
HEADERS = {"x-tollkeeper-project": "alpha", "x-tollkeeper-agent": "a", "x-tollkeeper-session": "s"}


async def asked(gw: Gateway, body: Any, headers: dict[str, str] | None = None, query: str = "") -> dict[str, Any]:
    """The estimate of a body."""
    async with gw.post(ESTIMATE + query, body, HEADERS if headers is None else headers) as response:
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


def named(path: str, body: dict[str, Any]) -> str:
    """The model in the query, where the call's path names it."""
    return "" if "model" in body else f"?model={model_of(path, body)}"


NUMBERS = ("scope", "id", "project", "measure", "window", "limit", "spent", "held", "asked", "resets_at")
BUDGETS = [
    budget("project", "100"), budget("project", "0.0000001"), budget("session", 3, measure="tokens", window="total"),
    budget("agent", 1, measure="requests", window="minute"), budget("all", 0, measure="requests"),
]  # fmt: skip


@EACH
@pytest.mark.parametrize("table", BUDGETS, ids=lambda table: table.replace("\n", " "))
async def test_the_verdict_is_what_happens(tmp_path: Path, path: str, body: dict[str, Any], table: str) -> None:
    """C7: for each dialect and measure the estimate admits just what the gateway admits, and refuses in its words and numbers."""
    async with gateway(tmp_path, settings=table, clock=ManualClock()) as gw:
        for _ in range(2):  # the second time something is spent
            before = len(gw.fake.requests)
            told = await asked(gw, body, query=named(path, body))
            (word,) = told["budgets"]
            assert (len(gw.fake.requests), await gw.live()) == (before, [])
            async with gw.post(path, body, HEADERS) as response:
                assert told["admitted"] == word["admitted"] == (response.status == 200)
                document = await response.json()
            if told["admitted"]:
                await until(lambda: not gw.app.gate.owed)
                (last,) = (await gw.entries())[-1:]
                assert last.charge.amount_nanos is not None
                assert parse_usd(told["low_usd"], "low") <= parse_usd(told["high_usd"], "high")
                assert last.charge.amount_nanos <= parse_usd(told["high_usd"], "high")
                assert word["refusal"] is None
                assert (last.model, last.provider, last.dialect) == (told["model"], told["provider"], told["dialect"])
            else:
                error = document["error"]
                assert error["message"] == word["refusal"]
                google = error.get("details")  # there numbers are text, and what is null is left out
                numbers = {name: word[name] for name in NUMBERS}
                if google:
                    assert {name: google[0]["metadata"].get(name) for name in NUMBERS} == {
                        name: None if number is None else str(number) for name, number in numbers.items()
                    }
                else:
                    assert {name: error[name] for name in NUMBERS} == numbers


@EACH
async def test_nothing_is_done(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """An estimate holds nothing, books nothing and asks nobody; without a budget it has its price all the same."""
    async with gateway(tmp_path) as gw:
        told = await asked(gw, body, query=named(path, body))
        assert await gw.untouched()
    assert (told["dialect"], told["budgets"], told["admitted"], told["priced"]) == (DIALECT_OF[path], [], True, True)
    assert 0 < parse_usd(told["low_usd"], "low") <= parse_usd(told["high_usd"], "high")
    assert set(told) == {
        "model", "provider", "dialect", "prompt_tokens_at_most", "output_cap", "low_usd", "expected_usd", "high_usd",
        "price_version", "priced", "admitted", "budgets",
    }  # fmt: skip


async def test_what_is_held_counts(tmp_path: Path) -> None:
    """C7: a call under way holds its quote, and the estimate of the next one shows it."""
    async with gateway(tmp_path, settings=budget("session", "0.005")) as gw:
        alone = await asked(gw, CHAT)
        stall = Stall()
        gw.fake.next(stall)
        waiting = asyncio.ensure_future(gw.session.post(gw.url + "/v1/chat/completions", json=CHAT, headers=HEADERS))
        await stall.reached.wait()
        beside = await asked(gw, CHAT)
        stall.release.set()
        (await waiting).close()
        await until(lambda: gw.booked(1))
    assert (alone["admitted"], beside["admitted"]) == (True, False)
    assert (alone["budgets"][0]["held"], beside["budgets"][0]["held"]) == ("0", alone["high_usd"])
    assert "cannot pay for this call" in beside["budgets"][0]["refusal"]


KEYS = "".join(
    f'[[keys]]\nid = "{name}"\nproject = "{name}"\nhash = "{hash_secret(f"tk_{name}")}"\n{more}'
    for name, more in (("alpha", 'session = "fixed"\n'), ("beta", 'models = ["gpt-4o-mini"]\n'))
)


async def test_a_tenant_sees_its_own(tmp_path: Path) -> None:
    """H5: who asks sees the budgets of its own call: its key's project and fixed session, whatever its headers say."""
    tables = [budget("project", "1", id="alpha"), budget("project", "2", id="beta"), budget("session", "3")]
    tables.append(budget("key", "4", id="alpha"))
    async with gateway(tmp_path, settings=KEYS + "".join(tables)) as gw:
        alpha = await asked(gw, CHAT, HEADERS | {"x-api-key": "tk_alpha"})
        beta = await asked(gw, CHAT, HEADERS | {"x-api-key": "tk_beta"})
        async with gw.post(ESTIMATE, CHAT | {"model": "gpt-4o"}, {"x-api-key": "tk_beta"}) as response:
            assert response.status == 403
        assert await gw.untouched()
    assert [(each["scope"], each["id"], each["project"], each["limit"]) for each in alpha["budgets"]] == [
        ("project", "alpha", "alpha", "1"), ("session", "fixed", "alpha", "3"), ("key", "alpha", "", "4"),
    ]  # fmt: skip
    assert [(each["scope"], each["id"], each["project"]) for each in beta["budgets"]] == [
        ("project", "beta", "beta"), ("session", "s", "beta"),
    ]  # fmt: skip


MESSAGES = BODIES["anthropic-messages"]


@pytest.mark.parametrize(
    ("body", "query", "headers", "status", "is_anthropic", "says"),
    [
        ({"model": "anthropic/x", "input": "y"}, "", {}, 404, False, "does not speak openai-responses"),
        (MESSAGES | {"model": "gpt-4o"}, "?dialect=anthropic-messages", {}, 404, True, "does not speak anthropic-"),
        (CHAT | {"model": "claude-haiku-4-5"}, "", {}, 400, True, "max_tokens: this dialect needs it"),
        (CHAT, "?dialect=morse", {}, 400, False, "dialect: is not known; expected one of openai-chat"),
        (CHAT, "", {"x-tollkeeper-dialect": "anthropic-messages"}, 404, True, "does not speak anthropic-messages"),
        (CHAT | {"n": 0}, "", {}, 400, False, "n: expected a whole number"),
        (MESSAGES | {"metadata": 7}, "", {}, 400, True, "metadata: expected"),
        (b"[]", "?dialect=anthropic-messages", {}, 400, True, "not a JSON object"),
    ],
)
async def test_mistakes_are_told_in_the_dialects_shape(
    tmp_path: Path, body: Any, query: str, headers: dict[str, str], status: int, is_anthropic: bool, says: str
) -> None:
    """A mistake is told as the dialect tells errors, where it is known, else as OpenAI does."""
    async with gateway(tmp_path) as gw:
        async with gw.post(ESTIMATE + query, body, headers) as response:
            document = await response.json()
            assert response.status == status
            assert response.headers["x-should-retry"] == "false"
        assert await gw.untouched()
    assert says in document["error"]["message"]
    assert (document.get("type") == "error") == is_anthropic


async def test_the_model_may_stand_in_the_query(tmp_path: Path) -> None:
    """?model= goes over the body's own; a named dialect over its shape."""
    async with gateway(tmp_path) as gw:
        plain, asked_for = await asked(gw, CHAT), await asked(gw, CHAT, query="?model=gpt-4o&dialect=openai-chat")
        bare = {name: value for name, value in CHAT.items() if name != "model"}
        assert (await asked(gw, bare, query="?model=gpt-4o"))["model"] == "gpt-4o"
    assert (plain["model"], asked_for["model"]) == ("gpt-4o-mini", "gpt-4o")
    assert parse_usd(asked_for["high_usd"], "high") > 10 * parse_usd(plain["high_usd"], "high")


async def test_typical_quotes_are_learned(tmp_path: Path) -> None:
    """P3: after some calls the hold is what such prompts have, not their bytes; the reply is booked exactly all the same."""
    settings = 'quote = "typical"\nquote_quantile = 0.9\n' + budget("session", "1")
    async with gateway(tmp_path, FakeProvider(), settings) as gw:
        ask = CHAT | {"max_tokens": 1}
        before = await asked(gw, ask)
        for number in range(50):
            async with gw.post("/v1/chat/completions", ask, HEADERS) as response:
                assert response.status == 200
            await until(lambda number=number: gw.booked(number + 1))
        after = await asked(gw, ask)
        stall = Stall()
        gw.fake.next(stall)
        waiting = asyncio.ensure_future(gw.session.post(gw.url + "/v1/chat/completions", json=ask, headers=HEADERS))
        await stall.reached.wait()
        (hold,) = await gw.live()
        stall.release.set()
        (await waiting).close()
        await until(lambda: gw.booked(51))
        entries = await gw.entries()
    assert {entry.charge.status for entry in entries} == {"priced"}
    assert after["prompt_tokens_at_most"] == before["prompt_tokens_at_most"]
    tokens = entries[0].usage.input_tokens
    assert hold.quote_usage is not None
    assert tokens <= hold.quote_usage.input <= tokens * 104 // 100 + 1 < before["prompt_tokens_at_most"] // 10
    assert parse_usd(after["high_usd"], "high") == hold.quote_nanos
    assert (
        parse_usd(after["low_usd"], "low") <= parse_usd(after["high_usd"], "high") < parse_usd(before["low_usd"], "low")
    )


async def test_a_ceiling_is_never_written(tmp_path: Path) -> None:
    """C3: under a hard budget a model's ceiling bounds the call, and the request keeps its bytes, with a cap or without."""
    settings = 'default_output_cap = "none"\noutput_ceilings = { gpt-4o-mini = 7 }\n' + budget("project", "1")
    async with gateway(tmp_path, settings=settings) as gw:
        for body in (CHAT, CHAT | {"max_tokens": 50_000}):
            told = await asked(gw, body)
            assert (told["output_cap"], told["admitted"]) == (7, True)
            async with gw.post("/v1/chat/completions", body, HEADERS) as response:
                assert response.status == 200
                assert "x-tollkeeper-output-cap" not in response.headers
        await until(lambda: gw.booked(2))
    assert [request.json() for request in gw.fake.requests] == [CHAT, CHAT | {"max_tokens": 50_000}]
