"""The model in memory, where it differs from its contract's other stores."""

from __future__ import annotations

from tollkeeper.ledger import FOREVER_US, BalanceKey, Shape, window_of
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, USD, an_entry, usd


async def test_entries_are_a_picture() -> None:
    """An iteration over entries is of the instant when it began."""
    store = MemoryStore()
    await store.settle(an_entry("a/1"))
    seen = []
    async for entry in store.entries(0, FOREVER_US):
        seen.append(entry.id)
        await store.settle(an_entry("b/1"))
    assert seen == ["a/1"]


async def test_spent_with_and_without_a_balance() -> None:
    """`spent` is the same from a balance that is kept and from the window's entries where none is."""
    kept, unkept = Shape("project", "usd", "month", "UTC"), Shape("project", "usd", "day", "Asia/Kolkata")
    store = MemoryStore([usd(USD)])
    for number, at_us in enumerate((AT_US, AT_US, AT_US - DAY_US)):
        await store.settle(an_entry(f"{number}/1", at_us=at_us))
    answers = [
        await store.spent(BalanceKey(shape, "alpha", "", window_of(shape.window, shape.timezone, AT_US)[0]))
        for shape in (kept, unkept)
    ]
    assert answers == [3 * DIME, 2 * DIME]


async def test_many_entries_by_name() -> None:
    """`known` answers many ids at once; what is not there is left out."""
    store = MemoryStore()
    await store.settle(an_entry("a/1"))
    assert await store.known([("alpha", "a/1"), ("beta", "a/1")]) == {
        ("alpha", "a/1"): await store.entry("alpha", "a/1")
    }
    assert await store.known([]) == {}
