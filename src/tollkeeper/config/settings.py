"""What a configuration may say: every setting with its type, default and meaning.

A setting comes from the environment (`TOLLKEEPER_PORT`, `TOLLKEEPER_PROVIDERS__OPENAI__BASE_URL`; lists and tables as
JSON), else from the TOML file, else it has its default. `sources.read` gathers them, `config.load` resolves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tollkeeper.config.written import (
    AS_TARGET,
    Count,
    CountOrNone,
    Duration,
    Files,
    Hash,
    Id,
    Instant,
    Lease,
    Limit,
    ModelName,
    Number,
    Prices,
    ProviderName,
    Quirk,
    RedisPrefix,
    Seconds,
    SecondsOrNone,
    UrlPath,
    Usd,
    Variables,
    WhenAway,
    Whole,
)
from tollkeeper.routing import Policy
from tollkeeper.values import DialectName, Measure, ScopeKind, Window

PREFIX: Final = "TOLLKEEPER_"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetTable(_Table):
    scope: ScopeKind = Field(description="what is limited: all, project, agent, session, user, key, model or tag")
    id: Id = Field("*", description='which one; "*" limits each of them alone')
    project: Id = Field("*", description='whose agent, session, user or tag; "*" in each project alone')
    measure: Measure = Field("usd", description="usd, tokens or requests")
    window: Window = Field("month", description="minute, hour, day, week, month or total")
    limit: Limit = Field(
        None,
        description='dollars as text ("12.50"), or a whole number of tokens or requests; "none": no limit; 0 blocks',
    )
    timezone: str = Field("UTC", description='where its windows begin, such as "Europe/Amsterdam"')
    hard: bool = Field(True, description="false: counted and shown, never refused")
    when_away: WhenAway = Field(
        0,
        description="what each gateway may admit of a hard budget while Redis is away, as limit is written; 0: nothing",
    )
    lease: Lease = Field(
        0,
        description='what a gateway may hold of a hard budget in Redis in advance, as limit is written or "5%" of it; 0: nothing',
    )
    instead: ModelName | None = Field(
        None,
        description="the model that a call goes to where this hard budget would refuse it, by a name that leads somewhere",
    )


class KeyTable(_Table):
    id: Id = Field(description="its name in reports; the same id with two hashes while one replaces the other")
    hash: Hash = Field(description='"sha256:" and 64 hex digits of the secret')
    project: Id = Field(description="the project of all its calls")
    agent: Id | None = Field(None, description="fixes the agent")
    session: Id | None = Field(None, description="fixes the session")
    user: Id | None = Field(None, description="fixes the user")
    models: tuple[ModelName, ...] | None = Field(None, description="the only model names that it may ask for")
    expires: Instant = Field(None, description="a date, or a time with its zone, from which it is not known any more")


class ProviderTable(_Table):
    preset: str | None = Field(
        None, description="fills in the rest; default: the table's own name, if it is a preset's"
    )
    base_url: str | None = Field(None, description="where the dialects' paths begin: https, or http on this machine")
    api_key_env: Variables = Field(
        None,
        description="the variable that holds its key, or a list: calls are spread over its keys; default: the preset's usual names",
    )
    api_key_file: Files = Field(
        None, description="the file that holds its key, or a list, relative to the configuration file"
    )
    credential_header: str | None = Field(
        None, description='"authorization" carries "Bearer <key>", others the key alone'
    )
    credential_headers: dict[DialectName, str] = Field(
        {}, description="a dialect's credential header, where it is another one"
    )
    dialects: tuple[DialectName, ...] | None = Field(None, min_length=1, description="the wire formats that it speaks")
    headers: dict[str, str] = Field({}, description="headers for it, where the client sends none of that name")
    quirks: tuple[Quirk, ...] | None = Field(
        None, description="how it differs on the wire: every_search_item, max_tokens, no_done, no_stream_options"
    )
    prices: str | None = Field(None, description="its id in the price data")
    counts: Literal["reported", "computed"] | None = Field(
        None,
        description="whose figure counts where it reports what a call cost: reported (its own, default) or computed",
    )
    paths: dict[DialectName, UrlPath] = Field(
        {}, description="how a dialect's paths begin below the base URL, where it is not as usual"
    )
    insecure: bool = Field(False, description="true: http may leave this machine")


class TargetTable(_Table):
    provider: str | None = Field(None, description="the name of a provider")
    model: ModelName | None = Field(None, description="its name for the model")
    weight: Whole = Field(1, ge=1, le=10_000, description="its share of the calls, with policy weighted")
    route: ModelName | None = Field(
        None, description="in the place of provider and model: another name in [routes], whose targets are taken in"
    )


class RouteTable(_Table):
    provider: str | None = Field(None, description="the name of a provider")
    model: ModelName | None = Field(None, description="its name for the model")
    policy: Policy = Field(
        "order",
        description="which target is first: order (as listed), weighted, cheapest, or fastest (to its first byte)",
    )
    to: tuple[Annotated[TargetTable, AS_TARGET], ...] | None = Field(
        None,
        min_length=1,
        description="in the place of provider and model: the targets; one stands in where another fails",
    )


class BreakerTable(_Table):
    failures: Whole = Field(3, ge=1, le=1000, description="failures in a row that open it")
    ratio: Number = Field(0.5, gt=0, le=1, description="or this share of the calls in the window that failed")
    minimum: Whole = Field(10, ge=1, le=100_000, description="calls in the window from which shares count")
    window_s: Seconds = Field(30, description="seconds that calls are counted for")
    slow_s: SecondsOrNone = Field(
        60, description='seconds to the first byte from which a call is slow; "none": no call is'
    )
    slow_ratio: Number = Field(0.8, gt=0, le=1, description="share of slow calls in the window that opens it")
    open_s: Seconds = Field(30, description="seconds that it is open; doubled each time a probe fails")
    open_max_s: Seconds = Field(300, description="up to this many")
    probe_s: Seconds = Field(60, description="seconds until a probe that says nothing gives up its place")


class RetentionTable(_Table):
    model_config = ConfigDict(validate_default=True)

    hour: Duration = Field(default="24h", description='how long hours are kept after their end, or "forever"')  # type: ignore[assignment]  # validated like a written one
    day: Duration = Field(default="30d", description='how long days are kept after their end, or "forever"')  # type: ignore[assignment]  # validated like a written one
    month: Duration = Field(default="365d", description='how long months are kept after their end, or "forever"')  # type: ignore[assignment]  # validated like a written one
    entries: Duration = Field(default="90d", description='how long single entries are kept, or "forever"')  # type: ignore[assignment]  # validated like a written one


class Settings(BaseSettings):
    """Everything that can be set, as it is written. `tollkeeper.config.load` turns it into a Config."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", validate_default=False
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; beyond loopback only with keys")
    port: Whole = Field(4141, ge=0, le=65535, description="port to listen on; 0: a free one")
    data_dir: Path = Field(Path(), description="folder of the ledger's file; default: the working folder")
    store: str = Field(
        "sqlite:///tollkeeper.sqlite",
        description="the ledger: sqlite:///path (below data_dir), memory: or the URL of a Redis",
    )
    redis_url: str | None = Field(None, description="the URL of a Redis: another name of store")
    redis_prefix: RedisPrefix = Field(
        "tollkeeper", description="how the names of all keys in Redis begin; gateways of one account share it"
    )
    redis_dedupe_s: Whole = Field(
        86400,
        ge=1,
        le=30 * 86400,
        description="seconds after its day (UTC) for which Redis knows an entry's id, so that no gateway books it again",
    )
    journal: Path = Field(
        Path("journal"),
        description="folder, below data_dir, of what this machine has booked, where the store is a Redis",
    )
    prices: Prices = Field(
        None, description="prices of your own: a file, relative to the configuration file, or its tables in a list"
    )
    keys: tuple[KeyTable, ...] = Field((), description="virtual keys; none: everybody on this machine is let in")
    budgets: tuple[BudgetTable, ...] = Field((), description="limits by scope, measure and window")
    providers: dict[ProviderName, ProviderTable] = Field(
        {}, description="where calls go; none: each preset whose usual key variable is set"
    )
    routes: dict[ModelName, Annotated[RouteTable, AS_TARGET]] = Field(
        {}, description='model names of your own: "provider/model" or a table'
    )
    attempts: Whole = Field(3, ge=1, le=5, description="requests to providers that one call may make")
    retry_budget: Number = Field(
        0.2, ge=0, le=1, description="further attempts, as a share of the calls, that a gateway makes; 0: none"
    )
    hedge: bool = Field(
        False,
        description="a second request elsewhere where the first has no answer after the p95: what both used is paid",
    )
    when_all_open: Literal["try", "refuse"] = Field(
        "try", description="every target of a call has an open breaker: try the one that is back first, or refuse"
    )
    breaker: BreakerTable = Field(BreakerTable(), description="when a target is left out for a while")
    allow_hosts: tuple[str, ...] = Field(
        (), description="link-local or metadata hosts that a base URL may name after all"
    )
    default_project: Id = Field("default", description="the project of calls that name none")
    default_output_cap: CountOrNone = Field(
        4096, description='output tokens of a call under a hard budget that sets no limit itself; "none": refused'
    )
    output_caps: dict[ModelName, Count] = Field({}, description="the same for single models")
    output_ceilings: dict[ModelName, Count] = Field(
        {}, description="output tokens that no reply of a model passes: they bound a quote and are never written"
    )
    quote: Literal["bound", "typical"] = Field(
        "bound",
        description="what a call holds: bound, which it cannot pass; or typical, as such prompts were before: some calls "
        "pass it, and overspend hard budgets by the difference",
    )
    quote_quantile: Number = Field(
        0.99, ge=0.5, le=0.9999, description="share of calls whose prompt stays within a typical quote"
    )
    hold_ttl_s: Seconds = Field(660, description="seconds until an unsettled hold is booked at its estimate")
    connect_timeout_s: Seconds = Field(10, description="seconds to connect to a provider")
    first_byte_timeout_s: Seconds = Field(120, description="seconds until a provider's first byte")
    idle_timeout_s: Seconds = Field(60, description="seconds between two pieces of a reply")
    total_timeout_s: Seconds = Field(600, description="seconds that a call may take in all; below hold_ttl_s")
    body_limit: Whole = Field(32 * 1024 * 1024, ge=1024, le=2**31, description="bytes of a request's body")
    depth_limit: Whole = Field(128, ge=8, le=512, description="nesting of a request's JSON")
    on_disconnect: Literal["drain", "cancel"] = Field(
        "drain", description="a client leaves: drain the reply to count it, or cancel it and book the estimate"
    )
    drain_limit: Whole = Field(32, ge=0, le=4096, description="replies drained at a time")
    drain_seconds: Seconds = Field(60, description="seconds that a reply is drained")
    retention: RetentionTable = Field(RetentionTable(), description="how long the ledger keeps what")
    scope_cap: Count = Field(10_000, description="distinct ids per project and period; further ones count as _other")
    expose_cost: bool = Field(True, description="tell a call's cost in response headers")
    expose_cost_in_streams: bool = Field(False, description="tell a streamed call's cost in an SSE comment at its end")
    cost_tracking_enabled: bool = Field(True, description="false: CostTracker books nothing")
    default_budget_limit: Usd = Field(None, description='dollars a month per project for CostTracker, as text; "none"')
    cost_alert_threshold: Usd = Field(None, description='dollars a day for CostTracker.should_alert, as text; "none"')

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What `read` gathered is all: the process environment is not looked at."""
        return (init_settings,)


TABLES: Final[dict[str, type[BaseModel]]] = {
    "keys": KeyTable,
    "budgets": BudgetTable,
    "providers": ProviderTable,
    "routes": RouteTable,
    "routes.to": TargetTable,
    "breaker": BreakerTable,
    "retention": RetentionTable,
}
"""The settings that are tables, by name."""


def describe() -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, default as text, meaning), in order: what the reference must name."""
    rows = list(_describe(Settings, ""))
    for name, table in TABLES.items():
        rows += _describe(table, f"{name}.")
    return rows


def _describe(table: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str]]:
    for name, field in table.model_fields.items():
        default = field.default
        if default is PydanticUndefined:
            default = "required"
        elif isinstance(default, BaseModel):
            default = "its own"
        elif default is None or default in ((), {}):
            default = "none"
        yield prefix + name, str(default), field.description or ""
