"""The embedded ledger: one file, one owner, one writer thread.

The book answers in memory; the writer makes it durable. Whatever waits when the writer is free becomes one batch, one
statement, one commit (WAL, synchronous=FULL), and everyone who waited is told together: a busy ledger syncs seldom, a quiet
one at once. An operation that raises has not happened; its caller may try again with the same id.

The process holds a lock on `<file>.owner`, which dies with it. Holds found at start belong to a dead owner and are booked at
their estimate.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

import apsw
import msgspec
from msgspec import structs

from tollkeeper.book import Balance, Book
from tollkeeper.errors import Conflict, StoreError, StoreUnavailable
from tollkeeper.ledger import BalanceKey, Census, Shape, correction, expired, is_late, window_of
from tollkeeper.stores import Booked, Retention, horizons
from tollkeeper.stores.sqlite_file import (
    balance_row,
    encode,
    entry_row,
    open_reader,
    open_writer,
    own,
    row_entry,
    rows,
    shape_names,
)
from tollkeeper.stores.sqlite_reader import SqliteReader
from tollkeeper.values import Budget, Entry, Grant, Hold, ScopeKind, Scopes, Standing

#: Entries that the cells may be behind: readers add them, so this is about their speed alone.
ROLL_EVERY = 256
#: Balances of windows that ended longer ago than this are dropped: nothing can be reserved in them any more.
_BALANCE_KEEP_US = 62 * 86_400_000_000
_hold = msgspec.json.Decoder(Hold)


class Write(msgspec.Struct, eq=False):
    """One caller's rows, written together with those of everyone else who waits."""

    waiters: list[asyncio.Future[None]]
    done: Callable[[bool], None]  #: told under the lock whether it is safe, before the waiters are
    holds: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    touched: tuple[tuple[Balance, int], ...] = ()
    job: Callable[[], None] | None = None  #: run by the writer between two batches, with nothing queued before it


class _Exists(Conflict):
    """The file has an entry or a hold of this id."""


class SqliteStore(SqliteReader):
    """A ledger file that this process owns. May be used from several threads, each with its own event loop.

    Raises StoreOwned (another process has it), StoreCorrupt (not a ledger, damaged, or newer than this version).
    """

    def __init__(self, path: Path, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> None:
        self.trouble: str | None = None
        self._path = path
        self._owner = own(path)
        try:
            self._writer = open_writer(path)
            super().__init__(path)
            self._lookups = open_reader(path)  # point queries: they never wait for a report
            self._number = int(dict(self.query("marks"))["batch"])
        except BaseException:
            os.close(self._owner)
            raise
        self._census = Census(scope_cap, self._census_ids)
        self._book = Book((), self._load)
        self._settling: dict[tuple[str, str], Write] = {}
        self._queue: list[Write] = []
        self._lock = RLock()  # the book, the queue and what is being settled
        self._wake = Event()
        self._idle = False
        self._closing = False
        self._unrolled = ROLL_EVERY
        self._roll()
        self._set_budgets(tuple(budgets))
        self._bury()
        self._thread = Thread(target=self._run, name="tollkeeper-ledger", daemon=True)
        self._thread.start()

    # ── the contract ──

    async def reserve(self, hold: Hold) -> Grant:
        with self._lock:
            known = hold.id in self._book.live
            grant = self._book.reserve(hold)
            if known:
                return grant

            def done(safe: bool) -> None:
                if not safe:
                    self._book.release(hold.id)

            told = self._submit(done=done, holds=((hold.id, encode(hold).decode()),))
        await told
        return grant

    async def void(self, hold_id: str) -> None:
        with self._lock:
            if not self._book.release(hold_id):
                return
            told = self._submit(done=_nothing, gone=(hold_id,))
        await told

    async def settle(self, entry: Entry) -> Booked:
        # Taken for new until the file says otherwise: no look-up before the common case.
        name = (entry.scopes.project, entry.id)
        known: Entry | None = None
        while True:
            with self._lock:
                others = self._settling.get(name)
                if others is not None:
                    told = asyncio.get_running_loop().create_future()
                    others.waiters.append(told)
                elif known is None:
                    told = self._book_entries(structs.replace(entry, other=self._census.place(entry)))
                elif is_late(known, entry):
                    told = self._book_entries(*correction(known, entry))
                else:
                    break
            try:
                await told
            except StoreError as error:
                if others is None and not isinstance(error, _Exists):
                    raise
            else:
                if others is None:
                    return "booked" if known is None else "late"
            known = self._known(*name)
        await self.void(entry.id)
        return "repeated"

    async def expire(self, now_us: int) -> int:
        with self._lock:
            due = self._book.due(now_us)
            self._book.trim()
        for hold in due:
            await self.settle(expired(hold))
        return len(due)

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        with self._lock:
            return self._book.standings(scopes, model, at_us)

    async def live(self) -> list[Hold]:
        with self._lock:
            return [live.hold for live in self._book.live.values()]

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        await self._between_batches(lambda: self._set_budgets(tuple(budgets)))

    async def prune(self, now_us: int, retention: Retention) -> int:
        dropped: list[int] = []
        await self._between_batches(lambda: dropped.append(self._prune(now_us, retention)))
        return dropped[0]

    async def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake.set()
        await asyncio.to_thread(self._thread.join)
        await super().close()
        self._lookups.close()
        os.close(self._owner)

    # ── queueing, under the lock ──

    def _submit(self, *, done: Callable[[bool], None], **values: Any) -> asyncio.Future[None]:
        if self._closing:
            done(False)
            raise StoreUnavailable("the ledger is closed; open it again")
        told = asyncio.get_running_loop().create_future()
        self._queue.append(Write(waiters=[told], done=done, **values))
        if self._idle:
            self._idle = False
            self._wake.set()
        return told

    def _book_entries(self, *entries: Entry) -> asyncio.Future[None]:
        """Queue entries of one name; the hold of that id ends with them."""
        entry = entries[-1]
        name = (entry.scopes.project, entry.id)
        touched = tuple(pair for each in entries for pair in self._book.touched(each))

        def done(safe: bool) -> None:
            self._settling.pop(name, None)
            self._book.booked(touched, safe)
            if safe:
                self._book.release(entry.id)

        gone = (entry.id,) if entry.id in self._book.live else ()
        told = self._submit(done=done, gone=gone, entries=entries, touched=touched)
        self._settling[name] = self._queue[-1]
        return told

    async def _between_batches(self, job: Callable[[], None]) -> None:
        with self._lock:
            told = self._submit(done=_nothing, job=job)
        await told

    def _known(self, project: str, id: str) -> Entry | None:
        found = rows(self._lookups, "entry", project=project, id=id)
        return row_entry(found[0]) if found else None

    def _load(self, key: BalanceKey) -> int:
        found = rows(
            self._lookups, "balance", **shape_names(key.shape), project=key.project, id=key.id, start_us=key.start_us
        )
        return int(found[0][0]) if found else 0

    def _census_ids(self, scope: ScopeKind, project: str, month_us: int) -> list[str]:
        return [row[0] for row in rows(self._lookups, "ids", scope=scope, project=project, month_us=month_us)]

    # ── the writer's thread ──

    def _run(self) -> None:
        while True:
            with self._lock:
                writes, self._queue = self._queue, []
                closing = self._closing
                self._idle = not writes and not closing
            if self._idle:
                self._wake.wait()
                self._wake.clear()
                continue
            if not writes:
                break
            self._write([write for write in writes if write.job is None])
            if self._unrolled >= ROLL_EVERY:
                self._roll()
            for write in writes:
                if write.job is not None:
                    self._do(write)
        self._roll()
        self._writer.close()

    def _roll(self) -> None:
        """Bring the cells up to the newest entry."""
        try:
            self._writer.execute("INSERT INTO roll VALUES (NULL)")
            self._unrolled = 0
        except apsw.Error as failure:  # readers add what is not rolled: nothing is wrong but slower
            self.trouble = str(_unavailable(self._path, failure))

    def _do(self, write: Write) -> None:
        """Run a job with the ledger still: everything queued before it is written first."""
        error: StoreError | None = None
        with self._lock:
            waiting = [each for each in self._queue if each.job is None]
            self._queue = [each for each in self._queue if each.job is not None]
            self._write(waiting)
            try:
                assert write.job is not None
                write.job()
            except apsw.Error as failure:
                error = _unavailable(self._path, failure)
        self._tell([write], error)

    def _write(self, writes: list[Write]) -> None:
        if not writes:
            return
        try:
            self._apply(writes)
        except apsw.ConstraintError:
            if len(writes) > 1:  # one of them is wrong: the others must not suffer
                for write in writes:
                    self._write([write])
                return
            self._tell(writes, _Exists("this id is in the ledger; use a new one"))
        except apsw.Error as failure:
            error = None if self._reopen() == self._number else _unavailable(self._path, failure)
            self.trouble = None if error is None else str(error)
            self._tell(writes, error)
        else:
            self.trouble = None
            self._tell(writes, None)

    def _apply(self, writes: list[Write]) -> None:
        self._number += 1
        balances: dict[Balance, int] = {}
        for write in writes:
            self._unrolled += len(write.entries)
            for balance, amount in write.touched:
                balances[balance] = balances.get(balance, 0) + amount
        doc = {
            "number": self._number,
            "holds": [row for write in writes for row in write.holds],
            "gone": [id for write in writes for id in write.gone],
            "entries": [entry_row(entry) for write in writes for entry in write.entries],
            "balances": [(*balance_row(balance.key, balance.end_us), amount) for balance, amount in balances.items()],
        }
        self._writer.execute("INSERT INTO batch (doc) VALUES (?)", (encode(doc).decode(),))

    def _tell(self, writes: list[Write], error: StoreError | None) -> None:
        """Have each caller told in its own event loop: there the book learns first what has been booked."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Write]] = {}
        for write in writes:
            by_loop.setdefault(write.waiters[0].get_loop(), []).append(write)
        for loop, theirs in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._told, theirs, error)
            except RuntimeError:  # the caller's loop is closed: nobody waits
                self._told(theirs, error)

    def _told(self, writes: list[Write], error: StoreError | None) -> None:
        here = asyncio._get_running_loop()
        with self._lock:
            for write in writes:
                write.done(error is None)
        for write in writes:
            for future in write.waiters:
                if future.get_loop() is here:
                    _resolve(future, error)
                else:
                    with contextlib.suppress(RuntimeError):
                        future.get_loop().call_soon_threadsafe(_resolve, future, error)

    def _reopen(self) -> int:
        """After a failed write: what is in the file is only known from a new connection. Returns the last batch in it, synced."""
        try:
            self._writer.close(True)
            self._writer = open_writer(self._path)
            self._writer.execute("PRAGMA quick_check(1)").fetchall()
            self._writer.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
            return int(dict(rows(self._writer, "marks"))["batch"])
        except (apsw.Error, StoreError):
            return -1

    # ── jobs: nothing else runs ──

    def _set_budgets(self, budgets: tuple[Budget, ...]) -> None:
        """Make the balances of every shape agree with the entries, then take the limits."""
        self._book.set_budgets(budgets)
        had = {Shape(*row) for row in self._writer.execute("SELECT scope, measure, period, timezone FROM shape")}
        want = set(self._book.shapes)
        with self._writer:
            for shape in had - want:
                for table in ("shape", "balance"):
                    where = "scope = :scope AND measure = :measure AND period = :period AND timezone = :timezone"
                    self._writer.execute(f"DELETE FROM {table} WHERE {where}", shape_names(shape))  # noqa: S608 table is ours
            for shape in want - had:
                self._fill(shape)
        self._book.forget()

    def _fill(self, shape: Shape) -> None:
        """Balances of a new shape, for the window of the newest entry: older ones take no reservations."""
        names = shape_names(shape)
        self._writer.execute("INSERT INTO shape VALUES (:scope, :measure, :period, :timezone)", names)
        latest_us = rows(self._writer, "latest")[0][0]
        if latest_us is None:
            return
        start_us, end_us = window_of(shape.window, shape.timezone, latest_us)
        values = {"scope": shape.scope, "measure": shape.measure, "start_us": start_us, "end_us": end_us}
        for project, id, spent in rows(self._writer, "spent", **values):
            row = (*balance_row(BalanceKey(shape, project, id, start_us), end_us), spent)
            self._writer.execute("INSERT INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _bury(self) -> None:
        """At start every hold in the file is a dead owner's: book it at its estimate."""
        for (doc,) in rows(self._writer, "holds"):
            hold = _hold.decode(doc)
            if self._known(hold.scopes.project, hold.id) is None:
                entry = expired(hold, "its gateway died: booked at the estimate")
                entry = structs.replace(entry, other=self._census.place(entry))
                touched = tuple(self._book.touched(entry))
                self._apply([Write([], _nothing, (), (hold.id,), (entry,), touched)])
                self._book.booked(touched)

    def _prune(self, now_us: int, retention: Retention) -> int:
        self._roll()
        before = self._writer.total_changes()
        since = horizons(now_us, retention)
        with self._writer:
            for what, horizon_us in since.items():
                if what == "entry":
                    self._writer.execute("DELETE FROM entry WHERE at_us < ?", (horizon_us,))
                else:
                    self._writer.execute("DELETE FROM cell WHERE period = ? AND start_us < ?", (what, horizon_us))
            self._writer.execute("DELETE FROM balance WHERE end_us < ?", (now_us - _BALANCE_KEEP_US,))
            changed = self._writer.total_changes() - before
            for what, horizon_us in since.items():
                self._writer.execute("UPDATE mark SET value = max(value, ?) WHERE name = ?", (horizon_us, what))
            self._writer.execute(
                "UPDATE mark SET value = (SELECT ifnull(max(seq), 0) FROM entry) WHERE name = 'rolled'"
            )
        self._book.forget()
        return changed


def _nothing(safe: bool) -> None:
    pass


def _resolve(future: asyncio.Future[None], error: StoreError | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _unavailable(path: Path, failure: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the ledger {path.name} cannot be written ({failure}); check the disk's space and health")
