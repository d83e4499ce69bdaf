"""Several gateways on one Redis, each on a host of its own: one account, one set of budgets, whoever is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.gateway import CHAT, PROVIDERS, Gateway, budget, gateway, until, write
from tests.integration.test_cli import ended, served

from tollkeeper.clock import SystemClock
from tollkeeper.keys import hash_secret
from tollkeeper.testing.provider import FakeProvider, serving
from tollkeeper.testing.redis_cluster import Cluster
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.values import iso_utc

RUNS = 20
TOLL = '[[prices]]\nmodel = "toll"\ninput = "0"\noutput = "0"\nrequest = "0.10"\n'
ROUTES = '[routes]\ntoll = "openai/toll"\n'
CALL = CHAT | {"model": "toll", "max_tokens": 5}


def key(secret: str) -> str:
    return f'[[keys]]\nid = "ci"\nproject = "p"\nhash = "{hash_secret(secret)}"\n'


async def ask(found: Gateway, project: str = "shop", **headers: str) -> int:
    """One call of ten cents; its status."""
    told = {"x-tollkeeper-project": project} | headers
    async with found.post("/v1/chat/completions", CALL, told) as reply:
        await reply.read()
        return int(reply.status)


async def ready(found: Gateway) -> tuple[int, dict[str, Any]]:
    async with found.session.get(found.url + "/readyz") as reply:
        return reply.status, await reply.json()


# ── one account ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reports_of_all_hosts_agree(redis_server: RedisServer, tmp_path: Path) -> None:
    """G1: calls by the official SDKs through two gateways, streamed or not, are in every host's reports, alike."""
    fake, url = FakeProvider(), redis_server.url
    async with gateway(tmp_path / "a", fake, store=url) as one, gateway(tmp_path / "b", fake, store=url) as other:
        for found in (one, other):
            async with found.openai(project="shop", agent="writer") as client:
                await client.chat.completions.create(model="gpt-4o-mini", messages=CHAT["messages"])
                stream = await client.chat.completions.create(
                    model="gpt-4o-mini", messages=CHAT["messages"], stream=True
                )
                assert [chunk async for chunk in stream]
            async with found.anthropic(project="shop", agent="critic") as claude:
                await claude.messages.create(model="claude-haiku-4-5", max_tokens=20, messages=CHAT["messages"])
        for found in (one, other):
            await until(lambda found=found: found.booked(6))
        reports = [
            await ended(tmp_path / host, "report", "--by", by, "--json", OPENAI_API_KEY="x", PROVIDER_KEY="x")
            for host in ("a", "b")
            for by in ("agent", "model")
        ]
        assert [(code, err) for code, _, err in reports] == [(0, "")] * 4
        by_agent, by_model = (json.loads(out) for _, out, _ in reports[:2])
        assert [out for _, out, _ in reports[:2]] == [out for _, out, _ in reports[2:]]
        assert by_agent["total"] == by_model["total"]
        assert {row["name"]: row["calls"] for row in by_agent["rows"]} == {"writer": 4, "critic": 2}
        code, out, _ = await ended(tmp_path / "a", "store", "verify", PROVIDER_KEY="x")
        assert (code, "6 entries; 3 entries of 1 journal: all agree" in out) == (0, True)


async def test_imports_and_corrections_beside_gateways(redis_server: RedisServer, tmp_path: Path) -> None:
    """Logs are imported, and history is priced again, while a gateway runs; its report has both, and each line once."""
    fake, url = FakeProvider(), redis_server.url
    (tmp_path / "log.jsonl").write_text(
        '{"model": "gpt-4o-mini", "prompt_tokens": 1000, "completion_tokens": 0, "request_id": "old-1",'
        f' "at": "{iso_utc(SystemClock().now_us())}"}}\n'
    )
    dear = tmp_path / "dear.toml"
    dear.write_text('[[price]]\nmodel = "gpt-4o-mini"\ninput = "1000"\noutput = "0"\n')
    async with gateway(tmp_path / "a", fake, store=url) as found:
        async with found.openai(project="shop") as client:
            await client.chat.completions.create(model="gpt-4o-mini", messages=CHAT["messages"])
        for booked in (1, 0):
            code, out, err = await ended(
                tmp_path / "a", "import", str(tmp_path / "log.jsonl"), "--project", "shop", "--json", PROVIDER_KEY="x"
            )
            assert (code, err, json.loads(out)["booked"]) == (0, "", booked)
        yesterday = iso_utc(SystemClock().now_us() - 86_400_000_000)
        again = ("reprice", "--from", yesterday, "--prices", str(dear), "--by", "ann", "--json")
        code, out, err = await ended(tmp_path / "a", *again, "--yes", PROVIDER_KEY="x")
        assert (code, err, json.loads(out)["total"]["changed"]) == (0, "", 2)
        code, out, err = await ended(tmp_path / "a", *again, "--yes", PROVIDER_KEY="x")
        assert (code, err, json.loads(out)["total"]["changed"]) == (0, "", 0)
        assert {(entry.by, entry.revision) for entry in await found.entries() if entry.sign > 0} >= {("ann", 1)}
        code, out, _ = await ended(tmp_path / "a", "store", "verify", PROVIDER_KEY="x")
        assert (code, "all agree" in out) == (0, True), out


# ── one set of budgets ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_three_processes_on_one_dollar(redis_server: RedisServer, tmp_path: Path) -> None:
    """C1: 200 parallel calls of $0.10 on a budget of $1 through three processes: exactly 10 are admitted, 20 runs of 20."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(serving(FakeProvider()))
        urls = []
        for host in ("a", "b", "c"):
            settings = f'store = "{redis_server.url}"\n' + TOLL + budget("project", "1", window="total")
            write(tmp_path / host, settings + PROVIDERS.format(url=fake) + ROUTES)
            urls.append((await stack.enter_async_context(served(tmp_path / host, PROVIDER_KEY="x")))[1])
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60))
        )

        async def call(url: str, project: str) -> int:
            headers = {"x-tollkeeper-project": project}
            async with session.post(f"{url}/v1/chat/completions", json=CALL, headers=headers) as reply:
                await reply.read()
                return reply.status

        for run in range(RUNS):
            statuses = await asyncio.gather(*(call(urls[number % 3], f"run{run}") for number in range(200)))
            assert Counter(statuses) == {200: 10, 402: 190}, f"run {run}"

        async def all_there() -> bool:  # what is booked reaches Redis some milliseconds later
            code, out, _ = await ended(tmp_path / "a", "report", "--json", PROVIDER_KEY="x")
            return (code, json.loads(out)["total"]["cost_usd"]) == (0, str(RUNS))

        await until(all_there, 20)


async def test_a_raised_limit_counts_everywhere(redis_server: RedisServer, tmp_path: Path) -> None:
    """C5: a limit that is raised in the files of two gateways is theirs within a second, with what was spent before."""
    settings = TOLL + budget("project", "0.10")
    more: dict[str, Any] = {"store": redis_server.url, "watch_file": True, "providers": PROVIDERS + ROUTES}
    fake = FakeProvider()
    async with (
        gateway(tmp_path / "a", fake, settings, **more) as one,
        gateway(tmp_path / "b", fake, settings, **more) as other,
    ):
        assert [await ask(one), await ask(other), await ask(one)] == [200, 402, 402]
        for found in (one, other):
            found.file.write_text(found.settings.replace('limit = "0.10"', 'limit = "0.30"'))
        now = asyncio.get_running_loop().time
        raised_s = now()
        await until(lambda: _admitted(other))
        await until(lambda: _admitted(one))
        assert now() - raised_s < 1.5
        assert [await ask(one), await ask(other)] == [402, 402]


async def _admitted(found: Gateway) -> bool:
    return await ask(found) == 200


async def test_a_rotated_key_keeps_its_spend(redis_server: RedisServer, tmp_path: Path) -> None:
    """C8: the same key's id with another secret, at another gateway, goes on where the first one stands."""
    limited = TOLL + budget("key", "0.20", window="total")
    more: dict[str, Any] = {"store": redis_server.url, "providers": PROVIDERS + ROUTES}
    fake = FakeProvider()
    async with (
        gateway(tmp_path / "a", fake, limited + key("first"), **more) as one,
        gateway(tmp_path / "b", fake, limited + key("second"), **more) as other,
    ):
        assert await ask(one, authorization="Bearer first") == 200
        assert await ask(one, authorization="Bearer second") == 401
        assert [await ask(other, authorization="Bearer second") for _ in range(2)] == [200, 402]
        assert await ask(one, authorization="Bearer first") == 402


# ── a Redis that is late, away or wrong ──────────────────────────────────────────────────────────────────────────────


async def test_redis_comes_late(own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """I3: without Redis a gateway starts, says 503 and why, and serves within 10 s of its coming, without a restart."""
    caplog.set_level(logging.INFO, "tollkeeper")
    own_redis.stop()
    async with gateway(tmp_path, settings=TOLL, store=own_redis.url, providers=PROVIDERS + ROUTES) as found:
        status, told = await ready(found)
        assert (status, told["status"], told["store"]["state"]) == (503, "unavailable", "away")
        await until(lambda: _says(found, "Connection refused"))
        assert await ask(found) == 503
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        own_redis.start()
        await until(lambda: _is_ready(found), 10)
        assert await ask(found) == 200
        await until(lambda: _is_ready(found))
        shown = (await ready(found))[1]["store"]
        assert {name: shown[name] for name in ("state", "waiting", "peers")} == {
            "state": "ready",
            "waiting": 0,
            "peers": 0,
        }


async def _is_ready(found: Gateway) -> bool:
    """Whether all is well and nothing waits."""
    status, told = await ready(found)
    return status == 200 and told["status"] == "ok" and told["store"]["waiting"] == 0


async def test_redis_goes_away(own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """B4, F2: while Redis is away /readyz is 200 and says degraded; what no hard budget covers goes on, and is there afterwards."""
    caplog.set_level(logging.INFO, "tollkeeper")
    settings = TOLL + budget("project", "1", id="limited")
    async with gateway(tmp_path, settings=settings, store=own_redis.url, providers=PROVIDERS + ROUTES) as found:
        assert [await ask(found), await ask(found, "limited")] == [200, 200]
        await until(lambda: _is_ready(found))
        caplog.clear()
        own_redis.kill()
        await until(lambda: _is_degraded(found))
        assert [await ask(found), await ask(found, "limited")] == [200, 503]
        status, told = await ready(found)
        assert (status, told["status"], told["store"]["waiting"]) == (200, "degraded", 1)
        own_redis.start()
        await until(lambda: _is_ready(found))
        assert await ask(found, "limited") == 200
        assert len(await found.entries()) == 4
        lines = [record.getMessage() for record in caplog.records]
        assert [line for line in lines if not line.startswith("store: Redis is ")] == []
        assert len(lines) == 3


async def _is_degraded(found: Gateway) -> bool:
    return (await ready(found))[1]["status"] == "degraded"


async def test_a_redis_that_evicts(own_redis: RedisServer, tmp_path: Path) -> None:
    """I2: a Redis that throws balances away does not start a gateway with hard budgets; without any, it is told and serves."""
    with own_redis.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    settings = f'store = "{own_redis.url}"\n'
    write(tmp_path / "a", settings + budget("project", "1"))
    code, out, err = await ended(tmp_path / "a", "serve", "--port", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "maxmemory-policy allkeys-lru throws balances away when memory is full; set it to noeviction" in err
    assert os.listdir(tmp_path / "a") == ["tollkeeper.toml"]
    write(tmp_path / "b", settings + budget("project", "1", hard=False))
    async with served(tmp_path / "b") as (process, url):
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                async with session.get(f"{url}/readyz") as reply:
                    return reply.status == 200

            await until(answers, 10)
        process.terminate()
        _, log = await process.communicate()
        assert b"ERROR store: maxmemory-policy allkeys-lru" in log
    code, out, _ = await ended(tmp_path / "b", "store", "check")
    assert (code, "allkeys-lru" in out) == (1, True)


async def test_a_redis_that_comes_late_and_evicts(own_redis: RedisServer, tmp_path: Path) -> None:
    """A hard budget is not trusted to a Redis that evicts when it comes late either: 503, until that is put right."""
    own_redis.stop()
    settings = TOLL + budget("project", "1")
    async with gateway(tmp_path, settings=settings, store=own_redis.url, providers=PROVIDERS + ROUTES) as found:
        own_redis.config |= {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
        own_redis.start()
        await until(lambda: _says(found, "allkeys-lru"))
        assert await ask(found) == 503
        with own_redis.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
        await until(lambda: _is_ready(found))
        assert await ask(found) == 200


async def _says(found: Gateway, text: str) -> bool:
    return text in (await ready(found))[1].get("reason", "")


async def test_commands_without_redis(tmp_path: Path, own_redis: RedisServer) -> None:
    """I2: commands that need Redis end with one line and exit code 2 where it is not there."""
    own_redis.stop()
    write(tmp_path, f'store = "{own_redis.url}"\n')
    (tmp_path / "log.jsonl").write_text('{"model": "gpt-4o-mini", "prompt_tokens": 1, "completion_tokens": 0}\n')
    commands = [("report",), ("verify",), ("store", "check"), ("store", "rebuild"), ("import", "log.jsonl")]
    answers = await asyncio.gather(*(ended(tmp_path, *words) for words in commands))
    for code, out, err in answers:
        assert (code, out, err.count("\n"), "Redis" in err) == (2, "", 1, True), err


# ── other places ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cluster(redis_executable: str, tmp_path: Path) -> None:
    """B4: on a cluster of three masters `tollkeeper store` looks at each, compares all projects, and fills them again."""
    with Cluster(tmp_path / "cluster", executable=redis_executable) as cluster:
        url = cluster.url.replace("redis:", "redis+cluster:").removesuffix("/0")
        async with gateway(
            tmp_path / "a", settings=TOLL + budget("all", "9"), store=url, providers=PROVIDERS + ROUTES
        ) as found:
            assert [await ask(found, project) for project in ("p", "q", "r", "s")] == [200] * 4
            code, out, _ = await ended(tmp_path / "a", "store", "rebuild", "--yes", "--force", PROVIDER_KEY="x")
            assert (code, out) == (0, "filled from 1 journal: 4 entries, 4 projects\n")
            await until(lambda: _is_ready(found))
            assert await ask(found, "q") == 200
        code, out, _ = await ended(tmp_path / "a", "store", "check", "--json", PROVIDER_KEY="x")
        told = json.loads(out)
        assert (code, len(told["servers"]), told["projects"], told["attention"]) == (0, 3, 4, [])
        code, out, _ = await ended(tmp_path / "a", "store", "verify", PROVIDER_KEY="x")
        assert (code, "5 entries of 1 journal: all agree" in out) == (0, True), out
