"""The ledger's file: who owns it, what is not a ledger, migrations, and rows."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.errors import StoreCorrupt, StoreError, StoreOwned, StoreUnavailable
from tollkeeper.stores.opening import open_reader, open_store
from tollkeeper.stores.sqlite import file
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import AT_US, USD, a_hold, an_entry, booked, standing, usd
from tollkeeper.values import KINDS, Charge, Entry, Part, Scopes, Term, Usage

OWNER = """
import sys
from tollkeeper.stores.opening import open_store
store = open_store(sys.argv[1])
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Path:
    """The file of a ledger with entries, balances and a hold, closed."""

    async def fill() -> None:
        store = SqliteStore(path, [usd(USD)])
        await asyncio.gather(*(store.settle(an_entry(f"a{number}/1", 1)) for number in range(300)))
        await store.reserve(a_hold("held/1"))
        await store.close()

    asyncio.run(fill())
    return path


def spent(path: Path) -> int:
    """What a ledger says that it has spent, when it agrees with itself."""

    async def ask() -> int:
        store = SqliteStore(path, [usd(USD)])
        assert await store.verify() == []
        amount = (await standing(store)).spent
        await store.close()
        return amount

    return asyncio.run(ask())


# ── one owner ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_process_is_refused(ledger: Path) -> None:
    """A ledger that another process owns is refused with its pid; when that process is killed the ledger is free."""
    url = f"sqlite:///{ledger}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(StoreOwned, match=rf"in use by process {owner.pid};.*another file"):
            open_store(url)
        reader = open_reader(url)
        assert len(asyncio.run(booked(reader))) == 301
        asyncio.run(reader.close())
        owner.kill()
    asyncio.run(open_store(url).close())


def test_a_second_name_is_refused(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file by another name, or opened twice by one process, is refused all the same."""
    store = SqliteStore(ledger)
    link = ledger.with_name("link.sqlite")
    link.symlink_to(ledger)
    monkeypatch.chdir(ledger.parent)
    for name in (ledger, link, Path(ledger.name)):
        with pytest.raises(StoreOwned, match=f"process {os.getpid()}"):
            SqliteStore(name)
    asyncio.run(store.close())


# ── what is not a ledger ─────────────────────────────────────────────────────────────────────────────────────────────


def _another_program(path: Path) -> None:
    path.unlink()
    with apsw.Connection(str(path)) as other:
        other.execute("CREATE TABLE mine (a); INSERT INTO mine VALUES (1)")
    other.close()


def _newer(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.pragma("user_version", len(file.MIGRATIONS) + 1)
    other.close()


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a database": (lambda path: path.write_bytes(b"dear diary " * 1000), "cannot be used as a ledger"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "cannot be used as a ledger"),
    "another program's": (_another_program, "another program's database"),
    "newer": (_newer, "written by a newer version.*upgrade"),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "cannot be used as a ledger"),
    "a page less": (lambda path: os.truncate(path, path.stat().st_size - 4096), "cannot be used as a ledger"),
    "its head only": (lambda path: os.truncate(path, 100), "cannot be used as a ledger"),
    "part of a page": (lambda path: os.truncate(path, 4096 + 17), "cannot be used as a ledger"),
    "garbage behind its head": (
        lambda path: path.write_bytes(path.read_bytes()[:100] + random.Random(1).randbytes(path.stat().st_size - 100)),
        "cannot be used as a ledger",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_is_no_ledger(ledger: Path, name: str) -> None:
    """B6: a file that is not a ledger, is damaged or newer gives one clear line; not a byte of it is changed or gone."""
    spoil, message = UNUSABLE[name]
    spoil(ledger)
    before = ledger.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=message) as caught:
            SqliteStore(ledger)
        assert "\n" not in str(caught.value)
        assert str(ledger) in str(caught.value)
    assert ledger.read_bytes() == before
    with pytest.raises(StoreError):
        open_reader(f"sqlite:///{ledger}")
    assert ledger.read_bytes() == before


def test_a_damaged_page(ledger: Path) -> None:
    """B6: whichever page is damaged, the ledger opens and says what it can, or an error of ours says why not."""
    whole = ledger.read_bytes()
    pages = len(whole) // 4096
    assert pages > 20
    told = 0
    for page in range(pages):
        ledger.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        for rest in ("-wal", "-shm"):
            Path(f"{ledger}{rest}").unlink(missing_ok=True)

        async def use() -> None:
            store = SqliteStore(ledger, [usd(USD)])
            try:
                await store.settle(an_entry("new/1"))
                await booked(store)
                assert await store.verify() == []
            finally:
                await store.close()

        try:
            asyncio.run(use())
        except (StoreError, AssertionError):
            told += 1
        assert ledger.exists()
    assert told > pages // 2


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    """A file without a byte, as touch makes it, is a new ledger."""
    path.touch()
    assert spent(path) == 0


# ── migrations ───────────────────────────────────────────────────────────────────────────────────────────────────────

NEXT = "CREATE TABLE extra (a INTEGER) STRICT; INSERT INTO extra SELECT count(*) FROM entry;"


def test_an_older_ledger_is_migrated_in_place(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I5: a ledger of the version before gets what is new, and keeps what it had; readers wait for its owner to do so."""
    monkeypatch.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, NEXT))
    with pytest.raises(StoreUnavailable, match="start the gateway once to migrate it"):
        open_reader(f"sqlite:///{ledger}")
    assert spent(ledger) == 300 + a_hold("held/1").quote_nanos  # type: ignore[operator]
    with apsw.Connection(str(ledger)) as other:
        assert other.pragma("user_version") == len(file.MIGRATIONS)
        assert other.execute("SELECT a FROM extra").fetchall() == [(300,)]
    other.close()


@pytest.mark.parametrize("bad", ["CREATE TABLE entry (a)", "INSERT INTO nowhere VALUES (1)", "nonsense"])
def test_a_failing_migration_leaves_the_old_version(ledger: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """I5: a migration that fails half-way leaves the old version whole; the version that wrote it opens it again."""
    with monkeypatch.context() as patched:
        patched.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, NEXT, f"DELETE FROM entry; {bad}"))
        with pytest.raises(StoreCorrupt, match="nothing was deleted"):
            SqliteStore(ledger)
    other = apsw.Connection(str(ledger))
    assert other.pragma("user_version") == len(file.MIGRATIONS)
    assert other.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'extra'").fetchall() == [(0,)]
    assert other.execute("SELECT count(*) FROM entry").fetchall() == [(300,)]
    other.close()
    assert spent(ledger) == 300 + USD // 10


# ── its folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere: for a moment be nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_cannot_be_written(ledger: Path, there: bool) -> None:
    """I2: a read-only folder is told as that, whether or not it has a ledger; nothing in it changes."""
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        folder = Path(top, "data")
        folder.mkdir()
        if there:
            Path(folder, "ledger.sqlite").write_bytes(ledger.read_bytes())
        folder.chmod(0o555)
        before = sorted(path.name for path in folder.iterdir())
        with unprivileged(), pytest.raises(StoreUnavailable, match="name a folder that can be written"):
            SqliteStore(folder / "ledger.sqlite")
        assert sorted(path.name for path in folder.iterdir()) == before
        folder.chmod(0o755)


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    """I2: a data folder whose name is a file's is told as that; a folder in the place of the ledger too."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="cannot write in"):
        SqliteStore(tmp_path / "file" / "ledger.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        SqliteStore(tmp_path / "folder")


def test_the_folder_is_made(tmp_path: Path) -> None:
    """A data folder that is not there yet is made."""
    assert spent(tmp_path / "new" / "data" / "ledger.sqlite") == 0


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some = st.none() | texts
counts = st.integers(0, 2**53)
entries = st.builds(
    Entry, id=texts, call=texts, at_us=st.integers(0, 2**53), attempt=counts, calls=st.sampled_from([0, 1]),
    revision=counts, sign=st.sampled_from([1, -1]), dialect=texts, provider=texts, model=texts, served=texts, tier=some,
    outcome=st.sampled_from(["ok", "error", "cut", "left", "expired"]), http_status=st.none() | counts, note=some,
    latency_ms=st.none() | counts, speed=some, geo=some, sent=some, by=some,
    parts=st.lists(st.builds(Part, st.builds(Usage, input=counts, output=counts), some), max_size=2).map(tuple),
    other=st.lists(st.sampled_from(["agent", "tag"]), max_size=2).map(tuple),
    scopes=st.builds(Scopes, project=texts, agent=some, session=some, user=some, key=some, tags=st.lists(texts).map(tuple)),
    usage=st.fixed_dictionaries(dict.fromkeys(KINDS, counts)).map(lambda kinds: Usage(**kinds)),
    charge=st.builds(
        Charge, amount_nanos=st.none() | counts, status=st.sampled_from(["priced", "partial", "unpriced", "estimated"]),
        computed_nanos=st.none() | counts, reported_nanos=st.none() | counts, price_version=texts,
        terms=st.lists(st.builds(Term, model=texts, kind=texts, quantity=counts, usd=st.decimals(
            0, Decimal(100), places=9).map(str))).map(tuple),
        missing=st.lists(texts).map(tuple),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    writer = file.open_writer(tmp_path_factory.mktemp("rows") / "ledger.sqlite")
    writer.pragma("synchronous", "off")
    yield writer
    writer.close()


@given(entry=entries)
def test_an_entry_comes_back(table: apsw.Connection, entry: Entry) -> None:
    """A8: every field of an entry, its unit prices among them, comes back from the file as it went in."""
    document = {
        "number": 1,
        "last": 0,
        "holds": [],
        "gone": [],
        "entries": [file.entry_row(entry)],
        "balances": [],
    }
    table.execute("DELETE FROM entry")
    table.execute("INSERT INTO batch (doc) VALUES (?)", (file.encode(document).decode(),))
    (row,) = table.execute(f"SELECT seq, {', '.join(file.COLUMNS)} FROM entry").fetchall()
    assert file.row_entry(row) == entry


def test_the_columns_are_the_kinds() -> None:
    """The table has a column for every value of an entry's row, the usage kinds in their order, and no other."""
    connection = apsw.Connection(":memory:")
    for migration in file.MIGRATIONS:
        connection.execute(migration)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(entry)")]
    assert set(columns) == {"seq", *file.COLUMNS}
    first = file.COLUMNS.index(KINDS[0])
    assert file.COLUMNS[first : first + len(KINDS)] == KINDS
    assert len(file.COLUMNS) == len(file.entry_row(an_entry("a/1", at_us=AT_US)))
    connection.close()
