"""tollkeeper.metrics: what Prometheus reads, by Prometheus' own parser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tollkeeper.breaker import Bounds
from tollkeeper.health import Health, State
from tollkeeper.metrics import exposition
from tollkeeper.stores import Condition
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.values import Place

LABELS = ("level", "provider", "key", "model", "state")


def read(store: MemoryStore, *states: State) -> dict[tuple[str, str], float]:
    """(metric, its labels) → value."""
    families = text_string_to_metric_families(exposition(store, states).decode())
    samples = [each for family in families for each in family.samples]
    return {
        (each.name, " ".join(each.labels[name] for name in LABELS if name in each.labels)): each.value
        for each in samples
    }


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


def test_of_breakers() -> None:
    """E5: the state of each, what it counts in its window and since the start, and how soon a model answers."""
    now_s = [0.0]
    health = Health(Bounds(failures=2, window_s=30), lambda: now_s[0], lambda change: None)
    for failed in (None, "model", "model"):
        given = health.admit(Place("openai", "KEY", 'a "b"\n'))
        assert given is not None
        health.report(given, failed=failed, first_byte_s=0.25)  # type: ignore[arg-type]
    found = read(MemoryStore(), *health.states())
    place = 'model openai KEY a "b"\n'
    assert {name: value for name, value in found.items() if name[1].startswith("model")} == {
        ("tollkeeper_breaker_state", f"{place} closed"): 0,
        ("tollkeeper_breaker_state", f"{place} open"): 1,
        ("tollkeeper_breaker_state", f"{place} half_open"): 0,
        ("tollkeeper_breaker_window_calls", place): 3,
        ("tollkeeper_breaker_window_failures", place): 2,
        ("tollkeeper_breaker_calls_total", place): 3,
        ("tollkeeper_breaker_failures_total", place): 2,
    }
    assert found["tollkeeper_first_byte_seconds", place.removeprefix("model ")] == 0.25
    assert found["tollkeeper_breaker_calls_total", "provider openai  "] == 3
    now_s[0] = 1000
    found = read(MemoryStore(), *health.states())
    assert found["tollkeeper_breaker_state", f"{place} half_open"] == 1
    assert found["tollkeeper_breaker_window_calls", "key openai KEY "] == 0
    assert found["tollkeeper_breaker_calls_total", "key openai KEY "] == 3


@pytest.mark.parametrize("hedges", [None, (0, 0), (3, 1)])
def test_of_hedges(hedges: tuple[int, int] | None) -> None:
    """How many calls were hedged, and of what use that was; not where it is switched off."""
    families = text_string_to_metric_families(exposition(MemoryStore(), hedges=hedges).decode())
    found = {each.name: each.value for family in families for each in family.samples if "hedges" in each.name}
    names = ("tollkeeper_hedges_total", "tollkeeper_hedges_served_total")
    assert found == ({} if hedges is None else dict(zip(names, hedges, strict=True)))


def test_metrics_are_told() -> None:
    """Every metric is in the reference, and no other is."""
    root = Path(__file__).parents[2]
    source = (root / "src" / "tollkeeper" / "metrics.py").read_text()
    section = (root / "docs" / "reference" / "http.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    names = set(re.findall(r'"(?:tollkeeper_)?((?:store_|breaker_|first_|hedges)[a-z_]*)"', source))
    told = {name.removesuffix("_total") for name in re.findall(r"`tollkeeper_([a-z_]+)", section)}
    assert len(names) > 8
    assert sorted(names ^ told) == []
