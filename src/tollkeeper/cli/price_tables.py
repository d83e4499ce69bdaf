"""Prices as people and programs read them: listings, sums and differences as tables and JSON."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from tollkeeper.cli.render import as_text, dollars, grid, safe
from tollkeeper.errors import BadRequest
from tollkeeper.money import format_nanos
from tollkeeper.prices.listing import Change, Line, Row
from tollkeeper.values import Charge, iso_utc

_UNITS: Final = {1_000_000: "", 1000: "/k", 3600: "/h"}
_COLUMNS: Final = ("input", "cache_read", "output")
#: Columns of a listing are padded to what most names need.
_WIDEST: Final = 48
_UNIT_NOTE: Final = "USD per million tokens; /k: per thousand, /h: per hour."


# ── listings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def listing(version: str, at_us: int, rows: list[Row]) -> str:
    """Prices, a line for each model and way of calling it: whole lines, because there may be thousands."""
    if not rows:
        return "No model of that name has a price."
    lines = [["model", *(name.replace("_", " ") for name in _COLUMNS), "since", "layer", "others"]]
    for place, group in groupby(rows, key=lambda row: (row.provider, row.model, row.when, row.from_tokens)):
        prices = {row.kind: row for row in group}
        since = max((row.since_us for row in prices.values() if row.since_us is not None), default=None)
        others = [f"{kind} {_price(row)}" for kind, row in prices.items() if kind not in _COLUMNS]
        if all(row.usd == "0" for row in prices.values()):
            others = ["all 0"]
        layers = dict.fromkeys(" × ".join(row.layers) for row in prices.values())
        figures = [_price(prices[name]) if name in prices else "" for name in _COLUMNS]
        lines.append([_name(*place), *figures, _day(since), ", ".join(layers), ", ".join(others)])
    widths = [min(max(map(cell_len, column)), _WIDEST) for column in zip(*lines, strict=True)]
    drawn = [_line(cells, widths) for cells in lines]
    rule = "─" * min(max(map(cell_len, drawn)), sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([_head(version, at_us), drawn[0], rule, *drawn[1:], _UNIT_NOTE])


def _line(cells: list[str], widths: list[int]) -> str:
    """Cells side by side, figures to the right; a cell that is too wide moves the rest of its own line alone."""
    spaces = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    figures = range(1, 1 + len(_COLUMNS))
    padded = (
        space + cell if at in figures else cell + space
        for at, (cell, space) in enumerate(zip(cells, spaces, strict=True))
    )
    return "  ".join(padded).rstrip()


def listing_json(version: str, at_us: int, rows: list[Row]) -> str:
    """The same as one JSON object: each price by itself, as decimal text."""
    return as_text({"version": version, "at": iso_utc(at_us), "prices": [_record(row) for row in rows]})


def read_listing(path: Path, argument: str) -> list[Row]:
    """The prices of a listing's JSON. Raises BadRequest naming the argument."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Listing)
    except OSError as error:
        raise BadRequest(
            f"{argument}: {path} cannot be read: {error.strerror}; name a file of `prices list --json`"
        ) from None
    except msgspec.MsgspecError as error:
        raise BadRequest(
            f"{argument}: {path} is no listing of prices ({error}); make one with `prices list --json`"
        ) from None
    return document.prices


class _Listing(msgspec.Struct):
    prices: list[Row]


# ── a sum ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sum_of(name: str, at_us: int, charge: Charge, lines: list[Line]) -> RenderableType:
    """A charge, term by term."""
    table = grid(show_footer=True)
    table.add_column("kind", "total", no_wrap=True)
    for column in ("quantity", "price", "per"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("cost", dollars(charge.amount_nanos), justify="right", no_wrap=True, footer_style="bold")
    table.add_column("since", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for line in lines:
        term = line.term
        table.add_row(
            term.kind, f"{term.quantity:,}", f"${term.usd}", f"{term.per:,}", f"${line.usd:f}",
            _day(line.since_us), Text(" × ".join(line.layers)),
        )  # fmt: skip
    missing = f", without a price of its own: {', '.join(map(safe, charge.missing))}" if charge.missing else ""
    if not lines and charge.amount_nanos is None:
        missing = ": no price is known for it; `tollkeeper prices list` shows those that are"
    style = "" if charge.status == "priced" else "yellow"
    head = Text(f"{safe(name)}  {_head(charge.price_version, at_us)}")
    return Group(head, table, Text(f"{charge.status}{missing}", style))


def sum_json(name: str, at_us: int, charge: Charge, lines: list[Line]) -> str:
    """The same as one JSON object; the total is rounded once, to the nano-dollar."""
    return as_text({
        "model": name, "at": iso_utc(at_us), "version": charge.price_version, "status": charge.status,
        "missing": list(charge.missing),
        "total_usd": None if charge.amount_nanos is None else format_nanos(charge.amount_nanos),
        "terms": [
            {
                "model": line.term.model, "kind": line.term.kind, "quantity": line.term.quantity, "usd": line.term.usd,
                "per": line.term.per, "cost_usd": format(line.usd, "f"), "layers": list(line.layers),
                "since": _iso(line.since_us),
            }
            for line in lines
        ],
    })  # fmt: skip


# ── a difference ─────────────────────────────────────────────────────────────────────────────────────────────────────


def changes(before: str, after: str, at_us: int, found: list[Change]) -> RenderableType:
    """What one listing has and another has not, or has otherwise."""
    head = Text(f"{safe(before)} → {safe(after)}, as of {iso_utc(at_us)}")
    if not found:
        return Group(head, Text("No price differs."))
    table = grid()
    table.add_column("", no_wrap=True)
    table.add_column("model", overflow="fold", min_width=10)
    table.add_column("kind", no_wrap=True)
    for side in ("before", "after"):
        table.add_column(side, justify="right", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for change in found:
        row = change.after or change.before
        assert row is not None
        table.add_row(
            _what(change), Text(_name(row.provider, row.model, row.when, row.from_tokens)), row.kind,
            *("" if side is None else _price(side) for side in change), Text(" × ".join(row.layers)),
        )  # fmt: skip
    counts = [sum(_what(each) == what for each in found) for what in ("added", "removed", "changed")]
    note = "{:,} added, {:,} removed, {:,} changed. ".format(*counts) + _UNIT_NOTE
    return Group(head, table, Text(note, "dim"))


def changes_json(before: str, after: str, at_us: int, found: list[Change]) -> str:
    """The same as one JSON object."""
    listed: dict[str, Any] = {"before": before, "after": after, "at": iso_utc(at_us)}
    for what in ("added", "removed", "changed"):
        listed[what] = [
            {side: None if row is None else _record(row) for side, row in zip(Change._fields, change, strict=True)}
            for change in found
            if _what(change) == what
        ]
    return as_text(listed)


def _what(change: Change) -> str:
    return "added" if change.before is None else "removed" if change.after is None else "changed"


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(version: str, at_us: int) -> str:
    return f"{version}, as of {iso_utc(at_us)}"


def _name(provider: str | None, model: str, when: dict[str, str], from_tokens: int) -> str:
    """ "openai/gpt-5.4 service_tier=flex from 272,001"."""
    words = [f"{provider or '*'}/{model}", *(f"{name}={value}" for name, value in when.items())]
    return safe(" ".join(words + ([f"from {from_tokens:,}"] if from_tokens else [])))


def _price(row: Row) -> str:
    return f"{row.usd}{_UNITS[row.per]}"


def _day(at_us: int | None) -> str:
    """An instant as its day, with the time where that is not midnight; empty: always."""
    text = "" if at_us is None else iso_utc(at_us)[:16].replace("T", " ")
    return text.removesuffix(" 00:00")


def _iso(at_us: int | None) -> str | None:
    return None if at_us is None else iso_utc(at_us)


def _record(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(row)
    return found | {"since": _iso(row.since_us)}
