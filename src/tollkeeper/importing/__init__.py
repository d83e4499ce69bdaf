"""Calls that were made elsewhere, from logs into the ledger: each line counts once, however often it is imported.

    file ─→ piece by piece (files) ─→ records (lines) ─→ Record, or why not (a format) ─→ Entry (booking) ─→ store.settle
                                                                                        └─ WINDOW of them at a time ─┘

An entry's id is the line's own request id, or follows from its bytes. So nothing needs to be remembered between runs: what is
booked already is a repeat, and a run that was stopped or killed is simply run again. A line that cannot be booked is left out
and told with its number; the others do not suffer. Lines are taken in their order, and a piece of a file is done before the next
one is read: memory does not grow with the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.clock import Clock, SystemClock
from tollkeeper.errors import BadRequest, ConfigError, Conflict
from tollkeeper.importing import litellm_logs, openai_logs, usage_lines
from tollkeeper.importing.booking import entry_of, is_same
from tollkeeper.importing.files import Source, Unreadable, size_of
from tollkeeper.importing.lines import ArrayCutter, CsvCutter, Cutter, LineCutter, Piece
from tollkeeper.importing.occurrences import Occurrences
from tollkeeper.importing.records import Format, Given, Record, members
from tollkeeper.ledger import is_late
from tollkeeper.money import to_nanos
from tollkeeper.prices import PriceBook
from tollkeeper.stores import Reader, SharedOptions, Store, horizons
from tollkeeper.stores.opening import open_reader, sqlite_path
from tollkeeper.stores.redis.url import is_redis
from tollkeeper.tracker import arguments
from tollkeeper.tracker.accounts import Accounts, Settings, configuration
from tollkeeper.values import Entry, iso_utc

WINDOW: Final = 1024
"""Lines that are being booked at a time: they share commits."""
FORMATS: Final[dict[str, Format]] = {each.name: each for each in (usage_lines, openai_logs, litellm_logs)}
#: Most telling first: a spend log may have a response in it, and anything has a model.
_GUESSES: Final[tuple[Format, ...]] = (litellm_logs, openai_logs, usage_lines)
_LOOKED_AT: Final = 20
_BOM: Final = b"\xef\xbb\xbf"


class Rejected(msgspec.Struct, frozen=True):
    """A line that was left out."""

    file: str
    line: int
    reason: str
    is_conflict: bool = False  #: its id is in the ledger with other contents


class _Call(NamedTuple):
    """A line that can be booked."""

    line: int
    record: Record
    entry: Entry

    @property
    def name(self) -> tuple[str, str]:
        """What the ledger knows it by."""
        return self.entry.scopes.project, self.entry.id


class Summary(msgspec.Struct, kw_only=True):
    """What became of the lines; grows while they are imported. In a dry run `booked` is what would be."""

    formats: dict[str, str] = {}  #: file → what it was taken for
    lines: int = 0
    booked: int = 0
    corrected: int = 0  #: took the place of an estimate that the ledger had under their id
    repeated: int = 0  #: were in the ledger before
    conflicts: int = 0
    bad: int = 0
    amount_nanos: int = 0  #: of what was booked
    inexact_nanos: int = 0  #: the part of it that is estimated or partly priced
    unpriced: int = 0  #: booked at an unknown amount
    from_us: int | None = None  #: the first and the last instant of what was booked
    to_us: int | None = None
    past_retention: int = 0  #: booked, and older than entries are kept: the next pruning drops them
    compared: int = 0  #: booked with an amount, and with a figure of another program beside it
    compared_nanos: int = 0  #: our amount for those
    other_nanos: int = 0  #: its figure for those
    stopped: tuple[str, int] | None = None  #: file and line after which it was stopped

    def add(self, entry: Entry, record: Record, kept_from_us: int) -> None:
        """Count an entry that was booked."""
        charge = entry.charge
        nanos = charge.amount_nanos
        self.booked += 1
        self.unpriced += nanos is None
        self.past_retention += entry.at_us < kept_from_us
        self.from_us = entry.at_us if self.from_us is None else min(self.from_us, entry.at_us)
        self.to_us = entry.at_us if self.to_us is None else max(self.to_us, entry.at_us)
        if nanos is None:
            return
        self.amount_nanos += nanos
        self.inexact_nanos += 0 if charge.status == "priced" else nanos
        if record.other_usd is not None:
            self.compared += 1
            self.compared_nanos += nanos
            self.other_nanos += to_nanos(record.other_usd)


async def import_files(
    files: Sequence[str],
    *,
    store: str | Store | None = None,
    settings: Settings | None = None,
    format: Literal["auto", "usage", "openai", "litellm"] = "auto",  # noqa: A002 the option's own name
    project: str | None = None,
    agent: str | None = None,
    provider: str | None = None,
    at: datetime | None = None,
    dry_run: bool = False,
    rejected: Callable[[Rejected], None] = lambda rejected: None,
    progress: Callable[[int, Summary], None] = lambda taken, summary: None,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
) -> Summary:
    """Book every line of `files` ("-" is stdin) that can be; all of them are durable when it returns.

    `store` and `settings` are those of `CostTracker`; the ledger is owned meanwhile, and not touched in a dry run. `project`,
    `agent`, `provider` and `at` stand in where a line does not say. `rejected` is told of each line that is left out, `progress`
    of the bytes taken so far. Setting `stop` ends it after the lines under way; the summary says where.

    Raises ValueError (an argument), BadRequest (a file that cannot be read, or is in no known format), ConfigError, StoreError;
    what was booked before stays booked, and counts once when it is imported again.
    """
    clock = SystemClock() if clock is None else clock
    config, now_us = configuration(settings), clock.now_us()
    if format != "auto":
        arguments.one_of(format, "format", tuple(FORMATS))
    accounts, reader = Accounts(store, config, clock), None
    place = accounts.provider(arguments.optional(provider, "provider"))
    given = Given(
        project=config.default_project if project is None else arguments.name(project, "project"),
        agent=arguments.optional(agent, "agent"), provider=provider, now_us=now_us,
        quirks=frozenset() if place is None else place.quirks,
        at_us=None if at is None else arguments.instant(at, "at", now_us),
    )  # fmt: skip
    if not config.cost_tracking_enabled and not dry_run:
        raise ConfigError("cost_tracking_enabled: is false, so nothing would be booked; set it to true to import")
    size_of(files)
    try:
        prices = await accounts.prices()
        if dry_run:
            reader = _beside(config.store if store is None else store, config.shared(clock))
        run = _Run(
            accounts, prices, reader if dry_run else await accounts.store(), given, rejected, progress,
            asyncio.Event() if stop is None else stop, dry_run,
        )  # fmt: skip
        for name in files:
            if run.summary.stopped is None:
                await run.file(name, FORMATS.get(format))
        return run.summary
    finally:
        await accounts.close()
        if reader is not None and reader is not store:
            await reader.close()


def _beside(store: str | Store, shared: SharedOptions) -> Reader | None:
    """What a dry run looks into, also beside the ledger's owner; None: there is no ledger yet."""
    if not isinstance(store, str):
        return store
    if store == "memory:" or not (is_redis(store) or sqlite_path(store).exists()):
        return None
    return open_reader(store, shared=shared)


class _Run:
    """One import: what all of its lines share."""

    def __init__(
        self,
        accounts: Accounts,
        prices: PriceBook,
        ledger: Reader | None,
        given: Given,
        rejected: Callable[[Rejected], None],
        progress: Callable[[int, Summary], None],
        stop: asyncio.Event,
        dry_run: bool,
    ) -> None:
        self.summary = Summary()
        self._accounts, self._prices, self._ledger, self._given = accounts, prices, ledger, given
        self._rejected, self._progress, self._stop, self._dry_run = rejected, progress, stop, dry_run
        self._kept_from_us = horizons(given.now_us, accounts.config.retention).get("entry", 0)
        self._pruned_us = 0  # what is older may have been booked before, and dropped
        self._taken = 0  # bytes of the files before
        self._name, self._line = "", 0
        self._seen, self._booked = Occurrences(), Occurrences()  # lines of this file; in a dry run, ids of all

    async def file(self, name: str, form: Format | None) -> None:
        """Import one file; without a format it is guessed."""
        source, self._name, self._line, self._seen = Source(name), name, 0, Occurrences()
        cutter: Cutter | None = None
        pieces: list[Piece] = []  # cut, and not booked: until it is clear what they are
        try:
            while self.summary.stopped is None:
                chunk = await source.read(self._stop)
                if chunk is None:
                    self.summary.stopped = name, self._line
                    break
                if cutter is None:
                    chunk = chunk.removeprefix(_BOM)
                    cutter = _cutter(chunk, form)
                pieces += cutter.feed(chunk) if chunk else cutter.rest()
                form = form or _guess(pieces)
                if form is None and pieces and (not chunk or len(pieces) >= _LOOKED_AT):
                    raise BadRequest(
                        f"FILE: {name} is in none of the formats {', '.join(FORMATS)}; name the one that is meant with --format"
                    )
                if form is not None:
                    self.summary.formats[name] = form.name
                    await self._pieces(pieces, form)
                    pieces = []
                self._progress(self._taken + source.position, self.summary)
                if not chunk:
                    break
        except Unreadable as broken:
            self.summary.lines += 1
            self._reject(self._line + 1, str(broken))
        finally:
            self._taken += source.position
            source.close()
            self._seen.close()

    async def _pieces(self, pieces: list[Piece], form: Format) -> None:
        """Read and book a piece of a file, WINDOW lines at a time; while some are written the next ones are read."""
        if self._ledger is not None:
            self._pruned_us = await self._ledger.kept_since()
        under_way = _nothing()
        for first in range(0, len(pieces), WINDOW):
            if self._stop.is_set():
                self.summary.stopped = self._name, self._line
                break
            calls = [call for piece in pieces[first : first + WINDOW] if (call := self._read(piece, form))]
            fresh = await self._fresh(calls)
            _tell(await under_way)
            under_way = asyncio.gather(*map(self._book, fresh), return_exceptions=True)
            await asyncio.sleep(0)  # they are queued before the next ones are read
        _tell(await under_way)

    def _read(self, piece: Piece, form: Format) -> _Call | None:
        """A line as the call to be booked; None: it is left out, and told."""
        self._line = piece.number
        self.summary.lines += 1
        try:
            if piece.wrong is not None:
                raise ValueError(piece.wrong)
            record = form.read(piece.raw, self._given)
            if record.at_us < self._pruned_us:
                raise ValueError(
                    f"it is of {iso_utc(record.at_us)}, and entries before {iso_utc(self._pruned_us)} are pruned here: "
                    "whether it was booked before cannot be told; import it into another ledger"
                )
            id = record.request_id or self._seen.call_id(piece.raw)
            return _Call(piece.number, record, entry_of(record, id, self._accounts, self._prices))
        except ValueError as error:
            self._reject(piece.number, str(error))
            return None

    async def _fresh(self, calls: list[_Call]) -> list[_Call]:
        """Those that the ledger does not have: the others are told apart here, many at once."""
        if self._ledger is None or not calls:
            return calls
        known = await self._ledger.known([call.name for call in calls])
        return [call for call in calls if call.name not in known or self._is_late(call, known[call.name])]

    def _is_late(self, call: _Call, known: Entry) -> bool:
        """Whether a line corrects the estimate that the ledger has; else it is a repeat, or left out and told."""
        try:
            if is_late(known, call.entry):
                self.summary.corrected += self._dry_run
                return not self._dry_run
        except Conflict as conflict:
            if not is_same(known, call.entry, call.record):
                self._reject(call.line, str(conflict).partition(";")[0], is_conflict=True)
                return False
        self.summary.repeated += 1
        return False

    async def _book(self, call: _Call) -> None:
        """Raises StoreError where the ledger does not take it."""
        if self._dry_run:
            if self._booked.count("\0".join(call.name).encode()) > 1:
                self.summary.repeated += 1
            else:
                self.summary.add(call.entry, call.record, self._kept_from_us)
            return
        try:
            booked = (await self._accounts.book(call.entry)).booked
        except Conflict:  # with a line of this file, or it would have been known
            assert self._ledger is not None
            await self._fresh([call])
        except ValueError as error:
            self._reject(call.line, str(error))
        else:
            if booked == "repeated":
                self.summary.repeated += 1
            elif booked == "late":
                self.summary.corrected += 1
            else:
                self.summary.add(call.entry, call.record, self._kept_from_us)

    def _reject(self, line: int, reason: str, *, is_conflict: bool = False) -> None:
        if is_conflict:
            self.summary.conflicts += 1
        else:
            self.summary.bad += 1
        self._rejected(Rejected(self._name, line, reason, is_conflict))


def _nothing() -> asyncio.Future[list[BaseException | None]]:
    """What is under way before the first lines are."""
    return asyncio.gather(return_exceptions=True)


def _tell(ended: list[BaseException | None]) -> None:
    """Raise what went wrong, now that all of them have ended."""
    for error in ended:
        if error is not None:
            raise error


def _cutter(start: bytes, form: Format | None) -> Cutter:
    """What cuts a file that begins so: an array, rows of CSV where a spend log has neither array nor objects, else lines."""
    start = start.lstrip()
    if start.startswith(b"["):
        return ArrayCutter()
    head = start.partition(b"\n")[0]
    may_be_rows = form is litellm_logs if form is not None else b"startTime" in head
    return CsvCutter() if may_be_rows and not start.startswith(b"{") else LineCutter()


def _guess(pieces: list[Piece]) -> Format | None:
    """The format of a file by its first records; None: they do not tell."""
    for piece in pieces[:_LOOKED_AT]:
        try:
            found = members(piece.raw)
        except ValueError:
            continue
        for each in _GUESSES:
            if each.fits(found):
                return each
    return None
