"""What Prometheus reads of a gateway (`GET /metrics`), taken when it asks: nothing on the line counts for it.

No metric has a label of a tenant: series stay few, and whoever may read them learns nothing of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollkeeper.stores import Condition, SharedState, Store

#: The header of what `exposition` gives.
TEXT: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())


class _Gateway(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "store_up", "1: the ledger takes calls; 0: calls are refused, /readyz says why", self._store.trouble is None
        )
        condition = self._store.condition
        if condition is not None:
            yield from _of_store(condition)


def _of_store(condition: Condition) -> Iterator[Metric]:
    """How a shared ledger is: as `store` of /readyz."""
    states = GaugeMetricFamily("tollkeeper_store_state", "1: the state of the shared ledger", labels=["state"])
    for state in get_args(SharedState):
        states.add_metric([state], state == condition.state)
    yield states
    yield _gauge("store_state_since_seconds", "Unix time of its last change of state", condition.since_us / 1e6)
    yield _gauge("store_peers", "other gateways that are alive", condition.peers)
    if condition.waiting is not None:
        yield _gauge(
            "store_waiting_entries", "entries that are in this gateway's journal and not in Redis", condition.waiting
        )


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tollkeeper_{name}", what, value=value)


def exposition(store: Store) -> bytes:
    """Everything, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gateway(store))
    return generate_latest(registry)
