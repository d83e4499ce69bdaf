"""A figure beside nginx's and its aim, and the table of all of them: Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One measured value. Where `at_most` is False, more is better."""

    what: str
    value: float
    unit: str
    nginx: float | None = None
    aim: float | None = None
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Whether it reached its aim; if not, how many times the aim it is."""
        if self.aim is None:
            return ""
        met = self.value <= self.aim if self.at_most else self.value >= self.aim
        return "met" if met else f"missed: {shown(self.value / self.aim)} × aim"

    @property
    def row(self) -> tuple[str, ...]:
        sign = "" if self.aim is None else "≤ " if self.at_most else "≥ "
        return (self.what, f"{shown(self.value)} {self.unit}", shown(self.nginx), sign + shown(self.aim), self.verdict)


HEAD: Final = ("figure", "here", "nginx", "aim", "result")


def shown(value: float | None) -> str:
    """Three digits or all whole ones."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Table:
    """Prints rows as they come, in columns of fixed width."""

    _widths: Final = (52, 12, 8, 8, 18)

    def __init__(self) -> None:
        self._line(HEAD)
        self._line(
            tuple("-" * width if at in (0, 4) else "-" * (width - 1) + ":" for at, width in enumerate(self._widths))
        )

    def add(self, figures: Iterable[Figure]) -> None:
        for figure in figures:
            self._line(figure.row)

    def _line(self, cells: tuple[str, ...]) -> None:
        words = [
            cell.ljust(width) if at in (0, 4) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        ]
        print("| " + " | ".join(words) + " |", flush=True)
