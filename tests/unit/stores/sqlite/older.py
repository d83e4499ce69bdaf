"""Ledger files of older programs: what is in them, and what becomes of one whose migration is cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
from tests.unit.stores.sqlite.disk import Disk

from tollkeeper.errors import StoreError
from tollkeeper.stores.sqlite import file


def state(path: Path) -> list[Any]:
    """Everything in a file, by table; its version first."""
    connection = apsw.Connection(str(path))
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        names = [name for name, sql in tables if sql is not None and sql.startswith("CREATE TABLE")]
        contents = [sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names]
        return [connection.pragma("user_version"), tables, contents]
    finally:
        connection.close()


def power_lost(old: Path, folder: Path) -> Iterator[tuple[Path, list[Any]]]:
    """Copies of a file whose disk stopped at each write of the migration in turn, and their state; the last one is migrated."""
    for left in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "ledger.sqlite"
        shutil.copy(old, path)
        with Disk() as disk:
            disk.left = left
            with suppress(StoreError, apsw.Error):
                file.open_writer(path).close(True)
            done = disk.left >= 0
        yield path, state(path)
        if done:
            return
