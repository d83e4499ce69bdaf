"""Entries as Redis keeps them: blocks of one journal's rows, packed.

A block is MessagePack, deflated by zlib: [applied at (UTC ms), journal, [[seq, entry], …]]. Its entries are those that were
counted: a row that was a repeat is not in it, and one that corrected an estimate is there with the reversal before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tollkeeper.values import Entry


class Block(msgspec.Struct, array_like=True, frozen=True):
    applied_ms: int
    journal: str
    rows: tuple[tuple[int, Entry], ...]


class Counted(NamedTuple):
    """An entry as it was counted, and the journal's row that it came from."""

    seq: int
    entry: Entry


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Block)


def pack(applied_ms: int, journal: str, rows: Sequence[Counted]) -> bytes:
    """A block's bytes."""
    return zlib.compress(_encode((applied_ms, journal, rows)), 1)


def unpack(data: bytes) -> Block:
    """A block back. Raises ValueError for what is none."""
    try:
        return _decoder.decode(zlib.decompress(data))
    except (zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"not a block of entries: {error}") from None
