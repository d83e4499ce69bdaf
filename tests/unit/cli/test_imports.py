"""cli.imports: what `tollkeeper import` shows, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tollkeeper import cli
from tollkeeper.cli import imports

Run = Callable[..., tuple[int, str, str]]
LINE = {
    "at": "2026-11-01T00:00:00Z",
    "project": "shop",
    "agent": "writer",
    "model": "gpt-4o-mini",
    "input": 100,
    "output": 10,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tollkeeper import …` in a folder with log.jsonl of three lines: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "environ", {"PATH": "/usr/bin"})
    write(LINE | {"request_id": "r1"}, LINE, LINE | {"model": "who-knows"})

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(("import", *arguments))
        return code, *capsys.readouterr()

    return call


def write(*lines: object) -> None:
    Path("log.jsonl").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_imports(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """G1: the sums are those of the report; importing again repeats; the ledger agrees with itself."""
    code, out, err = run("log.jsonl")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "took log.jsonl for usage",
        "lines           3",
        "booked          3  $0.000042; 1 without a price: their cost is not known and not in the sum",
        "from 2026-11-01T00:00:00Z to 2026-11-01T00:00:00Z",
    ]
    assert cli.run(("report", "--from", "2026-11-01", "--to", "2026-11-01", "--json")) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert (total["calls"], total["cost_usd"], total["unpriced"]) == (3, "0.000042", 1)
    code, out, err = run("log.jsonl")
    assert (code, out.splitlines()[2:]) == (0, ["booked          0", "repeated        3  were in the ledger before"])
    assert cli.run(("verify",)) == 0


def test_as_json(run: Run) -> None:
    """The sums for programs, with exact amounts as text."""
    code, out, err = run("log.jsonl", "--json", "--dry-run")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "dry_run": True, "formats": {"log.jsonl": "usage"}, "lines": 3, "booked": 3, "corrected": 0, "repeated": 0,
        "conflicts": 0, "bad": 0, "unpriced": 1, "past_retention": 0, "compared": 0, "cost_usd": "0.000042",
        "not_exact_usd": "0", "compared_usd": "0", "other_usd": "0", "from": "2026-11-01T00:00:00Z",
        "to": "2026-11-01T00:00:00Z", "stopped": None,
    }  # fmt: skip
    assert not Path("tollkeeper.sqlite").exists()


def test_lines_that_are_left_out(run: Run) -> None:
    """P4: the first 20 are told on stderr, all of them in the file that is asked for; exit code 1."""
    write(LINE, *(LINE | {"output": -number} for number in range(1, 26)), LINE | {"request_id": "a\u202eb"})
    code, out, err = run("log.jsonl", "--rejects", "out.jsonl")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == imports.SHOWN + 1
    assert lines[0] == "log.jsonl:2: output: expected a whole number from 0 to 1000000000, got -1"
    assert lines[-1] == "and 6 more"
    told = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [each["line"] for each in told] == list(range(2, 28))
    assert told[0] == {"file": "log.jsonl", "line": 2, "reason": lines[0].partition(": ")[2]}
    assert "bad            26  left out" in out
    assert "--rejects FILE has them all" in run("log.jsonl")[2]


def test_a_conflict_and_old_lines(run: Run) -> None:
    """B2: a conflict is counted apart; lines that pruning would drop are said to be."""
    write(LINE | {"request_id": "r"}, LINE | {"request_id": "r", "output": 1}, LINE | {"at": "2001-01-01T00:00:00Z"})
    code, out, err = run("log.jsonl")
    assert (code, err.count("\n")) == (1, 1)
    assert "conflicts       1  their id is in the ledger with other contents; left out" in out
    assert "1 older than retention.entries keeps: the next pruning drops as many" in out


def test_litellm_is_compared(run: Run) -> None:
    """P4: another program's figures stand beside ours and in no sum."""
    row = {"request_id": "x", "startTime": "2026-11-01 00:00:00", "model": "gpt-4o-mini", "prompt_tokens": 1000,
           "completion_tokens": 0, "spend": 0.5}  # fmt: skip
    write(row)
    out = run("log.jsonl")[1]
    assert "booked          1  $0.00015" in out
    assert "LiteLLM computed $0.5, and it is $0.00015 here; calls that have both: 1" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument 'FILE'"),
        (["none.jsonl"], "FILE: none.jsonl cannot be read: No such file"),
        (["."], "FILE: . is a folder"),
        (["log.jsonl", "--format", "xml"], "'--format'"),
        (["log.jsonl", "--at", "soon"], "--at: 'soon' is no time"),
        (["log.jsonl", "--at", "2026-11-01"], "--at: '2026-11-01' is no time with its zone"),
        (["log.jsonl", "--project", ""], "--project: expected 1 to 128"),
        (["log.jsonl", "--store", "memory:"], "store: a ledger in memory: ends with the import"),
        (["log.jsonl", "--rejects", "no/such/folder"], "--rejects: no/such/folder cannot be written"),
        (["prices.toml"], "FILE: prices.toml is in none of the formats"),
    ],
    ids=" ".join,
)
def test_mistakes(run: Run, arguments: list[str], says: str) -> None:
    """I2: a mistake is one line on stderr and exit code 2, and books nothing."""
    Path("prices.toml").write_text("[[price]]\n")
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
