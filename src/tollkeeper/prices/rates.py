"""Rate tables: what one model costs at one time, compiled for the hot path.

A *sheet* is prices as data: per kind, ascending steps (from this many prompt tokens on, USD per `per(kind)` units). The
whole prompt decides the step, and the step prices the whole call (a cliff). `compile_sheet` turns a sheet into `Rates`:
one band of ready rates for each stretch of prompt lengths between two steps.

A kind without a price of its own is charged at its parent's (a cached token as a prompt token) and named in `missing`,
so that the charge shows as partial; without a parent's price it adds nothing and is named too. An image in the prompt is
the exception: price lists name it only where it costs something else than text. A price of 0 is a price.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Mapping
from decimal import Decimal
from typing import Final

import msgspec
from msgspec.structs import astuple

from tollkeeper.money import CONTEXT
from tollkeeper.values import KINDS, Term, Usage

Price = tuple[tuple[int, Decimal], ...]
"""Steps (from prompt tokens, inclusive; USD), ascending; the first one starts at 0."""
Sheet = Mapping[str, Price]
"""Price by kind: the kinds of `Usage`, and `requests` (a fee per request)."""

ZERO: Final = Decimal(0)
BILLED: Final = KINDS[:-1]
"""The kinds that are charged; `reasoning` is inside `output` and has its own rate only where the price data says so."""
PARENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "cache_read": ("input",),
    "cache_write_5m": ("input",),
    "cache_write_1h": ("cache_write_5m", "input"),
    "input_audio": ("input",),
    "cache_read_audio": ("input_audio", "cache_read", "input"),
    "input_image": ("input",),
    "output_audio": ("output",),
    "output_image": ("output",),
}
_LIKE_PARENT: Final = frozenset({"input_image"})
"""Kinds for which the parent's price is their own."""
_HOUR: Final = 3600
_PER: Final[Mapping[str, int]] = {
    "web_search": 1000, "file_search": 1000, "audio_seconds": _HOUR, "code_session": 1000, "requests": 1000,
}  # fmt: skip
_INPUT_SIDE: Final = frozenset(kind for kind in BILLED if kind.startswith(("input", "cache")))
_OUTPUT_SIDE: Final = frozenset(kind for kind in KINDS if kind.startswith(("output", "reasoning")))
#: How replies and requests say "as usual": no context at all.
_USUAL: Final = frozenset(("", "auto", "default", "standard", "standard_only", "on_demand", "on-demand", "unspecified"))
_ANYWHERE: Final = frozenset(("", "global", "not_available"))
_BATCH: Final = frozenset({"batch", "on_demand_batch"})
_SHORT: Final = {"on_demand_flex": "flex", "on_demand_priority": "priority"}


def call_context(tier: str | None, speed: str | None, geo: str | None) -> dict[str, str]:
    """What else than tokens decides a price, in the price data's words: service_tier, processing, speed, and geo."""
    context: dict[str, str] = {}
    for key, value, usual in (("service_tier", tier, _USUAL), ("speed", speed, _USUAL), ("geo", geo, _ANYWHERE)):
        word = "" if value is None else value.lower()
        if word in _BATCH and key == "service_tier":
            context["processing"] = "batch"
        elif word not in usual:
            context[key] = _SHORT.get(word, word)
    return context


def per(kind: str) -> int:
    """How many units a price of this kind is for: a million tokens, an hour, a thousand of anything else."""
    return _PER.get(kind, 1_000_000)


class Rate(msgspec.Struct, frozen=True):
    """The price of one kind in one band."""

    kind: str
    unit: Decimal | None  #: USD for one unit; None: no price at all
    usd: str = ""  #: exact text of the price for `per` units
    per: int = 1_000_000
    own: bool = True  #: False: the parent's price stands in


class Band(msgspec.Struct, frozen=True):
    """The rates of one stretch of prompt lengths, in the order of BILLED."""

    rates: tuple[Rate, ...]
    reasoning: Rate | None
    dearest_input: Decimal | None  #: USD for the dearest prompt token in this band or a lower one; None: no price
    dearest_output: Decimal | None


class Rates(msgspec.Struct, frozen=True):
    """What a model costs at one time, for one tier."""

    steps: tuple[int, ...]  #: where the second and each further band starts, in prompt tokens
    bands: tuple[Band, ...]
    request: Rate | None = None
    gaps: tuple[str, ...] = ()  #: what was asked of the prices and is not in them, e.g. "service_tier=priority"

    def band(self, prompt_tokens: int) -> Band:
        return self.bands[bisect_right(self.steps, prompt_tokens)] if self.steps else self.bands[0]

    def bound(self, prompt_tokens: int, output_tokens: int) -> Decimal | None:
        """USD that no call of at most this many tokens passes, searches aside; None: some of them have no price."""
        band = self.band(prompt_tokens)
        fee = None if self.request is None else self.request.unit
        usd = ZERO if fee is None else fee
        for tokens, unit in ((prompt_tokens, band.dearest_input), (output_tokens, band.dearest_output)):
            if unit is not None:
                usd = CONTEXT.fma(tokens, unit, usd)
            elif tokens and fee is None:
                return None
        return usd

    def add(
        self, usage: Usage, model: str, total: Decimal, terms: list[Term], missing: list[str]
    ) -> tuple[Decimal, bool]:
        """Adds what `usage` costs to `total` and to `terms`; kinds without a rate of their own go to `missing`.

        Returns the new total in USD, unrounded, and whether any of it has a price; a call of no usage has.
        """
        band = self.band(usage.input_tokens) if self.steps else self.bands[0]  # most models have no steps
        counts: tuple[int, ...] = astuple(usage)
        before, used = len(terms), False
        for quantity, rate in zip(counts, band.rates, strict=False):
            if not quantity:
                continue
            used = True
            if not rate.own:
                missing.append(rate.kind)
                if rate.unit is None:
                    continue
            if band.reasoning is not None and rate.kind == "output":
                thought = min(usage.reasoning, quantity)
                total = _add_term(total, band.reasoning, thought, model, terms)
                quantity -= thought
            total = _add_term(total, rate, quantity, model, terms)
        return total, len(terms) > before or not used or self.request is not None


def _add_term(total: Decimal, rate: Rate, quantity: int, model: str, terms: list[Term]) -> Decimal:
    if not quantity or rate.unit is None:
        return total
    terms.append(Term(model, rate.kind, quantity, rate.usd, rate.per))
    if rate.per == _HOUR:  # a second's price may not terminate: divide last, so that what is exact stays so
        return CONTEXT.add(total, CONTEXT.divide(CONTEXT.multiply(quantity, Decimal(rate.usd)), rate.per))
    return CONTEXT.fma(quantity, rate.unit, total)


def request_fee(rates: Rates, model: str, total: Decimal, terms: list[Term]) -> Decimal:
    """Adds the fee per request, where the model has one."""
    return total if rates.request is None else _add_term(total, rates.request, 1, model, terms)


def compile_sheet(sheet: Sheet, gaps: tuple[str, ...] = ()) -> Rates | None:
    """A sheet as rates; None where it prices nothing."""
    if not sheet:
        return None
    steps = sorted({start for price in sheet.values() for start, _ in price if start > 0})
    bands: list[Band] = []
    inputs, outputs = list[Decimal](), list[Decimal]()
    for start in (0, *steps):
        rates = tuple(_rate(sheet, kind, start) for kind in BILLED)
        reasoning = _rate(sheet, "reasoning", start) if "reasoning" in sheet else None
        every = rates if reasoning is None else (*rates, reasoning)
        inputs += [rate.unit for rate in every if rate.kind in _INPUT_SIDE and rate.unit is not None]
        outputs += [rate.unit for rate in every if rate.kind in _OUTPUT_SIDE and rate.unit is not None]
        bands.append(Band(rates, reasoning, max(inputs, default=None), max(outputs, default=None)))
    request = _rate(sheet, "requests", 0) if "requests" in sheet else None
    return Rates(tuple(steps), tuple(bands), request, gaps)


def priced_as(sheet: Container[str], kind: str) -> str | None:
    """The kind whose price counts for `kind`: its own, else its nearest parent's; None: there is none."""
    return next((source for source in (kind, *PARENTS.get(kind, ())) if source in sheet), None)


def _rate(sheet: Sheet, kind: str, prompt_tokens: int) -> Rate:
    source = priced_as(sheet, kind)
    if source is None:
        return Rate(kind, None, own=False)
    usd = [usd for start, usd in sheet[source] if start <= prompt_tokens][-1]
    own = source == kind or kind in _LIKE_PARENT
    return Rate(kind, CONTEXT.divide(usd, per(kind)), format(usd, "f"), per(kind), own)
