"""The ledger's file: its schema and migrations, who owns it, and how an entry stands in a row."""

from __future__ import annotations

import fcntl
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from tollkeeper.errors import StoreCorrupt, StoreError, StoreOwned, StoreUnavailable
from tollkeeper.ledger import CELL_SUMS, BalanceKey, Shape
from tollkeeper.values import KINDS, TOKEN_KINDS, Charge, Entry, Part, Scopes, Term, Usage

#: Pages of the write-ahead log between two checkpoints: 16 MB.
_CHECKPOINT_PAGES: Final = 4000
#: Marks a file as a ledger of ours: "toll".
APPLICATION_ID: Final = 0x746F6C6C
#: The columns of an entry, without `seq`, in the order of `entry_row`.
COLUMNS: Final = (
    "project", "id", "revision", "sign", "call", "attempt", "calls", "at_us", "agent", "session", "user", "key", "tags",
    "other", "dialect", "provider", "model", "served", "tier", "outcome", "http_status", *KINDS, "amount_nanos",
    "computed_nanos", "reported_nanos", "status", "price_version", "terms", "missing", "latency_ms", "note", "more",
)  # fmt: skip
#: What {name} stands for in the SQL files: lists that follow from the usage kinds, or that several statements share.
_LISTS: Final = {
    "counted": "hour_us, project, agent, session, user, key, tags, other, provider, model",
    "columns": ", ".join(COLUMNS),
    "values": ", ".join(f"value ->> {number}" for number in range(len(COLUMNS))),
    "names": ", ".join(CELL_SUMS),
    "sums": ", ".join(f"sum({name}) AS {name}" for name in CELL_SUMS),
    "added": ", ".join(f"{name} = {name} + excluded.{name}" for name in CELL_SUMS),
    "negated": ", ".join(f"-{name} AS {name}" for name in CELL_SUMS),
    "signed": ", ".join(f"sign * {kind} AS {kind}" for kind in KINDS),
    "tokens": " + ".join(TOKEN_KINDS),
}
_SQL: Final = files("tollkeeper.stores.sqlite") / "sql"


def _read_sql(name: str) -> str:
    text = (_SQL / name).read_text("utf-8")
    for each, sql in _LISTS.items():
        text = text.replace(f"{{{each}}}", sql)
    return text


VIEWS: Final = _read_sql("views.sql")
APPLY: Final = _read_sql("apply.sql")
MIGRATIONS: Final = tuple(
    path.read_text("utf-8") for path in sorted(_SQL.iterdir(), key=lambda path: path.name) if path.name[0].isdigit()
)
QUERIES: Final[dict[str, str]] = {
    name.strip(): sql
    for name, _, sql in (part.partition("\n") for part in _read_sql("queries.sql").split("-- name:")[1:])
}

#: Errors of the disk and of rights; any other is about the contents.
_OF_THE_PLACE: Final = (
    apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.BusyError,
    apsw.ConnectionClosedError,
)  # fmt: skip

encode = msgspec.json.Encoder().encode
_terms = msgspec.json.Decoder(tuple[Term, ...])
_strings = msgspec.json.Decoder(tuple[str, ...])


class _More(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What few entries have: one column for all of it, NULL for the others."""

    speed: str | None = None
    geo: str | None = None
    sent: str | None = None
    parts: tuple[Part, ...] = ()
    by: str | None = None
    estimated: bool = False


_NO_MORE: Final = _More()
_more = msgspec.json.Decoder(_More)


def entry_row(entry: Entry) -> tuple[Any, ...]:
    """An entry as the columns of the table, without `seq`."""
    scopes, usage, charge = entry.scopes, entry.usage, entry.charge
    return (
        scopes.project, entry.id, entry.revision, entry.sign, entry.call, entry.attempt, entry.calls, entry.at_us,
        scopes.agent, scopes.session, scopes.user, scopes.key, _array(scopes.tags), _array(entry.other), entry.dialect,
        entry.provider, entry.model, entry.served, entry.tier, entry.outcome, entry.http_status,
        *msgspec.structs.astuple(usage), charge.amount_nanos, charge.computed_nanos, charge.reported_nanos,
        charge.status, charge.price_version, encode(charge.terms).decode(), _array(charge.missing), entry.latency_ms,
        entry.note, _more_text(entry),
    )  # fmt: skip


def _more_text(entry: Entry) -> str | None:
    more = _More(
        speed=entry.speed, geo=entry.geo, sent=entry.sent, parts=entry.parts, by=entry.by, estimated=entry.charge.estimated
    )  # fmt: skip
    return None if more == _NO_MORE else encode(more).decode()


def _array(values: tuple[str, ...]) -> str | None:
    return encode(values).decode() if values else None


def _tuple(text: str | None) -> tuple[Any, ...]:
    return () if text is None else _strings.decode(text)


def row_entry(row: tuple[Any, ...]) -> Entry:
    """A row of the table, `seq` first, as an entry."""
    first = 22
    last = first + len(KINDS)
    amount, computed, reported, status, version, terms, missing, latency_ms, note, text = row[last:]
    more = _NO_MORE if text is None else _more.decode(text)
    return Entry(
        id=row[2], revision=row[3], sign=row[4], call=row[5], attempt=row[6], calls=row[7], at_us=row[8],
        scopes=Scopes(project=row[1], agent=row[9], session=row[10], user=row[11], key=row[12], tags=_tuple(row[13])),
        other=_tuple(row[14]), dialect=row[15], provider=row[16], model=row[17], served=row[18], tier=row[19],
        outcome=row[20], http_status=row[21], usage=Usage(**dict(zip(KINDS, row[first:last], strict=True))),
        charge=Charge(
            amount_nanos=amount, computed_nanos=computed, reported_nanos=reported, status=status, price_version=version,
            terms=_terms.decode(terms), missing=_tuple(missing), estimated=more.estimated,
        ),
        latency_ms=latency_ms, note=note, speed=more.speed, geo=more.geo, sent=more.sent, parts=more.parts, by=more.by,
    )  # fmt: skip


def rows(connection: apsw.Connection, name: str, **values: Any) -> list[tuple[Any, ...]]:
    """All rows of a named query."""
    return list(connection.execute(QUERIES[name], values))


def shape_names(shape: Shape) -> dict[str, str]:
    """A shape as query parameters."""
    return {"scope": shape.scope, "measure": shape.measure, "period": shape.window, "timezone": shape.timezone}


def balance_row(key: BalanceKey, end_us: int) -> tuple[Any, ...]:
    """A balance's columns without what is spent."""
    shape, project, id, start_us = key
    return (shape.scope, shape.measure, shape.window, shape.timezone, project, id, start_us, end_us)


def own(path: Path) -> int:
    """Lock the ledger for this process; raises StoreOwned with the owner's pid."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = os.open(f"{path.resolve()}.owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(
            f"store: cannot write in {path.parent}: {error.strerror}; name a folder that can be written"
        ) from error
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(owner, 20).decode(errors="replace").strip()
        os.close(owner)
        raise StoreOwned(f"store: {path} is in use by process {pid}; stop it, or name another file") from None
    os.truncate(owner, 0)
    os.pwrite(owner, str(os.getpid()).encode(), 0)
    return owner


def owned(path: Path) -> int | None:
    """The pid of the process that has the ledger now. Whoever asks for it in the same moment may be told that it is in use."""
    try:
        owner = os.open(f"{path.resolve()}.owner", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(owner, 20).strip()
        return int(pid) if pid.isdigit() else 0
    finally:
        os.close(owner)
    return None


def open_writer(path: Path) -> apsw.Connection:
    """Open or create the file, bring its schema up to date in one transaction, and make the batch statement."""
    try:
        writer = apsw.Connection(str(path))
        writer.set_busy_timeout(5000)
        version, application = writer.pragma("user_version"), writer.pragma("application_id")
        empty = not writer.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        if application != APPLICATION_ID and not empty:
            raise StoreCorrupt(f"store: {path} is another program's database; nothing was changed; name another file")
        if version > len(MIGRATIONS):
            raise _newer(path, version)
        writer.pragma("journal_mode", "wal")
        writer.pragma("synchronous", "full")
        writer.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
        with writer:
            for number, migration in enumerate(MIGRATIONS[version:], version + 1):
                writer.execute(migration)
                writer.pragma("user_version", number)
            writer.pragma("application_id", APPLICATION_ID)
        writer.execute(VIEWS)
        writer.execute(APPLY)
    except apsw.Error as error:
        raise unusable(path, error) from error
    return writer


def unusable(path: Path, failure: apsw.Error) -> StoreError:
    """Why a file cannot be used: the place where it is, or what is in it."""
    if isinstance(failure, _OF_THE_PLACE):
        return StoreUnavailable(f"store: {path} cannot be used ({failure}); check the disk's space, health and rights")
    return StoreCorrupt(
        f"store: {path} cannot be used as a ledger ({failure}); nothing was deleted; restore a copy or name another file"
    )


def _newer(path: Path, version: int) -> StoreCorrupt:
    return StoreCorrupt(
        f"store: {path} was written by a newer version (schema {version}, this one knows {len(MIGRATIONS)}); "
        f"nothing was changed; upgrade Tollkeeper"
    )


def open_reader(path: Path) -> apsw.Connection:
    """A read-only connection with the views. Raises StoreUnavailable, StoreCorrupt."""
    if not path.exists():
        raise StoreUnavailable(f"store: there is no ledger at {path}; start the gateway once, or name another file")
    try:
        reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        reader.set_busy_timeout(5000)
        if reader.pragma("application_id") != APPLICATION_ID:
            raise StoreCorrupt(f"store: {path} is not a Tollkeeper ledger; name another file")
        version = reader.pragma("user_version")
        if version > len(MIGRATIONS):
            raise _newer(path, version)
        if version < len(MIGRATIONS):
            raise StoreUnavailable(
                f"store: {path} has schema {version}, this version reads {len(MIGRATIONS)}; "
                f"start the gateway once to migrate it, or use the version that wrote it"
            )
        reader.execute(VIEWS)
    except apsw.Error as error:
        raise unusable(path, error) from error
    return reader
