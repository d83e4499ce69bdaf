"""A hold for code that calls a provider itself: what the gateway does around a call.

    async with tracker.hold(…) as hold:      reserve the most that the call can cost, or raise BudgetExceeded
        reply = await call_the_provider()
        await hold.settle_response(…)        book what it used, or settle(usage); the rest is free again

Its life is the ledger's table HOLD_LIFE. `void` lets it go: only the caller knows that nothing was sent. A block that is left
without either, by its end, an exception or a cancellation, may have been billed: its estimate is booked and marked so, and
a later `settle` corrects it. If the process dies the ledger does the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import Final, Self

from msgspec import structs

from tollkeeper.cancellation import to_its_end
from tollkeeper.dialects import METERED
from tollkeeper.errors import Conflict, StoreError, StoreUnavailable
from tollkeeper.ledger import HOLD_LIFE, HoldEvent, HoldState, expired
from tollkeeper.money import to_usd
from tollkeeper.prices import PriceBook
from tollkeeper.settlement import entry_for, entry_of
from tollkeeper.tracker import arguments
from tollkeeper.tracker.accounts import Accounts, Recorded
from tollkeeper.tracker.recording import course_of, reader
from tollkeeper.tracker.replies import read_all
from tollkeeper.values import Entry, Grant, Hold, Part, Reading, Usage

log = logging.getLogger("tollkeeper")

DIALECT: Final = "library"
"""What entries of the library name as their dialect."""
_DONE: Final[dict[HoldEvent, HoldState]] = {"settle": "settled", "void": "voided", "expire": "expired"}


class CallHold:
    """The most that one call can cost, reserved while its block runs. Made by `CostTracker.hold`; for one call."""

    def __init__(self, accounts: Accounts, wanted: Callable[[PriceBook], Hold], provider: str | None) -> None:
        self._accounts, self._wanted, self._provider = accounts, wanted, provider
        self._hold: Hold | None = None
        self._state: HoldState | None = None
        self._owed: Entry | None = None
        self._started_s = accounts.clock.monotonic_s()
        self.grant = Grant()  #: what the budgets said: the tightest one with what is left of it

    @property
    def request_id(self) -> str:
        """The call's id: `record_usage` with it corrects the estimate of a hold that was left unsettled."""
        return self._entered.call

    @property
    def quote_usd(self) -> Decimal | None:
        """What is held, in dollars; None: the call has no price or no bound, and no hard budget forbids that."""
        nanos = self._entered.quote_nanos
        return None if nanos is None else to_usd(nanos)

    @property
    def max_completion_tokens(self) -> int | None:
        """The output cap that the hold stands on: send it to the provider. None: no cap."""
        usage = self._entered.quote_usage
        return None if usage is None else usage.output

    async def __aenter__(self) -> Self:
        """Reserve. Raises BudgetExceeded or RateLimited with the numbers, StoreUnavailable; then nothing is held."""
        if self._hold is not None:
            raise Conflict("a hold is for one call; make another one for the next")
        accounts = self._accounts
        prices = await accounts.prices()
        self._hold = hold = self._wanted(prices)
        if accounts.config.cost_tracking_enabled:
            store = await accounts.store()
            try:
                self.grant = await store.reserve(hold)
            except asyncio.CancelledError:  # it may have been granted: the answer is lost, the name is not
                with suppress(StoreError):
                    await to_its_end(store.void(hold.id))
                raise
        self._state = "held"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Book what is still owed: a settlement that the ledger did not take, else the estimate."""
        if self._state != "held":
            return
        estimate = expired(self._entered, "left without settling: booked at the estimate")
        work = self._book("expire", estimate) if self._owed is None else self._book("settle", self._owed)
        try:
            await to_its_end(work)
        except StoreError as failure:
            if error is None:
                raise
            log.error("hold %s is not booked; its deadline books it at the estimate: %s", self.request_id, failure)

    async def settle(
        self,
        usage: Usage | None = None,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        cost_usd: Decimal | str | int | None = None,
        model: str | None = None,
        tier: str | None = None,
    ) -> Recorded:
        """Book what the call used, also above its hold, and let the rest go; durable when it returns.

        Arguments as in `CostTracker.record_usage`; `model` and `tier` are those that served. The same again counts once.
        Raises ValueError, Conflict (settled otherwise, or voided) and StoreUnavailable (settle again).
        """
        hold, accounts = self._entered, self._accounts
        used = arguments.usage(usage, prompt_tokens, completion_tokens, cached_tokens, cache_write_tokens)
        reported = arguments.cost(cost_usd, "cost_usd")
        served = hold.model if model is None else arguments.model(model)
        reading = Reading(
            parts=(Part(used),), model=served, tier=arguments.optional(tier, "tier"), reported_usd=reported, final=True
        )
        prices, provider = await accounts.prices(), accounts.provider(self._provider)
        charge = prices.charge(
            reading, provider=provider, model=hold.model, at_us=hold.at_us, key=hold.scopes.key, route=hold.model
        )
        entry = entry_for(hold, reading, charge, sent=hold.model, latency_ms=self._latency_ms)
        return await to_its_end(self._book("settle", entry))

    async def settle_response(
        self, dialect: str, body: object, *, tier: str | None = None, http_status: int | None = None
    ) -> Recorded:
        """Book what a provider's reply says that the call used; otherwise as `settle`.

        `dialect`, `body`, `tier` and `http_status` are as in `CostTracker.record_response`. A refusal costs nothing and frees
        the hold. Without usage in the reply the hold's own bound of the prompt is the estimate's.
        """
        arguments.one_of(dialect, "dialect", tuple(METERED))
        tier, status = arguments.optional(tier, "tier"), arguments.status(http_status)
        hold, accounts = structs.replace(self._entered, dialect=dialect), self._accounts
        provider, bound = accounts.provider(self._provider), hold.quote_usage
        reply = reader(dialect, provider)
        await read_all(reply, body)
        course = course_of(
            reply.finish(status, over=True), hold, provider, tier=tier, http_status=status,
            prompt_bound=None if bound is None else bound.input, latency_ms=self._latency_ms,
        )  # fmt: skip
        return await to_its_end(self._book("settle", entry_of(await accounts.prices(), course)))

    async def void(self) -> None:
        """Let the hold go because nothing was sent to the provider. Raises Conflict once it is settled or left."""
        if self._next("void") and self._accounts.config.cost_tracking_enabled:
            store = await self._accounts.store()
            await to_its_end(store.void(self._entered.id))
        self._state = "voided"

    @property
    def _latency_ms(self) -> int:
        return round((self._accounts.clock.monotonic_s() - self._started_s) * 1000)

    async def _book(self, event: HoldEvent, entry: Entry) -> Recorded:
        self._next(event)
        try:
            recorded = await self._accounts.book(entry)
        except StoreUnavailable:
            self._owed = entry
            raise
        self._state = _DONE[event]
        return recorded

    def _next(self, event: HoldEvent) -> bool:
        """Whether the event changes the hold; False: it repeats the last one. Raises Conflict where it may not be."""
        assert self._state is not None
        if (self._state, event) in HOLD_LIFE:
            return True
        if self._state == _DONE[event]:
            return False
        raise Conflict(
            f"hold {self.request_id} is {self._state} and cannot {event} any more; "
            "record what was used after all with record_usage"
        )

    @property
    def _entered(self) -> Hold:
        if self._hold is None or self._state is None:
            raise Conflict("the hold is not entered; use it inside 'async with tracker.hold(…) as hold:'")
        return self._hold
