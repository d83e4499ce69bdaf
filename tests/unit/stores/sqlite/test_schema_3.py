"""From version 2 of the ledger's schema to version 3: the seq of the newest entry becomes a mark."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest
from tests.unit.stores.sqlite.older import power_lost, state

from tollkeeper.stores.sqlite import file
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import AT_US, DAY_US, a_hold, an_entry, booked
from tollkeeper.values import Entry

ENTRIES = [an_entry(f"{number}/1", at_us=AT_US + number * DAY_US) for number in range(5)]


def make_2(path: Path, entries: list[Entry]) -> None:
    """A ledger by the first two migrations, with entries that its cells do not have yet, and a hold."""
    columns = ", ".join(file.COLUMNS)
    marks = ", ".join("?" * len(file.COLUMNS))
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    with connection:
        for migration in file.MIGRATIONS[:2]:
            connection.execute(migration)
        connection.pragma("application_id", file.APPLICATION_ID)
        connection.pragma("user_version", 2)
        for entry in entries:
            row = file.entry_row(entry)
            connection.execute(f"INSERT INTO entry ({columns}) VALUES ({marks})", row)
        hold = a_hold("held/1")
        connection.execute("INSERT INTO hold VALUES (?, ?)", (hold.id, file.encode(hold).decode()))
    connection.close()


@pytest.mark.parametrize("entries", [[], ENTRIES])
def test_a_ledger_of_version_2(tmp_path: Path, entries: list[Entry]) -> None:
    """I5: a file of version 2, empty or not, has every entry and sum after the migration, and new entries behind them."""
    path = tmp_path / "ledger.sqlite"
    make_2(path, entries)

    async def use() -> None:
        store = SqliteStore(path)
        assert (await booked(store))[:-1] == entries
        await store.settle(an_entry("new/1"))
        assert dict(store.query("marks"))["last"] == len(entries) + 2, "the hold of the dead owner is booked too"
        assert await store.verify() == []
        await store.close()

    asyncio.run(use())


def test_power_lost_at_every_write(tmp_path: Path) -> None:
    """I5, B6: wherever the disk stops during the migration, version 2 is whole or version 3 is with its mark."""
    old = tmp_path / "ledger.sqlite"
    make_2(old, ENTRIES)
    before, versions = state(old), []
    for path, found in power_lost(old, tmp_path / "copy"):
        versions.append(found[0])
        if found[0] == 2:
            assert found == before
        else:
            connection = apsw.Connection(str(path))
            assert dict(connection.execute("SELECT name, value FROM mark").fetchall())["last"] == len(ENTRIES)
            connection.close()
    assert versions == sorted(versions)
    assert set(versions) == {2, len(file.MIGRATIONS)}
    assert len(versions) > 3
