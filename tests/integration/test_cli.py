"""The commands as processes: the gateway is served, read beside and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tollkeeper.testing.provider import FakeProvider, serving

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How much is the toll?"}]}


def environ(**more: str) -> dict[str, str]:
    """This process's environment without settings and keys."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_") and "_KEY" not in name
    }
    return kept | {"COLUMNS": "80", "NO_PROXY": "*"} | more


async def ended(folder: Path, *arguments: str, **more: str) -> tuple[int | None, str, str]:
    """A command that ends: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", *arguments, cwd=folder, env=environ(**more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def served(folder: Path, *arguments: str, **more: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`tollkeeper serve` on a free port, and its URL as it told it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", "serve", "--port", "0", *arguments, cwd=folder, env=environ(**more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        first = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        yield process, first.removeprefix("listening on ").strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def write(folder: Path, url: str, more: str = "") -> None:
    (folder / "tollkeeper.toml").write_text(f'{more}\n[providers.openai]\nbase_url = "{url}/v1"\n')


async def ask(url: str, headers: Mapping[str, str]) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers) as reply,
    ):
        assert reply.status == 200
        await reply.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_reports_beside_a_running_gateway(tmp_path: Path, number: int) -> None:
    """G1, B1: report and verify read the ledger of a running gateway; Ctrl-C and SIGTERM end it with exit code 0."""
    async with serving(FakeProvider()) as fake:
        write(tmp_path, fake)
        async with served(tmp_path, OPENAI_API_KEY="sk-canary-77") as (process, url):
            for agent in ("writer", "reader", "writer"):
                await ask(url, {"x-tollkeeper-project": "alpha", "x-tollkeeper-agent": agent})
            code, out, err = await ended(tmp_path, "report", "--by", "agent", "--json")
            assert (code, err) == (0, "")
            assert [(row["name"], row["calls"]) for row in json.loads(out)["rows"]] == [("writer", 2), ("reader", 1)]
            code, out, err = await ended(tmp_path, "verify")
            assert (code, err) == (0, "")
            assert "agree with 3 entries" in out
            process.send_signal(number)
            rest, log = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
            assert b"canary" not in rest + log
    code, out, _ = await ended(tmp_path, "report", "--csv")
    assert (code, out.splitlines()[1].split(",")[3:5]) == (0, ["alpha", "3"])


BUDGETS = """
[[budgets]]
scope = "project"
limit = "1"
[[budgets]]
scope = "session"
measure = "tokens"
window = "total"
limit = 10
[[budgets]]
scope = "user"
limit = "none"
"""
BODIES = [
    CHAT | {"user": "ann"},
    CHAT | {"model": "gpt-4o", "max_completion_tokens": 9, "n": 2},
    {"model": "text-embedding-3-small", "input": "toll"},
    {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": CHAT["messages"]},
]


async def test_estimates_agree(tmp_path: Path) -> None:
    """G1, C7: the command line and the running gateway say the same of one body; only what is held the gateway alone knows."""
    headers = {"x-tollkeeper-project": "alpha", "x-tollkeeper-session": "s"}
    async with serving(FakeProvider()) as fake:
        write(tmp_path, fake, BUDGETS)
        with (tmp_path / "tollkeeper.toml").open("a") as file:
            file.write(f'[providers.anthropic]\nbase_url = "{fake}/v1"\n')
        async with (
            served(tmp_path, OPENAI_API_KEY="x", ANTHROPIC_API_KEY="y") as (_, url),
            aiohttp.ClientSession() as session,
        ):
            await ask(url, {"x-tollkeeper-project": "alpha"})
            for body in BODIES:
                data = json.dumps(body, indent=2)
                async with session.post(f"{url}/v1/tollkeeper/estimate", data=data, headers=headers) as reply:
                    told = await reply.json()
                (tmp_path / "body.json").write_text(data)
                options = ("--project", "alpha", "--session", "s", "--json")
                code, out, err = await ended(tmp_path, "estimate", "body.json", *options)
                assert (code, err, reply.status) == (0, "", 200)
                for each in told["budgets"]:
                    assert each.pop("held") in ("0", 0)
                found = json.loads(out)
                assert [each.pop("held") for each in found["budgets"]] == [None] * len(told["budgets"])
                assert found == told
                assert len(told["budgets"]) == 2 + ("user" in body)
                assert [each["spent"] for each in told["budgets"]][:1] != ["0"]


async def test_a_taken_port(tmp_path: Path) -> None:
    """I2: a port in use is one line that names the setting, exit code 2, and nothing is left half-started."""
    async with serving(FakeProvider()) as taken:
        port = taken.rsplit(":", 1)[1]
        code, out, err = await ended(tmp_path, "serve", "--port", port)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"host, port: cannot listen on 127.0.0.1:{port}: Address already in use; choose another" in err
    assert os.listdir(tmp_path) == []


async def test_a_locale_without_utf_8(tmp_path: Path) -> None:
    """I1: the package's own files are UTF-8 whatever the locale says."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, err = await ended(tmp_path, "verify", **locale)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "there is no ledger at" in err


async def test_a_second_gateway_on_one_ledger(tmp_path: Path) -> None:
    """I2: a ledger in use is one line that names the process that has it."""
    async with served(tmp_path) as (process, _):
        code, out, err = await ended(tmp_path, "serve", "--port", "0")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"in use by process {process.pid}" in err


async def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """`tollkeeper keys new … | head -0` ends without a traceback."""
    command = f"'{sys.executable}' -m tollkeeper keys new --id a --project p | true"
    process = await asyncio.create_subprocess_shell(
        command, cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert b"Traceback" not in err
