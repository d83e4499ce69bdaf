"""tollkeeper.prices.layers: entries over shipped ones over the price data, and who made which price."""

from __future__ import annotations

from decimal import Decimal

import pytest
from tests.pricing import NOON, charge, overridden, provider, us

from tollkeeper.prices.file import parse
from tollkeeper.prices.layers import FOREVER, Asked, Layers
from tollkeeper.values import Usage

OPENAI = Asked("openai", "openai", "gpt-4o", {})
LADDER = """
[[price]]
model = "gpt-4o"
input = "2"
output = "8"

[[price]]
route = "smart"
input = "3"

[[price]]
key = "ci"
models = ["*"]
multiplier = "0.5"
"""


def input_price(layers: Layers, asked: Asked, at_us: int = NOON) -> tuple[Decimal, tuple[str, ...]]:
    stack = layers.stack(asked, at_us)
    return stack.sheet["input"][0][1], stack.origins["input"]


def test_the_order_of_layers() -> None:
    """A4: by key, over by route, over by model, over what is shipped, over the price data; each says who made it."""
    layers, key, route = Layers(parse(LADDER)), {"key": "ci"}, {"route": "Smart"}
    assert input_price(Layers(()), OPENAI) == (Decimal("2.5"), ("genai-prices",))
    assert input_price(layers, OPENAI) == (Decimal(2), ("own #1",))
    assert input_price(layers, OPENAI._replace(**route)) == (Decimal(3), ("own #2",))
    assert input_price(layers, OPENAI._replace(**key)) == (Decimal(1), ("own #1", "own #3"))
    assert input_price(layers, OPENAI._replace(**key, **route)) == (Decimal("1.5"), ("own #2", "own #3"))
    assert input_price(layers, OPENAI._replace(model="gpt-4.1", **key)) == (Decimal(1), ("genai-prices", "own #3"))
    assert input_price(layers, OPENAI._replace(key="other", route="other")) == (Decimal(2), ("own #1",))


def test_own_entries_go_over_shipped_ones() -> None:
    """A price of one's own replaces a shipped one, also a more special one; without it the shipped one stands."""
    ask = Asked("openai", "openai", "gpt-4o", {})
    assert Layers(()).stack(ask, NOON).sheet["code_session"] == ((0, Decimal(30)),)
    own = Layers(parse('[[price]]\nprovider = "openai"\nmodels = ["*"]\ncode_session = "12"'))
    assert own.stack(ask, NOON).sheet["code_session"] == ((0, Decimal(12)),)
    weekend = Asked("deepseek", "deepseek", "deepseek-v4-flash", {})
    mine = Layers(parse('[[price]]\nprovider = "deepseek"\nmodel = "deepseek-v4-flash"\ninput = "7"\noutput = "7"'))
    assert input_price(mine, weekend, us("2026-11-22T02:00:00")) == (Decimal(7), ("own #1",))


def test_every_model_of_a_provider() -> None:
    """A6: "*" changes each model that the provider has, at its own name or at that in the price data, and no other."""
    layers = Layers(parse('[[price]]\nprovider = "azure"\nmodels = ["*"]\nmultiplier = "2"'))
    assert input_price(layers, Asked("mine", "azure", "gpt-4o", {})) == (Decimal(5), ("genai-prices", "own #1"))
    assert input_price(layers, OPENAI)[1] == ("genai-prices",)
    assert layers.stack(Asked("mine", "azure", "my-gpt", {}), NOON).sheet == {}
    assert layers.stack(Asked(None, None, "nobody-knows-this", {}), NOON).sheet == {}


@pytest.mark.parametrize(
    ("model", "key", "route", "nanos"),
    [
        ("gpt-4o", None, None, 2_000_000),
        ("gpt-4o", None, "smart", 3_000_000),
        ("gpt-4o", "ci", "SMART", 1_500_000),
        ("unknown", None, "smart", 3_000_000),
        ("unknown", "ci", None, None),
    ],
)
def test_charges_by_key_and_route(model: str, key: str | None, route: str | None, nanos: int | None) -> None:
    """A5: a route's list prices whatever serves it; a key's discount makes no price where there is none. One book."""
    book = overridden(LADDER)
    for _ in range(2):
        assert charge(Usage(input=1000), model, place=provider(), book=book, key=key, route=route).amount_nanos == nanos
        assert charge(Usage(input=1000), "gpt-4o", place=provider(), book=book).amount_nanos == 2_000_000


def test_other_keys_and_routes_share_a_table() -> None:
    """Ids that no entry names take no room: the cache grows with prices, not with callers."""
    book = overridden(LADDER)
    for number in range(50):
        book.rates(provider(), "gpt-4o", NOON, key=f"key-{number}", route=f"route-{number}")
    assert len(book._tables) == 1


def test_free_costs_nothing_however_it_is_served() -> None:
    """A5: a free model is priced at 0, with no gap for a tier that nobody has a price for."""
    book = overridden('[[price]]\nmodel = "llama3:8b"\nfree = true')
    usage = Usage(input=5, cache_read=1, output=7, input_image=3, web_search=2, audio_seconds=9)
    found = charge(usage, "llama3:8b", place=provider(None, "ollama"), book=book, tier="priority", geo="us")
    assert (found.amount_nanos, found.status, found.missing) == (0, "priced", ())
    assert book.quote_nanos(provider(None, "ollama"), "llama3:8b", 10**6, 10**6, NOON, tier="priority") == 0


def test_a_stack_holds_until_the_next_change() -> None:
    """Dates, ends and windows bound it; a name without any holds for ever."""
    layers = Layers(
        parse(
            '[[price]]\nmodel = "m"\ninput = 1\nfrom = 2026-11-01\nuntil = 2026-12-01\n'
            '[[price]]\nmodel = "m"\nmultiplier = 2\nwindows = [{from = "13:00", to = "14:00"}]\n[[price]]\nmodel = "n"\ninput = 1'
        )
    )
    stack = layers.stack(Asked("p", None, "m", {}), NOON)
    assert (stack.from_us, stack.until_us) == (us("2026-11-21T14:00:00"), us("2026-11-22T13:00:00"))
    assert layers.stack(Asked("p", None, "n", {}), NOON)[-2:] == (-FOREVER, FOREVER)
    last = layers.stack(Asked("p", None, "m", {}), us("2026-11-30T23:00:00"))
    assert last.until_us == us("2026-12-01T00:00:00")


def test_borrowed_tiers_stay_a_gap_until_an_entry_covers_them() -> None:
    """A4: Azure's gpt-5 at priority is standard and partial, never silently so; an entry for that tier closes the gap."""
    place = provider("azure")
    for tier in ("priority", "flex"):
        found = charge(Usage(input=1000), "gpt-5", place=place, tier=tier)
        assert (found.status, found.missing) == ("partial", (f"service_tier={tier}",))
    book = overridden('[[price]]\nprovider = "azure"\nmodels = ["*"]\nservice_tier = "priority"\nmultiplier = "1.75"')
    found = charge(Usage(input=1000), "gpt-5", place=place, tier="priority", book=book)
    assert (found.amount_nanos, found.status) == (2_187_500, "priced")
    assert charge(Usage(input=1000), "gpt-5", place=place, tier="flex", book=book).status == "partial"


def test_scopes() -> None:
    """Entries for a tier, a key or a route of a model are told apart from those for every call."""
    layers = Layers(parse(LADDER))
    assert [entry.key for entry in layers.scopes(OPENAI)] == ["ci"]
    opus = layers.scopes(Asked("anthropic", "anthropic", "claude-opus-5", {}))
    assert [entry.context for entry in opus] == [(("geo", "us"),), ()]
    assert [name for name, _ in layers.entries()][-3:] == ["own #1", "own #2", "own #3"]
