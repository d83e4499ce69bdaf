"""The ledger as a library: `CostTracker` records calls, answers what was spent, and holds budgets around calls.

    record_response, record_stream ── read ──┐
    record_usage ────────────────────────────┴─ priced ── booked (durable) ─┐
    hold ── reserved ── settle, settle_response ── priced ── booked ────────┴─ ledger ── get_…_usage, check_budget, should_alert

It keeps the same ledger as the gateway, and is its one owner while it is open. Every argument is checked before anything
is written: a mistake is a ValueError that names it. Periods are UTC calendar hours, days and months; amounts are exact
Decimal dollars; a cost that is not known is None, never 0.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Collection, Generator, Iterable
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tollkeeper.clock import MICROS, Clock, SystemClock, new_id
from tollkeeper.ledger import PERIODS, Period
from tollkeeper.money import parse_usd, to_usd
from tollkeeper.prices import PriceBook
from tollkeeper.repricing import Repricing
from tollkeeper.settlement import entry_for
from tollkeeper.stores import Store
from tollkeeper.tracker import arguments, history, usage_report
from tollkeeper.tracker.accounts import Accounts, Recorded, Settings, configuration, provider_name
from tollkeeper.tracker.holding import DIALECT, CallHold
from tollkeeper.tracker.recording import Recording, unheld
from tollkeeper.tracker.replies import read_all
from tollkeeper.tracker.streaming import RecordedStream
from tollkeeper.tracker.usage_report import Span, UsageReport
from tollkeeper.values import Hold, Part, Reading, ScopeKind, Usage

Usd = Decimal | str | int
T = TypeVar("T")


class CostTracker:
    """One ledger for one process, usable from its threads and event loops (`memory:` from one). Opens at the first use.

    `store` is a URL (`sqlite:///path`, `memory:`; default: the setting `store`) or an open Store, which stays the caller's.
    `settings` is a path of a TOML file, the settings as a dict, or a Config; by default they are read as the gateway reads
    them, from the environment and `tollkeeper.toml`. Raises ConfigError: one line that names the setting.
    """

    def __init__(
        self, store: str | Store | None = None, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._accounts = Accounts(store, configuration(settings), self._clock)

    # ── opening and closing ──

    def __await__(self) -> Generator[Any, None, CostTracker]:
        """`await tracker` opens prices and ledger now, and answers the tracker."""
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> CostTracker:
        await self._accounts.prices()
        if self._accounts.config.cost_tracking_enabled:
            await self._accounts.store()
        return self

    @property
    def closed(self) -> bool:
        """Whether it was closed: it then takes no more calls."""
        return self._accounts.closed

    async def close(self) -> None:
        """Finish what is being written and let go of the ledger. Again: nothing happens. A closed tracker stays closed."""
        await self._accounts.close()

    # ── recording ──

    async def record_usage(
        self,
        project_id: str,
        agent_id: str | None,
        model: str,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cost_usd: Usd | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        *,
        user_id: str | None = None,
        key_id: str | None = None,
        tags: Collection[str] = (),
        provider: str | None = None,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        usage: Usage | None = None,
        tier: str | None = None,
        timestamp: datetime | None = None,
    ) -> Recorded:
        """Book one call; it is durable when this returns.

        `prompt_tokens` is the whole prompt; `cached_tokens` and `cache_write_tokens` are parts of it, as OpenAI counts.
        Where they stand beside the prompt, as at Anthropic, pass `usage=Usage(input=…, cache_read=…, output=…)` instead.
        `cost_usd` is what the provider charged: it counts, and our own price is kept beside it. Without it the price of
        `provider` (a configured one, a preset or one of the price data; by default the model's owner) and `tier` counts; a
        model without a price is booked as unpriced, amount None. The same `request_id` in a project counts once, then says
        "repeated". A call whose answer was lost may be recorded again with its `request_id`.

        Raises ValueError, Conflict (the `request_id` was booked with other contents), StoreError.
        """
        now_us = self._clock.now_us()
        scopes = arguments.scopes(project_id, agent_id, session_id, user_id, key_id, tags)
        model = arguments.model(model)
        used = arguments.usage(usage, prompt_tokens, completion_tokens, cached_tokens, cache_write_tokens)
        reported = arguments.cost(cost_usd, "cost_usd")
        call = new_id(now_us) if request_id is None else arguments.name(request_id, "request_id")
        provider, tier = arguments.optional(provider, "provider"), arguments.optional(tier, "tier")
        at_us = arguments.instant(timestamp, "timestamp", now_us)
        accounts = self._accounts
        prices = await accounts.prices()
        reading = Reading(parts=(Part(used),), tier=tier, reported_usd=reported, final=True)
        charge = prices.charge(
            reading, provider=accounts.provider(provider), model=model, at_us=at_us, key=scopes.key, route=model
        )
        attempt = unheld(call, scopes, DIALECT, provider_name(provider, model, prices), model, at_us)
        return await accounts.book(entry_for(attempt, reading, charge, sent=model))

    async def record_response(
        self,
        dialect: str,
        body: object,
        *,
        project_id: str,
        agent_id: str | None = None,
        model: str | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        user_id: str | None = None,
        key_id: str | None = None,
        tags: Collection[str] = (),
        provider: str | None = None,
        tier: str | None = None,
        prompt_tokens: int | None = None,
        http_status: int | None = None,
        timestamp: datetime | None = None,
    ) -> Recorded:
        """Book a provider's reply as it came: usage, model, tier and cost are read from it as the gateway reads them.

        `body` is bytes or text (JSON, server-sent events, AWS event stream), a dict, an SDK's response object, or a list or
        iterator of a stream's chunks, which is read to its end. `model` is the one asked for; needed where the reply names
        none. `request_id` is by default the provider's own id of the reply, so that the same one recorded twice counts once.
        `prompt_tokens` bounds the prompt of a reply that does not say its usage: without it that is unpriced. An error body,
        or `http_status` from 300 on, is booked as an error that costs 0. `tier` overrides the reply's, as for a batch.

        Raises as `record_usage` does.
        """
        recording = Recording(
            self._accounts, dialect, model, project_id=project_id, agent_id=agent_id, session_id=session_id,
            request_id=request_id, user_id=user_id, key_id=key_id, tags=tags, provider=provider, tier=tier,
            prompt_tokens=prompt_tokens, timestamp=timestamp,
        )  # fmt: skip
        status, reader = arguments.status(http_status), recording.reader()
        await read_all(reader, body)
        return await self._accounts.book(await recording.entry(reader.finish(status, over=True), status))

    def record_stream(
        self,
        dialect: str,
        chunks: AsyncIterable[T] | Iterable[T],
        *,
        project_id: str,
        model: str,
        agent_id: str | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        user_id: str | None = None,
        key_id: str | None = None,
        tags: Collection[str] = (),
        provider: str | None = None,
        tier: str | None = None,
        prompt_tokens: int | None = None,
        timestamp: datetime | None = None,
    ) -> RecordedStream[T]:
        """Hand an SDK's stream through, chunk by chunk, and book it when it ends: `async for chunk in tracker.record_stream(…)`.

        The last chunk is followed by the booking, then the loop ends; `recorded` of the stream has it. Left early, or broken
        off, it is booked with what was seen, at once inside `async with` (see `streaming`). Arguments as in `record_response`.
        Raises ValueError here, StoreError and Conflict at the end.
        """
        recording = Recording(
            self._accounts, dialect, arguments.model(model), project_id=project_id, agent_id=agent_id,
            session_id=session_id, request_id=request_id, user_id=user_id, key_id=key_id, tags=tags, provider=provider,
            tier=tier, prompt_tokens=prompt_tokens, timestamp=timestamp,
        )  # fmt: skip
        return RecordedStream(recording, chunks)

    def hold(
        self,
        project_id: str,
        agent_id: str | None,
        model: str,
        prompt_tokens: int,
        max_completion_tokens: int | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        key_id: str | None = None,
        tags: Collection[str] = (),
        provider: str | None = None,
    ) -> CallHold:
        """Reserve the most that a call can cost against every budget of the settings: `async with tracker.hold(…) as hold:`.

        `prompt_tokens` is an upper bound. Without `max_completion_tokens` the setting `output_caps` or `default_output_cap`
        counts: send `hold.max_completion_tokens` to the provider. See `holding` for how it ends. Raises ValueError here, and
        BudgetExceeded, RateLimited or StoreError on entry.
        """
        scopes = arguments.scopes(project_id, agent_id, session_id, user_id, key_id, tags)
        model = arguments.model(model)
        prompt = arguments.count(prompt_tokens, "prompt_tokens")
        provider = arguments.optional(provider, "provider")
        config = self._accounts.config
        cap = config.output_caps.get(model, config.default_output_cap)
        if max_completion_tokens is not None:
            cap = arguments.count(max_completion_tokens, "max_completion_tokens")

        def wanted(prices: PriceBook) -> Hold:
            at_us = self._clock.now_us()
            call, place = new_id(at_us), self._accounts.provider(provider)
            bound = None if cap is None else Usage(input=prompt, output=cap)
            return Hold(
                id=f"{call}/1", call=call, attempt=1, scopes=scopes, dialect=DIALECT,
                provider=provider_name(provider, model, prices), model=model,
                quote_nanos=None if cap is None else prices.quote_nanos(
                    place, model, prompt, cap, at_us, key=scopes.key, route=model
                ),
                quote_usage=bound, at_us=at_us, deadline_us=at_us + int(config.hold_ttl_s * MICROS),
                price_version=prices.version,
            )  # fmt: skip

        return CallHold(self._accounts, wanted, provider)

    # ── what was spent ──

    async def get_project_usage(
        self, project_id: str, period: str = "day", timestamp: datetime | None = None
    ) -> UsageReport:
        """What a project used in the hour, day or month (UTC) that holds `timestamp` (default: now)."""
        return await self._usage(arguments.name(project_id, "project_id"), None, period, timestamp)

    async def get_agent_usage(
        self, project_id: str, agent_id: str, period: str = "day", timestamp: datetime | None = None
    ) -> UsageReport:
        """The same for one agent of a project."""
        project = arguments.name(project_id, "project_id")
        return await self._usage(project, arguments.name(agent_id, "agent_id"), period, timestamp)

    async def get_session_usage(self, session_id: str, project_id: str | None = None) -> UsageReport:
        """What a session used in all the months that the ledger keeps.

        Sessions belong to projects: where two have one of this id, ValueError names them, and `project_id` says which.
        """
        session, project = arguments.name(session_id, "session_id"), arguments.optional(project_id, "project_id")
        wanted = Span("session", project, session, "month")
        found = await usage_report.cells(await self._accounts.store(), wanted)
        projects = sorted({key.project for key, _ in found})
        if len(projects) > 1:
            raise ValueError(f"session_id: {session!r} is in projects {', '.join(projects)}; pass project_id")
        return usage_report.report(wanted._replace(project=projects[0] if projects else project), found)

    async def check_budget(
        self, project_id: str, budget_limit: Usd | None = None
    ) -> tuple[bool, Decimal, Decimal | None]:
        """(within, current, limit) of a project in this month (UTC), in dollars.

        Within: something is left of the limit. The limit is `budget_limit`, else the setting `default_budget_limit`; None is
        no limit, 0 leaves nothing. Calls of unknown cost are not in `current`: see `unpriced_requests` of the month's report.
        """
        limit_nanos = self._accounts.config.default_budget_limit_nanos
        if budget_limit is not None:
            limit_nanos = parse_usd(budget_limit, "budget_limit")
        current = (await self.get_project_usage(project_id, "month")).total_cost_usd
        limit = None if limit_nanos is None else to_usd(limit_nanos)
        return limit is None or current < limit, current, limit

    async def should_alert(self, project_id: str, threshold: Usd | None = None) -> tuple[bool, Decimal]:
        """(alert, current) of a project today (UTC): whether `threshold` dollars, else `cost_alert_threshold`, are reached."""
        nanos = self._accounts.config.cost_alert_threshold_nanos
        if threshold is not None:
            nanos = parse_usd(threshold, "threshold")
        current = (await self.get_project_usage(project_id, "day")).total_cost_usd
        return nanos is not None and current >= to_usd(nanos), current

    async def _usage(self, project: str, agent: str | None, period: str, timestamp: datetime | None) -> UsageReport:
        arguments.one_of(period, "period", PERIODS)
        at_us = arguments.instant(timestamp, "timestamp", self._clock.now_us())
        scope: ScopeKind = "project" if agent is None else "agent"
        id = "" if agent is None else agent
        wanted = usage_report.span(scope, project, id, cast(Period, period), at_us)
        return usage_report.report(wanted, await usage_report.cells(await self._accounts.store(), wanted))

    # ── prices ──

    async def estimate_request_cost(
        self,
        model: str,
        prompt_tokens: int,
        max_completion_tokens: int,
        provider: str | None = None,
        default_usd: Usd | None = None,
    ) -> Decimal | None:
        """Dollars that no call of at most these tokens passes, web searches aside; `default_usd` for a model without a price."""
        model = arguments.model(model)
        prompt = arguments.count(prompt_tokens, "prompt_tokens")
        output = arguments.count(max_completion_tokens, "max_completion_tokens")
        place = self._accounts.provider(arguments.optional(provider, "provider"))
        default = arguments.cost(default_usd, "default_usd")
        prices = await self._accounts.prices()
        nanos = prices.quote_nanos(place, model, prompt, output, self._clock.now_us(), route=model)
        return default if nanos is None else to_usd(nanos)

    async def calculate_cost(
        self,
        model: str,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        provider: str | None = None,
        *,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        usage: Usage | None = None,
        tier: str | None = None,
        timestamp: datetime | None = None,
    ) -> Decimal | None:
        """What `record_usage` would book for such a call, in dollars; None: no price. Nothing is written."""
        model = arguments.model(model)
        used = arguments.usage(usage, prompt_tokens, completion_tokens, cached_tokens, cache_write_tokens)
        place = self._accounts.provider(arguments.optional(provider, "provider"))
        reading = Reading(parts=(Part(used),), tier=arguments.optional(tier, "tier"), final=True)
        at_us = arguments.instant(timestamp, "timestamp", self._clock.now_us())
        prices = await self._accounts.prices()
        nanos = prices.charge(reading, provider=place, model=model, at_us=at_us, route=model).amount_nanos
        return None if nanos is None else to_usd(nanos)

    async def reprice(
        self,
        from_: datetime,
        to: datetime | None = None,
        *,
        project_id: str | None = None,
        prices: PriceBook | str | os.PathLike[str] | None = None,
        what_if: bool = False,
        only_unpriced: bool = False,
        reason: str | None = None,
        by: str | None = None,
    ) -> Repricing:
        """Price what was booked in [`from_`, `to`) again and book corrections; originals stay, each counts in its old windows.

        `prices` is a price file in the place of the configured one. With `what_if` nothing is written. Each correction keeps
        the `reason` and who asked (`by`, default: the login name). Running it again changes nothing that it changed before.
        Raises ValueError, ConfigError, StoreError, and BadRequest where entries of that time are pruned.
        """
        again = await history.wanted(self._accounts, from_, to, project_id, prices, only_unpriced)
        signed = history.signature(reason, by)
        store = await self._accounts.store()
        return await (history.what_if(store, again) if what_if else history.reprice(store, again, signed))
