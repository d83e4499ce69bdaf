"""A file's bytes, piece by piece, cut into numbered records: JSON lines, the elements of a JSON array, rows of CSV.

Whatever comes, at most MAX_LINE bytes are held: a longer record is passed over to its end and comes out as a piece that says
what is wrong with it. Bytes are not decoded here but for CSV, whose rows come out as JSON objects of text.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

import msgspec

from tollkeeper.errors import StreamBroken
from tollkeeper.json_array import ArraySplitter
from tollkeeper.sse import MAX_EVENT

MAX_LINE: Final = MAX_EVENT
"""Bytes of one record: what a response may have anywhere in this program."""
_TOO_LONG: Final = f"it is longer than {MAX_LINE >> 20} MiB"
_FIELD: Final = re.compile(r'(?:"((?:[^"]+|"")*)"|([^,"]*))(,|\Z)')


class Piece(NamedTuple):
    """One record: its bytes, or why there are none."""

    number: int  #: of the line it starts on, or of the array's element; from 1
    raw: bytes
    wrong: str | None = None


class Cutter(Protocol):
    """Cuts one file."""

    def feed(self, chunk: bytes) -> list[Piece]:
        """The records that `chunk` completes."""
        ...

    def rest(self) -> list[Piece]:
        """The bytes are over: a last record without its end."""
        ...


class LineCutter:
    """JSON lines. Blank lines have a number and are no records."""

    def __init__(self) -> None:
        self._held = b""
        self._long = False  # the line under way is passed over
        self._number = 0

    def feed(self, chunk: bytes) -> list[Piece]:
        return [piece for piece in self.lines(chunk) if piece.raw.strip() or piece.wrong]

    def lines(self, chunk: bytes) -> list[Piece]:
        """Every line that `chunk` ends, blank ones too, each with what it ends with."""
        first, *others = chunk.split(b"\n")
        if not others:
            self._keep(first)
            return []
        pieces = [self._piece(self._held + first)]
        pieces += map(self._piece, others[:-1])
        self._held = b""
        self._keep(others[-1])
        return pieces

    def rest(self) -> list[Piece]:
        held, self._held = self._held, b""
        return [self._piece(held)] if held.strip() or self._long else []

    def _piece(self, line: bytes) -> Piece:
        self._number += 1
        is_long, self._long = self._long or len(line) > MAX_LINE, False
        return Piece(self._number, b"", _TOO_LONG) if is_long else Piece(self._number, line)

    def _keep(self, part: bytes) -> None:
        self._held += part
        if len(self._held) > MAX_LINE:
            self._held, self._long = b"", True


class ArrayCutter:
    """A JSON array's elements. After one that is too long nothing can be told apart any more."""

    def __init__(self) -> None:
        self._splitter = ArraySplitter()
        self._number = 0
        self._broken = self._ended = False

    def feed(self, chunk: bytes) -> list[Piece]:
        if self._broken:
            return []
        try:
            elements = self._splitter.feed(chunk)
        except StreamBroken:
            self._broken = True
            return [self._next(b"", f"{_TOO_LONG}, and all after it is lost")]
        return [
            self._next(element.data) if len(element.data) <= MAX_LINE else self._next(b"", _TOO_LONG)
            for element in elements
            if not self._is_end(element.data)
        ]

    def rest(self) -> list[Piece]:
        rest = self._splitter.rest().strip()
        if self._broken or (self._ended and not rest):
            return []
        return [self._next(rest, "the array ends in the middle")]

    def _is_end(self, data: bytes) -> bool:
        self._ended = self._ended or data == b"]"
        return data == b"]"

    def _next(self, raw: bytes, wrong: str | None = None) -> Piece:
        self._number += 1
        return Piece(self._number, raw, wrong)


class CsvCutter:
    """Rows of CSV with a head, as JSON objects of text; an empty field is left out. A row may go over several lines."""

    def __init__(self) -> None:
        self._lines = LineCutter()
        self._row = bytearray()  # lines of a row whose last field has not ended
        self._open = False
        self._start = 0
        self._head: list[str] | None = None

    def feed(self, chunk: bytes) -> list[Piece]:
        return [piece for line in self._lines.lines(chunk) if (piece := self._line(line)) is not None]

    def rest(self) -> list[Piece]:
        pieces = [piece for line in self._lines.rest() if (piece := self._line(line)) is not None]
        return [*pieces, Piece(self._start, b"", "a quoted field of it does not end")] if self._open else pieces

    def _line(self, line: Piece) -> Piece | None:
        if not self._open:
            self._start = line.number
        if line.wrong is not None or len(self._row) + len(line.raw) > MAX_LINE:
            self._row.clear()
            self._open = False
            return Piece(self._start, b"", _TOO_LONG)
        self._row += line.raw
        self._open ^= line.raw.count(b'"') % 2 == 1
        if self._open:
            self._row += b"\n"
            return None
        row = bytes(self._row)
        self._row.clear()
        return self._read(row) if row.strip() else None

    def _read(self, row: bytes) -> Piece | None:
        try:
            fields = read_row(row.rstrip(b"\r").decode())
        except UnicodeDecodeError:
            return Piece(self._start, b"", "it is not UTF-8")
        except ValueError as error:
            return Piece(self._start, b"", str(error))
        if self._head is None:
            self._head = fields
            return None
        if len(fields) != len(self._head):
            return Piece(self._start, b"", f"it has {len(fields)} columns where the head has {len(self._head)}")
        named = zip(self._head, fields, strict=True)
        return Piece(self._start, msgspec.json.encode({name: field for name, field in named if field}))


def read_row(text: str) -> list[str]:
    """The fields of a row. Raises ValueError where a quote stands in a field that is not quoted."""
    fields, at, more = list[str](), 0, True
    while more:
        found = _FIELD.match(text, at)
        if found is None:
            raise ValueError(f"column {len(fields) + 1} is not CSV: a quote stands where none may")
        quoted, plain, comma = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at, more = found.end(), bool(comma)
    return fields
