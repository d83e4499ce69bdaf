"""What pricing again came to, as people and programs read it."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tollkeeper.cli.render import as_text, decimals_of, grid, known_cost, safe, span_of, usd
from tollkeeper.money import format_nanos
from tollkeeper.reports import Plan
from tollkeeper.repricing import Figures, Repricing
from tollkeeper.tracker.history import Signature
from tollkeeper.values import iso_utc


def table(found: Repricing, span: Plan, signed: Signature) -> RenderableType:
    """By model: what it was, what it is at these prices, the difference; and below what is not exact, before and after."""
    total = found.total
    head = Text.assemble(("Priced again", "bold"), f"  {span_of(span)}")
    if not total.entries:
        return Group(head, Text("No entries."), *map(Text, notes(found, signed)))
    amounts = [total.was_nanos, total.now_nanos]
    decimals = decimals_of(
        amounts + [each for row in found.rows for each in (row.figures.was_nanos, row.figures.now_nanos)]
    )
    now = "would be" if found.what_if else "is"
    drawn = grid(show_footer=True)
    drawn.add_column("model", "total", overflow="fold", min_width=10, footer_style="bold")
    for name, footer in zip(("entries", "change", "was", now, "difference"), _cells(total, decimals), strict=True):
        drawn.add_column(name, footer, justify="right", no_wrap=True)
    for row in found.rows:
        cells = _cells(row.figures, decimals)
        cells[-1] = Text(str(cells[-1]), "yellow" if row.figures.difference_nanos else "")
        drawn.add_row(Text(safe(f"{row.provider}/{row.model}")), *cells)
    return Group(head, drawn, *map(Text, notes(found, signed)))


def _cells(figures: Figures, decimals: int) -> list[RenderableType]:
    difference = usd(figures.difference_nanos, decimals)
    return [
        f"{figures.entries:,}", f"{figures.changed:,}",
        known_cost(figures.was_nanos, figures.unpriced_was, figures.entries, decimals),
        known_cost(figures.now_nanos, figures.unpriced_now, figures.entries, decimals),
        f"+{difference}" if figures.difference_nanos > 0 else difference,
    ]  # fmt: skip


def notes(found: Repricing, signed: Signature) -> list[str]:
    """What the figures do not say by themselves, a line each."""
    total, lines = found.total, [f"At prices {found.price_version}."]
    if total.inexact_was_nanos or total.inexact_now_nanos:
        was, now = format_nanos(total.inexact_was_nanos), format_nanos(total.inexact_now_nanos)
        lines.append(f"Estimated or partly priced: ${was} before, ${now} after.")
    if total.unpriced_was or total.unpriced_now:
        lines.append(f"Without a price, and in no amount: {total.unpriced_was:,} before, {total.unpriced_now:,} after.")
    if total.lost:
        lines.append(f"With a cost that stays, because these prices have none for it: {total.lost:,}.")
    if found.overtaken:
        lines.append(
            f"Changed or pruned by somebody else meanwhile, and left alone: {found.overtaken:,}; run it again."
        )
    if found.what_if:
        lines.append("Nothing was written.")
    else:
        lines.append(f"Corrections booked: {total.changed:,}, signed by {safe(signed.by)}: {safe(signed.reason)}")
    return lines


def as_json(found: Repricing, span: Plan, signed: Signature) -> str:
    """The same as one JSON object: dollars as decimal text."""
    whole: dict[str, Any] = {
        "from": iso_utc(span.from_us), "to": iso_utc(span.to_us), "project": span.project, "what_if": found.what_if,
        "price_version": found.price_version, "reason": signed.reason, "by": signed.by, "overtaken": found.overtaken,
        "rows": [{"provider": row.provider, "model": row.model} | _figures(row.figures) for row in found.rows],
        "total": _figures(found.total),
    }  # fmt: skip
    return as_text(whole)


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "entries": figures.entries, "changed": figures.changed, "lost": figures.lost,
        "was_usd": format_nanos(figures.was_nanos), "now_usd": format_nanos(figures.now_nanos),
        "difference_usd": format_nanos(figures.difference_nanos),
        "not_exact_was_usd": format_nanos(figures.inexact_was_nanos),
        "not_exact_now_usd": format_nanos(figures.inexact_now_nanos),
        "unpriced_was": figures.unpriced_was, "unpriced_now": figures.unpriced_now,
    }  # fmt: skip
