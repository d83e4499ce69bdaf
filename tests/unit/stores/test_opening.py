"""tollkeeper.stores.opening: which store a URL names."""

from __future__ import annotations

import pytest

from tollkeeper.errors import ConfigError
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.opening import check_url, examine, open_reader, open_store
from tollkeeper.testing.samples import AT_US, USD, an_entry, booked, usd


async def test_open_store_makes_it() -> None:
    """`memory:` is a MemoryStore with the budgets asked for, and two of them share nothing."""
    store, other = open_store("memory:", budgets=[usd(USD)]), open_store("memory:")
    assert isinstance(store, MemoryStore)
    await store.settle(an_entry("a/1"))
    assert await booked(other) == []
    assert len(await store.standings(an_entry("a/1").scopes, "m", AT_US)) == 1
    assert store.trouble is None


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:///", "sqlite://ledger", "ledger.sqlite", "memory"])
def test_urls_that_are_no_store(url: str) -> None:
    """I2: a store's URL that is none is refused with what would be right, and nothing is made."""
    for opens in (open_store, open_reader, check_url):
        with pytest.raises(ConfigError, match="expected 'sqlite:///path/to/file'"):
            opens(url)


def test_needs_a_folder() -> None:
    """I2: a Redis store that is not told where its journal goes is refused with what to do."""
    with pytest.raises(ConfigError, match="journal"):
        open_store("redis://localhost")


def test_what_is_not_shared_needs_no_look() -> None:
    """F1: `examine` asks a server only; one that is not there is told, and is no error of the configuration."""
    assert examine("memory:", [usd(USD)]) is None
    assert examine("sqlite:///ledger", [usd(USD)]) is None
    assert "refused" in str(examine("redis://127.0.0.1:1", [usd(USD)]))
