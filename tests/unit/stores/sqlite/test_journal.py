"""A process's journal: adoption, what its owner reads from it to carry it on, and what it keeps."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import structs

import tollkeeper
from tollkeeper.errors import Conflict, StoreCorrupt, StoreOwned, StoreUnavailable
from tollkeeper.ledger import CELL_SUMS, CellKey, cells_of
from tollkeeper.stores import Cell
from tollkeeper.stores.sqlite.journal import Journal, orphans, read_journals
from tollkeeper.stores.sqlite.news import Placed
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, KEEP_ALL, a_hold, an_entry, booked, month_of, total
from tollkeeper.values import Entry, Scopes

DROP = structs.replace(KEEP_ALL, entries_s=0)
MONTH_US = 40 * DAY_US  # from AT_US: another month
ADOPTER = """
import sys
from pathlib import Path
from tollkeeper.stores.sqlite.journal import Journal
sys.stdin.readline()
journal = Journal.adopt(Path(sys.argv[1]))
print(journal.path, flush=True)
sys.stdin.read()
"""


def of(project: str, id: str, nanos: int = DIME, at_us: int = AT_US) -> Entry:
    return an_entry(id, nanos, at_us=at_us, scopes=Scopes(project=project, agent="w", key="k", tags=("x",)))


async def left(folder: Path, *entries: Entry) -> Path:
    """A journal with entries that nobody has."""
    journal = Journal.adopt(folder)
    for entry in entries:
        await journal.settle(entry)
    await journal.close()
    return journal.path


def summed(cells: Iterable[Cell]) -> dict[CellKey, Counter[str]]:
    """Cells added up by key, without those that are zero."""
    found: dict[CellKey, Counter[str]] = {}
    for key, sums in cells:
        found.setdefault(key, Counter()).update(dict(zip(CELL_SUMS, sums, strict=True)))
    return {key: sums for key, sums in found.items() if any(sums.values())}


# ── adoption ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_journal(tmp_path: Path) -> None:
    """An empty folder, or none yet, gets a journal: its name is its id, nothing is in it, and it is owned."""
    journal = Journal.adopt(tmp_path / "journals")
    assert journal.path == tmp_path / "journals" / f"{journal.id}.sqlite"
    assert len(journal.id) == 16
    assert (journal.last, journal.rows(0, 9, 9), journal.projects(), list(journal.before())) == (0, [], {}, [])
    with pytest.raises(StoreOwned, match=f"process {os.getpid()}"):
        Journal.open(journal.path)
    await journal.close()


async def test_a_free_journal_is_adopted(tmp_path: Path) -> None:
    """A journal that nobody has is used again, with its id and its entries; one that is in use gets another beside it."""
    path = await left(tmp_path, an_entry("a/1"))
    first, second = Journal.adopt(tmp_path), Journal.adopt(tmp_path)
    assert (first.path, first.last) == (path, 1)
    assert second.id != first.id
    assert orphans(tmp_path, first.path) == []
    await second.close()
    assert orphans(tmp_path, first.path) == [second.path]
    assert orphans(tmp_path, second.path) == []
    await first.close()
    assert sorted(orphans(tmp_path, tmp_path / "none")) == sorted([first.path, second.path])


async def test_holds_of_a_dead_owner(tmp_path: Path) -> None:
    """C2: what was held by the owner before is booked at its estimate when the journal is adopted, and stands among its rows."""
    journal = Journal.adopt(tmp_path)
    await journal.reserve(a_hold("a/1"))
    await journal.reserve(a_hold("b/1"))
    await journal.void("b/1")
    assert [hold.id for hold in await journal.live()] == ["a/1"]
    await journal.close()
    told: Placed = []
    journal = Journal.adopt(tmp_path, on_booked=told.extend)
    assert await journal.live() == []
    assert [(seq, entry.id, entry.outcome) for seq, entry in journal.rows(0, journal.last, 9)] == [
        (1, "a/1", "expired")
    ]
    assert told == []
    assert await journal.settle(an_entry("a/1", 7)) == "late"
    assert told == journal.rows(1, journal.last, 9)
    assert [entry.sign for _, entry in told] == [-1, 1]
    await journal.close()


def test_threads_adopt_at_once(tmp_path: Path) -> None:
    """Eight adoptions at once of a folder with free journals: nobody gets the same, each free one has an owner again."""
    before = [asyncio.run(left(tmp_path)) for _ in range(1)]
    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(lambda _: Journal.adopt(tmp_path), range(8)))
    assert len({journal.id for journal in journals}) == 8
    assert set(before) <= {journal.path for journal in journals}
    for journal in journals:
        asyncio.run(journal.close())


def test_processes_adopt_at_once(tmp_path: Path) -> None:
    """Processes that adopt at the same moment never get the same journal; when they are killed all are free again."""
    environ = os.environ | {"PYTHONPATH": f"{Path(tollkeeper.__file__).parents[1]}"}
    seen: set[Path] = set()
    for _ in range(2):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", ADOPTER, str(tmp_path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
            )
            for _ in range(4)
        ]  # fmt: skip
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        paths = {Path(worker.stdout.readline().strip()) for worker in workers if worker.stdout is not None}
        assert len(paths) == 4
        assert orphans(tmp_path, tmp_path) == sorted(seen - paths)
        for worker in workers:
            worker.kill()
            worker.communicate()
        seen |= paths
    assert orphans(tmp_path, tmp_path) == sorted(seen)


# ── what is no journal, or another one ───────────────────────────────────────────────────────────────────────────────


def _ledger(path: Path) -> Path:
    async def fill() -> None:
        store = SqliteStore(path.with_name("0123456789abcdef.sqlite"))
        await store.settle(an_entry("a/1"))
        await store.close()

    asyncio.run(fill())
    path.unlink()
    return path.with_name("0123456789abcdef.sqlite")


def _damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:5000])
    return path


def _renamed(name: str) -> Callable[[Path], Path]:
    return lambda path: path.rename(path.with_name(name))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "renamed": (_renamed("0000000000000001.sqlite"), "is the journal [0-9a-f]{16}: a copy, or renamed"),
    "another name": (_renamed("copy.sqlite"), "is not named as a journal"),
    "a ledger": (_ledger, "is a ledger and no journal"),
    "damaged": (_damaged, "cannot be used as a ledger"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_not_the_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """B6: a journal under another name, damaged, or a ledger that is none is refused in one line, passed over, never changed."""
    spoil, message = BAD[what]
    path = spoil(asyncio.run(left(tmp_path, an_entry("a/1"))))
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match=message) as caught:
        Journal.open(path)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "tollkeeper"):
        journal = Journal.adopt(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [f"a journal is passed over: {caught.value}"]
    assert journal.path != path
    assert journal.last == 0
    asyncio.run(journal.close())
    assert path.read_bytes() == before


def test_a_copy_beside_its_original(tmp_path: Path) -> None:
    """B2: a copy of a journal under another name would count everything twice: it is refused, the original is adopted."""
    path = asyncio.run(left(tmp_path, an_entry("a/1")))
    shutil.copy(path, tmp_path / "0000000000000001.sqlite")
    journal = Journal.adopt(tmp_path)
    assert (journal.path, journal.last) == (path, 1)
    asyncio.run(journal.close())


def test_an_adoption_that_was_cut_off(tmp_path: Path) -> None:
    """B6: a file that was made and never became a journal, with nothing in it, becomes the one of its name."""
    path = tmp_path / "00000000000000aa.sqlite"
    path.touch()
    for _ in range(2):
        journal = Journal.adopt(tmp_path)
        assert journal.id == "00000000000000aa"
        asyncio.run(journal.close())
    asyncio.run(SqliteStore(tmp_path / "00000000000000ab.sqlite").close())
    asyncio.run(Journal.open(tmp_path / "00000000000000ab.sqlite").close())


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_rows_by_page(tmp_path: Path) -> None:
    """Rows come by place, within bounds, of all projects or of one; what is told of them is the same."""
    told: Placed = []
    journal = Journal.adopt(tmp_path, on_booked=told.extend)
    for number in range(1, 31):
        await journal.settle(of(f"p{number % 3}", f"{number}/1", number))
    await journal.correct(corrected(of("p0", "3/1", 3)))
    assert told == journal.rows(0, journal.last, 1000)
    assert [seq for seq, _ in told] == list(range(1, 33))
    assert journal.rows(5, 20, 7) == told[5:12]
    assert journal.rows(18, 20, 7) == told[18:20]
    assert journal.rows(32, 99, 7) == []
    assert journal.projects() == {"p0": 32, "p1": 28, "p2": 29}
    mine = [pair for pair in told if pair[1].scopes.project == "p1"]
    assert journal.project_rows("p1", 0, journal.last, 1000) == mine
    assert journal.project_rows("p1", mine[2][0], mine[7][0], 3) == mine[3:6]
    assert journal.project_rows("other", 0, journal.last, 9) == []
    assert await journal.entry("p1", "1/1") == mine[0][1]
    assert set(await journal.known([("p1", "1/1"), ("p1", "2/1")])) == {("p1", "1/1")}
    with pytest.raises(Conflict):
        await journal.settle(of("p1", "1/1", 99))
    await journal.close()
    with pytest.raises(StoreUnavailable):
        journal.rows(0, 9, 9)


async def test_rows_from_other_threads(tmp_path: Path) -> None:
    """Two threads that read while entries are booked see each up to `last` in its place, and no other."""
    journal = Journal.adopt(tmp_path)
    done = asyncio.Event()

    def read() -> Placed:
        found: Placed = []
        while not done.is_set() or len(found) < 600:
            after = len(found)
            found += journal.rows(after, journal.last, 50)
        return found

    readers = [asyncio.create_task(asyncio.to_thread(read)) for _ in range(2)]
    for turn in range(6):
        await asyncio.gather(*(journal.settle(an_entry(f"{turn}-{number}/1")) for number in range(100)))
        assert await journal.settle(an_entry(f"{turn}-7/1")) == "repeated"
    done.set()
    for found in await asyncio.gather(*readers):
        assert found == journal.rows(0, 600, 1000)
        assert [seq for seq, _ in found] == list(range(1, 601))
    await journal.close()


# ── retention ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_not_applied_stays(tmp_path: Path) -> None:
    """B4: a prune drops nothing that stands above the place up to which rows are applied, however old it is."""
    journal = Journal.adopt(tmp_path)
    for number in range(1, 7):
        await journal.settle(an_entry(f"{number}/1"))
    assert await journal.prune(AT_US + MONTH_US, DROP, 0) == 0
    assert await journal.prune(AT_US + MONTH_US, DROP, 4) == 4
    assert [seq for seq, _ in journal.rows(0, journal.last, 9)] == [5, 6]
    assert await journal.prune(AT_US + MONTH_US, DROP, journal.last) == 2
    assert (journal.rows(0, journal.last, 9), journal.projects(), journal.last) == ([], {}, 6)
    await journal.close()
    journal = Journal.adopt(tmp_path)
    assert journal.last == 6, "also for the next owner: a cursor that stands at 6 is right"
    await journal.settle(an_entry("new/1"))
    assert [seq for seq, _ in journal.rows(0, journal.last, 9)] == [7]
    await journal.close()


async def test_rows_and_what_was_before_are_all(tmp_path: Path) -> None:
    """B4, B7: cells of before and the cells of all rows are those of every entry, after any prune; project by project."""
    journal = Journal.adopt(tmp_path)
    every: list[Entry] = []

    async def book(*entries: Entry) -> None:
        for entry in entries:
            assert await journal.settle(entry) == "booked"
            every.append(entry)

    async def check() -> list[Cell]:
        before = list(journal.before())
        rows = (cell for _, entry in journal.rows(0, journal.last, 1000) for cell in cells_of(entry))
        assert summed([*before, *rows]) == summed(cell for entry in every for cell in cells_of(entry))
        projects = [key.project for key, _ in before]
        assert projects == sorted(projects)
        return before

    await book(*(of(f"p{number % 2}", f"{number}/1", number) for number in range(6)))
    assert await check() == []
    right = corrected(every[1])
    await journal.correct(right)
    every += [structs.replace(every[1], sign=-1), right]
    for applied in (0, 3, 7, 7):  # 7: between the two rows of the correction
        await journal.prune(AT_US + MONTH_US, DROP, applied)
        assert (await check() == []) == (applied == 0)
    await book(of("p0", "late/1"), of("p2", "new/1", at_us=AT_US + MONTH_US))
    await check()
    await journal.prune(AT_US + MONTH_US, DROP, journal.last)
    before = await check()
    assert {key.project for key, _ in before} == {"", "p0", "p1"}
    await journal.prune(AT_US + 2 * MONTH_US, DROP, journal.last)
    assert {key.project for key, _ in await check()} == {"", "p0", "p1", "p2"}
    assert journal.rows(0, journal.last, 9) == []
    await journal.close()


async def test_sums_outlive_their_retention_nowhere(tmp_path: Path) -> None:
    """Cells whose own retention is over are not among those of before, also where a late entry made one anew."""
    journal = Journal.adopt(tmp_path)
    await journal.settle(an_entry("a/1"))
    keep = structs.replace(DROP, hour_s=0)
    await journal.prune(AT_US + MONTH_US, keep, 1)
    await journal.settle(an_entry("late/1"))
    await journal.prune(AT_US + MONTH_US, DROP, 1)
    assert await journal.kept_since() > AT_US
    assert {(key.period, sums[0]) for key, sums in journal.before()} == {("day", 1), ("month", 1)}
    await journal.close()


# ── looking on ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reading_every_journal(tmp_path: Path) -> None:
    """B7: all journals of a folder can be read and verified, also those that have an owner; a damaged one is told, not left out."""
    await left(tmp_path, an_entry("a/1"), an_entry("b/1"))
    first, second = Journal.adopt(tmp_path), Journal.adopt(tmp_path)
    await second.settle(an_entry("c/1"))
    readers = read_journals(tmp_path)
    ids = [[entry.id for entry in await booked(reader)] for reader in readers]
    assert sorted(ids) == [["a/1", "b/1"], ["c/1"]]
    for reader in readers:
        assert await reader.verify() == []
        assert total(await month_of(reader), "calls") == len(await booked(reader))
        await reader.close()
    for journal in (first, second):
        await journal.close()
    (tmp_path / "00000000000000ff.sqlite").write_bytes(b"dear diary " * 1000)
    with pytest.raises(StoreCorrupt, match="00000000000000ff"):
        read_journals(tmp_path)
    assert read_journals(tmp_path / "none") == []
