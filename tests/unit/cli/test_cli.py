"""cli and cli.configured: what the commands and their options say, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tollkeeper import __version__, cli, config
from tollkeeper.clock import SystemClock
from tollkeeper.keys import KeyRing
from tollkeeper.stores.opening import open_store
from tollkeeper.values import Charge, Entry, Scopes, Usage

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty folder, with no key in sight: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "environ", {"PATH": "/usr/bin"})

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def ledger() -> Path:
    """The default ledger in the folder of `run`, with four entries of just now."""

    async def fill() -> None:
        store = open_store("sqlite:///tollkeeper.sqlite")
        costs: list[tuple[str, str | None, Charge]] = [
            ("alpha", "writer", Charge(amount_nanos=5_955_000, computed_nanos=5_955_000, status="priced")),
            ("alpha", None, Charge(amount_nanos=45_000, computed_nanos=45_000, status="estimated")),
            ("beta", "writer", Charge(amount_nanos=2_000_000, computed_nanos=1_000_000, reported_nanos=2_000_000, status="priced")),
            ("beta", '=evil, \x1b[31m"', Charge(amount_nanos=None, status="unpriced")),
        ]  # fmt: skip
        for number, (project, agent, charge) in enumerate(costs):
            await store.settle(
                Entry(
                    id=f"{number}/1", call=str(number), at_us=SystemClock().now_us(), dialect="openai-chat",
                    scopes=Scopes(project=project, agent=agent), provider="openai", model="m", served="vendor/m:free",
                    usage=Usage(input=100, output=10), charge=charge,
                )
            )  # fmt: skip
        await store.close()

    asyncio.run(fill())
    return Path("tollkeeper.sqlite")


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fly"], "No such command 'fly'"),
        (["serve", "--port", "99999"], "'--port'"),
        (["serve", "--port", "many"], "'--port'"),
        (["serve", "--host", "0.0.0.0"], "host: 0.0.0.0 can be reached from other machines and there are no [[keys]]"),
        (["serve", "--store", "redis://:hunter2"], "--store: expected 'host' or 'host:port'"),
        (["serve", "--config", "no.toml"], "no.toml: cannot be read"),
        (["report", "--by", "planet"], "'--by'"),
        (["report", "--from", "yesterday"], "from: 'yesterday' is no date; write 2026-11-01"),
        (["report", "--tz", "Mars"], "tz: 'Mars' is no time zone"),
        (["report", "--json", "--csv"], "--json, --csv: one of them at a time"),
        (["report"], "store: there is no ledger at tollkeeper.sqlite; start the gateway once"),
        (["verify", "--store", "memory:"], "store: a ledger in memory: is its gateway's alone"),
        (["estimate", "no.txt", "--model", "gpt-4o"], "FILE: no.txt cannot be read: No such file"),
        (["estimate"], "Missing argument 'FILE'"),
        (["keys"], "Missing command"),
        (["keys", "new", "--id", "a"], "Missing option '--project'. See 'tollkeeper keys new --help'."),
        (["report", "--by", "x"], "Invalid value for '--by': 'x' is not one of 'project', 'agent'"),
        (["keys", "new", "--id", "a", "--project", "p", "--expires", "soon"], "--expires: expected a date such as"),
        (["keys", "new", "--id", "", "--project", "p"], "--id: expected 1 to 128 printable characters"),
        (["demo", "--port", "-1"], "'--port'"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], says: str) -> None:
    """I2: a mistake is one line on stderr that names what is wrong, exit code 2, nothing on stdout and no file made."""
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tollkeeper: ")
    assert says in err
    assert list(Path().iterdir()) == []


def test_a_file_that_is_no_ledger(run: Run) -> None:
    """I2, B6: a file that is no ledger is named, and left as it was."""
    Path("notes.sqlite").write_text("my notes")
    code, out, err = run("report", "--store", "sqlite:///notes.sqlite")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "notes.sqlite" in err
    assert Path("notes.sqlite").read_text() == "my notes"


def test_help_is_quick() -> None:
    """The command line alone loads neither a server nor a database nor prices."""
    heavy = "{'aiohttp', 'uvicorn', 'apsw', 'pydantic', 'genai_prices', 'uvloop', 'rich.table'}"
    code = f"import sys, tollkeeper.cli; sys.exit(repr({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "set()\n"


def test_version_and_help(run: Run) -> None:
    """`--version` tells it; no command at all shows the commands."""
    assert run("--version") == (0, f"tollkeeper {__version__}\n", "")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert all(command in out for command in ("serve", "report", "estimate", "verify", "reprice", "keys", "demo"))


# ── report and verify ────────────────────────────────────────────────────────────────────────────────────────────────


def test_report_json_is_exact(run: Run, ledger: Path) -> None:
    """G1, A5: JSON has exact decimal text, a row for calls without an agent, and tells what is not exact."""
    code, out, _ = run("report", "--by", "agent", "--json")
    found = json.loads(out)
    assert code == 0
    assert {(row["project"], row["name"]): (row["cost_usd"], row["not_exact_usd"], row["unpriced"]) for row in found["rows"]} == {
        ("alpha", "writer"): ("0.005955", "0", 0),
        ("alpha", None): ("0.000045", "0.000045", 0),
        ("beta", "writer"): ("0.002", "0", 0),
        ("beta", '=evil, \x1b[31m"'): ("0", "0", 1),
    }  # fmt: skip
    total = found["total"]
    assert (total["cost_usd"], total["calls"], total["tokens"], total["unpriced"]) == ("0.008", 4, 440, 1)


def test_report_csv_has_stable_columns(run: Run, ledger: Path) -> None:
    """G1: CSV has the same figures under stable columns, without a row for the total."""
    _, out, _ = run("report", "--by", "project", "--each", "month", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert out.splitlines()[0] == (
        "start,project,by,name,calls,attempts,errors,tokens,input,cache_read,cache_write_5m,cache_write_1h,output,"
        "input_audio,cache_read_audio,output_audio,input_image,output_image,web_search,file_search,audio_seconds,code_session,reasoning,cost_usd,"
        "not_exact_usd,unpriced"
    )
    assert [(row["name"], row["cost_usd"], row["calls"]) for row in rows] == [
        ("alpha", "0.006", "2"),
        ("beta", "0.002", "2"),
    ]
    assert rows[0]["start"].endswith("-01T00:00:00+00:00")


def test_report_table(run: Run, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: the table fits 80 columns, adds up, says what is not exact, and prints no control character of a name."""
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("report", "--by", "agent")
    assert max(map(len, out.splitlines())) <= 80
    for text in ("alpha/writer", "alpha/(none)", "$0.005955", "$0.008000", "74 %", "unknown", "1 unpriced"):
        assert text in out, text
    assert "$0.000045 of the total (0 %) is estimated or partly priced." in out
    assert "1 call has no price: its cost is not known and not in the total." in out
    assert "\x1b" not in out


def test_report_of_nothing(run: Run, ledger: Path) -> None:
    """An empty time is said to be empty, as is a grouping that no call has."""
    assert (
        run("report", "--from", "2020-01-01", "--to", "2020-01-02")[1]
        == "No calls from 2020-01-01 to 2020-01-02 (UTC).\n"
    )
    assert run("report", "--by", "tag")[1].startswith("No calls with a tag from ")
    assert json.loads(run("report", "--from", "2020-01-01", "--to", "2020-01-02", "--json")[1])["rows"] == []


def test_compare(run: Run, ledger: Path) -> None:
    """A8: --compare shows where the provider's own cost differs from ours, by model."""
    assert json.loads(run("report", "--compare", "--json")[1])["differences"] == [
        {
            "provider": "openai", "model": "vendor/m:free", "reported": 1, "differing": 1, "uncomputed": 0, "ours": 0,
            "computed_usd": "0.001", "reported_usd": "0.002", "difference_usd": "0.001", "counted_usd": "0.002",
        }
    ]  # fmt: skip
    _, out, _ = run("report", "--compare")
    assert "openai/vendor/m:free" in out
    assert "+$0.001" in out
    assert out.splitlines()[-1] == "$0.002 of what was spent stands on the provider's own figure."
    assert (
        run("report", "--compare", "--csv")[1].splitlines()[1] == "openai,vendor/m:free,1,1,0,0,0.001,0.002,0.001,0.002"
    )


def test_verify(run: Run, ledger: Path) -> None:
    """B7: verify counts what agrees; a seeded difference is shown with exit code 1."""
    import apsw

    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert out.endswith(" agree with 4 entries\n")
    connection = apsw.Connection(str(ledger))
    connection.execute("UPDATE cell SET amount_nanos = amount_nanos + 1 WHERE period = 'day' AND scope = 'project'")
    connection.close()
    code, out, err = run("verify")
    assert code == 1
    assert out.count("cell ") == 2
    assert err.startswith("2 differences in ")


# ── estimate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_estimate_names_each_budget(run: Run, ledger: Path) -> None:
    """C7: an estimate shows each budget's limit, what is spent, and whether it would pay, by the gateway's own rules."""
    Path("prompt.txt").write_text("Say hello.")
    Path("tollkeeper.toml").write_text(
        '[[budgets]]\nscope="project"\nlimit="0.01"\n[[budgets]]\nscope="session"\nwindow="total"\nlimit="0.000001"\n'
    )
    arguments = ["estimate", "prompt.txt", "--model", "gpt-4o-mini", "--project", "alpha", "--session", "s"]
    code, out, _ = run(*arguments, "--max-tokens", "100", "--json")
    found = json.loads(out)
    assert (code, found["admitted"], found["priced"], found["output_cap"]) == (0, False, True, 100)
    budgets = found["budgets"]
    assert [(each["scope"], each["spent"], each["held"], each["remaining"], each["admitted"]) for each in budgets] == [
        ("project", "0.006", None, "0.004", True), ("session", "0", None, "0.000001", False),
    ]  # fmt: skip
    assert "total budget of session 's' of project 'alpha' cannot pay" in found["budgets"][1]["refusal"]
    _, out, _ = run(*arguments)
    assert "refuses" in out
    assert "What calls under way hold is known to their gateway alone" in out


def test_estimate_needs_neither_key_nor_ledger(run: Run) -> None:
    """Without a provider's key and before the first start, an estimate has its price and says that no budget covers it."""
    Path("body.json").write_text(json.dumps({"model": "text-embedding-3-small", "input": "hello"}))
    code, out, err = run("estimate", "body.json")
    assert (code, err) == (0, "")
    assert "text-embedding-3-small → openai/text-embedding-3-small (openai-embeddings)" in out
    assert "No budget covers this call." in out
    assert [path.name for path in Path().iterdir()] == ["body.json"]


def test_estimate_with_configured_providers_needs_no_key(run: Run) -> None:
    """A configured provider's price is known without its key; which provider is asked stays the configuration's word."""
    Path("tollkeeper.toml").write_text('[providers.openai]\napi_key_env=["MY_KEY", "MY_2"]\n[providers.mistral]\n')
    Path("prompt.txt").write_text("Say hello.")
    code, out, err = run("estimate", "prompt.txt", "--model", "gpt-4o-mini", "--json")
    assert (code, err, json.loads(out)["provider"]) == (0, "", "openai")
    code, _, err = run("estimate", "prompt.txt", "--model", "claude-haiku-4-5", "--max-tokens", "5")
    assert (code, "No route leads to model 'claude-haiku-4-5'" in err) == (2, True)


def test_estimate_of_an_unknown_model(run: Run) -> None:
    """I2: an unknown model is one line that says how to name one."""
    Path("prompt.txt").write_text("Say hello.")
    code, out, err = run("estimate", "prompt.txt", "--model", "nope-1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "No route leads to model 'nope-1' in openai-chat: ask for 'provider/model'" in err


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_key_works_as_pasted(run: Run) -> None:
    """H2: `keys new` shows the secret once and its hash for the configuration, which then knows the key."""
    code, out, _ = run(
        "keys", "new", "--id", 'a"pp', "--project", "alpha", "--model", "gpt-4o", "--model", "x/y:z", "--expires", "2099-01-01"
    )  # fmt: skip
    shown, _, table = out.partition("For the configuration file:")
    (secret,) = [word for word in shown.split() if word.startswith("tk_")]
    assert (code, secret in table) == (0, False)
    Path("tollkeeper.toml").write_text(table)
    (key,) = config.load(None, {}).keys
    assert (key.id, key.project, key.models) == ('a"pp', "alpha", {"gpt-4o", "x/y:z"})
    assert KeyRing([key]).identify(secret, 0) == key


@pytest.mark.usefixtures("run")
def test_what_is_switched_on() -> None:
    """`serve` says which providers, routes, budgets and keys are on, and never a secret."""
    Path("tollkeeper.toml").write_text(
        'routes = { mine = "openai/gpt-4o", two = { policy = "cheapest", to = ["openai/a", "openai/b"] } }\n'
        '[[keys]]\nid="a"\nhash="sha256:' + "0" * 64 + '"\nproject="p"\n'
        '[[budgets]]\nscope="session"\nwindow="total"\nlimit="0.5"\n[[budgets]]\nscope="all"\nmeasure="tokens"\nlimit=9\nhard=false\n'
    )
    lines = cli.switched_on(config.load(None, {"OPENAI_API_KEY": "sk-canary"}))
    assert lines[:6] == [
        "  providers  openai",
        "  route      mine → openai/gpt-4o",
        "  route      two → openai/a, openai/b (cheapest)",
        "  budget     each session: $0.5 in total",
        "  budget     all: 9 tokens a month, counted only",
        "  keys       required, 1 known",
    ]
    assert "canary" not in "".join(lines)
