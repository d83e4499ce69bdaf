"""`tollkeeper store` on a Redis and on a file, in this process."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from tollkeeper import cli
from tollkeeper.cli import store_tables
from tollkeeper.clock import SystemClock
from tollkeeper.stores import Difference, SharedOptions, Size
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.audit import Audit
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import an_entry, usd

NOW_US = SystemClock().now_us()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def fill(url: str, *ids: str) -> None:
    """Book some entries, as a gateway that then ends."""

    async def run() -> None:
        shared = SharedOptions(clock=SystemClock(), journal=Path("journal"))
        store = open_store(url, budgets=[usd(10**12)], shared=shared)
        for id in ids:
            await store.settle(an_entry(id, at_us=NOW_US))
        assert await store.verify() == []
        await store.close()

    asyncio.run(run())


@pytest.fixture
def url(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TOLLKEEPER_STORE", redis_server.url)
    return redis_server.url


def test_check(url: str, capsys: pytest.CaptureFixture[str], redis_server: RedisServer) -> None:
    """A sound ledger needs no attention; with entries that nobody brings it is said, in red and by the exit code."""
    fill(url, "a/1", "b/1")
    assert cli.run(["store", "check"]) == 0
    out = capsys.readouterr().out
    for shown in (url, "noeviction", "append-only file, everysec", "1 project, 0 holds", "Nothing needs attention."):
        assert shown in out
    with redis_server.client() as client:
        client.delete(*client.keys("*:cursor"))
    assert cli.run(["store", "check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (journal,) = found["journals"]
    assert (journal["entries"], journal["waiting"], journal["process"]) == (2, 2, None)
    assert found["attention"] == [
        f"journal {journal['id']}: 2 entries wait, and no process has it; start a gateway here"
    ]
    assert cli.run(["store", "check"]) == 1
    assert "! journal" in capsys.readouterr().out


def test_verify(url: str, capsys: pytest.CaptureFixture[str], redis_server: RedisServer) -> None:
    """B7: what agrees is counted; a cell that is off, and an entry that a journal has and Redis has not, are each a line."""
    fill(url, "a/1", "b/1")
    assert cli.run(["store", "verify"]) == 0
    told = "3 cells, 1 balance over 2 entries; 2 entries of 1 journal: all agree"
    assert told in capsys.readouterr().out
    with redis_server.client() as client:
        client.delete(*client.keys("*:entries:*"))
    assert cli.run(["store", "verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "entry alpha/a/1: stored nothing, its entries say a journal has it, and it was applied" in lines
    assert any(line.startswith("balance ") for line in lines)
    assert "differences in" in lines[-1]
    assert cli.run(["store", "verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["journals"] == {"journals": 1, "entries": 2, "waiting": 0}
    assert {"what": "entry", "key": "alpha/b/1", "stored": "nothing"}.items() <= found["differences"][-1].items()
    assert cli.run(["verify"]) == 1  # cells and balances alone


def test_rebuild(
    url: str, capsys: pytest.CaptureFixture[str], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks first; then what is wrong is gone, and what the journals have is there."""
    fill(url, "a/1", "b/1")
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    with redis_server.client() as client:
        client.delete(*client.keys("*:entries:*"))
        assert cli.run(["store", "rebuild"]) == 130
        assert client.keys("*:entries:*") == []
    capsys.readouterr()
    assert cli.run(["store", "rebuild", "--yes"]) == 0
    assert "filled from 1 journal: 2 entries, 1 project" in capsys.readouterr().out
    assert cli.run(["store", "verify"]) == 0


def test_rebuild_refuses(url: str, capsys: pytest.CaptureFixture[str], redis_server: RedisServer) -> None:
    """While gateways live, or while entries have no journal here, it names them and needs --force."""
    fill(url, "a/1")
    Path("journal").rename("elsewhere")
    assert cli.run(["store", "rebuild", "--yes"]) == 2
    (journal,) = Path("elsewhere").glob("*.sqlite")
    assert f"bring them to this host's folder: {journal.stem}" in capsys.readouterr().err
    Path("elsewhere").rename("journal")
    with redis_server.client() as client:
        seconds, _ = client.time()
        client.hset("tollkeeper:{*}:members", "00000000000000aa", f"{seconds * 1000} e w ready")
    assert cli.run(["store", "rebuild", "--yes"]) == 2
    assert "00000000000000aa" in capsys.readouterr().err


def test_of_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger's file is checked and verified, too; there is nothing to rebuild."""
    monkeypatch.setenv("TOLLKEEPER_STORE", "sqlite:///ledger.sqlite")
    fill("sqlite:///ledger.sqlite", "a/1")
    assert cli.run(["store", "check"]) == 0
    assert "sqlite:///ledger.sqlite: no process has it; 1 entry, 3 cells, 1 balance" in capsys.readouterr().out
    assert cli.run(["store", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["process"] is None
    assert cli.run(["store", "verify"]) == 0
    assert "3 cells, 1 balance over 1 entry: all agree" in capsys.readouterr().out
    assert cli.run(["store", "rebuild", "--yes"]) == 2
    assert "only what is shared in Redis is rebuilt" in capsys.readouterr().err


def test_names_are_printed_as_text() -> None:
    """H2: a name cannot move the cursor."""
    wrong = [Difference("entry", "alpha/\x1b[2J", "nothing", "a journal has it")]
    first, *_ = store_tables.verified_lines(Size(1, 1, 1), wrong, Audit(waiting=3))
    assert "\x1b" not in first
    assert store_tables.verified_lines(Size(1, 1, 1), [], Audit(waiting=3))[-1].startswith("3 more wait")
