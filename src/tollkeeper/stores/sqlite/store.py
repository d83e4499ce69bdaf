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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

import apsw
from msgspec import structs

from tollkeeper.book import Book
from tollkeeper.errors import Conflict, StoreError, StoreUnavailable
from tollkeeper.ledger import Census, Shape, correcting, expired, settling
from tollkeeper.stores import Booked, Condition, Corrected, Retention
from tollkeeper.stores.sqlite.file import encode, own, unusable
from tollkeeper.stores.sqlite.lookups import Lookups
from tollkeeper.stores.sqlite.news import News, Placed
from tollkeeper.stores.sqlite.reader import SqliteReader
from tollkeeper.stores.sqlite.writer import ROLL_EVERY, Write, Writer, nothing, unwritable
from tollkeeper.stores.turns import Turns
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes, Standing

#: When this many callers shared the last commit, the next one waits a moment for half as many: fewer, larger commits cost less,
#: and the event loop prepares one while the writer writes the other.
BUSY_SIBLINGS = 8
BUSY_DELAY_MS = 2
#: Between two tries of a ledger that failed and that nobody writes to.
PROBE_MS = 1000
_TAKEN = (apsw.SQLITE_CONSTRAINT_UNIQUE, apsw.SQLITE_CONSTRAINT_PRIMARYKEY)


class _Exists(Conflict):
    """The file has an entry or a hold of this id."""


class SqliteStore(SqliteReader):
    """A ledger file that this process owns. May be used from several threads, each with its own event loop.

    `on_booked` is told of each entry once it is safe, with its seq and in that order, once; not of those that were there
    before, nor of the ones that are booked for a dead owner's holds (`last` says how far those go). It is called with the
    ledger's lock held, in any thread that uses the ledger or in the writer's, and must neither raise nor ask the ledger.

    `journal`: the id of the journal that the file must be, or becomes where it is new.

    Raises StoreOwned (another process has it), StoreCorrupt (not a ledger, damaged, another journal, newer than this version).
    """

    def __init__(
        self,
        path: Path,
        budgets: Iterable[Budget] | None = (),
        *,
        scope_cap: int = 10_000,
        on_booked: Callable[[Placed], None] | None = None,
        journal: str | None = None,
    ) -> None:
        self._path = path
        self._owner = own(path)
        self._settling: dict[tuple[str, str], Write] = {}
        self._queue: list[Write] = []
        self._lock = RLock()  # the book, the queue and what is being settled
        self._news = News(self._lock, on_booked)
        self._wake = Event()
        self._wake_at = 0  # so long a queue wakes the writer; 0: it works
        self._closing = False
        try:
            self._writer = Writer(path)
            if journal is not None:
                self._writer.identify(journal)
            super().__init__(path)
            self._lookups = Lookups(path)
            self._turns = Turns(self._writer.turns())
            self._census = Census(scope_cap, self._lookups.ids)
            self._book = Book((), self._lookups.spent)
            self._writer.roll()
            self._set_budgets(self._writer.unlimited() if budgets is None else tuple(budgets))
            self._bury()
            self._news.last = self._writer.last
        except apsw.Error as failure:
            os.close(self._owner)
            raise unusable(path, failure) from failure
        except BaseException:
            os.close(self._owner)
            raise
        self._thread = Thread(target=self._run, name="tollkeeper-ledger", daemon=True)
        self._thread.start()

    @property
    def condition(self) -> Condition | None:
        """A ledger of one process shares nothing."""
        return None

    @property
    def trouble(self) -> str | None:
        """Why writes fail just now; None: they do not."""
        return self._writer.trouble

    @property
    def last(self) -> int:
        """Seq of the newest entry that is safe, pruned or not; 0: there has been none."""
        self._news.hear()
        return self._news.last

    # ── the contract ──

    async def reserve(self, hold: Hold) -> Grant:
        doc = encode(hold).decode()
        self._news.hear()
        with self._lock:
            known = hold.id in self._book.live
            grant = self._book.reserve(hold)

            def done(safe: bool) -> None:
                if not safe:
                    self._book.release(hold.id)

            told = self._submit(done=nothing) if known else self._submit(done=done, holds=((hold.id, doc),))
        await told  # again: when the first one is safe
        if known and hold.id not in self._book.live:
            return await self.reserve(hold)
        return grant

    async def void(self, hold_id: str) -> None:
        def done(safe: bool) -> None:
            self._book.left(hold_id, safe)

        with self._lock:
            if not self._book.leave(hold_id):
                return
            told = self._submit(done=done, gone=(hold_id,))
        await told

    async def settle(self, entry: Entry) -> Booked:
        # Taken for new until the file says otherwise: no look-up before the common case.
        known, added = await self._add(entry, (), settling)
        if not known:
            return "booked"
        if added:
            return "late"
        if self._book.ends(entry):
            await self.void(entry.id)
        return "repeated"

    async def correct(self, entry: Entry) -> Corrected:
        _, added = await self._add(entry, self._lookups.revisions(entry), correcting)
        return "corrected" if added else "repeated"

    async def add(self, entries: tuple[Entry, ...]) -> None:
        """Write entries of one id as they are. Raises Conflict where the file has one of them."""
        with self._lock:
            told = self._book_entries(entries, ends=False)
        await told

    async def expire(self, now_us: int) -> int:
        self._news.hear()
        with self._lock:
            due = self._book.due(now_us)
            self._book.trim()
        await asyncio.gather(*(self.settle(expired(hold)) for hold in due))
        return len(due)

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        self._news.hear()
        with self._lock:
            return self._book.standings(scopes, model, at_us)

    async def live(self) -> list[Hold]:
        self._news.hear()
        with self._lock:
            return [live.hold for live in self._book.live.values()]

    async def claim(self, what: str, now_us: int, for_us: int) -> bool:
        with self._lock:
            return self._turns.claim(what, now_us, for_us)

    async def done(self, what: str, until_us: int) -> None:
        await self._work(lambda: self._writer.done(what, until_us))
        with self._lock:
            self._turns.done(what, until_us)

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        await self._work(lambda: self._set_budgets(tuple(budgets)))

    async def prune(self, now_us: int, retention: Retention, upto: int | None = None) -> int:
        """Drop what has outlived its retention, but no entry whose seq is above `upto`; returns how many rows."""
        dropped: list[int] = []
        await self._work(lambda: dropped.append(self._prune(now_us, retention, upto)))
        return dropped[0]

    async def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self._news.hear()
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        with self._reading, self._lock:
            for each in (self._reader, self._lookups, self._writer):  # the writer last: then the file alone is whole
                with contextlib.suppress(apsw.Error):  # nothing is written any more
                    each.close()
            os.close(self._owner)

    # ── queueing, under the lock ──

    def _submit(self, *, done: Callable[[bool], None], **values: Any) -> asyncio.Future[None]:
        if self._closing:
            done(False)
            raise StoreUnavailable("the ledger is closed; open it again")
        told = asyncio.get_running_loop().create_future()
        self._queue.append(Write(waiters=[told], done=done, **values))
        if len(self._queue) == self._wake_at:
            self._wake.set()
        return told

    async def _add(
        self, entry: Entry, known: Sequence[Entry], rule: Callable[[Sequence[Entry], Entry], tuple[Entry, ...]]
    ) -> tuple[Sequence[Entry], tuple[Entry, ...]]:
        """Book what the rule adds to the revisions of an entry's id, one caller after the other: (revisions, what was added)."""
        while True:
            self._news.hear()
            with self._lock:
                others = self._settling.get((entry.scopes.project, entry.id))
                if others is not None:
                    told = asyncio.get_running_loop().create_future()
                    others.waiters.append(told)
                else:
                    added = rule(known, entry)
                    if not added:
                        return known, ()
                    if not known and (other := self._census.place(entry)) != entry.other:
                        added = (structs.replace(entry, other=other),)
                    told = self._book_entries(added, ends=rule is settling and self._book.ends(entry))
            if others is not None:  # it may have been written just now, before the writer could see us wait
                self._news.hear()
            try:
                await told
            except StoreError as error:
                if others is None and not isinstance(error, _Exists):
                    raise
            else:
                if others is None:
                    return known, added
            known = self._lookups.revisions(entry)

    def _book_entries(self, entries: tuple[Entry, ...], ends: bool) -> asyncio.Future[None]:
        """Queue entries of one name; where it `ends` with them, the hold of that id too."""
        entry = entries[-1]
        name = (entry.scopes.project, entry.id)
        touched = [pair for each in entries for pair in self._book.touched(each)]

        def done(safe: bool) -> None:
            self._settling.pop(name, None)
            self._book.booked(touched, safe)
            if safe and ends:
                self._book.release(entry.id)

        gone = (entry.id,) if ends else ()
        told = self._submit(done=done, gone=gone, entries=entries, touched=touched)
        self._settling[name] = self._queue[-1]
        return told

    async def _work(self, job: Callable[[], None]) -> None:
        with self._lock:
            told = self._submit(done=nothing, job=job)
        await told

    # ── the writer's thread ──

    def _run(self) -> None:
        size = 0
        while True:
            if size >= BUSY_SIBLINGS:
                self._await(size // 2, BUSY_DELAY_MS)
            elif not self._await(1, None if self.trouble is None else PROBE_MS):
                if self._works():  # nobody writes and the last write failed: see whether the disk works again
                    self._writer.roll()
                continue
            with self._lock:
                writes, self._queue = self._queue, []
                closing = self._closing
            size = len(writes)
            if closing and not writes:
                break
            self._write([write for write in writes if write.job is None])
            self._writer.roll(behind=ROLL_EVERY)
            for write in writes:
                if write.job is not None:
                    self._do(write)
        self._writer.roll()

    def _await(self, many: int, time_ms: int | None) -> bool:
        """Wait until so many writes are queued, or the ledger closes; False: the time was over first."""
        with self._lock:
            if len(self._queue) >= many or self._closing:
                return True
            self._wake_at = many
        woken = self._wake.wait(None if time_ms is None else time_ms / 1000)
        with self._lock:
            self._wake_at = 0
            self._wake.clear()
        return woken

    def _do(self, write: Write) -> None:
        error: Exception | None = None
        try:
            assert write.job is not None
            write.job()
        except apsw.Error as failure:
            error = unwritable(self._path, failure)
        except Exception as failure:  # the job's own: a wrong argument
            error = failure
        self._news.tell([write], error)

    def _write(self, writes: list[Write]) -> None:
        if not writes:
            return
        if not self._works():
            self._news.tell(writes, StoreUnavailable(str(self.trouble)))
            return
        try:
            self._writer.apply(writes)
        except (apsw.ConstraintError, ValueError, OverflowError) as failure:
            if len(writes) > 1:  # one of them is wrong: the others must not suffer
                for write in writes:
                    self._write([write])
            elif getattr(failure, "extendedresult", 0) in _TAKEN:
                self._news.tell(writes, _Exists("this id is in the ledger; use a new one"))
            else:
                self._news.tell(writes, ValueError(f"this cannot stand in the ledger: {failure}"))
        except apsw.Error as failure:
            self._news.tell(writes, self._writer.failed(writes, failure))
        else:
            self._news.tell(writes, None)

    def _works(self) -> bool:
        """Whether there is a file to write to. A batch that was told as failed may turn out to be in it: that counts then."""
        if not self._writer.works():
            return False
        if found := self._writer.found():
            self._news.tell(found, None)
            with contextlib.suppress(StoreError):
                self._read_again()
        return True

    # ── jobs of the writer's thread ──

    def _set_budgets(self, budgets: tuple[Budget, ...]) -> None:
        """Make the balances of every shape agree with the entries, then take the limits. What is queued is written before."""
        with self._lock:
            waiting = [write for write in self._queue if write.job is None]
            self._queue = [write for write in self._queue if write.job is not None]
            self._write(waiting)
            self._news.hear()
            self._writer.set_shapes({Shape(each.scope, each.measure, each.window, each.timezone) for each in budgets})
            self._book.set_budgets(budgets)
            self._book.forget()

    def _prune(self, now_us: int, retention: Retention, upto: int | None) -> int:
        dropped = self._writer.prune(now_us, retention, upto)
        self._read_again()
        return dropped

    def _read_again(self) -> None:
        """The balances as the file has them."""
        with self._lock:
            self._news.hear()
            self._book.forget()

    def _bury(self) -> None:
        """At start every hold in the file is a dead owner's: book it at its estimate."""
        writes = []
        for hold in self._writer.holds():
            write = Write(waiters=[], done=nothing, gone=(hold.id,))
            entry = expired(hold, "its gateway died: booked at the estimate")
            if not self._lookups.revisions(entry):
                write.entries = (structs.replace(entry, other=self._census.place(entry)),)
                write.touched = self._book.touched(entry)
            writes.append(write)
        if writes:
            self._writer.apply(writes)
        for write in writes:
            self._book.booked(write.touched)
