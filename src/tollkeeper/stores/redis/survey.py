"""How a shared ledger looks from this host: its servers, gateways and journals, what is held, and what needs attention.

Everything here blocks: it is for threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.errors import StoreError
from tollkeeper.stores.redis.apply import Shared, pairs
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.check import Findings, check_all
from tollkeeper.stores.redis.flush import SILENT_MS
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.sqlite.file import owned
from tollkeeper.stores.sqlite.journal import files, is_journal, looking
from tollkeeper.stores.sqlite.reader import SqliteReader

#: Rows that a gateway under load may be behind.
BEHIND_MAX: Final = 5_000
#: Milliseconds past its deadline after which somebody should have booked a hold.
OVERDUE_MS: Final = 60_000


Cursors = dict[str, dict[str, bytes]]
"""Tag → cursor's field → row."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway, by its journal, as it says itself."""

    journal: str
    state: str
    silent_ms: int

    @property
    def alive(self) -> bool:
        return self.silent_ms <= SILENT_MS


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """A journal of this host. Rows are counted as entries."""

    id: str
    pid: int | None = None  #: of the process that has it
    rows: int = 0
    waiting: int = 0  #: that Redis does not have yet
    error: str | None = None  #: why it cannot be read


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    place: str
    servers: dict[str, Findings]
    epoch: str | None
    members: list[Member]
    journals: list[JournalState]
    elsewhere: list[str]  #: journals that Redis has rows of and that are not on this host
    projects: int
    holds: int
    overdue: int  #: holds that nobody books although their deadline is over

    @property
    def attention(self) -> list[str]:
        """What should not be so, a line each."""
        found = [f"{name}: {error}" for name, each in self.servers.items() for error in each.errors]
        if self.epoch is None:
            rows = sum(each.rows for each in self.journals)
            found.append(
                f"nothing is there under this prefix; {rows:,} entries in the journals come back with the next gateway, or "
                "with `tollkeeper store rebuild`"
            )
        alive = {member.journal for member in self.members if member.alive}
        for each in self.journals:
            if each.error is not None:
                found.append(f"journal {each.id} cannot be read: {each.error}")
            elif each.pid is not None and each.id not in alive:
                found.append(f"journal {each.id}: its process {each.pid} gives Redis no sign of life")
            elif each.pid is None and each.waiting:
                found.append(
                    f"journal {each.id}: {each.waiting:,} entries wait, and no process has it; start a gateway here"
                )
            elif each.waiting > BEHIND_MAX:
                found.append(f"journal {each.id} is {each.waiting:,} entries behind")
        if self.overdue:
            found.append(f"{self.overdue:,} holds are past their deadline, and no gateway has booked them")
        return found


def survey(servers: Servers, shared: Shared, folder: Path) -> Survey:
    """Look at all of it. Raises StoreUnavailable, redis.RedisError."""
    link, keys = shared.link, shared.keys
    projects = shared.projects()
    tags = [*projects, GLOBAL]
    (epoch,) = link.run(Ask(("GET", keys.epoch)))
    applied = _cursors(shared, projects)
    journals = [_journal(path, applied) for path in files(folder)]
    held, overdue = _holds(shared, tags)
    return Survey(
        place=servers.place.shown, servers=check_all(servers), epoch=None if epoch is None else epoch.decode(),
        members=members(shared), journals=journals,
        elsewhere=sorted(_known(applied) - {each.id for each in journals}),
        projects=len(projects), holds=len(held), overdue=len(overdue),
    )  # fmt: skip


def members(shared: Shared) -> list[Member]:
    """Gateways that have given a sign of life, and not long ago."""
    keys = shared.keys
    found, (seconds, micros) = shared.link.run(Ask(("HGETALL", keys.members)), Ask(("TIME",), keys.members))
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    return [
        Member(journal=journal.decode(), state=words[-1], silent_ms=max(0, now_ms - int(words[0])))
        for journal, said in sorted(pairs(found).items())
        if (words := said.decode().split(" "))
    ]


def journals_of(shared: Shared, folder: Path) -> list[JournalState]:
    """The journals of this host."""
    applied = _cursors(shared, shared.projects())
    return [_journal(path, applied) for path in files(folder)]


def _cursors(shared: Shared, tags: Iterable[str]) -> Cursors:
    tags = list(tags)
    found = shared.link.run(*(Ask(("HGETALL", shared.keys.cursor(tag))) for tag in tags))
    return {
        tag: {name.decode(): row for name, row in pairs(each).items()} for tag, each in zip(tags, found, strict=True)
    }


def _known(applied: Cursors) -> set[str]:
    """The journals that slots have rows of."""
    return {name for cursor in applied.values() for name in cursor if is_journal(name)}


def _waiting(reader: SqliteReader, id: str, applied: Cursors) -> int:
    """How many rows of a journal the slots do not have."""
    behind = 0
    for project, newest in reader.query("projects"):
        row = int(applied.get(tag_of(project), {}).get(id, 0))
        if row < newest:
            behind += reader.query("behind", project=project, after=row)[0][0]
    return behind


def _journal(path: Path, applied: Cursors) -> JournalState:
    pid = owned(path)
    try:
        with looking(path) as reader:
            rows = reader.query("size")[0][0]
            return JournalState(id=path.stem, pid=pid, rows=rows, waiting=_waiting(reader, path.stem, applied))
    except StoreError as error:
        return JournalState(id=path.stem, pid=pid, error=str(error))


def _holds(shared: Shared, tags: list[str]) -> tuple[set[str], set[str]]:
    """Names of all holds, and of those that are overdue. One of several slots is one hold."""
    link, keys = shared.link, shared.keys
    before_ms = shared.now_us() // 1000 - OVERDUE_MS
    held = link.run(*(Ask(("HKEYS", keys.holds(tag))) for tag in tags))
    late = link.run(*(Ask(("ZRANGEBYSCORE", keys.due(tag), "-inf", before_ms)) for tag in tags))

    def named(found: list[list[bytes]]) -> set[str]:
        return {
            id.decode() if tag == GLOBAL else f"{tag}/{id.decode()}"
            for tag, ids in zip(tags, found, strict=True)
            for id in ids
        }

    return named(held), named(late)
