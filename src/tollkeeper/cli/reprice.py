"""`tollkeeper reprice`: what history would have cost at other prices, and the corrections that make it so."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tollkeeper.cli.configured import ledger_of, load_without_keys, quiet, reading
from tollkeeper.cli.options import AsJson, ConfigFile, StoreUrl
from tollkeeper.errors import BadRequest, StoreOwned

if TYPE_CHECKING:
    from tollkeeper.config import Ledger
    from tollkeeper.repricing import Repricing
    from tollkeeper.stores import Reader
    from tollkeeper.tracker.history import Again, Signature, Told


def again(
    from_: Annotated[str, typer.Option("--from", help="Date or ISO time.")],
    to: Annotated[
        str | None, typer.Option(help="Date (that whole day) or ISO time; default: this month's end.")
    ] = None,
    tz: Annotated[str, typer.Option(help="Time zone of dates.")] = "UTC",
    project: Annotated[str | None, typer.Option(help="This project alone.")] = None,
    prices: Annotated[Path | None, typer.Option(help="A price file in the place of the configured one.")] = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Show what would change; write nothing.")] = False,
    only: Annotated[Literal["unpriced"] | None, typer.Option(help="Calls without a cost alone.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept in each correction. Default: 'priced again'.")] = None,
    by: Annotated[str | None, typer.Option(help="Who asks; kept beside it. Default: the login name.")] = None,
    as_json: AsJson = False,
    yes: Annotated[bool, typer.Option("--yes", help="Book without asking.")] = False,
    config: ConfigFile = None,
    store: StoreUrl = None,
) -> None:
    """Price what was booked again: show what it would have cost, or book corrections; originals stay."""
    from tollkeeper import reports
    from tollkeeper.cli import render, reprice_tables
    from tollkeeper.clock import SystemClock
    from tollkeeper.prices import PriceBook
    from tollkeeper.tracker import history
    from tollkeeper.tracker.accounts import Accounts

    clock = SystemClock()
    settings = load_without_keys(config, store)
    from_us, to_us = reports.span(from_, to, tz, clock.now_us())
    span = reports.plan(None, None, from_us, to_us, tz, project)
    try:
        signed = history.signature(reason, by)
    except ValueError as error:
        raise BadRequest(f"--{error}") from None
    wanted = history.Again(
        prices=PriceBook.load(settings.prices if prices is None else prices),
        provider=Accounts(None, settings, clock).provider, from_us=from_us, to_us=to_us, project=project,
        only_unpriced=only is not None,
    )  # fmt: skip

    def show(found: Repricing) -> None:
        if as_json:
            typer.echo(reprice_tables.as_json(found, span, signed))
        else:
            render.show(lambda width: reprice_tables.table(found, span, signed))

    if what_if or (not yes and sys.stdin.isatty()):
        with _progress(from_us, to_us) as told:
            found = reading(ledger_of(settings), lambda reader: history.what_if(reader, wanted, told))
        if what_if or not found.total.changed:
            show(found)
            return
        render.show(lambda width: reprice_tables.table(found, span, signed), err=True)
        if not typer.confirm(f"Book these {found.total.changed:,}, signed by {signed.by}?", err=True):
            typer.echo("Nothing was booked.", err=True)
            return
    show(_book(ledger_of(settings), wanted, signed))


def _book(place: Ledger, wanted: Again, signed: Signature) -> Repricing:
    """Own the ledger, or a journal of it, and book. Raises StoreOwned with the pid of a gateway that owns the whole."""
    from tollkeeper.stores.opening import open_store
    from tollkeeper.tracker import history

    reading(place, _is_there)  # booking makes no ledger where there is none
    booked = 0

    async def run(told: Told) -> Repricing:
        def count(entries: int, changed: int, at_us: int) -> None:
            nonlocal booked
            booked = changed
            told(entries, changed, at_us)

        try:
            store = open_store(place.url, budgets=None, scope_cap=place.scope_cap, shared=place.shared)
        except StoreOwned as error:
            raise StoreOwned(f"{str(error).partition(';')[0]}; stop the gateway, or use --what-if") from None
        try:
            return await history.reprice(store, wanted, signed, count)
        finally:
            await store.close()

    try:
        with _progress(wanted.from_us, wanted.to_us) as told, quiet():
            return asyncio.run(run(told))
    except KeyboardInterrupt:
        typer.echo(f"stopped; corrections booked: at least {booked:,}; run it again to go on", err=True)
        raise


async def _is_there(reader: Reader) -> int:
    return await reader.kept_since()


@contextmanager
def _progress(from_us: int, to_us: int) -> Iterator[Callable[[int, int, int], None]]:
    """A bar: how far in time, how many entries, how many of them change."""
    from rich.progress import BarColumn, TextColumn

    from tollkeeper.cli.render import progress_bar
    from tollkeeper.values import iso_utc

    columns = (
        TextColumn("{task.fields[day]}"), BarColumn(),
        TextColumn("{task.fields[entries]:,} entries, {task.fields[changed]:,} change"),
    )  # fmt: skip
    with progress_bar(*columns, total=to_us - from_us, day=iso_utc(from_us)[:10], entries=0, changed=0) as update:
        latest_us = from_us

        def told(entries: int, changed: int, at_us: int) -> None:
            nonlocal latest_us
            latest_us = max(latest_us, at_us)  # corrections of old entries come after newer ones
            update(completed=latest_us - from_us, day=iso_utc(latest_us)[:10], entries=entries, changed=changed)

        yield told
