"""The real process: how it starts, what stops it from starting, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.gateway import CHAT, ENVIRON, PROVIDERS, STREAMS, budget

import tollkeeper
from tollkeeper import cli
from tollkeeper.keys import hash_secret
from tollkeeper.stores.opening import open_reader
from tollkeeper.testing.provider import FakeProvider, Stall, serving
from tollkeeper.values import Entry

SRC = Path(tollkeeper.__file__).parent.parent
NOBODY = 65534
SERVE = (sys.executable, "-m", "tollkeeper", "serve", "--port", "0")

#: Tells of every look-up and connection that the process makes, from inside it.
WATCH = """
import os, sys
def told(event, args):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname"):
        os.write(2, b"OUTBOUND " + repr((event, args)).encode() + b"\\n")
sys.addaudithook(told)
"""


def environ(folder: Path, **more: str) -> dict[str, str]:
    """No keys, no home, nothing of ours: the path to the package alone."""
    return {"PYTHONPATH": f"{folder}:{SRC}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]} | more


@asynccontextmanager
async def started(*command: str, folder: Path, **more: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway that listens, and its URL as it told it."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environ(folder, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        if not line.startswith(b"listening on "):
            raise AssertionError((await process.stderr.read()).decode())
        yield process, line.split()[-1].decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def stopped(process: asyncio.subprocess.Process, number: int = signal.SIGTERM) -> str:
    """Ends it by a signal: exit code 0; what it wrote to stderr."""
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0, err.decode()
    return err.decode()


async def booked(folder: Path) -> list[Entry]:
    """The ledger after its gateway has gone; it agrees with itself."""
    reader = open_reader(f"sqlite:///{folder}/tollkeeper.sqlite")
    try:
        assert await reader.verify() == []
        return [entry async for entry in reader.entries(0, 2**60)]
    finally:
        await reader.close()


def as_nobody() -> tuple[str, ...]:
    """What runs a command without privileges; skips where that cannot be shown."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: nothing can be run without privileges")
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
    tried = subprocess.run(
        [*drop, sys.executable, "-c", "import tollkeeper, aiohttp"], env={"PYTHONPATH": str(SRC)}, capture_output=True
    )  # fmt: skip
    if tried.returncode != 0:
        pytest.skip("the interpreter or its packages cannot be read by an unprivileged user")
    return drop


def owner(pid: int) -> int:
    """The user that a process runs as."""
    return Path(f"/proc/{pid}").stat().st_uid


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def rooms(made: str) -> tuple[Path, Path, Path, Path]:
    """A folder open to all, the data folder in it that NOBODY may write to, one that nobody may, and a file's path."""
    top = Path(made)
    data, here = top / "data", top / "here"
    data.mkdir()
    here.mkdir()
    here.chmod(0o555)
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
        top.chmod(0o755)
    return top, data, here, top / "tollkeeper.toml"


async def test_starts_offline_at_once(tmp_path: Path) -> None:
    """I1: without keys, services or a configuration it answers /healthz in less than 2 seconds, and connects to nobody."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    took = []
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others at work on each processor
    for _ in range(4):
        began = time.perf_counter()
        async with started(*SERVE, folder=tmp_path) as (process, url), aiohttp.ClientSession() as session:
            async with session.get(f"{url}/healthz") as response:
                assert response.status == 200
            took.append(time.perf_counter() - began)
            async with session.get(f"{url}/readyz") as response:
                assert response.status == 200
            assert "OUTBOUND" not in await stopped(process)
        if took[-1] < 2:
            break
    assert min(took) < 2 * busy, (took, busy)


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    """I1: the hook that says "connects to nobody" would have seen one."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    code = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    found = subprocess.run([sys.executable, "-c", code], env=environ(tmp_path), capture_output=True, check=True)
    assert b"OUTBOUND" in found.stderr


async def test_needs_no_rights_but_its_data_folder() -> None:
    """I1: not root, with nothing writable but its data folder, it starts, books and stops; it writes nowhere else."""
    prefix = as_nobody()
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to other users
        top, data, here, file = rooms(made)
        async with serving(FakeProvider()) as fake:
            file.write_text(PROVIDERS.format(url=fake))
            more = {"TOLLKEEPER_DATA_DIR": str(data), "TOLLKEEPER_CONFIG": str(file), **ENVIRON}
            async with (
                started(*prefix, *SERVE, folder=here, **more) as (process, url),
                aiohttp.ClientSession() as session,
            ):
                assert owner(process.pid) != 0
                async with session.post(f"{url}/v1/chat/completions", json=CHAT) as response:
                    assert response.status == 200
                await stopped(process)
        (entry,) = await booked(data)
        assert entry.charge.status == "priced"
        assert (names(here), names(top)) == ([], ["data", "here", "tollkeeper.toml"])


# ---- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_cleanly(tmp_path: Path, number: int) -> None:
    """B1: SIGTERM and Ctrl-C: streams under way are finished and booked, new calls find no one, exit code 0, no traceback."""
    path, body = STREAMS[0]
    stall = Stall(after=5)
    async with serving(FakeProvider(always=stall)) as fake:
        (tmp_path / "tollkeeper.toml").write_text(PROVIDERS.format(url=fake))
        async with (
            started(*SERVE, folder=tmp_path, **ENVIRON) as (process, url),
            aiohttp.ClientSession() as session,
            session.post(url + path, json=body) as response,
        ):
            assert response.status == 200
            await stall.reached.wait()
            process.send_signal(number)
            await until_refused(url)
            stall.release.set()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
            _, err = await asyncio.wait_for(process.communicate(), 10)
            assert process.returncode == 0
            assert b"Traceback" not in err
    (entry,) = await booked(tmp_path)
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")


async def test_what_does_not_end_is_booked(tmp_path: Path) -> None:
    """B1: a call that is still under way after drain_seconds is cut off and booked at its upper bound; exit code 0."""
    path, body = STREAMS[0]
    stall = Stall(after=5)
    async with serving(FakeProvider(always=stall)) as fake:
        (tmp_path / "tollkeeper.toml").write_text("drain_seconds = 0.2\n" + PROVIDERS.format(url=fake))
        async with (
            started(*SERVE, folder=tmp_path, **ENVIRON) as (process, url),
            aiohttp.ClientSession() as session,
            session.post(url + path, json=body) as response,
        ):
            await stall.reached.wait()
            await stopped(process)
            assert b"[DONE]" not in await until_broken(response)
    (entry,) = await booked(tmp_path)
    assert entry.charge.status == "estimated"
    assert entry.outcome in ("cut", "left")
    assert entry.usage.output >= 4


async def until_refused(url: str) -> None:
    """The gateway no longer takes connections."""
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.transport.abort()
            await asyncio.sleep(0.01)


async def until_broken(response: aiohttp.ClientResponse) -> bytes:
    read = b""
    try:
        async for chunk in response.content.iter_any():
            read += chunk
    except aiohttp.ClientError:
        pass
    return read


# ---- what stops it from starting ------------------------------------------------------------------------------------

KEY = f'[[keys]]\nid = "k"\nproject = "p"\nhash = "{hash_secret("s")}"\n'
OPENAI = '[providers.openai]\napi_key_env = "PROVIDER_KEY"\n'

#: Configuration file → what the one line must name, and what must help.
BAD: dict[str, tuple[str, ...]] = {
    'host = "0.0.0.0"': ("host", "[[keys]]"),
    'host = "::"': ("host", "[[keys]]"),
    'host = "192.0.2.77"\n' + KEY: ("host", "192.0.2.77"),
    "port = 70000": ("port", "65535"),
    'port = "x"': ("port", "whole number"),
    "prot = 4141": ("prot", "port"),
    'store = "postgres://x"': ("store", "sqlite:///"),
    'store = "redis://user:hunter2@x:hunter2"': ("store", "port"),
    'store = "sqlite:///tollkeeper.toml/x.sqlite"': ("tollkeeper.toml",),
    'prices = "none.toml"': ("none.toml",),
    'prices = "bad_prices.toml"': ("bad_prices.toml", "input"),
    "body_limit = 5": ("body_limit", "1024"),
    "total_timeout_s = 700": ("hold_ttl_s", "total_timeout_s"),
    "first_byte_timeout_s = nan": ("first_byte_timeout_s",),
    'on_disconnect = "wait"': ("on_disconnect", "drain"),
    "drain_seconds = true": ("drain_seconds", "number"),
    'redis_url = "redis://hunter2@x"': ("redis_url", ":password@"),
    "not toml": ("tollkeeper.toml", "TOML"),
    '[[budgets]]\nscope = "project"\nlimit = "-1"': ("budgets #1.limit",),
    '[[budgets]]\nscope = "project"\nlimit = 1.5': ("budgets #1.limit", '"1.5"'),
    '[[budgets]]\nscope = "team"\nlimit = "1"': ("budgets #1.scope", "project"),
    '[[budgets]]\nscope = "project"\nlimit = "1"\nwindow = "fortnight"': ("budgets #1.window", "week"),
    '[[budgets]]\nscope = "project"\nlimit = "1"\ntimezone = "Europe/Amsterdan"': ("timezone", "Europe/Amsterdam"),
    budget("project", "1") + budget("project", "2"): ("budgets #2",),
    '[[keys]]\nid = "k"\nproject = "p"\nhash = "sk-canary"': ("keys #1.hash", "sha256:"),
    '[[keys]]\nid = "k"\nproject = "p"\nsecret = "sk-canary"': ("keys #1.secret", "hash"),
    "[providers.openai]\n": ("providers.openai", "OPENAI_API_KEY"),
    '[providers.openai]\napi_key = "sk-canary"': ("providers.openai.api_key", "api_key_env"),
    OPENAI + 'base_url = "http://api.example.com/v1"': ("providers.openai.base_url", "https"),
    OPENAI + 'base_url = "http://169.254.169.254/v1"': ("providers.openai.base_url", "allow_hosts"),
    OPENAI + 'base_url = "https://u:hunter2@x/v1"': ("providers.openai.base_url", "password"),
    OPENAI + 'base_url = "ftp://x"': ("providers.openai.base_url", "https://"),
    OPENAI + 'preset = "opneai"': ("providers.openai.preset", "openai"),
    OPENAI + 'headers = { host = "x" }': ("providers.openai.headers.host",),
    OPENAI + '[routes]\nfast = "opneai/gpt-4o"': ("routes.fast", "openai"),
    OPENAI + '[routes]\nfast = ["openai/gpt-4o"]': ("routes.fast",),
}


@pytest.mark.parametrize(("settings", "named"), BAD.items(), ids=[text.replace("\n", "|")[:60] for text in BAD])
def test_bad_configuration(
    tmp_path: Path,
    settings: str,
    named: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """I2: each mistake is exit code 2 and one line that names the setting and what helps; nothing is opened or written."""
    (tmp_path / "tollkeeper.toml").write_text(settings)
    (tmp_path / "bad_prices.toml").write_text('[[price]]\nmodel = "m"\ninput = "-1"\noutput = "x"\n')
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PROVIDER_KEY", "sk-canary")
    monkeypatch.setattr("tollkeeper.app.serve", None)  # it must not come so far
    assert cli.run(["serve", *([] if "port" in settings else ["--port", "0"])]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == (2 if "bad_prices" in settings else 1)  # of a price file each mistake has its line
    assert [each for each in named if each not in err] == []
    assert "canary" not in out + err
    assert "hunter2" not in out + err
    assert "listening" not in out
    assert sorted(tmp_path.iterdir()) == before


async def test_bad_configuration_of_the_process(tmp_path: Path) -> None:
    """I2: the process itself ends with code 2, one line and no traceback: beyond loopback without keys, or a port in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, named in ((("--host", "0.0.0.0"), "[[keys]]"), (("--port", port), port)):
            process = await asyncio.create_subprocess_exec(
                *SERVE, *arguments, cwd=tmp_path, env=environ(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, err = await process.communicate()
            assert (process.returncode, out) == (2, b"")
            assert err.count(b"\n") == 1
            assert named in err.decode()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "contents", [b"not a database at all, but long enough to look at", b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_unreadable_ledger(
    tmp_path: Path, contents: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """B6: a ledger's file that is none stops the start with one line, and is not touched."""
    (tmp_path / "tollkeeper.sqlite").write_bytes(contents)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tollkeeper.app.serve", None)
    assert cli.run(["serve", "--port", "0"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "tollkeeper.sqlite" in err
    assert (tmp_path / "tollkeeper.sqlite").read_bytes() == contents


async def test_listens_beyond_loopback_with_keys(tmp_path: Path) -> None:
    """I2: with a key it may listen everywhere, and then asks for it; the refusal without keys is not about the host alone."""
    (tmp_path / "tollkeeper.toml").write_text(KEY)
    async with started(*SERVE, "--host", "0.0.0.0", folder=tmp_path) as (process, url):
        async with aiohttp.ClientSession() as session:
            url = url.replace("0.0.0.0", "127.0.0.1")
            async with session.get(f"{url}/v1/models") as response:
                assert response.status == 401
            async with session.get(f"{url}/v1/models", headers={"x-api-key": "s"}) as response:
                told: dict[str, Any] = json.loads(await response.read())
                assert told == {"object": "list", "data": []}
        await stopped(process)
