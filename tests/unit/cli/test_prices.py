"""tollkeeper prices: list, explain and diff, and one line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import cli

Run = Callable[..., tuple[int, str, str]]
OWN = """
[[price]]
model = "mine"
input = "0.20"
output = "0.60"

[[price]]
provider = "openai"
model = "gpt-4o"
cache_read = "0.5"
from = 2026-06-01

[[price]]
key = "ci"
provider = "openai"
models = ["*"]
multiplier = "0.9"

[[price]]
route = "smart"
input = "7"
output = "8"

[[price]]
provider = "vllm"
model = "llama"
free = true
"""
AT = ("--at", "2026-11-22T12:00:00Z")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a `prices` command in a folder with prices of one's own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(cli.os, "environ", {"PATH": "/usr/bin"})
    Path("own.toml").write_text(OWN)
    Path("tollkeeper.toml").write_text('prices = "own.toml"\n[routes]\nsmart = "openai/gpt-4o"\n')

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["prices", *arguments])
        return code, *capsys.readouterr()

    return call


def listed(run: Run, *arguments: str) -> list[dict[str, Any]]:
    code, out, _ = run("list", "--json", *AT, *arguments)
    assert code == 0
    rows: list[dict[str, Any]] = json.loads(out)["prices"]
    return rows


def test_list_says_the_price_its_layer_and_since_when(run: Run) -> None:
    """A8: each price has its exact text, who made it and since when; ways of calling with their own price are rows."""
    rows = listed(run, "--provider", "openai", "--model", "gpt-4o-audio")
    audio = [row for row in rows if row["model"] == "gpt-4o-audio-preview-2024-10-01" and row["kind"] == "input_audio"]
    assert [(row["usd"], row["per"], row["layers"], row["when"]) for row in audio] == [
        ("100", 1_000_000, ["shipped #6"], {}),
        ("90", 1_000_000, ["shipped #6", "own #3"], {"key": "ci"}),
    ]
    (row,) = (
        row for row in listed(run, "--provider", "openai", "--model", "gpt-4o")
        if (row["model"], row["kind"], row["when"]) == ("gpt-4o", "cache_read", {})
    )  # fmt: skip
    assert (row["usd"], row["layers"], row["since"]) == ("0.5", ["own #2"], "2026-06-01T00:00:00Z")


def test_list_has_what_only_entries_know(run: Run) -> None:
    """Names of one's own, providers of one's own and routes are listed beside the price data."""
    rows = {(row["provider"], row["model"], row["kind"], *row["when"].items()): row for row in listed(run)}
    assert rows[None, "mine", "input"]["usd"] == "0.2"
    assert rows["vllm", "llama", "output"]["usd"] == "0"
    assert rows["openai", "gpt-4o", "input", ("route", "smart")]["usd"] == "7"
    assert rows["anthropic", "claude-opus-5", "input", ("geo", "us")]["usd"] == "5.5"
    assert rows["openai", "gpt-5.4", "input", ("service_tier", "flex")]["layers"] == ["genai-prices"]
    assert len(rows) > 5000


def test_list_as_a_table(run: Run) -> None:
    """People read a line for each model, with units and layers; a name that nobody has is told."""
    code, out, _ = run("list", "--provider", "openai", "--model", "gpt-5.4-nano", *AT)
    assert code == 0
    assert "openai/gpt-5.4-nano" in out
    assert "web_search 10/k" in out
    assert "genai-prices, shipped #3" in out
    assert "openai/gpt-4o route=smart" in run("list", "--model", "smart", *AT)[1]
    assert run("list", "--model", "no-such-thing")[1].strip() == "No model of that name has a price."


def test_explain_shows_each_term(run: Run) -> None:
    """A8: quantity × price / per is each term's cost, exactly; the total is their sum, rounded once."""
    usage = "input=300000,output=200,web_search=2,code_session=1"
    code, out, _ = run(
        "explain", "openai/gpt-5.4", "--usage", usage, "--tier", "priority", "--key", "ci", "--json", *AT
    )
    found = json.loads(out)
    assert code == 0
    assert [(term["kind"], term["usd"], term["cost_usd"], term["layers"]) for term in found["terms"]] == [
        ("input", "4.5", "1.35", ["genai-prices", "own #3"]),
        ("output", "27", "0.0054", ["genai-prices", "own #3"]),
        ("web_search", "9", "0.018", ["genai-prices", "own #3"]),
        ("code_session", "27", "0.027", ["shipped #3", "own #3"]),
    ]
    for term in found["terms"]:
        assert Decimal(term["quantity"]) * Decimal(term["usd"]) / term["per"] == Decimal(term["cost_usd"])
    assert (found["total_usd"], found["status"], found["missing"]) == ("1.4004", "priced", [])
    assert found["version"].startswith("genai-prices/")


def test_explain_as_a_table(run: Run) -> None:
    """People read the terms, the total, the status and what is missing."""
    code, out, _ = run("explain", "azure/gpt-5", "--usage", "input=1000,input_audio=10", "--tier", "priority", *AT)
    assert code == 0
    assert "azure/gpt-5" in out
    assert "partial, without a price of its own: input_audio, service_tier=priority" in out
    code, out, _ = run("explain", "groq/whisper-large-v3-turbo", "--usage", "audio_seconds=10", *AT)
    assert "$0.0001111111111111111111111111111" in out
    assert "$0.000111111" in out


@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        (["gpt-4o", "--usage", "input=1000000"], "2.5"),
        (["openrouter/openai/gpt-4o", "--usage", "input=1000000"], "2.5"),
        (["mine", "--usage", "input=1000000"], "0.2"),
        (["vllm/llama", "--usage", "input=1000000"], "0"),
        (["openai/gpt-4o", "--usage", "input=1000000", "--route", "smart"], "7"),
        (["anthropic/claude-opus-5", "--usage", "input=1000000", "--geo", "us", "--speed", "fast"], "11"),
        (["deepseek/deepseek-v4-flash", "--usage", "input=1000000", "--at", "2026-11-23T02:00:00Z"], "0.3"),
        (["deepseek/deepseek-v4-flash", "--usage", "input=1000000", "--at", "2026-11-22T02:00:00"], "0.15"),
        (["openai/nobody-knows", "--usage", "input=1"], None),
    ],
)
def test_explain_finds_the_model(run: Run, arguments: list[str], total: str | None) -> None:
    """A5, A6: a provider in front, none, a vendor behind it, a name of one's own; unknown is null and not 0."""
    code, out, _ = run("explain", "--json", *AT, *arguments)
    assert (code, json.loads(out)["total_usd"]) == (0, total)


def test_diff(run: Run, tmp_path: Path) -> None:
    """What a file adds, removes and changes, against shipped, current, another file or a listing kept as JSON."""
    assert run("diff", "current", "own.toml")[1].strip().endswith("No price differs.")
    Path("other.toml").write_text(OWN.replace('"0.20"', '"0.30"').replace("llama", "llama3").split("[[price]]\nkey")[0])
    _, out, _ = run("diff", "current", "other.toml", "--json", *AT)
    found = json.loads(out)
    (changed,) = found["changed"]
    assert [changed[side]["usd"] for side in ("before", "after")] == ["0.2", "0.3"]
    assert {row["after"] for row in found["removed"]} == {None}
    assert {row["before"]["model"] for row in found["removed"]} >= {"llama", "gpt-4o"}
    assert found["added"] == []
    Path("kept.json").write_text(run("list", "--json", *AT)[1])
    assert run("diff", "kept.json", "current", *AT)[1].strip().endswith("No price differs.")
    _, out, _ = run("diff", "shipped", "other.toml", *AT)
    assert [line.split()[:3] for line in out.splitlines() if line.startswith(("added", "changed"))][:2] == [
        ["added", "*/mine", "input"],
        ["added", "*/mine", "output"],
    ]
    assert "changed  openai/gpt-4o  " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--provider", "opnai"], "--provider: 'opnai' is not known; did you mean openai?"),
        (["list", "--at", "soon"], "--at: 'soon' is no date; write 2026-11-01 or 2026-11-01T12:00"),
        (["explain", "openai/gpt-4o", "--usage", "inptu=1"], "--usage: 'inptu' is not known; did you mean input?"),
        (
            ["explain", "openai/gpt-4o", "--usage", "input=-1"],
            "--usage: input: expected a whole number up to 1000000000, got '-1'",
        ),
        (["explain", "openai/gpt-4o", "--usage", "input=9999999999"], "--usage: input: expected a whole number up to"),
        (["explain", "openai/gpt-4o"], "Missing option '--usage'"),
        (["diff", "shipped", "none.toml"], "none.toml: cannot read the price file"),
        (["diff", "none.json", "shipped"], "A: none.json cannot be read: No such file or directory; name a file of"),
        (["diff", "shipped", "bad.json"], "B: bad.json is no listing of prices"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], says: str) -> None:
    """I2: the option, what is wrong with it and what would be right, and exit code 2."""
    Path("bad.json").write_text('{"rows": []}')
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert says in line


def test_mistakes_in_a_price_file_are_a_line_each(run: Run) -> None:
    """I2: a wrong price file is told whole: each line names the file, the entry, the field and what would be right."""
    Path("own.toml").write_text('[[price]]\nmodel = "a"\ninput = 1.5\n[[price]]\nmodel = "b"\noutput = -1\n')
    code, out, err = run("list")
    assert (code, out) == (2, "")
    assert [line.partition("own.toml: ")[2] for line in err.splitlines()] == [
        'price 1 (a): input: 1.5 is a float; money is exact, quote it: input = "1.5"',
        "price 2 (b): output: -1 is negative; expected 0 or more",
    ]
