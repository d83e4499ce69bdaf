"""From a record to an entry of the ledger, and whether an entry that is there already is the same call."""

from __future__ import annotations

from typing import Final

from tollkeeper.importing.records import Record
from tollkeeper.prices import PriceBook
from tollkeeper.settlement import entry_for, nothing_owed
from tollkeeper.tracker.accounts import Accounts, provider_name
from tollkeeper.tracker.recording import unheld
from tollkeeper.values import Entry

_WHO: Final = ("agent", "session", "user", "key", "tags")


def entry_of(record: Record, call: str, accounts: Accounts, prices: PriceBook) -> Entry:
    """The entry of a record: priced by our prices of its own time, at the model and tier that served."""
    reading, provider = record.reading, accounts.provider(record.provider)
    if record.is_free:
        charge = nothing_owed(prices.version)
    else:
        charge = prices.charge(
            reading, provider=provider, model=record.model, at_us=record.at_us, key=record.scopes.key,
            route=record.model, estimated=bool(reading.parts) and (reading.assumed or not reading.final),
        )  # fmt: skip
    name = provider_name(record.provider, reading.model or record.model, prices)
    attempt = unheld(call, record.scopes, record.dialect, name, record.model, record.at_us)
    return entry_for(attempt, reading, charge, sent=record.model, outcome=record.outcome, note=record.note)


def is_same(known: Entry, entry: Entry, record: Record) -> bool:
    """Whether the ledger's entry is the call that a record tells of.

    A log says less than the gateway or the library that booked the call: who it does not name and by which provider it went
    are not compared, and neither is what our prices made of it, which may have changed since. An import never prices again.
    """
    who = all(getattr(entry.scopes, scope) in (None, (), getattr(known.scopes, scope)) for scope in _WHO)
    what = {entry.model, entry.served} <= {known.model, known.served}
    where = record.provider is None or entry.provider == known.provider
    reported = entry.charge.reported_nanos
    return (
        who and what and where and known.usage == entry.usage
        and (reported is None or reported == known.charge.amount_nanos)
    )  # fmt: skip
