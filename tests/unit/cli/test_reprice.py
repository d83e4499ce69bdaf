"""tollkeeper reprice: what it shows, asks and books; reprice_tables: how."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tollkeeper import cli
from tollkeeper.clock import SystemClock
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Retention
from tollkeeper.stores.opening import open_reader, open_store
from tollkeeper.testing.samples import an_entry
from tollkeeper.tracker import history
from tollkeeper.values import Budget, Charge, Entry, Scopes, Usage

Run = Callable[..., tuple[int, str, str]]
URL = "sqlite:///tollkeeper.sqlite"
LIMIT = Budget(scope="project", limit=10**9, window="total")
NEW = '[[price]]\nprovider = "mine"\nmodels = ["m", "n"]\ninput = "2"\noutput = "2"\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tollkeeper reprice` over this year in a folder with a ledger and new.toml: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "environ", {"PATH": "/usr/bin", "LOGNAME": "ann", "COLUMNS": "80"})
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("COLUMNS", "80")
    Path("new.toml").write_text(NEW)
    asyncio.run(fill())

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["reprice", "--from", "2020-01-01", *arguments])
        return code, *capsys.readouterr()

    return call


async def fill() -> None:
    store = open_store(URL, budgets=[LIMIT])
    charges = [
        ("m", Charge(amount_nanos=100_000, computed_nanos=100_000, status="priced")),
        ("m", Charge(amount_nanos=50_000, computed_nanos=50_000, status="estimated")),
        ("n", Charge(amount_nanos=None, status="unpriced")),
        ("gone\x1b[31m", Charge(amount_nanos=7_000, computed_nanos=7_000, status="priced")),
    ]
    for number, (served, charge) in enumerate(charges):
        await store.settle(
            an_entry(
                f"{number}/1", at_us=SystemClock().now_us(), provider="mine", model=served, served=served, charge=charge,
                usage=Usage(input=100), scopes=Scopes(project=f"p{number % 2}"),
            )
        )  # fmt: skip
    await store.close()


def booked() -> list[Entry]:
    async def ask() -> list[Entry]:
        reader = open_reader(URL)
        try:
            assert await reader.verify() == []
            return [entry async for entry in reader.entries(0, FOREVER_US)]
        finally:
            await reader.close()

    return asyncio.run(ask())


# ── what if ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_if(run: Run) -> None:
    """A8: --what-if shows was, would be, difference and what is not exact, before and after; nothing is written."""
    before = booked()
    code, out, err = run("--what-if", "--prices", "new.toml")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "mine/m 2 2 $0.000150 $0.000400 +$0.000250" in lines
    assert "mine/n 1 1 unknown $0.000200 +$0.000200" in lines
    assert "mine/gone�[31m 1 0 $0.000007 $0.000007 $0.000000" in lines
    assert "total 4 3 $0.000157 $0.000607 +$0.000450" in lines
    assert lines[-5].startswith("At prices genai-prices/")
    assert lines[-4:] == [
        "Estimated or partly priced: $0.00005 before, $0.0002 after.",
        "Without a price, and in no amount: 1 before, 0 after.",
        "With a cost that stays, because these prices have none for it: 1.",
        "Nothing was written.",
    ]
    assert max(map(len, out.splitlines())) <= 80
    assert booked() == before


def test_what_if_in_json(run: Run) -> None:
    """A8: JSON has the same as exact decimal text, in all and by model."""
    code, out, _ = run("--what-if", "--prices", "new.toml", "--json", "--project", "p0")
    found = json.loads(out)
    assert code == 0
    assert {name: found[name] for name in ("project", "what_if", "reason", "by", "overtaken")} == {
        "project": "p0", "what_if": True, "reason": "priced again", "by": "ann", "overtaken": 0,
    }  # fmt: skip
    assert found["total"] == {
        "entries": 2, "changed": 2, "lost": 0, "was_usd": "0.0001", "now_usd": "0.0004", "difference_usd": "0.0003",
        "not_exact_was_usd": "0", "not_exact_now_usd": "0", "unpriced_was": 1, "unpriced_now": 0,
    }  # fmt: skip
    assert [(row["model"], row["difference_usd"]) for row in found["rows"]] == [("n", "0.0002"), ("m", "0.0001")]


def test_what_if_beside_the_owner(run: Run) -> None:
    """--what-if reads beside a running gateway; booking is refused with its pid and what to do."""
    owner = open_store(URL, budgets=[LIMIT])
    assert run("--what-if", "--prices", "new.toml")[0] == 0
    code, out, err = run("--prices", "new.toml", "--yes")
    assert (code, out) == (2, "")
    assert err == (
        f"tollkeeper: store: tollkeeper.sqlite is in use by process {os.getpid()}; stop the gateway, or use --what-if\n"
    )
    asyncio.run(owner.close())


# ── booking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_booking(run: Run) -> None:
    """A8, A5: corrections say why and who asked, originals stay, budgets keep their balances; again nothing changes."""
    before = booked()
    asked = ("--prices", "new.toml", "--reason", "invoice 7", "--by", "bob", "--yes")
    code, out, err = run(*asked)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "Corrections booked: 3, signed by bob: invoice 7"
    after = booked()
    assert after[:4] == before
    assert {(entry.note, entry.by) for entry in after if entry.revision} == {("invoice 7", "bob")}
    assert run(*asked)[1].splitlines()[-1] == "Corrections booked: 0, signed by bob: invoice 7"
    assert booked() == after

    async def spent() -> int:
        store = open_store(URL, budgets=None)
        found = await store.standings(Scopes(project="p0"), "m", SystemClock().now_us())
        await store.close()
        assert [(each.budget.window, each.budget.limit) for each in found] == [("total", None)]
        return found[0].spent

    assert asyncio.run(spent()) == 400_000


def test_only_unpriced(run: Run) -> None:
    """A5: --only unpriced prices what had no price, and looks at nothing else."""
    code, out, _ = run("--only", "unpriced", "--prices", "new.toml", "--json", "--yes")
    total = json.loads(out)["total"]
    assert (code, total["entries"], total["changed"], total["was_usd"], total["now_usd"]) == (0, 1, 1, "0", "0.0002")


def test_the_configured_prices(run: Run) -> None:
    """Without --prices the configured ones count; without any provider's key."""
    Path("tollkeeper.toml").write_text(
        'prices = "new.toml"\n[providers.mine]\nbase_url = "https://mine.example"\ndialects = ["openai-chat"]\n'
        'api_key_env = "NOT_SET"\n'
    )
    assert json.loads(run("--what-if", "--json")[1])["total"]["changed"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "2019-01-01"], "from, to: 2020-01-01T00:00:00Z is not before"),
        (["--to", "soon"], "to: 'soon' is no date"),
        (["--prices", "no.toml"], "no.toml"),
        (["--only", "cheap"], "'--only'"),
        (["--by", ""], "--by: expected 1 to 128 printable characters"),
        (["--reason", "x" * 201], "--reason: expected 1 to 200 printable characters"),
        (["--store", "sqlite:///none.sqlite", "--yes"], "store: there is no ledger at none.sqlite"),
        (["--store", "memory:"], "store: a ledger in memory: is its gateway's alone"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], says: str) -> None:
    """I2: a mistake is one line on stderr that names what is wrong, exit code 2, and nothing is booked or made."""
    before = sorted(Path().iterdir())
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert sorted(Path().iterdir()) == before
    assert len(booked()) == 4


def test_what_is_pruned(run: Run) -> None:
    """B7: a time before that from which entries are kept is refused by name, before anything is owned."""

    async def prune() -> None:
        store = open_store(URL, budgets=None)
        await store.prune(SystemClock().now_us(), Retention(entries_s=30 * 86400))
        await store.close()

    asyncio.run(prune())
    for how in ("--what-if", "--yes"):
        code, out, err = run(how, "--prices", "new.toml")
        assert (code, out) == (2, "")
        assert "from: entries are kept since 20" in err


def test_stopped_by_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: Ctrl-C says how much is booked at least; the ledger is whole, and running it again goes on."""
    monkeypatch.setattr(history, "BATCH", 1)
    reprice, seen = history.reprice, []

    async def stopped(store: object, again: object, signed: object, told: Callable[[int, int, int], None]) -> object:
        def count(entries: int, changed: int, at_us: int) -> None:
            told(entries, changed, at_us)
            seen.append(changed)
            if len(seen) == 2:
                raise KeyboardInterrupt

        return await reprice(store, again, signed, count)  # type: ignore[arg-type]

    monkeypatch.setattr(history, "reprice", stopped)
    code, out, err = run("--prices", "new.toml", "--yes")
    assert (code, out) == (130, "")
    assert err == "stopped; corrections booked: at least 2; run it again to go on\n"
    assert len(booked()) == 4 + 2 * 2
    monkeypatch.setattr(history, "reprice", reprice)
    assert run("--prices", "new.toml", "--yes")[1].splitlines()[-1].startswith("Corrections booked: 1,")
    assert len(booked()) == 4 + 3 * 2


@pytest.mark.parametrize(("answer", "entries"), [("n", 4), ("y", 10)])
def test_a_terminal_is_asked(run: Run, answer: str, entries: int) -> None:
    """On a terminal it shows what would change, asks, and books only at a yes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x28\x00\x64\x00\x00\x00\x00\x00")
    command = [sys.executable, "-m", "tollkeeper", "reprice", "--from", "2020-01-01", "--prices", "new.toml"]
    environ = {"PATH": "/usr/bin", "LOGNAME": "ann", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        text = b""
        while b"[y/N]" not in text:
            text += os.read(ours, 4096)
        os.write(ours, answer.encode() + b"\n")
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # they have closed it
                break
            if not piece:
                break
            text += piece
    os.close(ours)
    assert process.returncode == 0, text
    assert b"would be" in text
    assert b"Book these 3, signed by ann? [y/N]" in text
    assert (b"Nothing was booked." if answer == "n" else b"Corrections booked: 3, signed by ann") in text
    assert len(booked()) == entries


def test_nothing_there(run: Run) -> None:
    """A time without entries is said to be empty."""
    assert "No entries." in run("--what-if", "--to", "2020-01-02")[1]
