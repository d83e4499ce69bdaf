"""One journal's rows into Redis, each once. Everything here blocks: it is for the thread that owns the journal's way there.

A slot's cursor says up to which row of the journal it has been applied; the slot of the budgets that have no project keeps a
cursor for each project. Whatever went wrong, `catch_up` begins again from what the cursors say.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import structs

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import Shape
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.batch import (
    Batch,
    Decision,
    Group,
    Leased,
    Places,
    Row,
    Unit,
    decide_all,
    global_batch,
    groups_of,
    project_batch,
    units_of,
)
from tollkeeper.stores.redis.before import added_to, before_of
from tollkeeper.stores.redis.blocks import Block, unpack
from tollkeeper.stores.redis.census import SharedCensus
from tollkeeper.stores.redis.keys import FOREVER_S, GLOBAL, Deadlines, Keys, shape_of, tag_of
from tollkeeper.stores.redis.link import Link
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.values import Entry

log = logging.getLogger("tollkeeper")

_CONFLICT: Final = "entry %r of project %r was booked elsewhere with other contents; that one counts"
_STUCK: Final = "store: the counter %s cannot be counted up; `tollkeeper store verify` says by how much it is off"
#: Rows in one batch of a project.
ROWS_MAX: Final = 500
_TO_THE_END: Final = 2**62
#: The same where many are applied again: fewer and larger batches cost less, and nobody waits for one of them.
REPLAY_MAX: Final = 2000
#: Blocks read at once.
BLOCKS_PAGE: Final = 64
#: Of a journal's id: other fields of a cursor are no journals.
_ID_LENGTH: Final = 16
_apply: Final = Script("apply")
_beat: Final = Script("beat")
_renew: Final = Script("renew")
#: Cursors that are looked at between two batches.
LOOKED_AT: Final = 64


class Doubted(StoreUnavailable):
    """A cursor is not where it was left: Redis has forgotten, or somebody else applied this journal."""


class Shared(msgspec.Struct):
    """What all appliers of a process share."""

    link: Link
    keys: Keys
    deadlines: Deadlines
    census: SharedCensus
    places: Places
    now_us: Callable[[], int]
    ticks_ms: Callable[[], int]  #: of a clock that never goes back
    #: tag → shapes whose balances are kept there, as last heard; and projects that this process has listed in Redis. A recovery
    #: begins with new ones: who still has an answer from before writes it into the old ones.
    shapes: dict[str, frozenset[Shape]] = {}
    registered: set[str] = set()

    def ask(self, batch: Batch) -> Ask:
        return _apply(*batch.arguments(self.keys))

    def beat(self, epoch: str, journal: str, said: str, silent_ms: int, *projects: str) -> list[str]:
        """`beat.lua`: the epoch, then each gateway and what it said."""
        keys = [self.keys.epoch, self.keys.members, self.keys.projects]
        (answer,) = self.link.run(_beat(keys, [epoch, FOREVER_S, journal, said, silent_ms, *projects]))
        return [each.decode() for each in answer]

    def renew(self, epoch: str) -> str:
        """Some slot has forgotten: have every gateway check all slots, if this is still the epoch. The epoch that it is now."""
        (now,) = self.link.run(_renew([self.keys.epoch], [epoch, secrets.token_hex(8), FOREVER_S]))
        return str(now.decode())

    def projects(self) -> dict[str, str]:
        """Every project that is listed: its tag → its name."""
        (found,) = self.link.run(Ask(("HGETALL", self.keys.projects)))
        return {tag.decode(): project.decode() for tag, project in pairs(found).items()}

    def register(self, projects: Iterable[str]) -> None:
        """List projects, before anything of theirs is there."""
        registered = self.registered
        new = set(projects) - registered
        if new:
            self.beat("", "", "", 10**15, *(each for project in sorted(new) for each in (tag_of(project), project)))
            registered |= new

    def lists(self, tag: str) -> dict[str, int]:
        """The lists of entries of a project's slot, month by month, and how many blocks each has now."""
        (names,) = self.link.run(Ask(("ZRANGE", self.keys.index(tag), 0, -1)))
        keys = [self.keys.of(tag, name.decode()) for name in names if name.startswith(b"entries:")]
        return dict(zip(keys, self.link.run(*(Ask(("LLEN", key)) for key in keys)), strict=True))

    def blocks(self, key: str, first: int, length: int) -> Iterator[Block]:
        """Blocks of a list, from one on up to how long it was."""
        for at in range(first, length, BLOCKS_PAGE):
            (some,) = self.link.run(Ask(("LRANGE", key, at, min(length, at + BLOCKS_PAGE) - 1)))
            yield from map(unpack, some)

    def forget(self) -> None:
        """Redis may have forgotten what this process knows of it."""
        self.census.forget()
        self.shapes, self.registered = {}, set()


class _Job:
    """A batch of one project until it is applied."""

    def __init__(self, tag: str, units: list[Unit], from_seq: int) -> None:
        self.tag, self.units, self.from_seq = tag, units, from_seq
        self.to_seq = units[-1].seq
        self.stand: dict[str, str] = {}
        self.decision: Decision

    def groups(self, after: int) -> list[Group]:
        """What is counted of the rows after this one."""
        if after <= self.from_seq:
            return self.decision.groups
        return groups_of(each.entry for each in self.decision.counted if each.seq > after)


class Leases(Protocol):
    """What applying rows takes off this process's leases."""

    def parts(self, rows: Iterable[int], tag: str) -> Leased: ...

    def applied(self, rows: Iterable[int], tag: str) -> None: ...


class Applier:
    """`applied`: tag → last row applied there; `starred`: tag → the same in the slot that has no project."""

    def __init__(self, shared: Shared, journal: Journal, leases: Leases | None = None) -> None:
        self._shared, self._journal, self._leases = shared, journal, leases
        self.applied: dict[str, int] = {}
        self.starred: dict[str, int] = {}
        self.forgotten = False  #: a project's slot had less of this journal than the one without a project says
        self._look_at: list[str] = []
        self._refusal = ""

    # ── from the beginning ──

    def catch_up(self) -> None:
        """Read the cursors, then apply every row that they do not cover. Raises StoreUnavailable."""
        link, keys, name = self._shared.link, self._shared.keys, self._journal.id
        newest = self._journal.projects()
        self._shared.register(newest)
        tags = {tag_of(project): project for project in newest}
        cursors = link.run(*(Ask(("HGET", keys.cursor(tag), name)) for tag in tags)) if tags else []
        stars = link.run(*(Ask(("HGET", keys.cursor(GLOBAL), f"{name}@{tag}")) for tag in tags)) if tags else []
        self.applied = {tag: int(row or 0) for tag, row in zip(tags, cursors, strict=True)}
        self.starred = {tag: int(row or 0) for tag, row in zip(tags, stars, strict=True)}
        self.forgotten = any(self.applied[tag] < self.starred[tag] for tag in tags)
        if not link.run(Ask(("HGET", keys.cursor(GLOBAL), f"{name}/before")))[0]:
            self._begin()
        if not any(self.applied.values()):  # it has nothing of it any more
            self._refusal = ""
        for tag in tags:
            if self.applied[tag] > self._journal.last:
                self._refusal = (
                    f"journal: {self._journal.path} ends before what Redis has of it (row {self._journal.last}, not "
                    f"{self.applied[tag]}): it is an old copy; move it away, and bring back the newer file if there is one"
                )
            if self._refusal:  # for good: what it books from now on would stand where Redis has other rows of it
                raise StoreUnavailable(self._refusal)
            self._follow(tag)
        at = min((row for tag, row in self.applied.items() if row < newest[tags[tag]]), default=None)
        if at is not None:
            self._replay(at, max(newest.values()))

    def go_on(self) -> None:
        """Apply what has come since `catch_up`, whether anybody has told of it or not."""
        self._replay(max(self.applied.values(), default=0), _TO_THE_END)

    def _replay(self, after: int, upto: int) -> None:
        while rows := self._journal.rows(after, upto, REPLAY_MAX):
            if rows[-1][1].sign < 0:  # a reversal goes with what comes after it
                rows += self._journal.rows(rows[-1][0], upto, 1)
            self.apply(rows)
            after = rows[-1][0]

    def _begin(self) -> None:
        """Redis has never seen this journal, or has lost everything: then it gets the sums of what is pruned here, too, once."""
        shared, name = self._shared, self._journal.id
        found = before_of(self._journal.before(), name, shared.keys, shared.deadlines, shared.now_us() // 10**6)
        cursors = shared.link.run(*(Ask(("HGET", shared.keys.cursor(tag), name)) for tag in found.batches))
        lost = not any(self.applied.values()) and not any(cursors)
        batches = found.batches if lost else {}
        last = batches.pop(GLOBAL, Batch(tag=GLOBAL, cursors=[(f"{name}/before", 0, 1)], shapes=None))
        shared.register(found.projects if lost else ())
        projects = {tag_of(project): project for project in found.projects}
        for batch in (*batches.values(), last):
            answer = [b"shapes"]
            while answer[0] == b"shapes":  # its cursor refuses it where it was taken before
                kept = shared.shapes.get(batch.tag, frozenset())
                (answer,) = shared.link.run(
                    shared.ask(added_to(batch, kept, projects.get(batch.tag, ""), shared.places))
                )
                if answer[0] == b"shapes":
                    shared.shapes[batch.tag] = shapes_of(answer[1:])

    def _follow(self, tag: str) -> None:
        """Bring the slot that has no project up to what the project's own slot has, from the entries counted there."""
        from_seq, to_seq = self.starred[tag], self.applied[tag]
        if from_seq >= to_seq:  # above it: only the project's slot has forgotten; its rows will count there, not here
            return
        self._make_up(self._journal.id, tag, from_seq, to_seq)
        self.starred[tag] = to_seq

    def follow_others(self, alive: Collection[str]) -> None:
        """The same for the journals of gateways that are gone: nobody else does it before their files are adopted, if ever."""
        link, keys = self._shared.link, self._shared.keys
        tags = list(self._shared.projects())
        for tag, found in zip(tags, link.run(*(Ask(("HGETALL", keys.cursor(tag))) for tag in tags)), strict=True):
            rows = rows_of(found)
            gone = [journal for journal in rows if journal != self._journal.id and journal not in alive]
            stars = link.run(*(Ask(("HGET", keys.cursor(GLOBAL), f"{journal}@{tag}")) for journal in gone))
            for journal, star in zip(gone, stars, strict=True):
                if int(star or 0) < rows[journal]:
                    with contextlib.suppress(Doubted):  # another gateway has done it
                        self._make_up(journal, tag, int(star or 0), rows[journal])

    def _make_up(self, journal: str, tag: str, from_seq: int, to_seq: int) -> None:
        counted = [
            entry
            for block in blocks_of(self._shared, tag)
            if block.journal == journal
            for seq, entry in block.rows
            if from_seq < seq <= to_seq
        ]
        (live,) = self._shared.link.run(Ask(("HKEYS", self._shared.keys.holds(GLOBAL))))
        ended = {f"{tag}/{entry.id}" for entry in counted if entry.by is None}
        holds = [id for id in map(bytes.decode, live) if id in ended]  # of who died between this slot and the project's
        self._star([(f"{journal}@{tag}", from_seq, to_seq)], groups_of(counted), holds, {})

    def look(self) -> None:
        """Look whether some cursors are where they were left, others the next time. Raises Doubted, StoreUnavailable."""
        if not self._look_at:
            self._look_at = list(self.applied)
        tags, self._look_at = self._look_at[:LOOKED_AT], self._look_at[LOOKED_AT:]
        name = self._journal.id
        rows = self._shared.link.run(*(Ask(("HGET", self._shared.keys.cursor(tag), name)) for tag in tags))
        for tag, row in zip(tags, rows, strict=True):
            if int(row or 0) != self.applied[tag]:
                raise Doubted(f"store: Redis has row {int(row or 0)} of this journal, not {self.applied[tag]}")

    # ── what is new ──

    def apply(self, rows: Iterable[Row]) -> list[Entry]:
        """Apply rows; the entries of those that had been applied before. Raises Doubted, StoreUnavailable."""
        self._shared.places.forget()
        by_tag: dict[str, list[Unit]] = {}
        before: list[Entry] = []
        for unit in units_of(rows):
            tag = tag_of(unit.entry.scopes.project)
            if unit.seq > self.applied.get(tag, 0):
                by_tag.setdefault(tag, []).append(unit)
            else:
                before.append(unit.entry)
        if by_tag:
            self._apply(by_tag)
        return before

    def _apply(self, by_tag: dict[str, list[Unit]]) -> None:
        self._shared.census.learn(self._shared.link, (unit.entry for units in by_tag.values() for unit in units))
        jobs = [
            _Job(tag, [self._placed(unit) for unit in units], self.applied.get(tag, 0)) for tag, units in by_tag.items()
        ]
        waiting = jobs
        while waiting:
            answers = self._shared.link.run(*map(self._ask, waiting))
            waiting = [job for job, answer in zip(waiting, answers, strict=True) if not self._answered(job, answer)]
        for job in jobs:
            for entry in job.decision.conflicts:
                log.error(_CONFLICT, entry.id, entry.scopes.project)
        starred = {job.tag: self.starred.get(job.tag, 0) for job in jobs}
        behind = [job for job in jobs if job.to_seq > starred[job.tag]]
        self._star(
            [(f"{self._journal.id}@{job.tag}", starred[job.tag], job.to_seq) for job in behind],
            [group for job in behind for group in job.groups(starred[job.tag])],
            [f"{job.tag}/{id}" for job in jobs for id in _ended(job)],
            self._leased(behind, GLOBAL),
        )
        if self._leases is not None:
            self._leases.applied([seq for job in behind for seq in _rows(job)], GLOBAL)
        self.starred.update({job.tag: job.to_seq for job in behind})

    def _placed(self, unit: Unit) -> Unit:
        other = self._shared.census.place(unit.entry)
        if other == unit.entry.other:
            return unit
        reversal = None if unit.reversal is None else structs.replace(unit.reversal, other=other)
        return Unit(unit.seq, structs.replace(unit.entry, other=other), reversal)

    def _ask(self, job: _Job) -> Ask:
        shared = self._shared
        job.decision = decide_all(job.units, job.stand)
        return shared.ask(
            project_batch(
                job.tag, self._journal.id, job.from_seq, job.to_seq, job.decision, ended=_ended(job),
                shapes=shared.shapes.get(job.tag, frozenset()), places=shared.places,
                now_us=shared.now_us(), leased=self._leased([job], job.tag),
            )
        )  # fmt: skip

    def _answered(self, job: _Job, answer: list[bytes]) -> bool:
        """Whether the batch is applied; if not, what stands in its way is known now."""
        match answer[0]:
            case b"applied":
                self.applied[job.tag] = job.to_seq
                if self._leases is not None:
                    self._leases.applied(_rows(job), job.tag)
                for field in answer[1:]:
                    log.error(_STUCK, field.decode())
                return True
            case b"shapes":
                self._shared.shapes[job.tag] = shapes_of(answer[1:])
            case b"ids":
                names = list(job.decision.names)
                for number, stands in zip(answer[1::2], answer[2::2], strict=True):
                    job.stand[names[int(number) - 1]] = stands.decode()
            case _:
                raise Doubted(f"store: Redis has row {answer[1].decode()} of this journal, not {job.from_seq}")
        return False

    def _leased(self, jobs: Iterable[_Job], tag: str) -> Leased:
        return {} if self._leases is None else self._leases.parts([seq for job in jobs for seq in _rows(job)], tag)

    def _star(self, cursors: list[tuple[str, int, int]], groups: list[Group], ended: list[str], leased: Leased) -> None:
        """Rows in the slot that has no project: up to `cursors`' fields, from where they stand."""
        shared = self._shared
        while cursors:
            shapes = shared.shapes.get(GLOBAL, frozenset())
            batch = global_batch(
                cursors, groups, ended=ended if shapes else (), shapes=shapes, places=shared.places, leased=leased
            )
            (answer,) = shared.link.run(shared.ask(batch))
            if answer[0] == b"applied":
                break
            if answer[0] != b"shapes":
                raise Doubted(f"store: Redis has rows {answer[1:]} of this journal in its slot without a project")
            shared.shapes[GLOBAL] = shapes_of(answer[1:])


def shapes_of(answer: Iterable[bytes]) -> frozenset[Shape]:
    """What a slot says that it keeps."""
    return frozenset(shape_of(name.decode()) for name in answer)


def _rows(job: _Job) -> list[int]:
    return [unit.seq for unit in job.units]


def _ended(job: _Job) -> list[str]:
    """Holds that end with these rows: a correction that somebody asked for ends none."""
    return [unit.entry.id for unit in job.units if unit.entry.by is None]


def blocks_of(shared: Shared, tag: str) -> Iterator[Block]:
    """Every block of a project's slot, month by month."""
    for key, length in shared.lists(tag).items():
        yield from shared.blocks(key, 0, length)


def rows_of(cursor: Any) -> dict[str, int]:
    """Journals, and the last row of each that a slot has, from its cursor."""
    return {field.decode(): int(row) for field, row in pairs(cursor).items() if len(field) == _ID_LENGTH}


def pairs(found: Any) -> dict[bytes, bytes]:
    """HGETALL's answer, in either version of the protocol."""
    return found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
