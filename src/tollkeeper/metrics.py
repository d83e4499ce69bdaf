"""What Prometheus reads of a gateway (`GET /metrics`), taken when it asks: nothing on the line counts for it.

No metric has a label of a tenant: series stay few, and whoever may read them learns nothing of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollkeeper.breaker import Phase
from tollkeeper.health import State
from tollkeeper.stores import Condition, SharedState, Store

#: The header of what `exposition` gives.
TEXT: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())


class _Gateway(Collector):
    def __init__(self, store: Store, states: Sequence[State], hedges: tuple[int, int] | None) -> None:
        self._store = store
        self._states = states
        self._hedges = hedges

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "store_up", "1: the ledger takes calls; 0: calls are refused, /readyz says why", self._store.trouble is None
        )
        condition = self._store.condition
        if condition is not None:
            yield from _of_store(condition)
        yield from _of_breakers(self._states)
        if self._hedges is not None:
            hedges, served = self._hedges
            yield _counter("hedges", "calls that were sent to a second place as well", hedges)
            yield _counter("hedges_served", "those of them that the second place has served", served)


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


def _of_breakers(found: Sequence[State]) -> Iterator[Metric]:
    """How the places that calls go to are: as /v1/tollkeeper/providers."""
    names = ["level", "provider", "key", "model"]
    phases = GaugeMetricFamily("tollkeeper_breaker_state", "1: the state of the breaker", labels=[*names, "state"])
    window = GaugeMetricFamily("tollkeeper_breaker_window_calls", "calls in its window", labels=names)
    failed = GaugeMetricFamily("tollkeeper_breaker_window_failures", "those of them that failed", labels=names)
    calls = CounterMetricFamily("tollkeeper_breaker_calls", "calls that went well or failed there", labels=names)
    failures = CounterMetricFamily("tollkeeper_breaker_failures", "those of them that failed", labels=names)
    first_byte = GaugeMetricFamily(
        "tollkeeper_first_byte_seconds", "moving average of the time to the first byte", labels=names[1:]
    )
    for each in found:
        labels = [each.level, each.provider, each.key, each.model]
        for phase in get_args(Phase):
            phases.add_metric([*labels, phase], phase == each.state)
        window.add_metric(labels, each.calls)
        failed.add_metric(labels, each.failures)
        calls.add_metric(labels, each.calls_total)
        failures.add_metric(labels, each.failures_total)
        if each.latency_s is not None:
            first_byte.add_metric(labels[1:], each.latency_s)
    yield from (phases, window, failed, calls, failures, first_byte)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tollkeeper_{name}", what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"tollkeeper_{name}", what, value=value)


def exposition(store: Store, states: Sequence[State] = (), hedges: tuple[int, int] | None = None) -> bytes:
    """Everything, in Prometheus' text format; `states` of the breakers that may be seen, `hedges` (made, served) if switched on."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gateway(store, states, hedges))
    return generate_latest(registry)
