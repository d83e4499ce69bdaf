"""cli.options: what several commands have is said once."""

from __future__ import annotations

from collections.abc import Iterator

import click
import typer.main

from tollkeeper import cli
from tollkeeper.cli import options


def commands(command: click.Command) -> Iterator[click.Command]:
    below = getattr(command, "commands", {})
    yield from (each for inner in below.values() for each in commands(inner))
    if not below:
        yield command


def test_shared_options_are_explained_alike() -> None:
    """`--config`, `--store` and `--json` mean the same in every command that has them."""
    helps: dict[str, set[str]] = {"--config": set(), "--json": set(), "--store": set()}
    for command in commands(typer.main.get_command(cli.app)):
        for parameter in command.params:
            for name in helps.keys() & set(parameter.opts):
                helps[name].add(str(getattr(parameter, "help", "")))
    assert {name: len(found) for name, found in helps.items()} == {"--config": 1, "--json": 1, "--store": 1}
    assert options.ConfigFile is cli.ConfigFile
