"""From version 1 of the ledger's schema to this one: a file of the older program, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import json as msgspec_json
from msgspec import structs
from tests.unit.stores.sqlite.older import power_lost, state

from tollkeeper.errors import StoreCorrupt, StoreUnavailable
from tollkeeper.ledger import CELL_SUMS, FOREVER_US, Shape, cells_of, correction, spent_by, window_of
from tollkeeper.stores.opening import open_reader
from tollkeeper.stores.sqlite import file
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.corrections import corrected, current
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, HOUR_US, USD, a_hold, an_entry, booked, usd
from tollkeeper.values import Charge, Entry, Hold, Scopes, Term, Usage

NOW = len(file.MIGRATIONS)
NEW_KINDS = {"audio_seconds", "code_session"}
COLUMNS_1 = [name for name in file.COLUMNS if name not in NEW_KINDS | {"more"}]
SUMS_1 = [name for name in CELL_SUMS if name not in NEW_KINDS]
BUDGETS = (usd(USD), usd(USD, window="total", timezone="Asia/Kolkata"), usd(None, measure="tokens", window="day"))
SHAPES = [Shape(each.scope, each.measure, each.window, each.timezone) for each in BUDGETS]
FULL = Scopes(project="alpha", agent="w", session="s", user="u", key="k", tags=("x", "y"))
CHARGE = Charge(
    amount_nanos=7,
    computed_nanos=8,
    reported_nanos=7,
    status="priced",
    price_version="v1",
    terms=(Term("m", "input", 3, "2"),),
)


def entries_1() -> list[Entry]:
    """What an older program had booked: every scope, every status, a correction, entries past the cap."""
    usage = Usage(**{kind: number + 1 for number, kind in enumerate(Usage.__struct_fields__) if kind not in NEW_KINDS})
    late = an_entry("late/1", DIME, at_us=AT_US + HOUR_US)
    estimate = structs.replace(late, outcome="expired", charge=Charge(amount_nanos=3 * DIME, status="estimated"))
    return [
        an_entry("a/1", scopes=FULL, usage=usage, charge=CHARGE, tier="flex", note="n", at_us=AT_US - 40 * DAY_US),
        an_entry("b/1", None, outcome="cut", at_us=AT_US - DAY_US),
        an_entry("c/1", other=("session",), scopes=Scopes(project="alpha", session="t")),
        estimate,
        *correction(estimate, late),
        an_entry("llama3:8b/1", scopes=Scopes(project='%_"'), served="vendor/model:free", at_us=AT_US + DAY_US),
    ]


def make_1(path: Path, entries: list[Entry], holds: list[Hold], rolled: int) -> None:
    """A ledger by 0001_ledger.sql alone; cells hold the first `rolled` entries, balances all of them."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute(file.MIGRATIONS[0])
    connection.pragma("application_id", file.APPLICATION_ID)
    connection.pragma("user_version", 1)
    cells: dict[Any, Counter[str]] = {}
    balances: Counter[Any] = Counter()
    with connection:
        for number, entry in enumerate(entries):
            row = dict(zip(file.COLUMNS, file.entry_row(entry), strict=True))
            _insert(connection, "entry", {name: row[name] for name in COLUMNS_1})
            for key, sums in cells_of(entry) if number < rolled else ():
                cells.setdefault(key, Counter()).update(dict(zip(CELL_SUMS, sums, strict=True)))
            balances.update(dict(spent_by(SHAPES, entry)))
        for key, sums in cells.items():
            names = ("period", "start_us", "scope", "project", "id", "provider", "model")
            _insert(connection, "cell", dict(zip(names, key, strict=True)) | {name: sums[name] for name in SUMS_1})
        for key, spent in balances.items():
            end_us = window_of(key.shape.window, key.shape.timezone, key.start_us)[1]
            connection.execute(
                "INSERT INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*file.balance_row(key, end_us), spent)
            )
        for shape in SHAPES:
            connection.execute("INSERT INTO shape VALUES (?, ?, ?, ?)", shape)
        for hold in holds:
            doc = json.loads(msgspec_json.encode(hold))
            new = {"sent", "tier", "speed", "geo"}
            text = json.dumps({name: value for name, value in doc.items() if name not in new})
            connection.execute("INSERT INTO hold VALUES (?, ?)", (hold.id, text))
        connection.execute("UPDATE mark SET value = ? WHERE name = 'rolled'", (rolled,))
        connection.execute("UPDATE mark SET value = 41 WHERE name = 'batch'")
    connection.close()


def _insert(connection: apsw.Connection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of version 1 with entries, cells, balances, a hold and marks; the cells lack the newest entries."""
    path = tmp_path / "ledger.sqlite"
    entries = entries_1()
    make_1(path, entries, [a_hold("held/1")], rolled=len(entries) - 2)
    return path


def test_an_older_ledger_is_as_before(old: Path) -> None:
    """I5: every entry, sum, balance and mark of version 1 is there after the migration, the new kinds are 0, holds are booked."""

    async def use() -> None:
        store = SqliteStore(old, BUDGETS)
        found = await booked(store)
        assert found[:-1] == entries_1()
        assert (found[-1].id, found[-1].outcome) == ("held/1", "expired"), "its owner was dead"
        assert await store.verify() == []
        for scope in ("project", "agent", "session", "user", "key", "tag"):
            for period in ("hour", "day", "month"):
                right: dict[Any, Counter[str]] = {}
                for entry in found:
                    for key, sums in cells_of(entry):
                        if (key.scope, key.period) == (scope, period):
                            right.setdefault(key, Counter()).update(dict(zip(CELL_SUMS, sums, strict=True)))
                cells = await store.cells(scope, period, 0, FOREVER_US)  # type: ignore[arg-type]
                assert {key: dict(zip(CELL_SUMS, sums, strict=True)) for key, sums in cells} == right
                assert all(sums[CELL_SUMS.index(kind)] == 0 for _, sums in cells for kind in NEW_KINDS)
        spent = [each.spent for each in await store.standings(ALPHA, "m", AT_US)]
        assert spent == [3 * DIME, 3 * DIME + 7, 300]
        assert dict(store.query("marks"))["batch"] == 42
        await store.settle(an_entry("new/1", usage=Usage(audio_seconds=5, code_session=1)))
        await store.correct(corrected(entries_1()[0]))
        assert len(await current(store)) == 7
        assert await store.verify() == []
        await store.close()

    asyncio.run(use())


def test_a_reader_waits_for_the_migration(old: Path) -> None:
    """I5: a reader of an older file says what to do; an older program refuses a newer file. Neither changes it."""
    before = state(old)
    with pytest.raises(
        StoreUnavailable, match=f"has schema 1, this version reads {NOW}; start the gateway once to migrate it"
    ):
        open_reader(f"sqlite:///{old}")
    assert state(old) == before


def test_an_older_program(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I5: a program that knows version 1 alone refuses a migrated file and says what to do; the file stays as it is."""
    asyncio.run(SqliteStore(old, BUDGETS).close())
    after = state(old)
    monkeypatch.setattr(file, "MIGRATIONS", file.MIGRATIONS[:1])
    with pytest.raises(StoreCorrupt, match=rf"newer version \(schema {NOW}, this one knows 1\).*upgrade Tollkeeper"):
        SqliteStore(old)
    with pytest.raises(StoreCorrupt, match=rf"newer version \(schema {NOW}, this one knows 1\).*upgrade Tollkeeper"):
        open_reader(f"sqlite:///{old}")
    assert state(old) == after


def test_power_lost_at_every_write(old: Path, tmp_path: Path) -> None:
    """I5, B6: wherever the disk stops during the migration, version 1 is whole or this one is; the next start has all of it."""
    before, versions = state(old), []
    for left, (path, found) in enumerate(power_lost(old, tmp_path / "copy")):
        versions.append(found[0])
        if found[0] == 1:
            assert found == before
        if left % 5 == 0 or versions[-2:] == [1, NOW]:

            async def use(path: Path = path) -> None:
                store = SqliteStore(path, BUDGETS)
                assert (await booked(store))[:-1] == entries_1()
                assert await store.verify() == []
                await store.close()

            asyncio.run(use())
    assert set(versions) == {1, NOW}
    assert versions == sorted(versions)
    assert len(versions) > 20
