"""Reports as people and programs read them: a table for the terminal, JSON and CSV.

Amounts are exact decimal text everywhere; in a table they share one number of decimals, so that columns add up by eye. Names
come from clients and providers: they are printed as text, without markup and control characters.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tollkeeper.money import NANOS_PER_USD, format_nanos
from tollkeeper.reports import Difference, Plan, Report, Row, Sums
from tollkeeper.values import KINDS, Standing, iso_utc, show_amount, utc

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from tollkeeper.preview import Preview
    from tollkeeper.stores import Size

#: Characters of a full bar, from the one that looks best to the one that fits almost anywhere; None: no share at all.
_BARS: Final = (10, 6, 3, 0, None)
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_WIDE: Final = 100
_BUCKET_FORMAT: Final = {"hour": "%Y-%m-%d %H:%M", "day": "%Y-%m-%d %a", "month": "%Y-%m"}


def local(at_us: int, timezone: str) -> datetime:
    """An instant in a zone's own time."""
    return utc(at_us).astimezone(ZoneInfo(timezone))


def safe(text: str) -> str:
    """A name without what could move the cursor."""
    return "".join(char if char.isprintable() else "�" for char in text)


def many(number: int, one: str, more: str = "") -> str:
    """So many of a thing: "1 cell", "2 cells"; `more` where an s is not enough."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def size_of(size: Size) -> tuple[str, str]:
    """How large a ledger is: its sums, "3 cells, 1 balance", and its entries."""
    return f"{many(size.cells, 'cell')}, {many(size.balances, 'balance')}", many(size.entries, "entry", "entries")


# ── the terminal ─────────────────────────────────────────────────────────────────────────────────────────────────────


def table(report: Report, width: int) -> RenderableType:
    """A report for a terminal of `width` columns: a bar for each row's share of the cost, and the total below."""
    plan = report.plan
    if not report.rows:
        named = f" with a {plan.by}" if any(report.total) else ""
        return Text(f"No calls{named} from {span_of(plan)}.")
    title = Text.assemble(("Spend", "bold"), f" by {plan.by}" if plan.by else "", f"  {span_of(plan)}")
    drawings = [_draw(report, width, bar) for bar in _BARS]
    whole = (each for each in drawings if _widths(each).maximum <= width)
    folded = (each for each in drawings[-2:] if _least(each) <= width)  # names on several lines
    return Group(title, next(whole, None) or next(folded, drawings[-1]), *map(Text, notes(report)))


def _widths(drawn: RenderableType) -> Measurement:
    console = Console(width=1000)
    return Measurement.get(console, console.options, drawn)


def _least(drawn: Table) -> int:
    """The width below which a figure would be cut: names alone can be folded, and texts between words."""
    width = _widths(drawn).maximum
    for column in drawn.columns:
        if not column.no_wrap:
            cells = [_widths(cell) for cell in (column.header, *column.cells)]
            word = (column.min_width or 1) if column.overflow == "fold" else max(cell.minimum for cell in cells)
            width -= max(0, max(cell.maximum for cell in cells) - word)
    return width


def _draw(report: Report, width: int, bar: int | None) -> Table:
    plan, total = report.plan, report.total
    decimals = decimals_of([row.sums.amount_nanos for row in report.rows] + [total.amount_nanos])
    inexact = any(row.sums.inexact_nanos or row.sums.unpriced for row in report.rows)
    drawn = grid(show_footer=True)
    if plan.each is not None:
        drawn.add_column(plan.each, "total" if plan.by is None else "", no_wrap=True, footer_style="bold")
    if plan.by is not None:
        drawn.add_column(plan.by, "total", overflow="fold", min_width=10, footer_style="bold")
    if bar is not None:
        drawn.add_column("share", no_wrap=True)
    drawn.add_column("cost", _cost(total, decimals), justify="right", no_wrap=True, footer_style="bold")
    drawn.add_column("calls", f"{total.calls:,}", justify="right", no_wrap=True)
    for name, value in _tokens(total, width).items():
        drawn.add_column(name, value, justify="right", no_wrap=True)
    if inexact:
        drawn.add_column("not exact", _not_exact(total), justify="right", style="yellow", footer_style="yellow")
    start_us = None
    for row in report.rows:
        cells: list[RenderableType] = []
        if plan.each is not None:
            cells.append("" if row.start_us == start_us else _bucket(row.start_us, plan))
            start_us = row.start_us
        if plan.by is not None:
            cells.append(Text(_label(row), style="dim" if row.name is None else ""))
        cells += [] if bar is None else [_bar(row.sums, total, bar)]
        cells += [_cost(row.sums, decimals), f"{row.sums.calls:,}"]
        cells += _tokens(row.sums, width).values()
        drawn.add_row(*cells, *([_not_exact(row.sums)] if inexact else []))
    return drawn


def grid(*, show_footer: bool = False) -> Table:
    """Columns with a line below the head and above the foot, and nothing else."""
    return Table(
        box=box.SIMPLE,
        show_edge=False,
        show_footer=show_footer,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )


def notes(report: Report) -> list[str]:
    """What the table's figures do not say by themselves, a line each."""
    total, found = report.total, list[str]()
    if total.inexact_nanos:
        percent = total.inexact_nanos * 100 // total.amount_nanos if total.amount_nanos else 0
        found.append(f"${format_nanos(total.inexact_nanos)} of the total ({percent} %) is estimated or partly priced.")
    if total.unpriced:
        calls = "1 call has no price: its" if total.unpriced == 1 else f"{total.unpriced:,} calls have no price: their"
        found.append(f"{calls} cost is not known and not in the total.")
    if total.errors:
        found.append(f"{total.errors:,} of {total.attempts:,} attempts failed or broke off.")
    if report.overlaps:
        found.append("A call stands in the row of each of its tags, and once in the total.")
    return found


def difference_table(rows: list[Difference]) -> RenderableType:
    """Where the provider's own figures differ from ours, by model."""
    if not rows:
        return Text("No provider reported a cost in this time: there is nothing to compare.")
    decimals = decimals_of([amount for row in rows for amount in (row.computed_nanos, row.reported_nanos)])
    drawn = grid()
    drawn.add_column("model", overflow="fold", min_width=10)
    for name in ("reported", "differ", "computed cost", "reported cost", "difference"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        both = [usd(nanos, decimals) for nanos in (row.computed_nanos, row.reported_nanos, row.difference_nanos)]
        if row.difference_nanos > 0:
            both[2] = f"+{both[2]}"
        if row.uncomputed == row.reported:
            both = ["–"] * 3  # no entry has both, and that is no zero
        counts = (f"{row.reported:,}", f"{row.differing:,}")
        difference = Text(both[2], "yellow" if row.difference_nanos else "")
        drawn.add_row(Text(safe(f"{row.provider}/{row.model}")), *counts, *both[:2], difference)
    counted, ours = sum(row.counted_nanos for row in rows), sum(row.ours for row in rows)
    uncomputed = sum(row.uncomputed for row in rows)
    below = [f"${format_nanos(counted)} of what was spent stands on the provider's own figure."]
    if ours:
        below.append(f"Where ours counts and not theirs, which is another: {ours:,}.")
    if uncomputed:
        below.append(f"Without a price of ours, and in neither sum: {uncomputed:,}.")
    return Group(Text("Reported by providers and computed here", style="bold"), drawn, *map(Text, below))


def preview_table(preview: Preview) -> RenderableType:
    """A call before it is made: what it may cost, and each budget's word."""
    ask, cost, quote = preview.ask, preview.cost, preview.quote
    cap = "no output limit" if quote.output_cap is None else f"at most {quote.output_cap:,} output tokens"
    where = f"{preview.route.provider.name}/{preview.route.model}"
    head = f"{safe(ask.model)} → {safe(where)} ({ask.dialect})"
    bounds = f"at most {ask.prompt_bound:,} prompt tokens, {cap}"
    meanings = {
        "low": (cost.low_nanos, "four bytes a token, no output"),
        "expected": (cost.expected_nanos, "four bytes a token, half of the output limit"),
        "high": (cost.high_nanos, "no such call costs more: what a budget must have left"),
    }
    drawn = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, (nanos, meaning) in meanings.items():
        drawn.add_row(Text(name, "bold"), Text(dollars(nanos)), Text(meaning, "dim"))
    below: list[RenderableType] = [Text(head, "bold"), Text(bounds), Text(), drawn, Text()]
    if cost.high_nanos is None:
        below.append(Text("No price or no output limit is known: a hard budget in usd refuses it.", "yellow"))
    if not preview.verdicts:
        return Group(*below, Text("No budget covers this call."))
    table = grid()
    table.add_column("budget", overflow="fold", min_width=10)
    for name in ("limit", "spent", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in preview.verdicts:
        standing, measure = verdict.standing, verdict.standing.budget.measure
        word = Text("pays", "green") if verdict.refusal is None else Text("refuses", "bold red")
        amounts = (standing.budget.limit, standing.spent, standing.remaining)
        table.add_row(Text(_standing(standing)), *(show_amount(amount, measure) for amount in amounts), word)
    refusals = [Text(safe(verdict.refusal), "red") for verdict in preview.verdicts if verdict.refusal is not None]
    return Group(*below, table, Text(), *refusals, Text(_NOT_HELD, "dim"))


_NOT_HELD: Final = "What calls under way hold is known to their gateway alone and not counted here."


def _standing(standing: Standing) -> str:
    budget = standing.budget
    of = f" of {standing.project}" if standing.project and budget.scope not in ("all", "project") else ""
    return safe(f"{budget.window} {budget.scope} {standing.id}".rstrip() + of)


def as_text(value: object) -> str:
    """A document as JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def show(draw: Callable[[int], RenderableType], *, err: bool = False) -> None:
    """Print what `draw` makes for the width at hand: in colour on a terminal, as plain text to a pipe.

    What needs more is wider than the terminal: a figure is never cut short.
    """
    console = Console(highlight=False, markup=False, stderr=err)
    drawn = draw(console.width)
    parts = drawn.renderables if isinstance(drawn, Group) else [drawn]
    console.width = max([console.width, *(_least(part) for part in parts if isinstance(part, Table))])
    console.print(drawn)


@contextmanager
def progress_bar(*columns: ProgressColumn, total: int | None, **fields: Any) -> Iterator[Callable[..., None]]:
    """A bar of progress on a terminal's stderr, else nothing: what it yields takes `completed` and the fields."""
    if not sys.stderr.isatty():
        yield lambda **told: None
        return
    from rich.progress import Progress

    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield partial(shown.update, shown.add_task("", total=total, **fields))


def _label(row: Row) -> str:
    name = "(none)" if row.name is None else safe(row.name)
    return name if row.project is None else f"{safe(row.project)}/{name}"


def _bucket(start_us: int | None, plan: Plan) -> str:
    assert start_us is not None
    assert plan.each is not None
    return local(start_us, plan.timezone).strftime(_BUCKET_FORMAT[plan.each])


def span_of(plan: Plan) -> str:
    """ "2026-11-01 to 2026-11-30 (UTC)": whole days by their dates, else with times."""
    first, after = local(plan.from_us, plan.timezone), local(plan.to_us, plan.timezone)
    if not any((first.hour, first.minute, first.second, after.hour, after.minute, after.second)):
        last = (after - timedelta(days=1)).date()
        days = f"{first:%Y-%m-%d}" if last == first.date() else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
    else:
        days = f"{first:%Y-%m-%d %H:%M:%S} to {after:%Y-%m-%d %H:%M:%S}"
    of = f", project {safe(plan.project)}" if plan.project is not None else ""
    return f"{days} ({plan.timezone}){of}"


def _tokens(sums: Sums, width: int) -> dict[str, str]:
    if width < _WIDE:
        return {"tokens": f"{sums.tokens:,}"}
    return {"tokens in": f"{sums.input_tokens:,}", "cached": f"{sums.cache_read:,}", "out": f"{sums.output_tokens:,}"}


def _bar(sums: Sums, total: Sums, width: int) -> Text:
    """A row's share of the cost in eighths of a character; nothing is only nothing."""
    whole = total.amount_nanos
    eighths = sums.amount_nanos * width * 8 // whole if whole else 0
    eighths = min(max(eighths, int(sums.amount_nanos > 0)), width * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    percent = (sums.amount_nanos * 200 + whole) // (2 * whole) if whole else 0
    share = " <1" if sums.amount_nanos and not percent else f"{percent:3d}"
    return Text.assemble((f"{bar.ljust(width)} " if width else "", "cyan"), f"{share} %")


def decimals_of(amounts: Iterable[int]) -> int:
    """The decimals that show every one of them exactly, 2 to 9."""
    return max((len(format_nanos(amount).partition(".")[2]) for amount in amounts), default=2) or 2


def usd(nanos: int, decimals: int) -> str:
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    return f"{'-' if nanos < 0 else ''}${whole:,}.{f'{rest:09d}'[: max(2, decimals)]}"


def dollars(nanos: int | None) -> str:
    """An amount in full."""
    return "unknown" if nanos is None else f"${format_nanos(nanos)}"


def known_cost(nanos: int, unpriced: int, entries: int, decimals: int) -> str:
    """What is known of the cost of entries; where nothing is, that and not a zero."""
    return "unknown" if unpriced and unpriced == entries else usd(nanos, decimals)


def _cost(sums: Sums, decimals: int) -> str:
    return known_cost(sums.amount_nanos, sums.unpriced, sums.attempts, decimals)


def _not_exact(sums: Sums) -> str:
    parts = [f"${format_nanos(sums.inexact_nanos)}"] if sums.inexact_nanos else []
    return " + ".join([*parts, *([f"{sums.unpriced:,} unpriced"] if sums.unpriced else [])])


# ── programs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

COUNTS: Final = ("calls", "attempts", "errors", "tokens", *KINDS)
COLUMNS: Final = ("start", "project", "by", "name", *COUNTS, "cost_usd", "not_exact_usd", "unpriced")


def record(row: Row, plan: Plan) -> dict[str, Any]:
    """A row under stable names: amounts as decimal text in dollars, instants in ISO 8601, None where there is no name."""
    start = None if row.start_us is None else local(row.start_us, plan.timezone).isoformat()
    return {"start": start, "project": row.project, "by": plan.by, "name": row.name} | _figures(row.sums)


def _figures(sums: Sums) -> dict[str, Any]:
    return {name: getattr(sums, name) for name in COUNTS} | {
        "cost_usd": format_nanos(sums.amount_nanos),
        "not_exact_usd": format_nanos(sums.inexact_nanos),
        "unpriced": sums.unpriced,
    }


def as_json(report: Report, differences: list[Difference] | None = None) -> str:
    """The report as one JSON object; `total` counts each call once, also where tags overlap."""
    plan = report.plan
    whole: dict[str, Any] = {
        "from": iso_utc(plan.from_us), "to": iso_utc(plan.to_us), "timezone": plan.timezone, "by": plan.by,
        "each": plan.each, "project": plan.project, "overlaps": report.overlaps,
        "rows": [record(row, plan) for row in report.rows], "total": _figures(report.total),
    }  # fmt: skip
    if differences is not None:
        whole["differences"] = [_difference(row) for row in differences]
    return as_text(whole)


def as_csv(report: Report, differences: list[Difference] | None = None) -> str:
    """The rows under COLUMNS, without a total; the differences alone where they were asked for."""
    if differences is not None:
        return _csv(_DIFFERENCE, [_difference(row) for row in differences])
    return _csv(COLUMNS, [record(row, report.plan) for row in report.rows])


_DIFFERENCE: Final = (
    "provider", "model", "reported", "differing", "uncomputed", "ours", "computed_usd", "reported_usd", "difference_usd",
    "counted_usd",
)  # fmt: skip


def _difference(row: Difference) -> dict[str, Any]:
    amounts = (row.computed_nanos, row.reported_nanos, row.difference_nanos, row.counted_nanos)
    counts = (row.provider, row.model, row.reported, row.differing, row.uncomputed, row.ours)
    return dict(zip(_DIFFERENCE, (*counts, *map(format_nanos, amounts)), strict=True))


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")
