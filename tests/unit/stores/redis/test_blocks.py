"""tollkeeper.stores.redis.blocks: entries come out of a block as they went in, and what is no block is told."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.stores.redis.blocks import Counted, pack, unpack
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.samples import DIME, an_entry
from tollkeeper.values import Scopes


@given(st.text(min_size=1, max_size=40), st.lists(st.none() | st.integers(0, 2**53 - 1), max_size=5))
def test_there_and_back(name: str, amounts: list[int | None]) -> None:
    """An unknown amount stays unknown, 0 stays 0, names stay as they are."""
    scopes = Scopes(project="alpha", agent=name, tags=(name,))
    rows = [Counted(seq, an_entry(f"{seq}/1", nanos, scopes=scopes)) for seq, nanos in enumerate(amounts, 1)]
    block = unpack(pack(123, "j", rows))
    assert (block.applied_ms, block.journal, list(block.rows)) == (123, "j", rows)


def test_corrections_and_size() -> None:
    """A reversal and what takes its place keep sign, revision and who asked; a hundred entries are small."""
    pair = [Counted(2, corrected(an_entry("a/1"))), Counted(2, an_entry("a/1"))]
    assert list(unpack(pack(1, "j", pair)).rows) == pair
    many = pack(1, "j", [Counted(seq, an_entry(f"{seq}/1", DIME + seq)) for seq in range(100)])
    assert len(many) < 100 * 60


@pytest.mark.parametrize(
    "data", [b"", b"no block", zlib.compress(b"no block"), zlib.compress(b"\x93\x01\xa1j\x90")[:-3]]
)
def test_what_is_none(data: bytes) -> None:
    """B6: damaged data are an error that says so, never half of a block."""
    with pytest.raises(ValueError, match="not a block of entries"):
        unpack(data)
