"""`tollkeeper prices`: which price holds and who made it, a sum with each of its terms, what differs between two lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tollkeeper.cli.configured import load_without_keys
from tollkeeper.cli.options import AsJson, ConfigFile
from tollkeeper.errors import BadRequest
from tollkeeper.values import KINDS, MAX_TOKENS, Provider, Usage

if TYPE_CHECKING:
    from tollkeeper.config import Config
    from tollkeeper.prices import PriceBook
    from tollkeeper.prices.listing import Row

app = typer.Typer(help="Prices: which one holds, what a call comes to, what differs.")

At = Annotated[str | None, typer.Option("--at", help="Date or ISO time (UTC without a zone); default: now.")]


@app.command("list")
def list_(
    provider: Annotated[
        str | None, typer.Option(help="This provider alone, by its name here or in the price data.")
    ] = None,
    model: Annotated[str, typer.Option(help="Models, or routes, with this text in their name.")] = "",
    at: At = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show the prices that hold, from which layer each is, and since when."""
    from tollkeeper.cli import price_tables
    from tollkeeper.prices import PriceBook

    settings, at_us = load_without_keys(config), _instant(at)
    book = PriceBook.load(settings.prices)
    listed = _rows(book, settings, at_us, provider)
    found = [
        row for row in listed if any(model.lower() in name.lower() for name in (row.model, row.when.get("route", "")))
    ]
    if as_json:
        typer.echo(price_tables.listing_json(book.version, at_us, found))
    else:
        typer.echo(price_tables.listing(book.version, at_us, found))


@app.command()
def explain(
    model: Annotated[
        str, typer.Argument(metavar="PROVIDER/MODEL", help="A provider's model; without one: the owner's.")
    ],
    usage: Annotated[str, typer.Option(help="Counts by kind: input=1000,output=200,cache_read=50.")],
    tier: Annotated[str | None, typer.Option(help="The service tier that served.")] = None,
    speed: Annotated[str | None, typer.Option(help="The speed that served.")] = None,
    geo: Annotated[str | None, typer.Option(help="The place of inference.")] = None,
    key: Annotated[str | None, typer.Option(help="The virtual key of the call.")] = None,
    route: Annotated[str | None, typer.Option(help="The name that the client asked for; default: the model's.")] = None,
    at: At = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show each term of what a call of this usage costs, and where its price is from."""
    from tollkeeper.cli import price_tables, render
    from tollkeeper.prices import PriceBook
    from tollkeeper.prices import listing as prices

    settings, at_us, counts = load_without_keys(config), _instant(at), _usage(usage)
    book = PriceBook.load(settings.prices)
    place, name = _split(model, settings, book)
    charge, lines = prices.explain(
        book, place, name, counts, at_us, tier=tier, speed=speed, geo=geo, key=key, route=route or name
    )
    whose = f"{place.name}/{name}" if place is not None else name
    if as_json:
        typer.echo(price_tables.sum_json(whose, at_us, charge, lines))
    else:
        render.show(lambda width: price_tables.sum_of(whose, at_us, charge, lines))


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A price file, a JSON of `prices list`, `shipped` or `current`.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    at: At = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show what B has added, removed and changed against A."""
    from tollkeeper.cli import price_tables, render
    from tollkeeper.prices import listing as prices

    settings, at_us = load_without_keys(config), _instant(at)
    lists = [_listed(word, name, settings, at_us) for word, name in ((before, "A"), (after, "B"))]
    changes = prices.difference(*lists)
    if as_json:
        typer.echo(price_tables.changes_json(before, after, at_us, changes))
    else:
        render.show(lambda width: price_tables.changes(before, after, at_us, changes))


# ── what the commands are told ───────────────────────────────────────────────────────────────────────────────────────


def _instant(text: str | None) -> int:
    from tollkeeper.clock import SystemClock
    from tollkeeper.reports import instant

    return SystemClock().now_us() if text is None else instant(text, "--at", "UTC")


def _usage(text: str) -> Usage:
    from tollkeeper.config.sources import unknown

    counts: dict[str, int] = {}
    for part in text.split(","):
        kind, _, count = part.strip().partition("=")
        if kind not in KINDS:
            raise BadRequest(f"--usage: {kind!r} {unknown(kind, KINDS)}")
        if not (count.isascii() and count.isdigit() and int(count) <= MAX_TOKENS):
            raise BadRequest(f"--usage: {kind}: expected a whole number up to {MAX_TOKENS}, got {count!r}")
        counts[kind] = int(count)
    return Usage(**counts)


def _providers(settings: Config, book: PriceBook) -> dict[str, Provider]:
    """Everybody who may have prices: those of the price data, those that are configured, those that entries name."""
    from tollkeeper.prices import data

    named = {entry.provider for _, entry in book.layers.entries() if entry.provider is not None}
    known = {name: Provider(name=name, base_url="", dialects=frozenset(), prices=None) for name in named}
    known |= {id: Provider(name=id, base_url="", dialects=frozenset(), prices=id) for id in data.provider_ids()}
    return known | settings.providers


def _split(name: str, settings: Config, book: PriceBook) -> tuple[Provider | None, str]:
    """ "provider/model" as both; a name that begins with no provider is its owner's model."""
    from tollkeeper.prices.names import vendor

    providers = _providers(settings, book)
    front, slash, rest = name.partition("/")
    place = providers.get(front) or providers.get(vendor(front))
    if slash and rest and place is not None:
        return place, rest
    owner = book.owner(name)
    return (None if owner is None else providers[owner]), name


def _rows(book: PriceBook, settings: Config, at_us: int, only: str | None = None) -> Iterator[Row]:
    """Every price of a book, or those of one provider."""
    from tollkeeper.config.sources import unknown
    from tollkeeper.prices import data
    from tollkeeper.prices import listing as prices

    providers = _providers(settings, book)
    firsts = {name.lower(): found.routes[0] for name, found in settings.routes.items()}
    routes = {name: (route.provider, route.model) for name, route in firsts.items()}
    if only is not None:
        if only not in providers:
            raise BadRequest(f"--provider: {only!r} {unknown(only, providers)}")
        yield from prices.rows(book, at_us, [providers[only]])
        return
    named = {entry.provider for _, entry in book.layers.entries()}
    shown = [name for name in sorted(providers) if name in named or name in data.provider_ids()]
    yield from prices.rows(book, at_us, [providers[name] for name in shown], routes)
    yield from prices.nameless(book, at_us)


def _listed(word: str, argument: str, settings: Config, at_us: int) -> list[Row]:
    """The prices that a word or file of `prices diff` stands for."""
    from tollkeeper.cli import price_tables
    from tollkeeper.prices import PriceBook

    if word.endswith(".json"):
        return price_tables.read_listing(Path(word), argument)
    own = None if word == "shipped" else settings.prices if word == "current" else Path(word)
    return list(_rows(PriceBook.load(own), settings, at_us))
