"""Every recorded exchange, booked and priced again at the same prices, costs what it cost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from tests.conformance.test_recorded import EXCHANGES, IDS, metered
from tests.integration.test_gateway_recorded import vendor

from tollkeeper.prices import PriceBook
from tollkeeper.repricing import repriced
from tollkeeper.testing.samples import AT_US, an_entry
from tollkeeper.values import Provider, Usage

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


def test_computed_costs_are_what_providers_report() -> None:
    """A8: where a body reports its cost, ours is the same to the nano-dollar.

    Not Perplexity's, whose fee depends on how much was searched, and of which the price data have the highest; nor a model
    that the data do not have.
    """
    compared = 0
    for exchange in EXCHANGES:
        _, reading = metered(exchange, len(exchange.body))
        if reading.reported_usd is None or vendor(exchange) == "perplexity" or ":free" in (reading.model or ""):
            continue
        place = Provider(name=vendor(exchange), base_url="", dialects=frozenset(), prices=vendor(exchange))
        charge = BOOK.charge(reading, provider=place, model=str(reading.model), at_us=AT_US)
        assert (charge.computed_nanos, charge.missing) == (charge.reported_nanos, ()), exchange.file
        compared += 1
    assert compared >= 6
