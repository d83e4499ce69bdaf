"""The command line. Each command reads settings, calls one function of the package and shows what came of it.

Heavy modules are imported inside the commands, so that `tollkeeper --help` is quick. An error of ours is one line on stderr
and exit code 2; `verify` ends with 1 where the ledger disagrees with itself.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tollkeeper import __version__
from tollkeeper.cli import imports, prices, reprice
from tollkeeper.cli import store as place
from tollkeeper.cli.configured import ledger, ledger_of, load, load_without_keys, overlay, reading
from tollkeeper.cli.options import AsJson, ConfigFile, StoreUrl
from tollkeeper.errors import BadRequest, ConfigError, TollkeeperError
from tollkeeper.ledger import Period
from tollkeeper.reports import Grouping
from tollkeeper.values import MAX_TOKENS, DialectName

if TYPE_CHECKING:
    from tollkeeper.config import Config
    from tollkeeper.reports import Difference, Report
    from tollkeeper.stores import Difference as Unequal
    from tollkeeper.stores import Reader, Size

FAILED: Final = 2

app = typer.Typer(
    name="tollkeeper", help="An LLM gateway that keeps exact accounts.", add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

app.add_typer(prices.app, name="prices")
app.add_typer(place.app, name="store")


def main() -> None:
    """The console script. A terminal that cannot show a character gets another one in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors of ours and of usage are one line on stderr."""
    try:
        code = app(list(arguments), prog_name="tollkeeper", standalone_mode=False)
    except typer.TyperException as usage:
        return _fail(_misused(usage))
    except TollkeeperError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough: `tollkeeper report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _misused(usage: typer.TyperException) -> str:
    """What is wrong with the options, and which command explains them."""
    context: Any = getattr(usage, "ctx", None)
    command = "tollkeeper" if context is None else context.command_path
    says = usage.format_message().replace("Value error, ", "").removesuffix(".")
    return f"{says}. See '{command} --help'."


def _fail(message: str) -> int:
    for line in message.splitlines():  # one, but for a price file: a line for each mistake
        typer.echo(f"tollkeeper: {' '.join(line.split())}", err=True)
    return FAILED


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"tollkeeper {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = None,
    store: StoreUrl = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM."""
    import uvloop

    from tollkeeper import app as gateway
    from tollkeeper.config.sources import find

    environ = overlay(host=host, port=port, store=store)
    settings = load(config, environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with gateway.listen(settings) as listening:
        built = gateway.build(settings)
        where, at = listening.getsockname()[:2]
        typer.echo(f"listening on http://{f'[{where}]' if ':' in where else where}:{at}")
        typer.echo("\n".join(switched_on(settings)))
        sys.stdout.flush()
        uvloop.run(gateway.serve(built, listening, find(config, environ), environ))


def switched_on(config: Config) -> list[str]:
    """What a gateway does with this configuration, in lines for people."""
    from tollkeeper.values import show_amount

    providers = ", ".join(config.providers) or "none: set a key variable such as OPENAI_API_KEY, or add [providers]"
    lines = [f"  providers  {providers}"]
    for name, found in config.routes.items():
        targets = ", ".join(f"{route.provider.name}/{route.model}" for route in found.routes)
        lines.append(f"  route      {name} → {targets}{f' ({found.policy})' if len(found.routes) > 1 else ''}")
    for budget in config.budgets:
        name = budget.scope if budget.id == "*" else f"{budget.scope} {budget.id!r}"
        each = "each " if budget.id == "*" and budget.scope != "all" else ""
        of = f" of project {budget.project!r}" if budget.project != "*" else ""
        soft = "" if budget.hard else ", counted only"
        window = "in total" if budget.window == "total" else f"a {budget.window}"
        lines.append(f"  budget     {each}{name}{of}: {show_amount(budget.limit, budget.measure)} {window}{soft}")
    if not config.budgets:
        lines.append("  budgets    none")
    open_to = "not required: everybody on this machine is let in"
    lines.append(f"  keys       {f'required, {len(config.keys)} known' if config.keys else open_to}")
    lines.append(f"  ledger     {config.store_shown}")
    return lines


@app.command()
def report(
    by: Annotated[Grouping | None, typer.Option(help="What a row is; default: project, or the time alone.")] = None,
    each: Annotated[Period | None, typer.Option(help="One row for each hour, day or month.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Date or ISO time; default: this month's first day.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Date (that whole day) or ISO time; default: this month's end.")
    ] = None,
    tz: Annotated[str, typer.Option(help="Time zone of dates, hours, days and months.")] = "UTC",
    project: Annotated[str | None, typer.Option(help="This project alone.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Providers' own figures beside ours, by model.")] = False,
    config: ConfigFile = None,
    store: StoreUrl = None,
) -> None:
    """Show what was spent, by whom and when; also while the gateway runs."""
    from tollkeeper import reports
    from tollkeeper.cli import render
    from tollkeeper.cli.gather import differences, gather
    from tollkeeper.clock import SystemClock

    if as_json and as_csv:
        raise BadRequest("--json, --csv: one of them at a time")
    from_us, to_us = reports.span(from_, to, tz, SystemClock().now_us())
    plan = reports.plan(by or (None if each else "project"), each, from_us, to_us, tz, project)

    async def ask(reader: Reader) -> tuple[Report, list[Difference] | None]:
        compared = (await differences(reader, from_us, to_us, project)).rows() if compare else None
        return await gather(reader, plan), compared

    found, compared = reading(ledger(config, store), ask)
    if as_json:
        typer.echo(render.as_json(found, compared))
    elif as_csv:
        typer.echo(render.as_csv(found, compared))
    else:
        render.show(lambda width: render.table(found, width))
        if compared is not None:
            render.show(lambda width: render.difference_table(compared))


@app.command()
def estimate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A prompt's text, or a request's body in JSON; -: stdin.")
    ],
    model: Annotated[str | None, typer.Option(help="The model, where FILE names none.")] = None,
    dialect: Annotated[
        DialectName | None, typer.Option(help="The wire format; default: what the model's route speaks.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=MAX_TOKENS, help="Output tokens at most.")] = None,
    project: Annotated[str | None, typer.Option(help="For which project.")] = None,
    agent: Annotated[str | None, typer.Option(help="For which agent.")] = None,
    session: Annotated[str | None, typer.Option(help="For which session.")] = None,
    user: Annotated[str | None, typer.Option(help="For which user.")] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    store: StoreUrl = None,
) -> None:
    """Say what a call would cost and whether its budgets would pay, calling nobody."""
    from tollkeeper.app import limits, routes
    from tollkeeper.cli import render
    from tollkeeper.clock import SystemClock
    from tollkeeper.density import Densities
    from tollkeeper.errors import StoreUnavailable
    from tollkeeper.keys import scopes_for
    from tollkeeper.preview import Draft, Preview, aim, document, preview, standings_in
    from tollkeeper.prices import PriceBook

    settings = load_without_keys(config, store)
    draft = Draft(data=_content(file), bare=True, model=model, dialect=dialect, max_tokens=max_tokens)
    named = {"project": project, "agent": agent, "session": session, "user": user}
    told = {f"x-tollkeeper-{scope}".encode(): id.encode() for scope, id in named.items() if id is not None}

    async def ask(reader: Reader | None) -> Preview:
        now_us, prices = SystemClock().now_us(), PriceBook.load(settings.prices)
        aimed = aim(draft, routes(settings, prices), prices, now_us)
        asked = aimed.ask()
        scopes = scopes_for(None, told, asked.user, settings.default_project)
        standings = await standings_in(reader, settings.budgets, scopes, asked.model, now_us)
        return preview(
            asked, aimed.routes, scopes, standings, prices=prices, limits=limits(settings), densities=Densities(),
            now_us=now_us,
        )  # fmt: skip

    try:
        found = reading(ledger_of(settings), ask)
    except StoreUnavailable:
        if settings.store_path is None or settings.store_path.exists():
            raise
        found = asyncio.run(ask(None))  # no gateway has run here: nothing is spent
    if as_json:
        typer.echo(render.as_text(document(found, held_known=False)))
    else:
        render.show(lambda width: render.preview_table(found))


@app.command()
def verify(config: ConfigFile = None, store: StoreUrl = None) -> None:
    """Compute every sum of the ledger again from its entries; exit code 1 where one differs."""
    from tollkeeper.cli.render import many, size_of

    async def ask(reader: Reader) -> tuple[Size, list[Unequal]]:
        async with reader.snapshot():
            return await reader.size(), await reader.verify()

    size, wrong = reading(ledger(config, store), ask)
    for each in wrong:
        typer.echo(f"{each.what} {each.key}: stored {each.stored}, its entries say {each.entries}")
    checked, entries = size_of(size)
    if wrong:
        typer.echo(f"{many(len(wrong), 'difference')} in {checked} over {entries}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{checked} agree with {entries}")


app.command("import")(imports.bring)
app.command("reprice")(reprice.again)


@app.command("demo")
def play(  # named `demo` it would hide the module
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0: a free one.")] = 0,
    keep: Annotated[bool | None, typer.Option(help="Serve on until Ctrl-C; default: on a terminal.")] = None,
) -> None:
    """Play the whole line on this machine: official SDKs, the gateway, a fake provider, the report."""
    from tollkeeper.cli import demo

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    if not demo.run(port, keep if keep is not None else sys.stdout.isatty()):
        raise typer.Exit(1)


keys = typer.Typer(help="Virtual keys.")
app.add_typer(keys, name="keys")


@keys.command()
def new(
    id: Annotated[str, typer.Option(help="Its name in reports.")],
    project: Annotated[str, typer.Option(help="The project of all its calls.")],
    agent: Annotated[str | None, typer.Option(help="Fixes the agent.")] = None,
    session: Annotated[str | None, typer.Option(help="Fixes the session.")] = None,
    user: Annotated[str | None, typer.Option(help="Fixes the user.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may ask for; again for more.")] = None,
    expires: Annotated[str | None, typer.Option(help="A date, or a time with its zone.")] = None,
) -> None:
    """Make a key: its secret is shown once, its hash goes into the configuration."""
    import secrets

    from tollkeeper.config.sources import checked
    from tollkeeper.keys import mint

    secret, digest = mint(secrets.token_bytes(32))
    fields: dict[str, Any] = {
        "id": id, "hash": digest, "project": project, "agent": agent, "session": session, "user": user,
        "models": model, "expires": expires,
    }  # fmt: skip
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        checked("keys", fields)
    except ConfigError as error:
        raise ConfigError(str(error).replace("settings: keys #1.", "--", 1)) from None
    typer.echo(f"The key, shown this once:\n\n  {secret}\n\nFor the configuration file:\n\n[[keys]]")
    for name, value in fields.items():
        typer.echo(f"{name} = {json.dumps(value, ensure_ascii=False)}")


def _content(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == Path("-") else file.read_bytes()
    except OSError as error:
        raise BadRequest(f"FILE: {file} cannot be read: {error.strerror}; name a prompt or a request's body") from None
