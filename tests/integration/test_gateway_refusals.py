"""What a budget refuses, and how it says so: in the dialect's own shape, once, before anything is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from tests.gateway import ASKS, BODIES, CHAT, ENVIRON, PROVIDERS, budget, gateway, until

from tollkeeper import chores, config
from tollkeeper.api import CALLS, OPEN, PAGES, QUESTIONS
from tollkeeper.errors import StoreUnavailable
from tollkeeper.keys import hash_secret
from tollkeeper.money import parse_usd
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import FakeProvider, Stall

EACH = pytest.mark.parametrize(("path", "body"), ASKS, ids=list(CALLS))
MESSAGES = BODIES["anthropic-messages"]
FREE = """
[[price]]
model = "house-model"
input = "0"
output = "0"
"""


@EACH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("measure", ["usd", "tokens", "requests"])
async def test_every_billable_route_is_gated(
    tmp_path: Path, path: str, body: dict[str, Any], measure: str, stream: bool
) -> None:
    """C6: each route of api.CALLS refuses under a budget that is used up, and nothing is sent or booked."""
    async with gateway(tmp_path, settings=budget("all", 0, measure=measure)) as gw:
        async with gw.post(path, body | {"stream": stream} if "messages" in body else body) as response:
            assert response.status == 402
            assert response.content_type == "application/json"
        assert await gw.untouched()


async def test_no_route_is_billable_but_those(tmp_path: Path) -> None:
    """C6: whatever is not in api.CALLS sends nothing: no method, spelling or page of the gateway reaches a provider."""
    paths = [
        *CALLS,
        *PAGES,
        *QUESTIONS,
        "/",
        "/v1",
        "/v1/completions",
        "/v1/responses",
        "/v1/models/gpt-4o",
        "/V1/chat/completions",
    ]
    paths += [f"/v1beta/{end}" for end in ("models/m", "models/:generateContent", "models/m:predict", "cachedContents")]
    paths += [path + end for path in CALLS for end in ("/", "/x", "%00", "?x=1", ";x")]
    async with gateway(tmp_path, settings=budget("all", 0, measure="requests")) as gw:
        for path in paths:
            for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "POST"):
                async with gw.session.request(method, gw.url + path, json=CHAT) as response:
                    known = method in (("GET", "HEAD") if path in PAGES else ("POST",) if path in QUESTIONS else ())
                    gated = path.removesuffix("?x=1") in CALLS and method == "POST"
                    assert response.status in ((200,) if known else (402, 400) if gated else (404, 405)), (method, path)
                    assert ("allow" in response.headers) == (response.status == 405)
        assert await gw.untouched()
    assert set(PAGES) >= OPEN


@pytest.mark.parametrize("scope", ["all", "project", "agent", "session", "user", "model", "tag"])
async def test_every_scope_is_gated(tmp_path: Path, scope: str) -> None:
    """C6: a budget of 0 on any scope of a call refuses it; C5: 0 blocks."""
    headers = {f"x-tollkeeper-{name}": "it" for name in ("project", "agent", "session", "user", "tags")}
    async with gateway(tmp_path, settings=budget(scope, 0)) as gw:
        async with gw.post("/v1/chat/completions", CHAT, headers) as response:
            assert response.status == 402
            assert (await response.json())["error"]["scope"] == scope
        assert await gw.untouched()


async def test_refusal_names_its_numbers(tmp_path: Path) -> None:
    """C7: scope, id, project, window, limit, spent, held, asked and reset stand in the OpenAI shape, and in its message."""
    clock = ManualClock()
    settings = "default_output_cap = 10000\n" + budget("session", "0.01")
    async with gateway(tmp_path, settings=settings, clock=clock) as gw:
        headers = {"x-tollkeeper-project": "alpha", "x-tollkeeper-session": "s1"}
        async with gw.post("/v1/chat/completions", CHAT, headers) as response:
            spent = response.headers["x-tollkeeper-cost"]
        stall = Stall()
        gw.fake.next(stall)
        async with gw.openai(project="alpha", session="s1") as client:
            held = client.chat.completions.with_raw_response.create(**CHAT)
            waiting = asyncio.ensure_future(held)
            await stall.reached.wait()
            async with gw.post("/v1/chat/completions", CHAT, headers) as response:
                refusal = await response.json()
                told = response.headers
            stall.release.set()
            await waiting
        await until(lambda: gw.booked(2))
    assert response.status == 402
    error = refusal["error"]
    hold = parse_usd(error["held"], "held")
    assert error["type"] == "insufficient_quota"
    assert (error["code"], error["param"], error["reason"]) == ("budget_exceeded", None, "over")
    assert (error["scope"], error["id"], error["project"]) == ("session", "s1", "alpha")
    assert (error["measure"], error["window"], error["limit"], error["spent"]) == ("usd", "month", "0.01", spent)
    assert error["resets_at"] == told["x-tollkeeper-budget-reset"] == "2026-02-01T00:00:00Z"
    assert hold > 6_000_000  # 10,000 tokens at 0.60 per million, and the prompt
    assert parse_usd(error["asked"], "asked") - hold == 6 * 150  # what the SDK did not send: 6 bytes of white space
    remaining = 10_000_000 - parse_usd(spent, "spent") - hold
    assert parse_usd(told["x-tollkeeper-budget-remaining"], "remaining") == remaining < hold
    assert told["x-tollkeeper-budget-limit"] == "0.01"
    assert told["x-should-retry"] == "false"
    assert refusal["request_id"] == told["x-tollkeeper-request-id"]
    for number in ("session 's1'", "project 'alpha'", "month", "$0.01", spent, error["held"], error["resets_at"]):
        assert number in error["message"]


async def test_refusal_in_the_anthropic_shape(tmp_path: Path) -> None:
    """C7: the same numbers stand in an Anthropic error."""
    settings = budget("project", "0.000001", window="total")
    async with gateway(tmp_path, settings=settings) as gw, gw.post("/v1/messages", MESSAGES) as response:
        assert response.status == 402
        refusal = await response.json()
    assert refusal["type"] == "error"
    assert refusal["request_id"] == response.headers["x-tollkeeper-request-id"]
    error = refusal["error"]
    assert error["type"].endswith("_error")
    assert (error["scope"], error["id"], error["window"]) == ("project", "default", "total")
    assert (error["limit"], error["spent"], error["held"], error["resets_at"]) == ("0.000001", "0", "0", None)


@pytest.mark.parametrize(("window", "status"), [("minute", 429), ("hour", 402), ("total", 402)])
async def test_sdks_do_not_retry(tmp_path: Path, window: str, status: int) -> None:
    """C7: neither SDK asks again after a refusal, 402 or 429, whatever its own retry settings say."""
    async with gateway(tmp_path, settings=budget("project", 0, measure="requests", window=window)) as gw:
        asks = gw.asks()
        async with gw.openai() as chat, gw.anthropic() as messages:
            with pytest.raises(openai.APIStatusError) as refused:
                await chat.with_options(max_retries=5).chat.completions.create(**CHAT)
            assert len(asks) == 1
            with pytest.raises(anthropic.APIStatusError) as refused_too:
                await messages.with_options(max_retries=5).messages.create(**MESSAGES)
        assert len(asks) == 2
        assert (refused.value.status_code, refused_too.value.status_code) == (status, status)
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["window"] == window
        assert await gw.untouched()


@EACH
async def test_rate_limits_say_when_to_come_back(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """C7: a budget per minute refuses with 429 and Retry-After in whole seconds; in the next minute it admits again."""
    clock = ManualClock()
    clock.advance(12.5)
    async with gateway(tmp_path, settings=budget("project", 1, measure="requests", window="minute"), clock=clock) as gw:
        async with gw.post(path, body) as response:
            assert response.status == 200
            assert response.headers["x-tollkeeper-budget-remaining"] == "0"
        async with gw.post(path, body) as response:
            assert response.status == 429
            assert response.headers["retry-after"] == "48"
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["x-tollkeeper-budget-reset"] == "2026-01-01T00:01:00Z"
        clock.advance(47.6)
        async with gw.post(path, body) as response:
            assert response.status == 200
        await until(lambda: gw.booked(2))
    assert len(gw.fake.requests) == 2


async def test_tokens_per_minute(tmp_path: Path) -> None:
    """C7: tokens per minute are held at their bound, and given back when the reply used less."""
    settings = budget("project", 4000, measure="tokens", window="minute")
    async with gateway(tmp_path, settings=settings, clock=ManualClock()) as gw:
        ask = CHAT | {"max_tokens": 2500}
        for _ in range(3):
            async with gw.post("/v1/chat/completions", ask) as response:
                assert response.status == 200, await response.text()
            await until(lambda: gw.booked(1))
        async with gw.post("/v1/chat/completions", ask | {"max_tokens": 4000}) as response:
            assert response.status == 429
            assert (await response.json())["error"]["measure"] == "tokens"


async def test_no_bound_no_call(tmp_path: Path) -> None:
    """C3: without any output cap under a hard budget the call is refused, saying what is missing."""
    settings = 'default_output_cap = "none"\n' + budget("project", "1000")
    async with gateway(tmp_path, settings=settings) as gw:
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 402
            error = (await response.json())["error"]
        assert error["reason"] == "unbounded"
        assert "max_tokens" in error["message"]
        assert await gw.untouched()
        async with gw.post("/v1/chat/completions", CHAT | {"max_completion_tokens": 10}) as response:
            assert response.status == 200
        await gw.entry()


async def test_no_price_no_call(tmp_path: Path) -> None:
    """A5: a hard usd budget refuses a model that has no price, and says so; a soft one books it as unpriced."""
    ask = CHAT | {"model": "openai/house-model"}
    async with gateway(tmp_path, settings=budget("project", "1000")) as gw:
        async with gw.post("/v1/chat/completions", ask) as response:
            assert response.status == 402
            assert (await response.json())["error"]["reason"] == "unpriced"
        assert await gw.untouched()
    async with gateway(tmp_path, settings=budget("project", "1000", hard=False)) as gw:
        async with gw.post("/v1/chat/completions", ask) as response:
            assert response.status == 200
        assert (await gw.entry()).charge.status == "unpriced"


async def test_free_model_passes_an_exhausted_budget(tmp_path: Path) -> None:
    """C5: a model with an explicit price of 0 passes a usd budget of 0; one with a price does not."""
    (tmp_path / "prices.toml").write_text(FREE)
    async with gateway(tmp_path, settings='prices = "prices.toml"\n' + budget("project", "0")) as gw:
        async with gw.post("/v1/chat/completions", CHAT | {"model": "openai/house-model"}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["x-tollkeeper-cost"] == "0"
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 402
        entry = await gw.entry()
    assert (entry.charge.amount_nanos, entry.charge.status) == (0, "priced")


async def test_none_is_no_limit(tmp_path: Path) -> None:
    """C5: limit = "none" admits everything and shows no budget headers."""
    async with gateway(tmp_path, settings=budget("project", "none")) as gw:
        async with gw.post("/v1/chat/completions", CHAT) as response:
            assert response.status == 200
            assert not [name for name in response.headers if "budget" in name]
        await gw.entry()


async def test_raised_limit_works_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: a limit raised in the configuration file admits within a second, a mistake in the file changes nothing."""
    assert chores.RELOAD_EVERY_S <= 1
    monkeypatch.setattr(chores, "RELOAD_EVERY_S", 0.01)
    low, high = (budget("project", limit) for limit in ("0.000001", "1"))
    async with gateway(tmp_path, settings=low, watch_file=True) as gw:

        async def status() -> int:
            async with gw.post("/v1/chat/completions", CHAT) as response:
                return int(response.status)

        assert await status() == 402
        gw.file.write_text("port = 'none'\n" + gw.settings.replace(low, high))
        with pytest.raises(TimeoutError):
            await until(lambda: _is(status, 200), 0.1)
        gw.file.write_text(gw.settings.replace(low, high))
        await until(lambda: _is(status, 200), 1)
        gw.file.write_text(gw.settings)
        await until(lambda: _is(status, 402), 1)
        await until(lambda: gw.booked(len(gw.fake.requests)))


async def _is(status: Any, expected: int) -> bool:
    return bool(await status() == expected)


async def test_rotated_key_keeps_its_spend(tmp_path: Path) -> None:
    """C8: a key's second secret counts on the same balance, and spend stays when the first one goes."""
    keys = {
        secret: f'[[keys]]\nid = "k"\nproject = "alpha"\nhash = "{hash_secret(secret)}"\n' for secret in ("old", "new")
    }
    settings = budget("key", 2, measure="requests", window="total", id="k")
    async with gateway(tmp_path, settings=settings + "".join(keys.values())) as gw:

        async def status(secret: str) -> int:
            async with gw.post("/v1/chat/completions", CHAT, {"authorization": f"Bearer {secret}"}) as response:
                return int(response.status)

        assert [await status("old"), await status("new")] == [200, 200]
        gw.file.write_text(gw.settings.replace(keys["old"], ""))
        loaded = config.load(gw.file, ENVIRON)
        await gw.app.gate.store.set_budgets(loaded.budgets)
        gw.app.gate.keys = type(gw.app.gate.keys)(loaded.keys)
        assert [await status("old"), await status("new")] == [401, 402]
        await until(lambda: gw.booked(2))
        assert {entry.scopes.key for entry in await gw.entries()} == {"k"}


@pytest.mark.parametrize("scope", ["agent", "session", "user", "tag"])
async def test_same_names_in_two_projects(tmp_path: Path, scope: str) -> None:
    """C8: agents, sessions, users and tags of one name in two projects have a balance each."""
    header = "x-tollkeeper-" + ("tags" if scope == "tag" else scope)
    async with gateway(tmp_path, settings=budget(scope, 1, measure="requests", window="total")) as gw:
        statuses = []
        for project in ("alpha", "beta", "alpha", "beta"):
            headers = {"x-tollkeeper-project": project, header: "writer"}
            async with gw.post("/v1/chat/completions", CHAT, headers) as response:
                statuses.append(response.status)
        await until(lambda: gw.booked(2))
    assert statuses == [200, 200, 402, 402]


async def test_keys_that_may_not(tmp_path: Path) -> None:
    """A key with a list of models is refused others by 403, in the caller's dialect; nothing is sent."""
    key = f'[[keys]]\nid = "k"\nproject = "alpha"\nmodels = ["gpt-4o"]\nhash = "{hash_secret("s")}"\n'
    async with gateway(tmp_path, settings=key) as gw:
        for path, body in ASKS:
            async with gw.post(path, body, {"x-api-key": "s"}) as response:
                assert response.status == 403
                assert "error" in await response.json()
        async with gw.session.get(gw.url + "/v1/models", headers={"x-api-key": "s"}) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["gpt-4o"]
        assert await gw.untouched()


async def test_a_keys_project_wins(tmp_path: Path) -> None:
    """H5: what a key fixes cannot be said otherwise by a header."""
    key = f'[[keys]]\nid = "k"\nproject = "alpha"\nagent = "writer"\nhash = "{hash_secret("s")}"\n'
    async with gateway(tmp_path, settings=key) as gw:
        headers = {
            "x-api-key": "s",
            "x-tollkeeper-project": "beta",
            "openai-project": "beta",
            "x-tollkeeper-agent": "b",
        }
        async with gw.post("/v1/chat/completions", CHAT, headers) as response:
            assert response.status == 200
        scopes = (await gw.entry()).scopes
    assert (scopes.project, scopes.agent, scopes.key) == ("alpha", "writer", "k")


# ---- pages ----------------------------------------------------------------------------------------------------------


async def test_models_are_those_that_can_be_asked_for(tmp_path: Path) -> None:
    """GET /v1/models names the routes, and the models of the configured providers that have prices; the SDK reads it."""
    async with gateway(tmp_path, providers=PROVIDERS + '[routes]\nfast = "openai/gpt-4o-mini"\n') as gw:
        async with gw.openai() as client:
            names = {model.id async for model in client.models.list()}
        assert {"fast", "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"} <= names
        assert not [name for name in names if name.startswith("groq/")]
        for name in sorted(names)[:: len(names) // 20]:  # one that is listed can be asked for
            async with gw.post("/v1/chat/completions", CHAT | {"model": name}) as response:
                assert response.status == 200 or name.startswith(("anthropic/", "google/"))


async def test_health_and_readiness(tmp_path: Path) -> None:
    """I3: /healthz says that the process lives; /readyz says 503 and why while the ledger fails or the gateway stops."""
    async with gateway(tmp_path, store=f"sqlite:///{tmp_path}/ledger.sqlite") as gw:

        async def page(path: str) -> tuple[int, dict[str, str]]:
            async with gw.session.get(gw.url + path) as response:
                return response.status, msgspec.json.decode(await response.read(), type=dict[str, str])

        assert await page("/healthz") == (200, {"status": "ok"})
        assert await page("/readyz") == (200, {"status": "ok"})
        store = gw.app.gate.store
        gw.app.gate.store = Failing()  # type: ignore[assignment]
        status, told = await page("/readyz")
        assert (status, told["reason"]) == (503, "disk full")
        assert (await page("/healthz"))[0] == 200
        gw.app.gate.store = store
        gw.app.api.draining = True
        status, told = await page("/readyz")
        assert (status, told["reason"]) == (503, "the gateway is stopping")
        for path, body in ASKS:
            async with gw.post(path, body) as response:
                assert response.status == 503
                assert "x-should-retry" not in response.headers  # another gateway may take it
        assert await gw.untouched()


class Failing:
    """A ledger in trouble."""

    trouble = "disk full"
    condition = None


async def test_failing_ledger_admits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: while the ledger cannot write, calls are refused with 503 and nothing is sent."""

    async def refuse(*_: Any) -> None:
        raise StoreUnavailable("the ledger cannot write: disk full")

    async with gateway(tmp_path, FakeProvider()) as gw:
        monkeypatch.setattr(gw.app.gate.store, "reserve", refuse)
        for path, body in ASKS:
            async with gw.post(path, body) as response:
                assert response.status == 503
                assert "disk full" in await response.text()
        assert await gw.untouched()
