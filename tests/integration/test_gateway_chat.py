"""Whole replies and a provider's own errors, asked by the official SDKs: what is booked is what the provider billed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway import ASKS, BODIES, CHAT, CREDENTIAL, PROVIDERS, WHOLE, budget, gateway, model_of, until

from tollkeeper.api import CALLS
from tollkeeper.money import parse_usd
from tollkeeper.testing.provider import Cut, FakeProvider, NoUsage, Refuse, Replay, Stall, WrongJson

MESSAGES = BODIES["anthropic-messages"]
EACH = pytest.mark.parametrize(("path", "body"), ASKS, ids=list(CALLS))
EACH_WHOLE = pytest.mark.parametrize(("path", "body"), WHOLE, ids=[path for path, _ in WHOLE])
MILLION_TOKENS = budget("project", "1000")  # a hard budget that pays for everything


async def test_chat_is_booked_as_billed(tmp_path: Path) -> None:
    """A1: an SDK's call is one entry with the provider's usage, the model that served and an exact price."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4, reasoning_tokens=3)) as gw:
        async with gw.openai(project="alpha", agent="writer", session="s1", user="u1", tags="a, b") as client:
            reply = await client.chat.completions.create(**CHAT, n=2)
        entry = await gw.entry()
    (billed,) = gw.fake.bill
    assert reply.usage is not None
    assert entry.usage == billed.usage
    assert entry.usage.tokens == reply.usage.total_tokens
    assert (entry.model, entry.served, entry.outcome) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "ok")
    assert (entry.provider, entry.dialect, entry.http_status) == ("openai", "openai-chat", 200)
    scopes = entry.scopes
    assert (scopes.project, scopes.agent, scopes.session, scopes.user) == ("alpha", "writer", "s1", "u1")
    assert scopes.tags == ("a", "b")
    usage = entry.usage  # at 0.15, 0.075 and 0.60 dollars per million
    assert entry.charge.amount_nanos == usage.input * 150 + usage.cache_read * 75 + usage.output * 600
    assert entry.charge.status == "priced"


async def test_messages_are_booked_as_billed(tmp_path: Path) -> None:
    """A2: cached, written and fresh prompt tokens of an Anthropic call are each booked and priced as their own kind."""
    marked = [{"type": "text", "text": "the book of tolls " * 9, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    async with gateway(tmp_path, FakeProvider(cached_tokens=2, reasoning_tokens=3)) as gw:
        async with gw.anthropic(project="alpha") as client:
            reply = await client.messages.create(**MESSAGES, system=marked)  # type: ignore[arg-type]
        entry = await gw.entry()
    (billed,) = gw.fake.bill
    assert entry.usage == billed.usage
    assert entry.usage.cache_write_1h == reply.usage.cache_creation_input_tokens > 0
    assert entry.served == "claude-haiku-4-5-20251001"
    usage = entry.usage  # at 1, 0.10, 2 (written for an hour) and 5 dollars per million
    expected = usage.input * 1000 + usage.cache_read * 100 + usage.cache_write_1h * 2000 + usage.output * 5000
    assert entry.charge.amount_nanos == expected


async def test_embeddings_are_booked_as_billed(tmp_path: Path) -> None:
    """An embedding has prompt tokens alone, and is priced by them."""
    async with gateway(tmp_path) as gw:
        async with gw.openai() as client:
            reply = await client.embeddings.create(model="text-embedding-3-small", input=["toll", "book"])
        entry = await gw.entry()
    assert len(reply.data) == 2
    assert entry.usage == gw.fake.bill[0].usage
    assert (entry.usage.output, entry.charge.amount_nanos) == (0, entry.usage.input * 20)
    assert entry.scopes.project == "default"


@EACH
async def test_bytes_pass_unchanged(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """The provider gets the client's bytes, unknown fields and number formats too, and the client the provider's."""
    sent = json.dumps(body | {"seed": 1}).replace('"seed": 1', '"future" : [1.50, 1e2, "\\u00e9"]').encode()
    async with gateway(tmp_path) as gw:
        async with gw.post(path, sent) as response:
            received = await response.read()
        async with gw.session.post(gw.fake_url + path, data=sent) as response:
            direct = await response.read()
        await gw.entry()
    through, _ = (request.body for request in gw.fake.requests)
    assert b'"future":[1.50, 1e2, "\\u00e9"]' in through
    assert json.loads(through) == json.loads(sent)
    assert received == direct.replace(b"00000002", b"00000001")  # the provider counts its replies


@EACH_WHOLE
async def test_headers_of_a_good_reply(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A reply tells its id, where it went, its cost, and how the tightest budget stands; what it told is booked."""
    settings = budget("project", "1000") + budget("session", "0.05", window="total")
    async with gateway(tmp_path, settings=settings) as gw:
        async with gw.post(path, body, {"x-tollkeeper-session": "s"}) as response:
            told = {name: value for name, value in response.headers.items() if name.startswith("x-tollkeeper-")}
        entry = await gw.entry()
    provider = "anthropic" if "messages" in path else "google" if "models" in path else "openai"
    assert told.pop("x-tollkeeper-request-id") == entry.call
    remaining = parse_usd(told.pop("x-tollkeeper-budget-remaining"), "remaining")
    assert 0 < remaining < 50_000_000
    told.pop("x-tollkeeper-output-cap", None)
    assert parse_usd(told.pop("x-tollkeeper-cost"), "cost") == entry.charge.amount_nanos
    assert told == {
        "x-tollkeeper-provider": provider,
        "x-tollkeeper-model": model_of(path, body),
        "x-tollkeeper-attempts": "1",
        "x-tollkeeper-cost-status": "priced",
        "x-tollkeeper-budget-limit": "0.05",
        "x-tollkeeper-budget-reset": "never",
    }


async def test_cost_is_kept_from_clients_that_shall_not_see_it(tmp_path: Path) -> None:
    """With expose_cost = false no header tells the cost."""
    async with gateway(tmp_path, settings="expose_cost = false\n") as gw:
        async with gw.post("/v1/embeddings", BODIES["openai-embeddings"]) as response:
            assert not [name for name in response.headers if "cost" in name]
        assert (await gw.entry()).charge.amount_nanos is not None


async def test_output_cap_is_written_and_told(tmp_path: Path) -> None:
    """C3: under a hard budget a call without an output cap gets the declared one, and the client is told."""
    async with gateway(tmp_path, settings="default_output_cap = 5\n" + MILLION_TOKENS) as gw:
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert response.headers["x-tollkeeper-output-cap"] == "5"
        entry = await gw.entry()
    assert gw.fake.requests[0].json() == CHAT | {"max_completion_tokens": 5}
    assert entry.usage.output == 5


async def test_without_a_budget_no_cap_is_written(tmp_path: Path) -> None:
    """Nobody's output is cut where no hard budget relies on it: the body passes as it came."""
    async with gateway(tmp_path, settings="default_output_cap = 5\n" + budget("project", "9", hard=False)) as gw:
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert "x-tollkeeper-output-cap" not in response.headers
        await gw.entry()
    assert gw.fake.requests[0].json() == CHAT


# ---- the provider's errors ------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("status", [400, 403, 404, 413, 429, 500, 503, 529])
async def test_provider_errors_pass(tmp_path: Path, path: str, body: dict[str, Any], status: int) -> None:
    """A provider's own 4xx and 5xx come through with status, body and Retry-After; they cost 0 and are booked."""
    fake = FakeProvider(always=Refuse(status, retry_after="7", message="as the provider says it"))
    async with gateway(tmp_path, fake, MILLION_TOKENS) as gw:
        async with gw.post(path, body) as response:
            assert response.status == status
            assert response.headers["retry-after"] == "7"
            assert (await response.json())["error"]["message"] == "as the provider says it"
            assert response.headers["x-tollkeeper-attempts"] == "1"
        entry = await gw.entry()
    assert (entry.outcome, entry.http_status, entry.note) == ("error", status, "upstream_refused")
    assert (entry.charge.amount_nanos, entry.charge.status, entry.usage.tokens) == (0, "priced", 0)


async def test_sdks_raise_their_own_errors(tmp_path: Path) -> None:
    """The official SDKs see a provider's errors as if there were no gateway, and retry them as they always do."""
    fake = FakeProvider(always=Refuse(429, retry_after="0.01"))
    async with gateway(tmp_path, fake) as gw, gw.openai() as chat, gw.anthropic() as messages:
        with pytest.raises(openai.RateLimitError):
            await chat.with_options(max_retries=1).chat.completions.create(**CHAT)
        with pytest.raises(anthropic.RateLimitError):
            await messages.with_options(max_retries=0).messages.create(**MESSAGES)
        await until(lambda: gw.booked(3))
    assert len(fake.requests) == 3


@EACH
async def test_the_gateways_own_credential_is_nobodys_business(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """H2: a provider's 401 concerns the operator: the client gets a 502 without the provider's words."""
    fake = FakeProvider(always=Refuse(401, message=f"Incorrect API key provided: {CREDENTIAL}"))
    async with gateway(tmp_path, fake) as gw:
        async with gw.post(path, body) as response:
            text = await response.text()
            assert response.status == 502
            assert "base_url and key" in text
            assert CREDENTIAL not in text
        entry = await gw.entry()
    assert (entry.outcome, entry.http_status, entry.charge.amount_nanos) == ("error", 401, 0)


@EACH
async def test_redirects_are_not_followed(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """H3: a provider's redirect is an error; nobody goes where it points, and the client does not learn where."""
    async with gateway(tmp_path) as gw:
        target = gw.fake_url + "/v1/embeddings"
        gw.fake.next(*(Replay(b"{}", status, (("location", target),)) for status in (301, 302, 307, 308)))
        for count in range(1, 5):
            async with gw.post(path, body, allow_redirects=False) as response:
                assert response.status == 502
                assert "location" not in response.headers
                assert target not in await response.text()
            assert len(gw.fake.requests) == count
        await until(lambda: gw.booked(4))
        assert {entry.charge.amount_nanos for entry in await gw.entries()} == {0}


@EACH
async def test_unreachable_provider(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A provider that cannot be reached was not asked: 502, no entry, the hold is gone."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with gateway(tmp_path, settings=MILLION_TOKENS, url=url) as gw:
            async with gw.post(path, body) as response:
                assert response.status == 502
                assert "cannot be reached" in (await response.json())["error"]["message"]
            assert await gw.entries() == []
            assert await gw.live() == []


@EACH
async def test_no_first_byte_in_time(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D5: a provider that says nothing until first_byte_timeout_s: 504, booked at the estimate, marked so."""
    stall = Stall()
    settings = "first_byte_timeout_s = 0.05\ndefault_output_cap = 100\n" + MILLION_TOKENS
    async with gateway(tmp_path, FakeProvider(always=stall), settings) as gw:
        async with gw.post(path, body) as response:
            assert response.status == 504
        entry = await gw.entry()
        assert stall.reached.is_set()
    assert (entry.outcome, entry.note, entry.charge.status) == ("cut", "upstream_timeout", "estimated")
    assert entry.charge.amount_nanos is not None
    assert entry.charge.amount_nanos > 0
    assert entry.http_status is None


@EACH
async def test_provider_breaks_off(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """D3: a whole reply that breaks off, before its headers or after, is a 502 and one estimated entry."""
    async with gateway(tmp_path, settings=MILLION_TOKENS) as gw:
        for count, cut in enumerate((Cut(headers=False), Cut(), Cut(40, "bytes")), 1):
            gw.fake.next(cut)
            async with gw.post(path, body) as response:
                assert response.status == 502, cut
            await until(lambda count=count: gw.booked(count))  # type: ignore[misc]
        for entry in await gw.entries():
            assert (entry.outcome, entry.charge.status) == ("cut", "estimated")
            assert entry.charge.amount_nanos


@EACH_WHOLE
@pytest.mark.parametrize("fault", [NoUsage(), WrongJson()], ids=repr)
async def test_replies_that_say_nothing_of_usage(tmp_path: Path, path: str, body: dict[str, Any], fault: Any) -> None:
    """A reply without readable usage passes, and is booked at an upper bound that is marked as estimated."""
    async with gateway(tmp_path, FakeProvider(always=fault)) as gw:
        async with gw.post(path, body) as response:
            assert response.status == 200
            assert response.headers["x-tollkeeper-cost-status"] == "estimated"
            await response.read()
        entry = await gw.entry()
    billed = gw.fake.bill[0].usage
    assert entry.charge.status == "estimated"
    assert entry.usage.input_tokens >= billed.input_tokens
    assert entry.usage.output_tokens >= billed.output_tokens


async def test_unpriced_model_is_said_to_be(tmp_path: Path) -> None:
    """A5: a model without a price is booked with its usage, an unknown amount and no cost header."""
    async with gateway(tmp_path) as gw:
        async with gw.post("/v1/chat/completions", CHAT | {"model": "openai/house-model-1"}) as response:
            assert response.headers["x-tollkeeper-cost-status"] == "unpriced"
            assert "x-tollkeeper-cost" not in response.headers
        entry = await gw.entry()
    assert (entry.charge.amount_nanos, entry.charge.status) == (None, "unpriced")
    assert entry.usage == gw.fake.bill[0].usage
    assert gw.fake.requests[0].json()["model"] == "house-model-1"


async def test_routes_rename_models(tmp_path: Path) -> None:
    """A name of [routes] goes to its provider under the provider's name; the ledger has both."""
    providers = PROVIDERS + '[routes]\nfast = "openai/gpt-4o-mini"\n'
    async with gateway(tmp_path, providers=providers) as gw:
        async with gw.post("/v1/chat/completions", CHAT | {"model": "fast"}) as response:
            assert response.headers["x-tollkeeper-model"] == "gpt-4o-mini"
        entry = await gw.entry()
    assert (entry.model, entry.served) == ("fast", "gpt-4o-mini-2024-07-18")
    assert gw.fake.requests[0].json()["model"] == "gpt-4o-mini"
