"""render: reports for people and programs."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console, RenderableType

from tollkeeper.cli import render
from tollkeeper.reports import Difference, Grouping, Report, Row, Sums, plan

NOV_1 = 1_793_491_200_000_000
DAY = 86_400_000_000


def shown(what: RenderableType, width: int = 80) -> str:
    """What a terminal without colour shows."""
    console = Console(width=width, no_color=True, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def report(*rows: Row, by: Grouping | None = "agent", each: Any = None, days: int = 30, **total: int) -> Report:
    sums = Sums(**total)
    for row in rows if not total else ():
        sums = sums.plus(row.sums)
    return Report(plan=plan(by, each, NOV_1, NOV_1 + days * DAY), rows=rows, total=sums)


def row(name: str | None, nanos: int, project: str | None = "p", start_us: int | None = None, **sums: int) -> Row:
    return Row(start_us, project, name, Sums(**{"calls": 1, "attempts": 1, "amount_nanos": nanos} | sums))


def test_amounts_line_up_and_are_exact() -> None:
    """G1: all amounts of a table have the decimals that the longest one needs: nothing is rounded away."""
    lines = shown(render.table(report(row("a", 1_500_000_000), row("b", 1), row("c", 0)), 80)).splitlines()
    assert [line.split()[-3] for line in lines if line.startswith(("p/", "total"))] == [
        "$1.500000000", "$0.000000001", "$0.000000000", "$1.500000001",
    ]  # fmt: skip
    assert len({line.index("$") for line in lines if "$" in line}) == 1


def test_bars_show_shares() -> None:
    """A bar is the share of the cost; a row with a cost always has some of it, one without has none."""
    text = shown(render.table(report(row("half", 500), row("rest", 499), row("crumb", 1), row("free", 0)), 80))
    bars = {line.split()[0]: line.count("█") for line in text.splitlines() if line.startswith("p/")}
    assert bars == {"p/half": 5, "p/rest": 4, "p/crumb": 0, "p/free": 0}
    assert "p/crumb     ▏           <1 %" in text
    assert "p/free                   0 %" in text


@pytest.mark.parametrize(("width", "each"), [(64, None), (80, None), (80, "day"), (80, "hour"), (120, "day")])
def test_tables_fit(width: int, each: Any) -> None:
    """A table with a long name and every column is no wider than the terminal, and loses no figure."""
    start_us = NOV_1 if each else None
    long = row(
        "a-very-long-agent-name-that-goes-on", 123_456_789, start_us=start_us, attempts=2, unpriced=1, input=1234567
    )
    text = shown(render.table(report(long, each=each), width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "$0.123456789" in text
    assert "1,234,567" in text
    assert "1 unpriced" in text


def test_names_are_only_text() -> None:
    """H4: markup and control characters in a name are shown, not obeyed."""
    text = shown(render.table(report(row("[red]x[/red]\x1b[31m\r\n", 1)), 120), 120)
    assert "p/[red]x[/red]�[31m��" in text
    assert "\x1b" not in text


def test_unknown_is_not_zero() -> None:
    """A5: a row whose calls are all unpriced shows no amount; one with some of them shows what is known."""
    text = shown(render.table(report(row("none", 0, unpriced=1), row("some", 7, unpriced=0)), 80))
    assert "unknown      1" in text
    assert "$0.000000007" in text


def test_notes_say_what_is_not_exact() -> None:
    """P4: each way in which a total is not exact is told in a line."""
    total = {"calls": 9, "attempts": 10, "errors": 2, "amount_nanos": 1000, "inexact_nanos": 250, "unpriced": 3}
    assert render.notes(report(row("x", 1), by="tag", **total)) == [
        "$0.00000025 of the total (25 %) is estimated or partly priced.",
        "3 calls have no price: their cost is not known and not in the total.",
        "2 of 10 attempts failed or broke off.",
        "A call stands in the row of each of its tags, and once in the total.",
    ]


def test_days_are_named_once() -> None:
    """In a report by time and agent each day stands on its first row alone, with its weekday."""
    rows = [row(name, 1, start_us=NOV_1 + day * DAY) for day in range(2) for name in "ab"]
    text = shown(render.table(report(*rows, each="day"), 80))
    assert text.count("2026-11-01 Sun") == text.count("2026-11-02 Mon") == 1


def test_differences() -> None:
    """A8: the difference has its sign, and what we have no price for is told."""
    found = [
        Difference(provider="x", model="m", reported=3, differing=2, uncomputed=1, computed_nanos=5, reported_nanos=8),
        Difference(provider="x", model="n", reported=1, differing=1, computed_nanos=9, reported_nanos=8),
        Difference(provider="x", model="only-theirs", reported=1, uncomputed=1, counted_nanos=7),
    ]
    text = shown(render.difference_table(found))
    assert "+$0.000000003" in text
    assert "-$0.000000001" in text
    assert "Without a price of ours, and in neither sum: 2." in text
    (theirs,) = (line for line in text.splitlines() if "only-theirs" in line)
    assert theirs.split() == ["x/only-theirs", "1", "0", "–", "–", "–"]  # unknown is no zero


def test_no_figure_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """G1: on a narrow terminal the share goes first; what still needs more is wider than the terminal, never a wrong figure."""
    rows = report(row("a-name-of-some-length", 123_456_789, start_us=NOV_1, input=1_234_567), each="day")
    for width in ("60", "20"):
        monkeypatch.setenv("COLUMNS", width)
        render.show(lambda columns: render.table(rows, columns))
        out = capsys.readouterr().out
        assert ("$0.123456789" in out, "1,234,567" in out, "…" in out, "share" in out) == (True, True, False, False)
        assert max(map(len, out.splitlines())) <= 60
