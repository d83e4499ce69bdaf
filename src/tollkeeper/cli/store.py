"""`tollkeeper store`: how the ledger is, whether what is shared agrees with the journals, and filling Redis again from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tollkeeper.cli.configured import ledger, reading
from tollkeeper.cli.options import AsJson, ConfigFile, StoreUrl
from tollkeeper.errors import BadRequest, ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from tollkeeper.config import Ledger
    from tollkeeper.stores import Difference, Reader, Size
    from tollkeeper.stores.redis.apply import Shared
    from tollkeeper.stores.redis.audit import Audit
    from tollkeeper.stores.redis.rebuild import Told
    from tollkeeper.stores.redis.servers import Servers
    from tollkeeper.stores.redis.survey import Survey

T = TypeVar("T")

app = typer.Typer(help="The ledger's place: how it is, whether it agrees with itself, filling Redis again.")


@app.command()
def check(as_json: AsJson = False, config: ConfigFile = None, store: StoreUrl = None) -> None:
    """Show the ledger's servers, gateways, journals and holds; exit code 1 where something needs attention."""
    from tollkeeper.cli import render, store_tables
    from tollkeeper.stores.redis.survey import survey
    from tollkeeper.stores.redis.url import is_redis

    place = ledger(config, store)
    if not is_redis(place.url):
        _check_file(place, as_json)
        return
    found = _looking(place, lambda servers, shared: survey(servers, shared, place.shared.journal))
    if as_json:
        typer.echo(render.as_text(store_tables.survey_object(found)))
    else:
        render.show(lambda width: store_tables.survey_table(found))
    if found.attention:
        raise typer.Exit(1)


@app.command()
def verify(as_json: AsJson = False, config: ConfigFile = None, store: StoreUrl = None) -> None:
    """Compute every sum again from the entries, and find each entry of this host's journals in Redis; exit code 1 where not."""
    from tollkeeper.cli import render, store_tables
    from tollkeeper.stores.redis.audit import audit
    from tollkeeper.stores.redis.url import is_redis

    place = ledger(config, store)
    size, wrong, since_us = reading(place, _verified)
    compared: Audit | None = None
    if is_redis(place.url):
        compared = _looking(place, lambda servers, shared: audit(shared, place.shared.journal, since_us))
        wrong = [*wrong, *compared.differences]
    if as_json:
        typer.echo(render.as_text(store_tables.verified_object(size, wrong, compared)))
    else:
        typer.echo("\n".join(store_tables.verified_lines(size, wrong, compared)))
    if wrong:
        raise typer.Exit(1)


@app.command()
def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="Drop without asking.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while gateways live, or without journals of other hosts.")
    ] = False,
    config: ConfigFile = None,
    store: StoreUrl = None,
) -> None:
    """Drop everything under the prefix in Redis, and have the journals fill it again; run again where it was stopped."""
    from tollkeeper.cli.render import many
    from tollkeeper.stores.redis.rebuild import rebuild as drop_and_fill
    from tollkeeper.stores.redis.survey import survey
    from tollkeeper.stores.redis.url import is_redis

    place = ledger(config, store)
    folder = place.shared.journal
    if not is_redis(place.url):
        raise ConfigError("store: only what is shared in Redis is rebuilt; a ledger's file is its entries")

    def look(servers: Servers, shared: Shared) -> Survey:
        return survey(servers, shared, folder)

    def work(servers: Servers, shared: Shared) -> Survey:
        with _progress() as told:
            drop_and_fill(servers, shared, folder, told)
        return look(servers, shared)

    before = _looking(place, look)
    if not force:
        _refuse(before)
    entries = many(sum(each.rows for each in before.journals), "entry", "entries")
    if not yes:
        typer.confirm(
            f"Drop all under {place.shared.prefix} in {before.place}, and fill it from "
            f"{many(len(before.journals), 'journal')} ({entries})?", abort=True, err=True,
        )  # fmt: skip
    try:
        found = _looking(place, work)
    except KeyboardInterrupt:
        typer.echo("stopped half-way: entries are missing in Redis until it is run again", err=True)
        raise
    waiting = sum(each.waiting for each in found.journals)
    typer.echo(f"filled from {many(len(found.journals), 'journal')}: {entries}, {many(found.projects, 'project')}")
    if waiting:
        typer.echo(f"{waiting:,} of them are on their way, by the gateways that have their journals")


def _refuse(found: Survey) -> None:
    """Raises BadRequest where others would notice, or entries would be missing."""
    alive = [member.journal for member in found.members if member.alive]
    if alive:
        raise BadRequest(
            f"--force: needed while gateways live, which admit nothing meanwhile; stop them first: {', '.join(alive)}"
        )
    unread = [each.id for each in found.journals if each.error is not None]
    away = [*found.elsewhere, *unread]
    if away:
        raise BadRequest(
            "--force: needed where journals are not here, or cannot be read: their entries are missing until a gateway has "
            f"them; bring them to this host's folder: {', '.join(away)}"
        )


def _looking(place: Ledger, work: Callable[[Servers, Shared], T]) -> T:
    """Do what blocks, with a link to Redis that is up. Raises StoreUnavailable."""
    from redis.exceptions import RedisError

    from tollkeeper.stores.redis.reader import connected
    from tollkeeper.stores.redis.servers import Servers
    from tollkeeper.stores.redis.url import parse

    servers = Servers(parse(place.url))
    shared = connected(servers, place.shared, place.scope_cap)
    try:
        return work(servers, shared)
    except RedisError as error:
        raise StoreUnavailable(f"store: Redis does not answer ({error}); start it, or name another one") from None
    finally:
        shared.link.close()


@contextmanager
def _progress() -> Iterator[Told]:
    """What is under way, on a terminal."""
    from rich.progress import SpinnerColumn, TextColumn

    from tollkeeper.cli.render import progress_bar

    doing = {"stop": "gateways that go on", "drop": "keys dropped", "fill": "journals applied"}
    columns = (SpinnerColumn(), TextColumn("{task.fields[done]:,} {task.fields[what]}"))
    with progress_bar(*columns, total=None, done=0, what="") as update:
        yield lambda what, done: update(what=doing[what], done=done)


async def _verified(reader: Reader) -> tuple[Size, list[Difference], int]:
    async with reader.snapshot():
        return await reader.size(), await reader.verify(), await reader.kept_since()


def _check_file(place: Ledger, as_json: bool) -> None:
    """The same of a file, which has one owner and no journals."""
    from tollkeeper.cli import render
    from tollkeeper.stores.opening import sqlite_path
    from tollkeeper.stores.sqlite.file import owned

    async def ask(reader: Reader) -> Size:
        return await reader.size()

    size, pid = reading(place, ask), owned(sqlite_path(place.url))
    if as_json:
        typer.echo(render.as_text({"place": place.url, "process": pid, **size._asdict(), "attention": []}))
        return
    owner = "no process has it" if pid is None else f"process {pid} has it"
    sums, entries = render.size_of(size)
    typer.echo(f"{place.url}: {owner}; {entries}, {sums}")
