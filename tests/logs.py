"""What tests of the formats of logs share: any JSON, and a record or why there is none."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from tollkeeper.importing.records import Record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)  # fmt: skip


def why(read: Callable[[], Record]) -> Record | str:
    """A record, or why there is none."""
    try:
        return read()
    except ValueError as error:
        return str(error)
