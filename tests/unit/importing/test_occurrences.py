"""occurrences: ids of lines that have none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.importing.occurrences import Occurrences


def ids(lines: list[bytes]) -> list[str]:
    seen = Occurrences()
    found = [seen.call_id(line) for line in lines]
    seen.close()
    return found


@given(
    st.lists(st.sampled_from([b"a", b"b", b" a\r", b'{"c": 1}']), max_size=20), st.lists(st.sampled_from([b"a", b"d"]))
)
def test_ids_follow_from_the_lines(lines: list[bytes], more: list[bytes]) -> None:
    """B2: no two lines of a file share an id, and a file that has grown gives the lines it had the ids they had."""
    found = ids(lines + more)
    assert len(set(found)) == len(found)
    assert found[: len(lines)] == ids(lines)


def test_equal_lines_are_numbered() -> None:
    """Blanks around a line do not make another one of it, and each kind is counted for itself."""
    first, other, second = ids([b"a", b"b", b"  a\r\n"])
    assert (first.rpartition("-")[2], other.rpartition("-")[2], second.rpartition("-")[2]) == ("1", "1", "2")
    assert first.rpartition("-")[0] == second.rpartition("-")[0]
    assert len(first) < 128


def test_nothing_to_close() -> None:
    """Where nothing was counted there is nothing to forget."""
    Occurrences().close()
