"""What a command works with: the configuration, with the command's options over it, and the ledger that it names."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tollkeeper.errors import ConfigError

if TYPE_CHECKING:
    from tollkeeper.config import Config, Ledger
    from tollkeeper.stores import Reader

T = TypeVar("T")


def overlay(**given: object) -> dict[str, str]:
    """The environment with the options of a command over it: an option is a setting, checked like any other."""
    options = {f"TOLLKEEPER_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    aliases = {"TOLLKEEPER_REDIS_URL"} if "TOLLKEEPER_STORE" in options else set()
    return {name: value for name, value in os.environ.items() if name not in aliases} | options


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration; a mistake in an option is blamed on the option."""
    from tollkeeper import config

    try:
        return config.load(path, environ)
    except ConfigError as error:
        raise _blamed(error, environ) from None


def load_without_keys(path: Path | None, store: str | None = None) -> Config:
    """The configuration of a command that calls nobody: a missing key of a provider is made up, and without any
    provider every preset is one."""
    from tollkeeper.config.providers import presets
    from tollkeeper.config.sources import read

    environ = overlay(store=store)
    try:
        tables = read(path, environ)[0].providers
    except ConfigError as error:
        raise _blamed(error, environ) from None
    usable = [preset for preset in presets().values() if preset.base_url]
    if not tables and any(environ.get(name, "").strip() for preset in usable for name in preset.key_env):
        return load(path, environ)
    names = [name for preset in presets().values() for name in preset.key_env]
    names += [name for table in tables.values() for name in table.api_key_env or ()]
    return load(path, {name: name for name in names} | environ)  # each its own: two equal keys are a mistake


def ledger(path: Path | None, store: str | None) -> Ledger:
    """The ledger that a command looks at."""
    from tollkeeper import config
    from tollkeeper.clock import SystemClock

    environ = overlay(store=store)
    try:
        return config.ledger(path, environ, SystemClock())
    except ConfigError as error:
        raise _blamed(error, environ) from None


def ledger_of(settings: Config) -> Ledger:
    """The same of a configuration that is there."""
    from tollkeeper.clock import SystemClock
    from tollkeeper.config import Ledger

    return Ledger(settings.store, settings.shared(SystemClock()), settings.scope_cap)


def reading(place: Ledger, ask: Callable[[Reader], Awaitable[T]]) -> T:
    """Ask a ledger, beside whoever owns or shares it."""
    from tollkeeper.stores.opening import open_reader

    if place.url == "memory:":
        raise ConfigError("store: a ledger in memory: is its gateway's alone; name a file: sqlite:///path")

    async def asked() -> T:
        reader = open_reader(place.url, shared=place.shared)
        try:
            return await ask(reader)
        finally:
            await reader.close()

    return asyncio.run(asked())


@contextmanager
def quiet() -> Iterator[None]:
    """Of the log only what went wrong: a command that writes tells the rest by itself."""
    log = logging.getLogger("tollkeeper")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _blamed(error: ConfigError, environ: Mapping[str, str]) -> ConfigError:
    """A mistake in a variable that `overlay` made is the option's."""
    name, colon, text = str(error).partition(": ")
    if colon and environ.get(name) != os.environ.get(name):
        return ConfigError(f"--{name.removeprefix('TOLLKEEPER_').lower()}: {text}")
    return error
