"""tollkeeper.stores.turns: a turn that nobody ends is the next one's; what is done is done until then, also after a restart."""

from __future__ import annotations

from pathlib import Path

from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.stores.turns import Turns
from tollkeeper.testing.samples import AT_US, KEEP_ALL


def test_a_turn_that_nobody_ends() -> None:
    """G2: who has the turn and dies with it loses it, so that the alert is not lost."""
    turns = Turns()
    assert turns.claim("a", AT_US, 100)
    assert not turns.claim("a", AT_US + 99, 100)
    assert turns.claim("a", AT_US + 100, 100)
    turns.done("a", AT_US + 500)
    assert [turns.claim("a", AT_US + after, 100) for after in (499, 500, 501)] == [False, True, False]


async def test_after_a_restart(tmp_path: Path) -> None:
    """G2: the embedded ledger remembers what was done, not who was at it, and forgets what is over."""
    path = tmp_path / "ledger.sqlite"
    store = SqliteStore(path)
    assert await store.claim("done", AT_US, 100)
    await store.done("done", AT_US + 500)
    assert await store.claim("begun", AT_US, 100)
    await store.close()
    store = SqliteStore(path)
    assert [await store.claim(each, AT_US, 100) for each in ("done", "begun")] == [False, True]
    await store.prune(AT_US + 501, KEEP_ALL)
    await store.close()
    store = SqliteStore(path)
    assert await store.claim("done", AT_US, 100)
    await store.close()
