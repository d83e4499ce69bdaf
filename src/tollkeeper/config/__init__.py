"""The configuration as one frozen value, from a TOML file and the environment, checked whole before anything starts.

    environment ┐
    TOML file   ┴─ sources.read ─→ Settings, as written ─→ load ─→ Config, resolved
                                          presets.toml ─┘

Here names are resolved, secrets fetched and limits made integers. The first mistake is a ConfigError of one line that
names the setting and what would be right. A Config holds nothing that is still to be parsed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from tollkeeper.breaker import Bounds
from tollkeeper.clock import Clock
from tollkeeper.config.providers import configured
from tollkeeper.config.routes import check_leads, resolved
from tollkeeper.config.settings import BudgetTable, KeyTable, Settings
from tollkeeper.config.sources import Loc, Source, read, unknown
from tollkeeper.errors import ConfigError
from tollkeeper.keys import Key
from tollkeeper.money import MAX_NANOS, parse_usd
from tollkeeper.prices.file import entries
from tollkeeper.prices.override import Override
from tollkeeper.routing import Candidates, is_loopback
from tollkeeper.stores import Retention, SharedOptions
from tollkeeper.stores.redis.url import is_redis, parse, shown
from tollkeeper.values import Budget, Provider

SQLITE: Final = "sqlite:///"
_PER_PROJECT: Final = ("agent", "session", "user", "tag")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, resolved. `…_s` and `drain_seconds` are seconds, `body_limit` bytes, `…_nanos` nano-dollars."""

    host: str
    port: int
    data_dir: Path
    store: str  #: "memory:", "sqlite:///path" joined with `data_dir`, or a Redis' URL with its password: print `store_shown`
    redis_prefix: str
    redis_dedupe_s: int
    journal: Path  #: joined with `data_dir`
    prices: Path | tuple[Override, ...] | None  #: a file of one's own, or entries that stand in the settings
    keys: tuple[Key, ...]
    budgets: tuple[Budget, ...]
    providers: dict[str, Provider]
    routes: dict[str, Candidates]
    attempts: int
    retry_budget: float  #: further attempts as a share of the calls
    hedge: bool
    when_all_open: Literal["try", "refuse"]
    breaker: Bounds
    allow_hosts: frozenset[str]
    default_project: str
    default_output_cap: int | None
    output_caps: dict[str, int]
    output_ceilings: dict[str, int]
    quote: Literal["bound", "typical"]
    quote_quantile: float
    hold_ttl_s: float
    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float
    body_limit: int
    depth_limit: int
    on_disconnect: Literal["drain", "cancel"]
    drain_limit: int
    drain_seconds: float
    retention: Retention
    scope_cap: int
    expose_cost: bool
    expose_cost_in_streams: bool
    cost_tracking_enabled: bool
    default_budget_limit_nanos: int | None  #: a month per project
    cost_alert_threshold_nanos: int | None  #: a day per project

    def __repr__(self) -> str:
        """With the store as it may be printed."""
        return super(Config, msgspec.structs.replace(self, store=self.store_shown)).__repr__()

    @property
    def store_shown(self) -> str:
        """The store's URL without its secrets."""
        return shown(self.store)

    def shared(self, clock: Clock) -> SharedOptions:
        """What a store that many processes share needs beside its URL."""
        return SharedOptions(
            clock=clock, journal=self.journal, prefix=self.redis_prefix, retention=self.retention,
            dedupe_s=self.redis_dedupe_s,
        )  # fmt: skip

    @property
    def store_path(self) -> Path | None:
        """The ledger's file, None for `memory:` and Redis."""
        return Path(self.store.removeprefix(SQLITE)) if self.store.startswith(SQLITE) else None


class Ledger(NamedTuple):
    """Where the account is kept: what `stores.opening` takes."""

    url: str
    shared: SharedOptions
    scope_cap: int


#: Fields that a Config takes from the settings as they are.
_PLAIN: Final = tuple(name for name in Config.__struct_fields__ if name in Settings.model_fields)


def load(path: Path | Mapping[str, Any] | None, environ: Mapping[str, str]) -> Config:
    """The configuration from `path` (else $TOLLKEEPER_CONFIG, else ./tollkeeper.toml if there is one) and `environ`.

    A mapping in the place of `path` is taken as a file's contents, and no file is read.
    Raises ConfigError: the first mistake, its file or variable and setting, and what would be right, in one line; of
    price entries every mistake, a line each.
    """
    settings, source = read(path, environ)
    if settings.total_timeout_s >= settings.hold_ttl_s:
        raise source.error(
            ("hold_ttl_s",), f"expected more than total_timeout_s ({settings.total_timeout_s:g} seconds)"
        )
    providers = configured(settings, source, environ)
    routes = resolved(settings, source, providers)
    keys = _keys(settings, source)
    found = {
        "store": _store(settings, source),
        "journal": _journal(settings),
        "prices": _prices(settings, source),
        "keys": keys,
        "budgets": _budgets(settings, source, {key.id for key in keys}, providers, routes),
        "providers": providers,
        "routes": routes,
        "breaker": _breaker(settings, source),
        "allow_hosts": frozenset(settings.allow_hosts),
        "retention": _retention(settings),
        "default_budget_limit_nanos": settings.default_budget_limit,
        "cost_alert_threshold_nanos": settings.cost_alert_threshold,
    }
    return Config(**{name: getattr(settings, name) for name in _PLAIN} | found)


def ledger(path: Path | None, environ: Mapping[str, str], clock: Clock) -> Ledger:
    """The ledger alone, without asking for providers' keys: for who only looks at it. Raises ConfigError as `load`."""
    settings, source = read(path, environ)
    return Ledger(
        _store(settings, source),
        SharedOptions(
            clock=clock, journal=_journal(settings), prefix=settings.redis_prefix, retention=_retention(settings),
            dedupe_s=settings.redis_dedupe_s,
        ),
        settings.scope_cap,
    )  # fmt: skip


def check_listen(config: Config) -> None:
    """Raises ConfigError if the gateway would listen beyond loopback with no keys."""
    if not config.keys and not is_loopback(config.host):
        raise ConfigError(
            f"host: {config.host} can be reached from other machines and there are no [[keys]]: "
            "add a key, or listen on 127.0.0.1"
        )


# ---- breaker, keys, budgets, store -----------------------------------------------------------------------------------


def _breaker(settings: Settings, source: Source) -> Bounds:
    table = settings.breaker
    if table.open_max_s < table.open_s:
        raise source.error(("breaker", "open_max_s"), f"expected open_s ({table.open_s:g} seconds) or more")
    return Bounds(**dict(table))


def _keys(settings: Settings, source: Source) -> tuple[Key, ...]:
    keys: list[Key] = []
    for index, table in enumerate(settings.keys):
        key = _key(table)
        for earlier in keys:
            if earlier.hash == key.hash:
                raise source.error(
                    ("keys", index, "hash"), f"is that of key {earlier.id!r} too; each key has its own secret"
                )
            if earlier.id == key.id and not _same_but_secret(earlier, key):
                raise source.error(
                    ("keys", index, "id"),
                    f"{key.id!r} stands twice with other scopes or models; only hash and expires may differ",
                )
        keys.append(key)
    return tuple(keys)


def _key(table: KeyTable) -> Key:
    return Key(
        id=table.id,
        hash=table.hash,
        project=table.project,
        agent=table.agent,
        session=table.session,
        user=table.user,
        models=None if table.models is None else frozenset(table.models),
        expires_us=table.expires,
    )


def _same_but_secret(one: Key, other: Key) -> bool:
    return msgspec.structs.replace(one, hash=other.hash, expires_us=other.expires_us) == other


def _budgets(
    settings: Settings, source: Source, key_ids: set[str], providers: Mapping[str, Provider], routes: Collection[str]
) -> tuple[Budget, ...]:
    budgets: list[Budget] = []
    seen: dict[Budget, int] = {}
    for number, table in enumerate(settings.budgets):
        budget = _budget(table, ("budgets", number), source, key_ids)
        if budget.instead is not None:
            check_leads(budget.instead, ("budgets", number, "instead"), source, providers, routes)
        twin = seen.setdefault(msgspec.structs.replace(budget, limit=None, when_away=0, lease=0, instead=None), number)
        if twin != number:
            raise source.error(("budgets", number), f"limits the same as #{twin + 1}; keep one of them")
        budgets.append(budget)
    return tuple(budgets)


def _budget(table: BudgetTable, loc: tuple[str, int], source: Source, key_ids: set[str]) -> Budget:
    if table.scope == "all" and table.id != "*":
        raise source.error((*loc, "id"), "scope 'all' has no ids; remove it")
    if table.scope not in _PER_PROJECT and table.project != "*":
        right = "name the project by id" if table.scope == "project" else "remove it"
        raise source.error((*loc, "project"), f"scope {table.scope!r} belongs to no project; {right}")
    if table.scope == "key" and table.id != "*" and key_ids and table.id not in key_ids:
        raise source.error((*loc, "id"), f"key {table.id!r} {unknown(table.id, key_ids)}")
    limit = _amount(table.limit, table.measure, (*loc, "limit"), source)
    if table.instead is not None and (limit is None or not table.hard):
        raise source.error((*loc, "instead"), "is for hard budgets with a limit, others refuse nothing; remove it")
    return Budget(
        scope=table.scope,
        id=table.id,
        project=table.project,
        measure=table.measure,
        window=table.window,
        limit=limit,
        timezone=_timezone(table.timezone, (*loc, "timezone"), source),
        hard=table.hard,
        when_away=_when_away(table, limit, (*loc, "when_away"), source),
        lease=_lease(table, limit, (*loc, "lease"), source),
        instead=table.instead,
    )


def _amount(value: str | int | None, measure: str, loc: Loc, source: Source) -> int | None:
    """Nano-dollars for usd, else a count."""
    if value is None:
        return None
    if measure == "usd":
        try:
            return parse_usd(value, "")
        except ValueError as error:
            raise source.error(loc, str(error).removeprefix(": ")) from None
    if isinstance(value, str) or not 0 <= value <= MAX_NANOS:
        raise source.error(loc, f"expected a whole number of {measure} from 0 to {MAX_NANOS}, got {value!r}")
    return value


def _when_away(table: BudgetTable, limit: int | None, loc: Loc, source: Source) -> int:
    amount = _amount(table.when_away, table.measure, loc, source) or 0
    if amount and (limit is None or not table.hard):
        raise source.error(loc, "is for hard budgets with a limit, others refuse nothing; remove it")
    if limit is not None and amount > limit:
        raise source.error(loc, "is above the limit; expected a part of it")
    return amount


def _lease(table: BudgetTable, limit: int | None, loc: Loc, source: Source) -> int:
    share = isinstance(table.lease, str) and table.lease.endswith("%")
    amount = None if share else _amount(table.lease, table.measure, loc, source)
    if amount == 0:
        return 0
    if limit is None or not table.hard:
        raise source.error(loc, "is for hard budgets with a limit, others refuse nothing; remove it")
    if amount is None:
        return limit * int(str(table.lease).removesuffix("%")) // 100
    if amount > limit:
        raise source.error(loc, "is above the limit; expected a part of it")
    return amount


def _timezone(name: str, loc: Loc, source: Source) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        near = get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "expected a name such as 'UTC' or 'Europe/Amsterdam'"
        raise source.error(loc, f"{name!r} is no time zone; {hint}") from None
    return name


def _prices(settings: Settings, source: Source) -> Path | tuple[Override, ...] | None:
    """The price file's path, or the entries. Raises ConfigError, one line per mistake in these."""
    if settings.prices is None:
        return None
    if isinstance(settings.prices, Path):
        return source.folder / settings.prices
    return entries(settings.prices, str(source.error(("prices",), "")).removesuffix(": "))


def _named_store(settings: Settings, source: Source) -> tuple[str, str]:
    """The setting that names the store, and its URL: `redis_url` is another name of `store`, the environment wins."""
    if settings.redis_url is None:
        return "store", settings.store
    in_environ = [name in source.from_environ for name in ("store", "redis_url")]
    if "store" in settings.model_fields_set and in_environ[0] == in_environ[1]:
        raise source.error(("redis_url",), "is another name of store, and store is set too; keep one of them")
    return ("store", settings.store) if in_environ[0] else ("redis_url", settings.redis_url)


def _journal(settings: Settings) -> Path:
    return settings.data_dir / settings.journal


def _retention(settings: Settings) -> Retention:
    return Retention(**{f"{name}_s": seconds for name, seconds in settings.retention})


def _store(settings: Settings, source: Source) -> str:
    """The store's URL, a path in it joined with `data_dir`."""
    setting, url = _named_store(settings, source)
    if is_redis(url) or setting == "redis_url":
        try:
            parse(url)
        except ConfigError as error:
            raise source.error((setting,), str(error).removeprefix("store: ")) from None
        return url
    if url == "memory:":
        return url
    path = url.removeprefix(SQLITE)
    if path not in ("", url) and not path.endswith("/") and path.isprintable() and "?" not in path:
        return SQLITE + str(settings.data_dir / path)
    raise source.error(("store",), "expected 'sqlite:///path/of/the/file', 'memory:' or 'redis://host:6379/0'")
