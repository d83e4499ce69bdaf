"""Charges in few words, for the tests of prices."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.values import Charge, Part, Provider, Reading, Usage


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


NOON = us("2026-11-22T12:00:00")


def provider(prices: str | None = "openai", name: str | None = None) -> Provider:
    return Provider(name=name or prices or "local", base_url="", dialects=frozenset(), prices=prices)


def charge(
    usage: Usage | None,
    model: str = "gpt-4o",
    *,
    place: Provider | None = None,
    book: PriceBook | None = None,
    at_us: int = NOON,
    estimated: bool = False,
    served: str | None = None,
    tier: str | None = None,
    speed: str | None = None,
    geo: str | None = None,
    reported: str | None = None,
    key: str | None = None,
    route: str | None = None,
) -> Charge:
    reading = Reading(
        parts=() if usage is None else (Part(usage),),
        model=served,
        tier=tier,
        speed=speed,
        geo=geo,
        reported_usd=None if reported is None else Decimal(reported),
    )
    book = PriceBook() if book is None else book
    return book.charge(reading, provider=place, model=model, at_us=at_us, estimated=estimated, key=key, route=route)


def overridden(text: str) -> PriceBook:
    return PriceBook(parse(text))
