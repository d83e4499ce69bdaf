"""The composition root: configuration → objects → server; start, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from secrets import SystemRandom
from typing import TYPE_CHECKING, Final

import uvicorn

from tollkeeper import chores, flow
from tollkeeper.api import Api
from tollkeeper.clock import MICROS, Clock, SystemClock, new_id
from tollkeeper.config import Config, check_listen, load
from tollkeeper.density import Densities
from tollkeeper.errors import ConfigError, StoreError
from tollkeeper.health import Change, Health, Name
from tollkeeper.keys import KeyRing
from tollkeeper.latency import Latencies
from tollkeeper.prices import PriceBook
from tollkeeper.prices import data as price_data
from tollkeeper.retry import RetryBudget
from tollkeeper.routing import Table
from tollkeeper.server import BoundedHttp
from tollkeeper.stores import Store
from tollkeeper.stores.opening import examine, open_store
from tollkeeper.stores.redis.url import is_redis
from tollkeeper.upstream import HttpUpstream

if TYPE_CHECKING:  # it brings a client of Redis with it
    from tollkeeper.stores.redis.open import Advice

log = logging.getLogger("tollkeeper")


#: A breaker's new phase → what is logged.
_TURNED: Final = {
    "open": "breaker: %s is left out for a while%s",
    "half_open": "breaker: %s is tried again%s",
    "closed": "breaker: %s is back%s",
}
#: A call makes hundreds of objects and no cycles: the collector need not look after every few of them.
GC_THRESHOLDS: Final = (20_000, 20, 100)


class App:
    """One gateway: its gate and its ASGI application. `advice`: where others share the ledger."""

    def __init__(
        self, config: Config, gate: flow.Gate, api: Api, upstream: HttpUpstream, advice: Advice | None = None
    ) -> None:
        self.config, self.gate, self.api = config, gate, api
        self._advice = advice
        self._upstream = upstream

    @asynccontextmanager
    async def running(self, path: Path | None = None, environ: Mapping[str, str] | None = None) -> AsyncIterator[App]:
        """Open the pool and start the chores; at the end stop them and close the ledger.

        With the configuration's `path`, changed budgets, keys and prices are taken while it runs; without, changed prices.
        """
        gate, advice = self.gate, self._advice
        works: list[tuple[str, float, chores.Work]] = [
            ("expire", chores.EXPIRE_EVERY_S, lambda: chores.expire(gate)),
            ("prune", chores.PRUNE_EVERY_S, lambda: chores.prune(gate, self.config.retention)),
        ]
        if advice is not None:
            works.append(("advise", chores.ADVISE_EVERY_S, lambda: chores.advise(gate, advice)))
        prices = _price_file(self.config)
        if path is not None or prices is not None:
            works.append(("reload", chores.RELOAD_EVERY_S, Reload(path, environ or {}, gate, prices)))
        tasks = [asyncio.create_task(chores.every(*work)) for work in works]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._upstream.close()
            with suppress(StoreError):  # what is still owed then is booked at its estimate at the next start
                await chores.expire(gate)
            await gate.store.close()


class Reload:
    """Takes budgets, keys and prices when the configuration or price file changes; one with a mistake changes nothing."""

    def __init__(
        self, path: Path | None, environ: Mapping[str, str], gate: flow.Gate, prices: Path | None = None
    ) -> None:
        self._path, self._environ, self._gate = path, environ, gate
        self._prices = prices
        self._seen = _stamp(path), _stamp(self._prices)

    async def __call__(self) -> None:
        stamps = _stamp(self._path), _stamp(self._prices)
        if stamps == self._seen:
            return
        try:
            config = load({} if self._path is None else self._path, self._environ)
            check_listen(config)
            self._prices = _price_file(config)
            stamps = stamps[0], _stamp(self._prices)  # watched from now on, also if it has a mistake
            prices = PriceBook.load(config.prices)
        except ConfigError as error:
            log.error("the changed configuration is not taken: %s", "; ".join(str(error).splitlines()))
            self._seen = stamps
            return
        await self._gate.store.set_budgets(config.budgets)
        self._gate.keys = KeyRing(config.keys)
        if prices.version != self._gate.prices.version:
            self._gate.prices = prices  # calls under way keep the book of their admission
        self._seen = stamps  # only now: what the ledger did not take is tried again
        log.info("changed budgets, keys and prices are taken; other settings at the next start")


def _price_file(config: Config) -> Path | None:
    """The price file to watch; None: there is none, or the prices stand in the settings."""
    return config.prices if isinstance(config.prices, Path) else None


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What shows that a file has changed."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size)


def build(config: Config, clock: Clock | None = None) -> App:
    """A gateway from its configuration. Raises ConfigError, StoreError; then nothing is left open."""
    check_listen(config)
    clock = clock if clock is not None else SystemClock()
    prices = PriceBook.load(config.prices)
    prices.warm(None, "gpt-4o-mini", clock.now_us())  # loads the price data now, not in the first call
    upstream = HttpUpstream(connect_timeout_s=config.connect_timeout_s, allow_hosts=config.allow_hosts)
    table = routes(config, prices)
    away = examine(config.store, config.budgets)
    if away is not None:
        log.error("store: Redis is not there (%s); calls are refused until it is", away)
    store = open_store(config.store, budgets=config.budgets, scope_cap=config.scope_cap, shared=config.shared(clock))
    health = Health(config.breaker, clock.monotonic_s, _turned)
    advice = _advice(config.store, store, health, clock)
    gate = flow.Gate(
        clock=clock, keys=KeyRing(config.keys), table=table, prices=prices, store=store, upstream=upstream,
        draw=SystemRandom().random, health=health,
        retries=RetryBudget(config.retry_budget), latencies=Latencies() if config.hedge else None, limits=limits(config),
        densities=Densities(round(config.quote_quantile * 10_000)),
        new_id=lambda: new_id(clock.now_us()),
    )  # fmt: skip
    known = {name: provider.prices for name, provider in config.providers.items() if provider.prices}

    def names(allowed: frozenset[str] | None) -> tuple[str, ...]:
        return table.models(allowed, {name: price_data.models(place) for name, place in known.items()})

    api = Api(gate, body_limit=config.body_limit, depth_limit=config.depth_limit, models=names)
    return App(config, gate, api, upstream, advice)


def _advice(url: str, store: Store, health: Health, clock: Clock) -> Advice | None:
    """How gateways of one Redis tell each other of providers, which `health` now does; None: nothing is shared."""
    if not is_redis(url):
        return None
    from tollkeeper.stores.redis.store import RedisStore

    assert isinstance(store, RedisStore)
    advice = store.advice

    def blocked(name: Name, until_s: float) -> None:
        advice.tell(name, clock.now_us() + round((until_s - clock.monotonic_s()) * MICROS))

    health.blocked = blocked
    return advice


def _turned(change: Change) -> None:
    """One line for each change of a breaker."""
    what = " ".join(filter(None, (f"provider {change.provider}", change.key and f"key {change.key}", change.model)))
    why = f" ({change.reason})" if change.reason else ""
    log.log(logging.INFO if change.after == "closed" else logging.WARNING, _TURNED[change.after], what, why)


def routes(config: Config, prices: PriceBook) -> Table:
    """Where each model goes; the price data say whose a bare name is."""
    by_prices = {provider.prices: name for name, provider in reversed(config.providers.items()) if provider.prices}
    return Table(config.providers, config.routes, lambda model: by_prices.get(prices.owner(model) or ""))


def limits(config: Config) -> flow.Limits:
    """The bounds of a call."""
    return flow.Limits(
        attempts=config.attempts, when_all_open=config.when_all_open,
        first_byte_s=config.first_byte_timeout_s, idle_s=config.idle_timeout_s, total_s=config.total_timeout_s,
        hold_ttl_s=config.hold_ttl_s, drain_s=config.drain_seconds, drain_limit=config.drain_limit,
        on_disconnect=config.on_disconnect, default_output_cap=config.default_output_cap,
        output_caps=config.output_caps, output_ceilings=config.output_ceilings, quote=config.quote,
        default_project=config.default_project, expose_cost=config.expose_cost,
        expose_cost_in_streams=config.expose_cost_in_streams,
    )  # fmt: skip


def listen(config: Config) -> socket.socket:
    """The listening socket. Raises ConfigError naming the setting that is in the way."""
    check_listen(config)  # before the port is open to anyone
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048)
        listening.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # connections inherit it; asyncio would not set it
        return listening
    except (OSError, OverflowError) as error:
        reason = str(error.strerror).partition(" (while ")[0] if isinstance(error, OSError) else error
        raise ConfigError(
            f"host, port: cannot listen on {config.host}:{config.port}: {reason}; choose another"
        ) from None


class Server(uvicorn.Server):
    """uvicorn, telling the gateway that it stops before it waits for the calls under way."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self._api = api

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again when it has stopped: that would kill us before the ledger is closed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: object) -> None:
        self._api.draining = True
        super().handle_exit(sig, frame)  # type: ignore[arg-type]


def server(app: App) -> Server:
    """The HTTP server of a gateway."""
    drain_s = int(app.config.drain_seconds)
    return Server(
        uvicorn.Config(
            app.api, http=BoundedHttp, loop="uvloop", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=drain_s, ws="none",
        ),
        app.api,
    )  # fmt: skip


async def serve(app: App, listening: socket.socket, path: Path | None, environ: Mapping[str, str]) -> None:
    """Serve until SIGINT or SIGTERM; calls under way are finished within `drain_seconds`, the rest is booked."""
    gc.collect()
    gc.freeze()  # prices, settings and code stay: no collection needs to look at them again
    gc.set_threshold(*GC_THRESHOLDS)
    async with app.running(path, environ):
        await server(app).serve(sockets=[listening])
