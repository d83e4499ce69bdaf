"""docs/reference/redis.md is right: keys, types, deadlines, the rule for a user, and the report without Tollkeeper."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec import structs

from tollkeeper.clock import SystemClock
from tollkeeper.ledger import CELL_SUMS
from tollkeeper.money import format_nanos
from tollkeeper.stores import Retention, SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.reader import connected
from tollkeeper.stores.redis.rebuild import rebuild
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.stores.redis.survey import survey
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD, a_hold, an_entry
from tollkeeper.values import Budget, Scopes

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "redis.md").read_text()
WHO = Scopes(project="shop", agent="w", session="s", user="u", key="k", tags=("t",))
ROW = re.compile(r"^\| `([a-z]+)[:`][^|]*\| (string|hash|set|sorted set|list) \|", re.MULTILINE)
TYPES = {kind: type_.replace("sorted set", "zset") for kind, type_ in ROW.findall(PAGE)}


async def use(url: str, folder: Path) -> None:
    """All that a gateway does with its store."""
    now_us = SystemClock().now_us()
    budgets = [Budget(scope=scope, limit=USD) for scope in ("project", "session", "all", "key", "model")]
    budgets.append(Budget(scope="user", limit=USD, lease=2 * DIME))
    shared = SharedOptions(clock=SystemClock(), journal=folder)
    store = open_store(url, budgets=budgets, scope_cap=2, shared=shared)
    assert isinstance(store, RedisStore)
    for number in range(3):
        who = structs.replace(WHO, agent=f"w{number}")
        await store.settle(an_entry(f"{number}/1", at_us=now_us, scopes=who))
        await store.settle(an_entry(f"{number}/1", at_us=now_us, scopes=Scopes(project=f"p{number}")))
    await store.correct(corrected(an_entry("0/1", at_us=now_us, scopes=structs.replace(WHO, agent="w0"))))
    for id, ahead_us in (("live", 10**9), ("dead", 1), ("void", 10**9)):
        hold = a_hold(f"{id}/1", at_us=now_us, scopes=WHO)
        await store.reserve(structs.replace(hold, deadline_us=now_us + ahead_us))
    await store.void("void/1")
    assert await store.expire(now_us + 2) == 1
    assert await store.claim("alert", now_us, 10**7)
    await store.done("alert", now_us + 10**9)
    store.advice.tell(("key", "openai", "KEY", ""), now_us + 10**9)
    assert len(await store.advice.exchange(now_us)) == 1
    await store.prune(now_us, Retention())
    assert await store.verify() == []
    await store.close()


async def test_keys_are_told(redis_server: RedisServer, tmp_path: Path) -> None:
    """F3: each kind of key stands in the reference with its type; each key has a deadline; each sum of a cell is by its name."""
    await use(redis_server.url, tmp_path)
    with redis_server.client() as client:
        kinds = {}
        for key in client.keys("*"):
            assert client.pttl(key) > 0, key
            kind = key.decode().rpartition("}:")[2].partition(":")[0]
            kinds[kind] = client.type(key).decode()
            if kind in ("cells", "others"):
                assert {field.decode().rpartition("|")[2] for field in client.hkeys(key)} <= set(CELL_SUMS)
    assert len(kinds) >= 15
    assert {kind: TYPES.get(kind) for kind in kinds} == kinds
    assert set(TYPES) - set(kinds) == {"before", "leases", "members", "rebuild"}  # of a loss, of who is there


async def test_the_rule_for_a_user(own_redis: RedisServer, tmp_path: Path) -> None:
    """A user with the rights that the reference names can do all that gateways and `tollkeeper store` do, and no more."""
    (rule,) = re.findall(r"```\nACL SETUSER (.*?)\n```", PAGE, re.DOTALL)
    user, *words = rule.split()
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", user, *words)
    url = own_redis.url.replace("redis://", f"redis://{user}:secret@")
    await use(url, tmp_path)
    servers = Servers(parse(url))
    shared = connected(servers, SharedOptions(clock=SystemClock(), journal=tmp_path), 10)

    def look() -> list[str]:
        rebuild(servers, shared, tmp_path)
        return survey(servers, shared, tmp_path).attention

    try:
        assert await asyncio.to_thread(look) == []
        findings = await asyncio.to_thread(lambda: survey(servers, shared, tmp_path).servers)
        assert [each.policy for each in findings.values()] == ["noeviction"]
    finally:
        shared.link.close()
    with own_redis.client(username=user, password="secret") as client:
        for command in (("FLUSHALL",), ("GET", "other"), ("KEYS", "*"), ("CONFIG", "SET", "save", "")):
            with pytest.raises(Exception, match="permission"):
                client.execute_command(*command)


def test_a_report_without_tollkeeper(redis_server: RedisServer, tmp_path: Path) -> None:
    """G1: the shell lines of the reference give each agent's dollars."""
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli")
    asyncio.run(use(redis_server.url, tmp_path))
    lines = re.search(r"\n\n((?:    .*\n)+)\nFor days", PAGE)
    assert lines is not None
    script = f'redis-cli() {{ command redis-cli -p {redis_server.port} "$@"; }}\n' + lines[1]
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ))
    found = {line.split(":")[3]: line.split()[1] for line in done.stdout.splitlines()}
    assert found["w1"] == f"{format_nanos(DIME)}00000000"[:11]
    assert set(found) >= {"w0", "w1"}
