"""`tollkeeper import` as a process: stopped, killed, beside a gateway, on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.test_cli import ended, environ, served

from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores.opening import open_store

LINES = 3000


def line(number: int) -> bytes:
    """Every third has an id of its own."""
    call = {"at": "2026-11-01T00:00:00Z", "project": "p", "model": "gpt-4o-mini", "input": number % 50, "output": 1}
    return json.dumps(call | ({"request_id": f"r{number}"} if number % 3 == 0 else {})).encode() + b"\n"


@asynccontextmanager
async def half_done(folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """An import that has read half of the lines from its stdin, has told of a bad one there, and waits for more."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", "import", "-", *arguments, cwd=folder, env=environ(),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.writelines(map(line, range(LINES // 2)))
        process.stdin.write(b"half\n")
        told = await asyncio.wait_for(process.stderr.readline(), 30)
        assert told.startswith(b"-:%d: the line is not JSON" % (LINES // 2 + 1))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def imported(folder: Path) -> list[int]:
    """Import all of the lines, then booked and repeated; every line is in the ledger once, and it agrees with itself."""
    (folder / "log.jsonl").write_bytes(b"".join(map(line, range(LINES))))
    code, out, err = await ended(folder, "import", "log.jsonl", "--json")
    assert (code, err) == (0, "")
    store = open_store(f"sqlite:///{folder / 'tollkeeper.sqlite'}")
    entries = [entry async for entry in store.entries(0, FOREVER_US)]
    assert (len(entries), len({entry.id for entry in entries})) == (LINES, LINES)
    assert await store.verify() == []
    await store.close()
    return [json.loads(out)[name] for name in ("booked", "repeated")]


async def test_killed_in_the_middle(tmp_path: Path) -> None:
    """B1, B2: after kill -9 in the middle the same lines again are each there once."""
    async with half_done(tmp_path) as process:
        process.kill()
        assert await process.wait() == -signal.SIGKILL
    booked, repeated = await imported(tmp_path)
    assert booked + repeated == LINES
    assert 0 < repeated <= LINES // 2


async def test_stopped_by_ctrl_c(tmp_path: Path) -> None:
    """B1: Ctrl-C, also while it waits for a pipe, finishes what is under way, says where it stopped, and ends with 130."""
    async with half_done(tmp_path, "--json") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        out = json.loads(await asyncio.wait_for(process.stdout.read(), 30))
        assert process.stderr is not None
        err = (await process.stderr.read()).decode()
        assert await process.wait() == 130
    assert (out["booked"], out["bad"], out["stopped"]) == (LINES // 2, 1, {"file": "-", "line": LINES // 2 + 1})
    assert f"stopped after line {LINES // 2 + 1:,} of -: run the same command again" in err
    assert await imported(tmp_path) == [LINES // 2, LINES // 2]


async def test_beside_a_gateway(tmp_path: Path) -> None:
    """I2: while a gateway owns the ledger an import says what to do and changes nothing; a dry run goes."""
    (tmp_path / "log.jsonl").write_bytes(line(0) + line(1))
    async with served(tmp_path) as (process, _):
        code, out, err = await ended(tmp_path, "import", "log.jsonl")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"in use by process {process.pid}, and an import owns the ledger while it runs; stop that process" in err
        code, out, err = await ended(tmp_path, "import", "log.jsonl", "--dry-run")
        assert (code, err) == (0, "")
        assert "would book      2" in out


async def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal a bar shows how far it is; the sums go to stdout alone."""
    (tmp_path / "log.jsonl").write_bytes(b"".join(map(line, range(LINES))))
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollkeeper", "import", "log.jsonl", cwd=tmp_path, env=environ(TERM="xterm-256color"),
        stdout=asyncio.subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    reading = asyncio.create_task(process.communicate())
    try:
        while piece := await asyncio.to_thread(os.read, ours, 1 << 16):
            shown += piece
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    out, _ = await reading
    assert (process.returncode, b"3,000 lines" in shown) == (0, True)
    assert out.decode().splitlines()[1:3] == ["lines       3,000", out.decode().splitlines()[2]]
    assert b"\x1b" not in out
