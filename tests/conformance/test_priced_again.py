"""Every recorded exchange, booked and priced again at the same prices, costs what it cost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from tests.conformance.test_recorded import EXCHANGES, IDS, metered

from tollkeeper.prices import PriceBook
from tollkeeper.repricing import repriced
from tollkeeper.testing.samples import an_entry
from tollkeeper.values import Usage

BOOK = PriceBook()


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_recorded_entries_priced_again(exchange: Any) -> None:
    """A8: an entry has all that pricing it again takes: served model, tiers, parts and the provider's own figure."""
    _, reading = metered(exchange, len(exchange.body))
    model = reading.model or "gpt-4o"
    entry = an_entry("a/1", served=model, model=model)
    charge = BOOK.charge(reading, provider=None, model=model, at_us=entry.at_us)
    entry = structs.replace(
        entry, usage=reading.usage, charge=charge, tier=reading.tier, speed=reading.speed, geo=reading.geo,
        parts=reading.parts if len(reading.parts) > 1 else (),
    )  # fmt: skip
    assert repriced(entry, BOOK, None) == (None, False)
    if reading.usage != Usage() and charge.computed_nanos is not None:
        lost = structs.replace(charge, amount_nanos=None, computed_nanos=None, terms=(), status="unpriced", missing=())
        again, _ = repriced(structs.replace(entry, charge=lost), BOOK, None)
        assert again is not None
        assert again.charge == charge
