"""`tollkeeper import`: shows what `importing.import_files` does, line by line where it must and in sums where it can."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from tollkeeper.cli.configured import load_without_keys, quiet
from tollkeeper.cli.options import AsJson, ConfigFile, StoreUrl
from tollkeeper.errors import BadRequest, ConfigError, StoreOwned

if TYPE_CHECKING:
    from tollkeeper.importing import Rejected, Summary

#: Lines left out that are told on stderr; the others are counted.
SHOWN: Final = 20
LEFT_OUT: Final = 1
STOPPED: Final = 130


def bring(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="A log, also as .gz; again for more; -: stdin.")],
    format: Annotated[  # noqa: A002 the option's name
        Literal["auto", "usage", "openai", "litellm"],
        typer.Option(help="What a line is; auto looks at the first ones."),
    ] = "auto",
    project: Annotated[str | None, typer.Option(help="Project of lines that name none.")] = None,
    agent: Annotated[str | None, typer.Option(help="Agent of lines that name none.")] = None,
    provider: Annotated[
        str | None, typer.Option(help="Provider of lines that name none; default: who owns the model.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="ISO time, with its zone, of lines of openai that have none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and price everything, write nothing.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every line left out and why, as JSON lines.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    store: StoreUrl = None,
) -> None:
    """Book calls that were made elsewhere, from logs; each line counts once, however often it is imported."""
    import uvloop

    from tollkeeper.importing import import_files
    from tollkeeper.importing.files import size_of

    settings = load_without_keys(config, store)
    if settings.store == "memory:" and not dry_run:
        raise ConfigError("store: a ledger in memory: ends with the import; name a file: sqlite:///path")
    total = size_of(files)
    moment = None if at is None else _moment(at)

    async def imported() -> Summary:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def stopping() -> None:  # the first time; a second Ctrl-C ends it at once
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, stopping)
        with _reporting(rejects) as rejected, _bar(total) as progress:
            return await import_files(
                files, settings=settings, format=format, project=project, agent=agent, provider=provider, at=moment,
                dry_run=dry_run, rejected=rejected, progress=progress, stop=stop,
            )  # fmt: skip

    try:
        with quiet():
            summary = uvloop.run(imported())
    except ValueError as error:
        raise BadRequest(f"--{error}") from None
    except StoreOwned as error:
        raise StoreOwned(
            f"{str(error).partition(';')[0]}, and an import owns the ledger while it runs; "
            "stop that process, import, and start it again (--dry-run works beside it)"
        ) from None
    typer.echo(as_object(summary, dry_run) if as_json else "\n".join(as_lines(summary, dry_run)))
    if summary.stopped is not None:
        file, line = summary.stopped
        typer.echo(
            f"stopped after line {line:,} of {file}: run the same command again, what is booked counts once", err=True
        )
        raise typer.Exit(STOPPED)
    if summary.bad or summary.conflicts:
        raise typer.Exit(LEFT_OUT)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment
    except ValueError:
        pass
    raise BadRequest(f"--at: {text!r} is no time with its zone; write it like 2026-11-22T12:00:00Z")


@contextmanager
def _reporting(rejects: Path | None) -> Iterator[Callable[[Rejected], None]]:
    """Tells the first lines that are left out, and writes all of them where they are asked for."""
    from tollkeeper.cli.render import safe

    count = 0
    try:
        written = None if rejects is None else rejects.open("w", encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"--rejects: {rejects} cannot be written: {error.strerror}") from None

    def rejected(line: Rejected) -> None:
        nonlocal count
        count += 1
        if count <= SHOWN:
            typer.echo(safe(f"{line.file}:{line.line}: {line.reason}"), err=True)
        if written is not None:
            told = {"file": line.file, "line": line.line, "reason": line.reason}
            written.write(json.dumps(told, ensure_ascii=False) + "\n")

    try:
        yield rejected
    finally:
        if written is not None:
            written.close()
        if count > SHOWN:
            typer.echo(f"and {count - SHOWN:,} more" + ("" if rejects else "; --rejects FILE has them all"), err=True)


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, Summary], None]]:
    """A bar of the bytes read."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    from tollkeeper.cli.render import progress_bar

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[lines]:,} lines"), TimeRemainingColumn())
    with progress_bar(*columns, total=total, lines=0) as update:
        yield lambda taken, summary: update(completed=taken, lines=summary.lines)


def as_lines(summary: Summary, dry_run: bool) -> list[str]:
    """The sums for people."""
    from tollkeeper.cli.render import safe
    from tollkeeper.money import format_nanos
    from tollkeeper.values import iso_utc

    width = max(len(f"{summary.lines:,}"), 5)
    found = [f"took {safe(file)} for {form}" for file, form in summary.formats.items()]
    rows = [("lines", summary.lines, "")]
    cost = f"${format_nanos(summary.amount_nanos)}"
    if summary.inexact_nanos:
        cost += f", of which ${format_nanos(summary.inexact_nanos)} is estimated or partly priced"
    if summary.unpriced:
        cost += f"; {summary.unpriced:,} without a price: their cost is not known and not in the sum"
    rows.append(("would book" if dry_run else "booked", summary.booked, cost if summary.booked else ""))
    rows.append(("corrected", summary.corrected, "estimates of calls whose end was not known"))
    rows.append(("repeated", summary.repeated, "were in the ledger before"))
    rows.append(("conflicts", summary.conflicts, "their id is in the ledger with other contents; left out"))
    rows.append(("bad", summary.bad, "left out"))
    found += [
        f"{name:<10}  {count:>{width},}  {says}".rstrip() for name, count, says in rows if count or name in _ALWAYS
    ]
    if summary.from_us is not None and summary.to_us is not None:
        found.append(f"from {iso_utc(summary.from_us)} to {iso_utc(summary.to_us)}")
    if summary.compared:
        ours, theirs = format_nanos(summary.compared_nanos), format_nanos(summary.other_nanos)
        found.append(f"LiteLLM computed ${theirs}, and it is ${ours} here; calls that have both: {summary.compared:,}")
    if summary.past_retention:
        found.append(f"{summary.past_retention:,} older than retention.entries keeps: the next pruning drops as many")
    return found


_ALWAYS: Final = ("lines", "booked", "would book")


def as_object(summary: Summary, dry_run: bool) -> str:
    """The same as one JSON object: dollars as decimal text, null where there is nothing to say."""
    from tollkeeper.cli.render import as_text
    from tollkeeper.money import format_nanos
    from tollkeeper.values import iso_utc

    counts = ("lines", "booked", "corrected", "repeated", "conflicts", "bad", "unpriced", "past_retention", "compared")
    whole: dict[str, Any] = {"dry_run": dry_run, "formats": summary.formats}
    whole |= {name: getattr(summary, name) for name in counts}
    whole |= {
        "cost_usd": format_nanos(summary.amount_nanos), "not_exact_usd": format_nanos(summary.inexact_nanos),
        "compared_usd": format_nanos(summary.compared_nanos), "other_usd": format_nanos(summary.other_nanos),
        "from": None if summary.from_us is None else iso_utc(summary.from_us),
        "to": None if summary.to_us is None else iso_utc(summary.to_us),
        "stopped": None if summary.stopped is None else {"file": summary.stopped[0], "line": summary.stopped[1]},
    }  # fmt: skip
    return as_text(whole)
