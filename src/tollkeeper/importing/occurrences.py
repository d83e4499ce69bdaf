"""How often equal lines have come so far in a file, for any number of lines in bounded memory.

A line without an id of its own gets one from its bytes and from how many equal ones stood before it. So the same file, or one
that has grown at its end, gives the same ids again. What was seen is kept in a temporary database, which SQLite holds in
memory up to CACHE_KIB and on disk beyond, and which nobody else can see.
"""

from __future__ import annotations

import hashlib
from typing import Final

import apsw

CACHE_KIB: Final = 16 * 1024
_SEEN: Final = """
INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times
"""


class Occurrences:
    """Counts equal things."""

    def __init__(self) -> None:
        self._seen: apsw.Connection | None = None

    def count(self, thing: bytes) -> int:
        """How often such a thing has come, this time included."""
        if self._seen is None:
            self._seen = apsw.Connection("")
            self._seen.execute(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB}")
            self._seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID; BEGIN")
        ((times,),) = self._seen.execute(_SEEN, (_digest(thing),)).fetchall()
        assert isinstance(times, int)
        return times

    def call_id(self, raw: bytes) -> str:
        """The id of the next line of such bytes; blanks around them do not count."""
        raw = raw.strip()
        return f"import-{_digest(raw).hex()}-{self.count(raw)}"

    def close(self) -> None:
        """Forget them."""
        if self._seen is not None:
            self._seen.close(True)


def _digest(thing: bytes) -> bytes:
    return hashlib.sha256(thing).digest()[:16]
