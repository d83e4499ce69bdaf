"""How providers are, over HTTP: the page, the metrics and the log of a gateway whose provider fails and comes back."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway import CHAT, PROVIDERS, Gateway, gateway

from tollkeeper import api
from tollkeeper.health import LEVELS, State
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.provider import FakeProvider, Refuse

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
