"""Price entries as people write them: a TOML file, the same tables in the settings, or objects from a program.

    [[price]]
    model = "my-model"            # or models = ["a", "b"]; exact names, "vendor/model" too; "*": each of a provider
    input = "2.50"                # USD per million tokens, decimal text or a whole number
    output = "10"

What else a table may have is in `_FIELDS`, and what each field means in docs/reference/settings.md. Every mistake is a
line of its own: source, entry, field, what would be right.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from tollkeeper.errors import ConfigError
from tollkeeper.money import CONTEXT
from tollkeeper.prices.override import EVERY, Override
from tollkeeper.prices.rates import BILLED, Price, call_context
from tollkeeper.prices.windows import read_windows
from tollkeeper.values import MAX_TOKENS, moment_of, us_of

KINDS: Final = (*BILLED, "reasoning")
_CONTEXT_FIELDS: Final = ("service_tier", "speed", "geo")
_MULTIPLIERS: Final = ("multiplier", "token_multiplier")
_PRICES: Final = (*KINDS, "request", *_MULTIPLIERS, "tiers")
_FIELDS: Final = (
    "provider", "model", "models", "key", "route", "from", "until", "windows", *_CONTEXT_FIELDS, "free", *_PRICES
)  # fmt: skip
_MAX_PRICE: Final = 10_000
_MAX_FACTOR: Final = 1000
_NUMBER: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")
_FREE: Final = tuple((kind, ((0, Decimal(0)),)) for kind in BILLED)


def read(path: Path) -> tuple[Override, ...]:
    """The entries of a price file. Raises ConfigError, one line per mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the price file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; expected a TOML file with [[price]] tables") from None
    return parse(text, str(path))


def parse(text: str, source: str = "prices") -> tuple[Override, ...]:
    """The entries of a price file's text. Raises ConfigError, one line per mistake: source, entry, field, remedy."""
    try:
        document = tomllib.loads(text, parse_float=_Float)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    tables, others = document.pop("price", []), [f"{name}: unknown; prices stand in [[price]]" for name in document]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source}: price: expected entries that start with [[price]]")
    return _entries(tables, source, others)


def entries(tables: Sequence[Mapping[str, Any]], source: str = "prices") -> tuple[Override, ...]:
    """The same entries as plain tables: dicts, or decoded JSON, where days are text. Raises ConfigError as `parse`."""
    return _entries([dict(table) for table in tables], source, [])


@cache
def shipped() -> tuple[Override, ...]:
    """The entries that come with the package, for what the price data lack."""
    return parse(resources.files("tollkeeper.prices").joinpath("shipped.toml").read_text("utf-8"), "shipped.toml")


def _entries(tables: Sequence[dict[str, Any]], source: str, mistakes: list[str]) -> tuple[Override, ...]:
    overrides: list[Override] = []
    seen: dict[object, int] = {}
    for number, table in enumerate(tables, 1):
        label = f"price {number}" + (f" ({table['model']})" if isinstance(table.get("model"), str) else "")
        found = _Entry(table)
        override = found.read()
        whom = (override.provider, override.key, override.route, override.context, override.from_us, override.windows)
        for name in override.models or ("",):
            if seen.setdefault((name, *whom), number) != number:
                found.mistakes.append(
                    f"model: {name!r} already has a price of this scope in entry {seen[(name, *whom)]}; keep one"
                )
        mistakes += [f"{label}: {mistake}" for mistake in found.mistakes]
        overrides.append(override)
    if mistakes:
        raise ConfigError("\n".join(f"{source}: {mistake}" for mistake in mistakes))
    return tuple(overrides)


class _Float(str):
    """A TOML float, kept as its text so that the hint can quote it."""

    __slots__ = ()


class _Entry:
    """One table on its way to an Override; collects every mistake instead of stopping at the first."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.mistakes: list[str] = []

    def read(self) -> Override:
        for name in self.table.keys() - set(_FIELDS):
            near = difflib.get_close_matches(str(name), _FIELDS, 1)
            self.mistakes.append(f"{name}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        context = call_context(*(self._text(name) for name in _CONTEXT_FIELDS))
        route, free = self._text("route"), self._free()
        override = Override(
            models=self._models(),
            provider=self._text("provider"),
            key=self._text("key"),
            route=None if route is None else route.lower(),
            from_us=self._instant("from"),
            until_us=self._instant("until"),
            windows=read_windows(self.table.get("windows"), self.mistakes),
            context=tuple(sorted(context.items())),
            prices=_FREE if free else tuple(self._prices()),
            multiplier=self._amount(self.table, "multiplier", _MAX_FACTOR),
            token_multiplier=self._amount(self.table, "token_multiplier", _MAX_FACTOR),
            free=free,
        )
        if override.end_us <= override.start_us:
            self.mistakes.append("until: is not after from, so the entry never counts; expected a later day")
        if not self.mistakes and not override.prices and override.multiplier is override.token_multiplier is None:
            self.mistakes.append('input: no price; write for example input = "2.50" and output = "10", or free = true')
        return override

    def _text(self, name: str) -> str | None:
        value = self.table.get(name)
        if value is None or (isinstance(value, str) and not isinstance(value, _Float) and value.strip()):
            return value
        self.mistakes.append(f"{name}: expected a name in quotes, got {value!r}")
        return None

    def _models(self) -> tuple[str, ...]:
        table = self.table
        if "route" in table and "model" not in table and "models" not in table:
            return ()
        names = self._models_told()
        if ("model" in table) == ("models" in table) or not names:
            self.mistakes.append('model: expected model = "name", or models = ["name", …]')
        elif not all(isinstance(name, str) and not isinstance(name, _Float) and 0 < len(name) <= 256 for name in names):
            self.mistakes.append("model: expected names of 1 to 256 characters in quotes")
        elif EVERY in names and len(names) > 1:
            self.mistakes.append('models: "*" is every model; remove it, or the names beside it')
        elif EVERY in names and not {"provider", "key", "route"} & table.keys():
            self.mistakes.append('models: "*" needs a provider, a key or a route beside it')
        else:
            return tuple(dict.fromkeys(name.lower() for name in names))
        return ()

    def _models_told(self) -> list[Any]:
        names = self.table.get("models")
        return [self.table["model"]] if "model" in self.table else names if isinstance(names, list) else []

    def _free(self) -> bool:
        value = self.table.get("free")
        if value is None:
            return False
        if value is not True:
            self.mistakes.append(f"free: expected true, got {value!r}; leave it out where the model has a price")
        if beside := [name for name in _PRICES if name in self.table]:
            self.mistakes.append(f"free: stands alone; remove {', '.join(beside)}")
        if EVERY in self._models_told():
            self.mistakes.append('free: needs the names of the models; "*" prices none that has no price')
        return value is True

    def _instant(self, name: str) -> int | None:
        """A UTC day or an instant, from TOML's own or from text."""
        value = self.table.get(name)
        if value is None:
            return None
        moment = None if isinstance(value, _Float) else moment_of(value)
        if moment is not None:
            return us_of(moment)
        self.mistakes.append(
            f"{name}: expected a UTC day such as 2026-01-31, or a time with its zone such as 2026-01-31T12:00:00Z, "
            f"got {str(value)!r}"
        )
        return None

    def _prices(self) -> Iterator[tuple[str, Price]]:
        tiers = self._tiers()
        for kind in KINDS:
            usd = self._amount(self.table, kind)
            steps = [
                (start, tier_usd) for start, prices in tiers if (tier_usd := self._amount(prices, kind)) is not None
            ]
            if usd is not None:
                yield kind, ((0, usd), *steps)
            elif steps and kind not in self.table:
                self.mistakes.append(f"tiers: {kind} has a price in a tier and none below it; add {kind} to the entry")
        if (fee := self._amount(self.table, "request")) is not None:
            yield "requests", ((0, CONTEXT.scaleb(fee, 3)),)

    def _tiers(self) -> list[tuple[int, dict[str, Any]]]:
        """(first prompt token count, prices) of each tier, ascending."""
        tiers = self.table.get("tiers", [])
        found: list[tuple[int, dict[str, Any]]] = []
        for tier in tiers if isinstance(tiers, list) else [None]:
            prices = dict(tier) if isinstance(tier, dict) else {}
            bounds = {name: prices.pop(name) for name in ("above", "from_tokens") if name in prices}
            count = next(iter(bounds.values()), None)
            if len(bounds) != 1 or type(count) is not int or not 0 < count <= MAX_TOKENS:
                self.mistakes.append(
                    'tiers: expected [{above = 200000, input = "4"}], or from_tokens for an inclusive bound'
                )
                continue
            for name in prices.keys() - set(KINDS):
                self.mistakes.append(f"tiers: {name}: not a kind of usage")
            found.append((count + ("above" in bounds), prices))
        found.sort(key=lambda tier: tier[0])
        if len({start for start, _ in found}) != len(found):
            self.mistakes.append("tiers: two tiers start at the same prompt length; keep one")
        return found

    def _amount(self, table: Mapping[str, Any], name: str, most: int = _MAX_PRICE) -> Decimal | None:
        value = table.get(name)
        if value is None:
            return None
        text = str(value)
        if isinstance(value, (float, _Float)):
            self.mistakes.append(f'{name}: {value} is a float; money is exact, quote it: {name} = "{value}"')
        elif text.startswith("-"):
            self.mistakes.append(f"{name}: {value!r} is negative; expected 0 or more")
        elif isinstance(value, bool) or not isinstance(value, (int, str)) or not _NUMBER.fullmatch(text):
            self.mistakes.append(f'{name}: {value!r} is not an amount; expected for example "2.50"')
        elif (amount := Decimal(text.rstrip("0").rstrip(".") if "." in text else text)) > most:
            self.mistakes.append(f"{name}: {value!r} is above {most}, the most that is taken for an amount")
        else:
            return amount
        return None
