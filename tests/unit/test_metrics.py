"""tollkeeper.metrics: what Prometheus reads, by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tollkeeper.metrics import exposition
from tollkeeper.stores import Condition
from tollkeeper.stores.memory import MemoryStore


def read(store: MemoryStore) -> dict[tuple[str, str], float]:
    """(metric, its label) → value."""
    families = text_string_to_metric_families(exposition(store).decode())
    return {(each.name, "".join(each.labels.values())): each.value for family in families for each in family.samples}


@pytest.mark.parametrize(("trouble", "up"), [(None, 1), ("no space", 0)])
def test_of_one_process(trouble: Any, up: float) -> None:
    """An embedded ledger works or does not, and says no more."""
    store = MemoryStore()
    store.trouble = trouble
    assert read(store) == {("tollkeeper_store_up", ""): up}


@pytest.mark.parametrize("waiting", [None, 0, 7])
def test_of_a_shared_ledger(waiting: int | None) -> None:
    """B4: the state of Redis, and what waits for it; what is not known is not 0 but absent."""
    store = MemoryStore()
    store.condition = Condition(state="away", since_us=1_500_000, waiting=waiting, peers=2)
    found = read(store)
    assert {state: value for (name, state), value in found.items() if name == "tollkeeper_store_state"} == {
        "away": 1, "recovering": 0, "ready": 0, "closed": 0,
    }  # fmt: skip
    assert found["tollkeeper_store_state_since_seconds", ""] == 1.5
    assert found["tollkeeper_store_peers", ""] == 2
    assert found.get(("tollkeeper_store_waiting_entries", "")) == waiting
