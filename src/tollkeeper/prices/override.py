"""One price entry, as the price file, the settings or the shipped data have it, and which of several count.

An entry that names `input` or `output` is a whole price list: nothing of an older price mixes in. One with neither
changes only what it names in the price below it, and so does one for every model ("*"), which prices no model that is
not priced below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Final

import msgspec

from tollkeeper.money import CONTEXT
from tollkeeper.prices.rates import Price
from tollkeeper.prices.windows import Window
from tollkeeper.values import UNIT_KINDS

EVERY: Final = "*"
_NOT_TOKENS: Final = frozenset((*UNIT_KINDS, "requests"))
_FOREVER: Final = 2**62


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry is for, when it counts, and what it says."""

    models: tuple[str, ...]  #: lower case; EVERY: each model that has a price; none: whatever serves `route`
    provider: str | None = None  #: a provider's name in the configuration or in the price data; None: any
    key: str | None = None  #: the virtual key whose calls it is for
    route: str | None = None  #: the name that the client asked for, lower case
    from_us: int | None = None  #: the first instant at which it counts
    until_us: int | None = None  #: the first one at which it does not any more
    windows: tuple[Window, ...] = ()  #: it counts in any of them; none: always
    context: tuple[tuple[str, str], ...] = ()  #: the tier, speed or place that it is for
    prices: tuple[tuple[str, Price], ...] = ()  #: by kind, `requests` too
    multiplier: Decimal | None = None
    token_multiplier: Decimal | None = None  #: the same for prices of tokens alone
    free: bool = False  #: costs nothing, however it was served

    @property
    def start_us(self) -> int:
        """The first instant at which it counts; without one, before every other."""
        return -_FOREVER if self.from_us is None else self.from_us

    @property
    def end_us(self) -> int:
        """The first instant at which it does not count any more; without one, after every other."""
        return _FOREVER if self.until_us is None else self.until_us

    @property
    def every(self) -> bool:
        """Whether it is for each model that has a price."""
        return EVERY in self.models

    @property
    def whole(self) -> bool:
        """Whether it is a whole price list and not a change to the one below."""
        return not self.every and any(kind in ("input", "output") for kind, _ in self.prices)

    def is_open(self, at_us: int) -> bool:
        """Whether an instant is in one of its windows."""
        return not self.windows or any(window.holds(at_us) for window in self.windows)

    def over(self, below: Mapping[str, Price]) -> dict[str, Price]:
        """The sheet that this entry makes of the one below it."""
        if self.every and not below:
            return {}
        sheet = dict(self.prices) if self.whole else {**below, **dict(self.prices)}
        for kind in self.scaled(sheet):
            sheet[kind] = tuple((start, self._times(kind, usd)) for start, usd in sheet[kind])
        return sheet

    def scaled(self, kinds: Iterable[str]) -> list[str]:
        """The kinds whose price its multipliers change."""
        if self.multiplier is not None:
            return list(kinds)
        return [] if self.token_multiplier is None else [kind for kind in kinds if kind not in _NOT_TOKENS]

    def _times(self, kind: str, usd: Decimal) -> Decimal:
        for factor in (self.multiplier, None if kind in _NOT_TOKENS else self.token_multiplier):
            if factor is not None:
                usd = CONTEXT.normalize(CONTEXT.multiply(usd, factor))
        return usd

    def canonical(self) -> str:
        """The entry as text: the same for the same prices."""
        prices = [
            f"{kind}:{','.join(f'{start}={usd:f}' for start, usd in price)}" for kind, price in sorted(self.prices)
        ]
        factors = ["" if factor is None else f"{factor:f}" for factor in (self.multiplier, self.token_multiplier)]
        windows = [(window.days, window.start, window.end, window.zone) for window in self.windows]
        return repr((
            sorted(self.models), self.provider, self.key, self.route, self.from_us, self.until_us, windows,
            sorted(self.context), prices, factors, self.free,
        ))  # fmt: skip


def in_force(entries: Iterable[tuple[int, Override]], at_us: int) -> list[Override]:
    """Of the entries for one name, each with how exactly it names it: those that count, general scopes first.

    Of one scope the entries with the newest beginning count; of those with windows the first one that is open.
    """
    newest: dict[tuple[object, ...], list[Override]] = {}
    for exactness, entry in entries:
        if not entry.start_us <= at_us < entry.end_us:
            continue
        scope = (
            entry.key is not None, entry.route is not None, exactness, len(entry.context), entry.context,
            entry.provider is not None, bool(entry.windows),
        )  # fmt: skip
        rivals = newest.setdefault(scope, [])
        if rivals and rivals[0].start_us < entry.start_us:
            rivals.clear()
        if not rivals or rivals[0].start_us == entry.start_us:
            rivals.append(entry)
    counting: list[Override] = []
    for _, rivals in sorted(newest.items(), key=lambda item: item[0]):
        counting += [entry for entry in rivals if entry.is_open(at_us)][:1]
    return counting


def fingerprint(*layers: tuple[Override, ...]) -> str:
    """Twelve hex digits that name these prices. The order counts only where it decides: among windows of one scope."""
    texts: list[str] = []
    for entries in layers:
        texts += sorted(entry.canonical() for entry in entries if not entry.windows)
        texts += [entry.canonical() for entry in entries if entry.windows]
        texts.append("")
    return sha256("\n".join(texts).encode()).hexdigest()[:12]
