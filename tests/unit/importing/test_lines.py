"""lines: a file's bytes cut into numbered records, however they come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.importing import lines
from tollkeeper.importing.lines import ArrayCutter, CsvCutter, Cutter, LineCutter, Piece, read_row

CUTTERS = [LineCutter, ArrayCutter, CsvCutter]


def cut(cutter: Cutter, data: bytes, size: int) -> list[Piece]:
    pieces = [piece for at in range(0, len(data), size) for piece in cutter.feed(data[at : at + size])]
    return [*pieces, *cutter.rest()]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines(size: int) -> None:
    """Lines have the numbers that an editor shows; blank ones count and are no records; the last one needs no end."""
    found = cut(LineCutter(), b'{"a":1}\n\n  \r\n{"b":2}\r\n{"c":3}', size)
    assert [(piece.number, piece.raw.strip()) for piece in found] == [(1, b'{"a":1}'), (4, b'{"b":2}'), (5, b'{"c":3}')]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_array(size: int) -> None:
    """Elements are counted from 1, brackets in text are text."""
    found = cut(ArrayCutter(), b' [ {"a":"]}"},\n {"b":[1,{}]} ]\n', size)
    assert [(piece.number, piece.raw, piece.wrong) for piece in found] == [
        (1, b'{"a":"]}"}', None), (2, b'{"b":[1,{}]}', None),
    ]  # fmt: skip


@pytest.mark.parametrize("data", [b"[", b'[{"a":1},', b'[{"a":1}', b'[{"a":1}] {"b"', b'[{"a'])
def test_an_array_that_breaks_off(data: bytes) -> None:
    """An array that does not end, or goes on after its end, says so once."""
    assert [piece.wrong for piece in cut(ArrayCutter(), data, 5)][-1] == "the array ends in the middle"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_csv(size: int) -> None:
    """A row is an object of its head's names; quotes, commas and line ends inside quotes are text, empty fields are left out."""
    data = b'id,"text",n\r\n1,"a ""b"", c\nd",5\r\n\r\n2,,\r\nx\r\n3,"\xff",1\r\n4,a"b,1\n5,ok,"6"'
    found = cut(CsvCutter(), data, size)
    assert [(piece.number, json.loads(piece.raw)) for piece in found if piece.wrong is None] == [
        (2, {"id": "1", "text": 'a "b", c\nd', "n": "5"}), (5, {"id": "2"}),
    ]  # fmt: skip
    assert [(piece.number, piece.wrong) for piece in found if piece.wrong is not None] == [
        (6, "it has 1 columns where the head has 3"),
        (7, "it is not UTF-8"),
        (8, "a quoted field of it does not end"),
    ]


def test_a_row_that_is_not_csv() -> None:
    """A quote inside a plain field is told with its column."""
    with pytest.raises(ValueError, match="column 2 is not CSV"):
        read_row('a,b"c"d,e')
    assert read_row("") == [""]
    assert read_row(",") == ["", ""]


@pytest.mark.parametrize("cutter", CUTTERS)
def test_what_is_too_long(cutter: type[Cutter], monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: a record above the limit is held no further and told by its number; lines and rows go on after it."""
    monkeypatch.setattr(lines, "MAX_LINE", 40)
    monkeypatch.setattr("tollkeeper.json_array.MAX_EVENT", 40)
    small, long = b'{"a":1}', b'{"a":"' + b"x" * 100 + b'"}'
    if cutter is ArrayCutter:
        data = b"[" + b",".join([small, long, small]) + b"]"
    elif cutter is CsvCutter:
        data = b"\n".join([b"a", b"1", b'"' + b"x" * 20, b"x" * 30 + b'"', b"2"])
    else:
        data = b"\n".join([small, long, small])
    for size in (1, 16, 1000):
        found = cut(cutter(), data, size)
        assert any(piece.wrong is not None and "it is longer than" in piece.wrong for piece in found)
        if cutter is LineCutter:
            assert [(piece.number, piece.raw) for piece in found] == [(1, small), (2, b""), (3, small)]
    ending = LineCutter()
    assert [piece.number for piece in (*ending.feed(long), *ending.rest())] == [1]


@pytest.mark.parametrize("cutter", CUTTERS)
@given(data=st.binary(max_size=200), size=st.integers(1, 50))
def test_any_bytes(cutter: type[Cutter], data: bytes, size: int) -> None:
    """H4: whatever the bytes are, they are cut, and how they came makes no difference but to an array's end."""
    found = cut(cutter(), data, size)
    assert [piece.number for piece in found] == sorted(piece.number for piece in found)
    assert found == cut(cutter(), data, 1000)
