"""How providers are, over HTTP: the page, the metrics and the log of a gateway whose provider fails and comes back."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway import CHAT, PROVIDERS, Gateway, gateway, until

from tollkeeper import api, chores
from tollkeeper.health import LEVELS, State
from tollkeeper.stores.redis.open import Advice
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import FakeProvider, Refuse
from tollkeeper.testing.redis_server import RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
MODEL = "model", "openai", "PROVIDER_KEY", "gpt-4o-mini"
OPEN_S = 30


async def row(gw: Gateway) -> dict[str, Any]:
    """The model's row of the page; what the metrics say of it is the same."""
    async with gw.session.get(gw.url + "/v1/tollkeeper/providers") as response:
        assert response.status == 200
        rows = (await response.json())["breakers"]
    (found,) = (each for each in rows if tuple(each[name] for name in ("level", "provider", "key", "model")) == MODEL)
    async with gw.session.get(gw.url + "/metrics") as response:
        text = await response.text()
    labels = 'key="PROVIDER_KEY",level="model",model="gpt-4o-mini",provider="openai"'
    told = re.findall(rf'tollkeeper_breaker_state{{{labels},state="(\w+)"}} 1.0', text)
    assert told == [found["state"]]
    assert f"tollkeeper_breaker_window_failures{{{labels}}} {found['failures']}.0" in text
    return dict(found)


async def call(gw: Gateway) -> int:
    async with gw.post("/v1/chat/completions", CHAT) as response:
        await response.read()
        return int(response.status)


async def test_a_breaker_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """E5: open, half-open and closed by API and metrics, with the reason and until when; each change is one log line."""
    fake, clock = FakeProvider(), ManualClock()
    settings = f'attempts = 1\nwhen_all_open = "refuse"\nbreaker = {{ open_s = {OPEN_S} }}\n'
    with caplog.at_level(logging.INFO, "tollkeeper"):
        async with gateway(tmp_path, fake, settings, providers=PROVIDERS, clock=clock) as gw:
            fake.next(*[Refuse(500)] * 3)
            assert [await call(gw) for _ in range(4)] == [500, 500, 500, 503]
            found = await row(gw)
            assert (found["state"], found["failures"], found["last_error"]) == (
                "open",
                3,
                "server error: 500 server_error",
            )
            assert found["open_until"] == "2026-01-01T00:00:30Z"
            clock.advance(OPEN_S)
            assert (await row(gw))["state"] == "half_open"
            assert await call(gw) == 200
            found = await row(gw)
            assert (found["state"], found["open_until"], found["latency_ms"]) == ("closed", None, 0)
    where = "breaker: provider openai key PROVIDER_KEY gpt-4o-mini"
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("breaker:")]
    assert lines == [
        f"{where} is left out for a while (3 failures in a row: server error: 500 server_error)",
        f"{where} is tried again (the open time is over)",
        f"{where} is back (the probe went well)",
    ]


# ---- several gateways -----------------------------------------------------------------------------------------------

KEYS = """
[providers.openai]
base_url = "{url}/v1"
api_key_env = "PROVIDER_KEY"
"""


async def advise(gw: Gateway) -> None:
    """What the chore does each second."""
    assert gw.app._advice is not None
    await chores.advise(gw.app.gate, gw.app._advice)


async def heard(one: Gateway, other: Gateway) -> bool:
    """Whether both leave the provider's key alone, once they have told each other."""
    await advise(one)
    await advise(other)
    return [(await key_of(each))["state"] for each in (one, other)] == ["open", "open"]


async def key_of(gw: Gateway) -> dict[str, Any]:
    """The row of the provider's key."""
    async with gw.session.get(gw.url + "/v1/tollkeeper/providers") as response:
        rows = (await response.json())["breakers"]
    return next((dict(each) for each in rows if each["level"] == "key"), {"state": "closed"})


async def test_gateways_tell_each_other(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """E3, E4: a key without quota at one gateway is left out by the other, for as long, without a call of its own.

    H2: neither secret nor prompt is in Redis.
    """
    refusal = Refuse(429, type="insufficient_quota", code="insufficient_quota")
    settings, url = 'when_all_open = "refuse"\n', redis_server.url
    with caplog.at_level(logging.WARNING, "tollkeeper"):
        async with (
            gateway(tmp_path / "a", FakeProvider([refusal]), settings, providers=KEYS, store=url) as one,
            gateway(tmp_path / "b", None, settings, providers=KEYS, store=url) as other,
        ):
            assert await call(one) == 429
            await until(lambda: heard(one, other))
            shown = [await key_of(each) for each in (one, other)]
            assert [each["last_error"] for each in shown] == [
                "no credit: 429 insufficient_quota",
                "another gateway was told",
            ]
            assert await call(other) == 503
            assert other.fake.requests == []
            for each in (one, other) * 3:
                await advise(each)
            with redis_server.client() as client:
                (key,) = client.keys("*:open")
                assert list(client.hgetall(key)) == [b"key:openai:PROVIDER_KEY:"]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("breaker:")]
    assert lines == [
        "breaker: provider openai key PROVIDER_KEY is left out for a while (no credit: 429 insufficient_quota)",
        "breaker: provider openai key PROVIDER_KEY is left out for a while (another gateway was told)",
    ]


async def test_no_call_waits_for_advice(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: calls are served and breakers open while an exchange with Redis never ends."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(advice: Advice, now_us: int) -> dict[Any, int]:
        begun.set()
        await never.wait()
        return {}

    monkeypatch.setattr(Advice, "exchange", hang)
    fake = FakeProvider([Refuse(401), None])
    async with gateway(tmp_path, fake, 'when_all_open = "try"\n', providers=KEYS, store=redis_server.url) as gw:
        task = asyncio.create_task(advise(gw))
        await begun.wait()
        assert [await call(gw), await call(gw)] == [502, 200]
        assert (await key_of(gw))["state"] == "open"
        assert not task.done()
        task.cancel()


# ---- the reference --------------------------------------------------------------------------------------------------


def test_the_page_is_as_shown() -> None:
    """E5: each breaker in the reference is what the gateway makes of its numbers, member by member."""
    found = re.search(r"```json\n(\{\n  \"breakers\".*?)\n```", PAGE, re.DOTALL)
    assert found is not None
    rows = msgspec.json.decode(found[1])["breakers"]
    assert [each["level"] for each in rows] == list(LEVELS)
    for each in rows:
        until = each["open_until"]
        state = State(
            level=each["level"], provider=each["provider"], key=each["key"] or "", model=each["model"] or "",
            state=each["state"], open_until_s=0 if until is None else datetime.fromisoformat(until).timestamp(),
            calls=each["calls"], failures=each["failures"], slow=each["slow"], last_error=each["last_error"] or "",
            latency_s=None if each["latency_ms"] is None else each["latency_ms"] / 1000,
        )  # fmt: skip
        assert api._breaker(state, 0) == each
