"""The price file: prices of your own over the price data, as TOML.

    [[price]]
    model = "my-model"            # or models = ["a", "b"]; exact names, "vendor/model" too
    input = "2.50"                # USD per million tokens, decimal text or a whole number
    output = "10"

Optional: `provider`; `from = 2026-01-01` (UTC day); any kind of usage (`cache_read`, `cache_write_5m`, `input_audio`,
…, with `web_search` and `file_search` per thousand); `request` per request; `multiplier`;
`tiers = [{above = 200000, input = "5"}]` or `from_tokens` for an inclusive bound; `service_tier`, `speed` and `geo` for
calls served so.

An entry with `input` or `output` is a whole price list: nothing of an older price mixes in. One with neither changes
only what it names in the price below it. Entries of different scope build on each other, general to special: any
provider, one provider, one tier. Of one scope only the newest in force counts.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.errors import ConfigError
from tollkeeper.money import CONTEXT
from tollkeeper.prices.rates import BILLED, Price, call_context
from tollkeeper.values import MAX_TOKENS

KINDS: Final = (*BILLED, "reasoning")
_CONTEXT_FIELDS: Final = ("service_tier", "speed", "geo")
_FIELDS: Final = ("provider", "model", "models", "from", *KINDS, "request", "multiplier", "tiers", *_CONTEXT_FIELDS)
_MAX_PRICE: Final = 10_000
_NUMBER: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a price file."""

    models: tuple[str, ...]  #: lower case
    provider: str | None = None  #: a provider's name in the configuration or in the price data; None: any
    from_us: int | None = None  #: the first instant at which it counts
    context: tuple[tuple[str, str], ...] = ()  #: the tier, speed or place that it is for
    prices: tuple[tuple[str, Price], ...] = ()  #: by kind, `requests` too
    multiplier: Decimal | None = None

    @property
    def start_us(self) -> int:
        """The first instant at which it counts; without one, before every other."""
        return -(2**62) if self.from_us is None else self.from_us

    @property
    def whole(self) -> bool:
        """Whether it is a whole price list and not a change to the one below."""
        return any(kind in ("input", "output") for kind, _ in self.prices)

    def over(self, below: Mapping[str, Price]) -> dict[str, Price]:
        """The sheet that this entry makes of the one below it."""
        sheet = dict(self.prices) if self.whole else {**below, **dict(self.prices)}
        factor = self.multiplier
        if factor is None:
            return sheet
        return {
            kind: tuple((start, CONTEXT.multiply(usd, factor)) for start, usd in price) for kind, price in sheet.items()
        }

    def canonical(self) -> str:
        """The entry as text: the same for the same prices."""
        prices = [
            f"{kind}:{','.join(f'{start}={usd:f}' for start, usd in price)}" for kind, price in sorted(self.prices)
        ]
        factor = "" if self.multiplier is None else f"{self.multiplier:f}"
        return repr((sorted(self.models), self.provider, self.from_us, sorted(self.context), prices, factor))


def in_force(entries: Iterable[tuple[bool, Override]], at_us: int) -> list[Override]:
    """Of the entries for one name, each with whether it says that very name: the newest of each scope, general first."""
    newest: dict[tuple[bool, int, tuple[tuple[str, str], ...], bool], Override] = {}
    for exact, entry in entries:
        scope = (exact, len(entry.context), entry.context, entry.provider is not None)
        rival = newest.get(scope)
        if entry.start_us <= at_us and (rival is None or rival.start_us <= entry.start_us):
            newest[scope] = entry
    return [entry for _, entry in sorted(newest.items(), key=lambda item: item[0])]


def fingerprint(overrides: tuple[Override, ...]) -> str:
    """Twelve hex digits that name these prices, in whatever order they stand."""
    return sha256("\n".join(sorted(entry.canonical() for entry in overrides)).encode()).hexdigest()[:12]


def read(path: Path) -> tuple[Override, ...]:
    """The entries of a price file. Raises ConfigError, one line per mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the price file: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str = "prices") -> tuple[Override, ...]:
    """The entries of a price file's text. Raises ConfigError, one line per mistake: source, entry, field, remedy."""
    try:
        document = tomllib.loads(text, parse_float=_Float)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    entries, mistakes = document.pop("price", []), [f"{name}: unknown; prices stand in [[price]]" for name in document]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{source}: price: expected entries that start with [[price]]")
    overrides: list[Override] = []
    seen: dict[object, int] = {}
    for number, entry in enumerate(entries, 1):
        label = f"price {number}" + (f" ({entry['model']})" if isinstance(entry.get("model"), str) else "")
        found = _Entry(entry)
        override = found.read()
        for scope in [(name, override.provider, override.context, override.from_us) for name in override.models]:
            if seen.setdefault(scope, number) != number:
                found.mistakes.append(
                    f"model: {scope[0]!r} already has a price of this scope in entry {seen[scope]}; keep one"
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
    """One [[price]] table on its way to an Override; collects every mistake instead of stopping at the first."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.mistakes: list[str] = []

    def read(self) -> Override:
        for name in self.table.keys() - set(_FIELDS):
            near = difflib.get_close_matches(name, _FIELDS, 1)
            self.mistakes.append(f"{name}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        context = call_context(*(self._text(name) for name in _CONTEXT_FIELDS))
        override = Override(
            models=self._models(),
            provider=self._text("provider"),
            from_us=self._from_us(),
            context=tuple(sorted(context.items())),
            prices=tuple(self._prices()),
            multiplier=self._amount(self.table, "multiplier", 1000),
        )
        if not override.prices and override.multiplier is None and not self.mistakes:
            self.mistakes.append('input: no price; write for example input = "2.50" and output = "10"')
        return override

    def _text(self, name: str) -> str | None:
        value = self.table.get(name)
        if value is None or (isinstance(value, str) and not isinstance(value, _Float) and value.strip()):
            return value
        self.mistakes.append(f"{name}: expected a name in quotes, got {value!r}")
        return None

    def _models(self) -> tuple[str, ...]:
        names = [self.table["model"]] if "model" in self.table else self.table.get("models")
        if ("model" in self.table) == ("models" in self.table) or not isinstance(names, list) or not names:
            self.mistakes.append('model: expected model = "name", or models = ["name", …]')
        elif not all(isinstance(name, str) and not isinstance(name, _Float) and 0 < len(name) <= 256 for name in names):
            self.mistakes.append("model: expected names of 1 to 256 characters in quotes")
        else:
            return tuple(dict.fromkeys(name.lower() for name in names))
        return ()

    def _from_us(self) -> int | None:
        value = self.table.get("from")
        if value is None:
            return None
        if isinstance(value, date) and not isinstance(value, datetime):
            start = datetime(value.year, value.month, value.day, tzinfo=UTC)
            return (start - _EPOCH) // timedelta(microseconds=1)
        self.mistakes.append(f"from: expected a day such as 2026-01-01 without quotes, got {value!r}")
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
        if isinstance(value, _Float):
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
