"""cli.price_tables: names as text, exact amounts, and listings that can be read again."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path

from msgspec import structs
from rich.cells import cell_len
from rich.console import Console, RenderableType

from tollkeeper.cli.price_tables import changes, listing, listing_json, read_listing, sum_json, sum_of
from tollkeeper.prices.listing import Change, Line, Row
from tollkeeper.values import Charge, Term

AT_US = 1_795_348_800_000_000
ROW = Row(
    provider="p", model="m\x1b[31m", kind="input", usd="0.000001", per=1_000_000, when={"key": "k"},
    layers=("genai-prices", "own #1"), since_us=AT_US,
)  # fmt: skip


def shown(drawn: RenderableType | str) -> str:
    console = Console(file=io.StringIO(), width=150, highlight=False, markup=False)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_listing_can_be_read_again(tmp_path: Path) -> None:
    """The JSON of a listing is a listing: rows come back as they were."""
    path = tmp_path / "a.json"
    path.write_text(listing_json("v", AT_US, [ROW]))
    assert read_listing(path, "A") == [ROW]
    assert json.loads(path.read_text())["prices"][0]["since"] == "2026-11-22T12:00:00Z"


def test_names_are_text() -> None:
    """H4: a model's name moves no cursor, in a listing, a sum or a difference."""
    line = Line(Term("m", "input", 3, "2"), Decimal("0.000006"), ("own #1",), None)
    charge = Charge(amount_nanos=6000, status="partial", price_version="v", missing=("model=\x1b[2J",))
    for drawn in (
        listing("v", AT_US, [ROW]), sum_of("m\x1b", AT_US, charge, [line]), changes("a\x1b", "b", AT_US, [Change(ROW, None)])
    ):  # fmt: skip
        assert "\x1b" not in shown(drawn)


def test_a_listing_shows_ways_layers_and_days() -> None:
    """A line names the way of calling, who made the price and since when, with the time where that is no midnight."""
    text = shown(listing("v", AT_US, [ROW]))
    assert "key=k" in text
    assert "genai-prices × own #1" in text
    assert "2026-11-22 12:00" in text
    free = [Row(provider="p", model="m", kind=kind, usd="0", per=1000) for kind in ("input", "web_search")]
    assert "all 0" in shown(listing("v", AT_US, free))


def test_a_listing_is_whole_lines() -> None:
    """A name too long for its column moves the rest of its own line alone: each price is one line, for grep too."""
    names = ["a", "b" * 60, "日本"]
    rows = [structs.replace(ROW, model=name, usd="1") for name in names]
    lines = listing("v", AT_US, rows).splitlines()[3:-1]
    assert [line.split()[0] for line in lines] == [f"p/{name}" for name in names]
    short, long, wide = (cell_len(line[: line.index("1  ")]) for line in lines)
    assert (short, long > short) == (wide, True)


def test_an_unknown_sum_is_unknown() -> None:
    """A5: without a price the total is null and said to be unknown."""
    charge = Charge(amount_nanos=None, status="unpriced", price_version="v")
    assert json.loads(sum_json("m", AT_US, charge, []))["total_usd"] is None
    text = shown(sum_of("m", AT_US, charge, []))
    assert "unknown" in text
    assert "unpriced: no price is known for it" in text


def test_changes_are_counted() -> None:
    """Added, removed and changed are told apart, with both prices."""
    text = shown(changes("a", "b", AT_US, [Change(ROW, None), Change(None, ROW), Change(ROW, ROW)]))
    assert "1 added, 1 removed, 1 changed" in text
