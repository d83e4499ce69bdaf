"""From a reply that a caller has to its entry, by the gateway's own rules (`settlement`).

A call is known by the `request_id` given, else by the id that the provider gave its reply, so that the same reply recorded
twice counts once; a reply without one (embeddings, Bedrock, refusals) gets a new id. What the reply does not say is not
guessed: without usage, and without `prompt_tokens` as a bound, the entry is unpriced.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from msgspec import structs

from tollkeeper.clock import new_id
from tollkeeper.dialects import HOMES, METERED
from tollkeeper.prices.names import is_placed
from tollkeeper.settlement import Course, entry_of
from tollkeeper.tracker import arguments
from tollkeeper.tracker.accounts import Accounts, provider_name
from tollkeeper.tracker.replies import Heard, ReplyReader
from tollkeeper.values import Entry, Hold, Provider, Scopes


class Recording:
    """A call whose reply is to be booked: who made it, and by which dialect it is read. Raises ValueError for a mistake."""

    def __init__(
        self,
        accounts: Accounts,
        dialect: str,
        model: str | None,
        *,
        project_id: str,
        agent_id: str | None,
        session_id: str | None,
        request_id: str | None,
        user_id: str | None,
        key_id: str | None,
        tags: Collection[str],
        provider: str | None,
        tier: str | None,
        prompt_tokens: int | None,
        timestamp: datetime | None,
    ) -> None:
        arguments.one_of(dialect, "dialect", tuple(METERED))
        self.accounts = accounts
        self._now_us = accounts.clock.now_us()
        self._dialect = dialect
        self._scopes = arguments.scopes(project_id, agent_id, session_id, user_id, key_id, tags)
        self._model = None if model is None else arguments.model(model)
        self._call = None if request_id is None else arguments.name(request_id, "request_id")
        self._provider = arguments.optional(HOMES.get(dialect) if provider is None else provider, "provider")
        self._tier = arguments.optional(tier, "tier")
        self._prompt_bound = None if prompt_tokens is None else arguments.count(prompt_tokens, "prompt_tokens")
        self._at_us = arguments.instant(timestamp, "timestamp", self._now_us)

    def reader(self) -> ReplyReader:
        """What reads the reply."""
        return reader(self._dialect, self.accounts.provider(self._provider))

    async def entry(self, heard: Heard, http_status: int | None = None, *, left: bool = False) -> Entry:
        """The call as it will be booked. Raises ValueError where neither caller nor reply names a model."""
        accounts = self.accounts
        prices = await accounts.prices()
        model = self._model
        if model is None:
            if heard.reading.model is None:
                raise ValueError("model: this reply names none; pass the model that was asked for")
            model = arguments.model(heard.reading.model)
        call = self._call or heard.id or new_id(self._now_us)
        hold = unheld(
            call, self._scopes, self._dialect, provider_name(self._provider, model, prices), model, self._at_us
        )
        course = course_of(
            heard, hold, accounts.provider(self._provider), tier=self._tier, prompt_bound=self._prompt_bound,
            http_status=http_status, left=left,
        )  # fmt: skip
        return entry_of(prices, course)


def reader(dialect: str, provider: Provider | None) -> ReplyReader:
    """What reads a reply of a dialect, with the habits of its provider."""
    return ReplyReader(METERED[dialect], frozenset() if provider is None else provider.quirks)


def unheld(call: str, scopes: Scopes, dialect: str, provider: str, model: str, at_us: int) -> Hold:
    """A call for which nothing was reserved, as a hold of nothing: an entry is made of either."""
    return Hold(
        id=f"{call}/1", call=call, attempt=1, scopes=scopes, dialect=dialect, provider=provider, model=model,
        quote_nanos=None, quote_usage=None, at_us=at_us, deadline_us=at_us,
    )  # fmt: skip


def course_of(
    heard: Heard,
    hold: Hold,
    provider: Provider | None,
    *,
    tier: str | None,
    prompt_bound: int | None,
    http_status: int | None,
    left: bool = False,
    latency_ms: int | None = None,
) -> Course:
    """How a call went, from its reply. A `tier` that the caller knows counts: no reply says that it came in a batch.

    So does the name asked for, where it has the place that decides the price and the reply's has not: InvokeModel's replies
    are the vendor's own, which knows nothing of Bedrock's profiles.
    """
    reading = heard.reading if tier is None else structs.replace(heard.reading, tier=tier)
    served = reading.model
    if served is not None and is_placed(hold.model, served):
        parts = tuple(structs.replace(part, model=None) if part.model == served else part for part in reading.parts)
        reading = structs.replace(reading, model=None, parts=parts)
    return Course(
        hold=hold, provider=provider, sent=hold.model, prompt_bound=prompt_bound, http_status=http_status,
        is_stream=heard.is_stream, reading=reading, content=heard.content, body_bytes=heard.body_bytes,
        complete=heard.complete, left=left and not heard.complete, capped=False, failure=heard.failure,
        latency_ms=latency_ms,
    )  # fmt: skip
