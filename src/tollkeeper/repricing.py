"""What booked calls cost at other prices. Pure: a function of the entry, which keeps all that pricing it again takes.

    entry ─ reading_of ─→ what the meter had read ─→ charge at its own instant ─┬─ another ─→ the next revision of the entry
            its bound, where it was booked at its quote ─→ the quote again ─────┘─ the same ─→ None

Only what we compute moves: a cost that the provider reported and that counts stays what counts. An estimate stays one. What
costs something by old prices and has no price in the new ones keeps its cost: a price that is not there is no other price.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import reduce
from typing import NamedTuple

import msgspec
from msgspec import structs

from tollkeeper.money import to_usd
from tollkeeper.prices import PriceBook
from tollkeeper.values import Charge, Entry, Part, Provider, Reading, Usage

_NOTHING = Usage()


def reading_of(entry: Entry) -> Reading:
    """What the meter had read, as far as it decides the cost."""
    reported, terms = entry.charge.reported_nanos, entry.charge.terms
    alone = Part(entry.usage, terms[0].model if terms and terms[0].model != entry.served else None)
    return Reading(
        parts=entry.parts or (alone,), model=entry.served, tier=entry.tier, speed=entry.speed, geo=entry.geo,
        reported_usd=None if reported is None else to_usd(reported), final=not is_estimated(entry),
    )  # fmt: skip


def is_estimated(entry: Entry) -> bool:
    """Whether the usage is a bound of ours; entries older than `Charge.estimated` say so by their status or outcome."""
    return entry.charge.estimated or entry.charge.status == "estimated" or entry.outcome == "expired"


def charge_again(entry: Entry, book: PriceBook, provider: Provider | None) -> Charge | None:
    """What the entry costs at these prices. None: there is nothing to price: no usage, none that is known, or none to pay for."""
    charge = entry.charge
    if entry.usage == _NOTHING and not entry.parts and not charge.terms:
        return None
    unanswered = entry.outcome == "expired" or (entry.http_status is None and charge.reported_nanos is None)
    if is_estimated(entry) and not charge.terms and unanswered:
        return _quoted(entry, book, provider)
    if charge.computed_nanos == 0 and not charge.terms:  # free at any price: a refusal, an answer from a cache
        return None
    return book.charge(
        reading_of(entry), provider=provider, model=_sent(entry), at_us=entry.at_us, estimated=is_estimated(entry),
        key=entry.scopes.key, route=entry.model,
    )  # fmt: skip


def _sent(entry: Entry) -> str:
    """The provider's name for the model."""
    return entry.model if entry.sent is None else entry.sent


def _quoted(entry: Entry, book: PriceBook, provider: Provider | None) -> Charge:
    """The quote that was booked because nothing came back, at these prices. Of the same prices it is the same quote."""
    if entry.charge.price_version == book.version and entry.charge.amount_nanos is not None:
        return entry.charge
    usage = entry.usage
    nanos = book.quote_nanos(
        provider, _sent(entry), usage.input_tokens, usage.output_tokens, entry.at_us, tier=entry.tier, speed=entry.speed,
        geo=entry.geo, key=entry.scopes.key, route=entry.model,
    )  # fmt: skip
    return Charge(
        amount_nanos=nanos, computed_nanos=nanos, status="unpriced" if nanos is None else "estimated",
        price_version=book.version, estimated=True,
    )  # fmt: skip


def repriced(entry: Entry, book: PriceBook, provider: Provider | None) -> tuple[Entry | None, bool]:
    """An entry at these prices: its next revision, to be signed by whoever books it; None: nothing changes. And whether
    it is lost: these prices have none for what the old ones could price.

    `provider` is the one of the entry's name; its `prices` and `counts` are those of today.
    """
    charge = charge_again(entry, book, provider)
    lost = charge is not None and charge.computed_nanos is None and entry.charge.computed_nanos is not None
    if charge is None or lost or _figures(charge) == _figures(entry.charge):
        return None, lost
    return structs.replace(entry, charge=charge, revision=entry.revision + 1), False


def _figures(charge: Charge) -> tuple[int | None, int | None, str]:
    return charge.amount_nanos, charge.computed_nanos, charge.status


# ── what came of many ────────────────────────────────────────────────────────────────────────────────────────────────


class Figures(NamedTuple):
    """Entries as they were and as they are at other prices; each can be added up."""

    entries: int = 0
    changed: int = 0
    lost: int = 0  #: of known cost, for which these prices have none: they keep it
    was_nanos: int = 0
    now_nanos: int = 0
    inexact_was_nanos: int = 0  #: the part of it that is estimated or partly priced
    inexact_now_nanos: int = 0
    unpriced_was: int = 0  #: entries of unknown cost, in no amount
    unpriced_now: int = 0

    @classmethod
    def of(cls, entry: Entry, right: Entry | None, lost: bool = False) -> Figures:
        """One entry; `right` is what takes its place, None: it stays."""
        was, now = entry.charge, entry.charge if right is None else right.charge
        return cls(
            1, int(right is not None), int(lost), _known(was), _known(now), _inexact(was), _inexact(now),
            int(was.amount_nanos is None), int(now.amount_nanos is None),
        )  # fmt: skip

    def plus(self, other: Figures) -> Figures:
        return Figures(*map(int.__add__, self, other))

    @property
    def difference_nanos(self) -> int:
        """What the new prices add."""
        return self.now_nanos - self.was_nanos


def _known(charge: Charge) -> int:
    return 0 if charge.amount_nanos is None else charge.amount_nanos


def _inexact(charge: Charge) -> int:
    return 0 if charge.status == "priced" else _known(charge)


class Row(NamedTuple):
    """The entries of one model."""

    provider: str
    model: str
    figures: Figures


class Repricing(msgspec.Struct, frozen=True, kw_only=True):
    """What pricing a time again came to. With `what_if` nothing was written."""

    what_if: bool
    price_version: str
    rows: tuple[Row, ...]  #: by model, the largest difference first
    overtaken: int = 0  #: corrected, settled or pruned by somebody else meanwhile: left as they are, in no figure

    @property
    def total(self) -> Figures:
        return reduce(Figures.plus, (row.figures for row in self.rows), Figures())

    @property
    def was_usd(self) -> Decimal:
        """What the entries cost before."""
        return to_usd(self.total.was_nanos)

    @property
    def now_usd(self) -> Decimal:
        """What they cost at these prices."""
        return to_usd(self.total.now_nanos)

    @property
    def difference_usd(self) -> Decimal:
        return to_usd(self.total.difference_nanos)


def rows_of(found: Mapping[tuple[str, str], Figures]) -> tuple[Row, ...]:
    """Figures by (provider, model) as rows."""
    rows = (Row(*name, figures) for name, figures in found.items())
    return tuple(sorted(rows, key=lambda row: (-abs(row.figures.difference_nanos), -row.figures.was_nanos, row[:2])))
