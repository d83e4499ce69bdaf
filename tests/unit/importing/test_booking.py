"""booking: the entry of a record, and whether the ledger's entry is the same call."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.tracking import PRICES

from tollkeeper.config import load
from tollkeeper.importing.booking import entry_of, is_same
from tollkeeper.importing.records import Record
from tollkeeper.prices import PriceBook
from tollkeeper.testing.clock import START_US, ManualClock
from tollkeeper.tracker.accounts import Accounts
from tollkeeper.values import Entry, Part, Reading, Scopes, Usage

RECORD = Record(
    at_us=START_US, scopes=Scopes(project="p", agent="a"), dialect="usage", model="tenth",
    reading=Reading(parts=(Part(Usage(input=5, output=1000)),), final=True),
)  # fmt: skip


@pytest.fixture
def prices(tmp_path: Path) -> PriceBook:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return PriceBook.load(path)


def booked(prices: PriceBook, record: Record = RECORD) -> Entry:
    return entry_of(record, "c-1", Accounts("memory:", load({}, {}), ManualClock()), prices)


def reading(**changed: Any) -> Record:
    return structs.replace(RECORD, reading=structs.replace(RECORD.reading, **changed))


def test_an_entry(prices: PriceBook) -> None:
    """A8: an entry has the record's time, names, usage and our price, with its terms and version."""
    entry = booked(prices, reading(model="free", tier="default", speed="standard"))
    assert (entry.id, entry.call, entry.at_us, entry.scopes) == ("c-1/1", "c-1", START_US, RECORD.scopes)
    assert (entry.model, entry.served, entry.tier, entry.speed) == ("tenth", "free", "default", "standard")
    assert (entry.charge.amount_nanos, entry.usage.output) == (0, 1000)
    entry = booked(prices)
    assert (entry.charge.amount_nanos, entry.charge.status, entry.served) == (100_000_000, "priced", "tenth")
    assert entry.charge.price_version == prices.version
    assert [(term.kind, term.quantity) for term in entry.charge.terms] == [("input", 5), ("output", 1000)]


def test_what_is_reported_counts(prices: PriceBook) -> None:
    """A8: a reported cost counts, ours stands beside it; a record that is free costs 0."""
    charge = booked(prices, reading(reported_usd=Decimal("0.5"))).charge
    assert (charge.amount_nanos, charge.reported_nanos, charge.computed_nanos) == (
        500_000_000,
        500_000_000,
        100_000_000,
    )
    charge = booked(prices, structs.replace(RECORD, is_free=True)).charge
    assert (charge.amount_nanos, charge.status) == (0, "priced")


def test_what_is_not_known(prices: PriceBook) -> None:
    """A5: a model without a price, and a call without usage, have no amount; usage that is not final is an estimate."""
    for record in (structs.replace(RECORD, model="who-knows"), reading(parts=())):
        charge = booked(prices, record).charge
        assert (charge.amount_nanos, charge.status) == (None, "unpriced")
    assert booked(prices, reading(final=False)).charge.status == "estimated"


def test_providers(prices: PriceBook) -> None:
    """A provider is the one that is named, else the model's owner, else unknown."""
    assert booked(prices).provider == "unknown"
    assert booked(prices, structs.replace(RECORD, provider="groq")).provider == "groq"
    assert booked(prices, structs.replace(RECORD, model="gpt-4o-mini")).provider == "openai"


@pytest.mark.parametrize(
    ("known", "is_the_same"),
    [
        ({}, True),
        ({"dialect": "openai-chat", "latency_ms": 5, "provider": "openai"}, True),
        ({"model": "alias", "served": "tenth"}, True),
        ({"scopes": Scopes(project="p", agent="a", session="s", key="k", tags=("t",))}, True),
        ({"scopes": Scopes(project="p", agent="b")}, False),
        ({"scopes": Scopes(project="p")}, False),
        ({"usage": Usage(input=5, output=999)}, False),
        ({"model": "other", "served": "other"}, False),
    ],
    ids=str,
)
def test_the_same_call(prices: PriceBook, known: dict[str, Any], is_the_same: bool) -> None:
    """B2: a log that says less than the ledger is a repeat; one that says something else is a conflict."""
    entry = booked(prices)
    assert is_same(structs.replace(entry, **known), entry, RECORD) is is_the_same


def test_the_same_call_at_other_prices(prices: PriceBook) -> None:
    """B2: what our prices make of a call now is no contradiction, what was reported is."""
    entry, record = booked(prices), reading(reported_usd=Decimal("0.5"))
    dearer = structs.replace(entry, charge=structs.replace(entry.charge, amount_nanos=7))
    assert is_same(dearer, entry, RECORD)
    assert not is_same(dearer, booked(prices, record), record)
    assert is_same(booked(prices, record), booked(prices, record), record)
    named = structs.replace(RECORD, provider="groq")
    assert not is_same(entry, booked(prices, named), named)
