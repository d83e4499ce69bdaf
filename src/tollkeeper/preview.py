"""A call before it is made: what it may cost, and whether its budgets would pay. Nobody is called, nothing is held or booked.

    draft ─→ aim: dialect, routes ─→ ask ─→ preview: quote · low, expected, high · each budget's word

The rules are the gateway's own: its routes, its quote, its check of budgets. A gateway that runs knows what is held and what
typical prompts are like; who only reads its ledger does not, and a verdict from there can be too kind by what is held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import quote as quote_path

import msgspec
from msgspec import structs

from tollkeeper.book import Book, asked_of, refusal_of
from tollkeeper.density import Densities
from tollkeeper.dialects import DIALECTS, Dialect
from tollkeeper.dialects.json_body import Body, read_model, read_object, write_object
from tollkeeper.errors import BadRequest, UnknownModel
from tollkeeper.estimate import Expectation, estimate, expected
from tollkeeper.flow import Limits
from tollkeeper.ledger import BalanceKey
from tollkeeper.money import format_nanos
from tollkeeper.prices import PriceBook
from tollkeeper.prices.rates import Rates
from tollkeeper.routing import Table
from tollkeeper.stores import Reader
from tollkeeper.values import Ask, Budget, Hold, Quote, Route, Scopes, Standing, iso_utc

#: A member of a body, and the dialects that have it; the first one that a body has says which it may be.
_SHAPES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("messages", ("openai-chat", "anthropic-messages")),
    ("input", ("openai-responses", "openai-embeddings")),
    ("contents", ("google-generate",)),
    ("content", ("google-generate",)),
    ("requests", ("google-generate",)),
    ("prompt", ("openai-responses",)),  # stored at the provider
)
#: The member that carries a bare prompt, where it is not "messages".
_PROMPTS: Final = {"openai-embeddings": "input", "openai-responses": "input", "google-generate": "contents"}
#: Where a dialect's paths name the model: by the member that says which method a body is for.
_PLACES: Final = {
    "google-generate": {
        "contents": "/v1beta/models/{}:generateContent",
        "content": "/v1beta/models/{}:embedContent",
        "requests": "/v1beta/models/{}:batchEmbedContents",
    },
}  # fmt: skip
_EMBEDDINGS: Final = "openai-embeddings"


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody means to send: a request's body in JSON, or, if it may be `bare`, a prompt's text."""

    data: bytes
    bare: bool = False
    model: str | None = None  #: in the place of the body's own
    dialect: str | None = None  #: None: the first one that leads somewhere
    max_tokens: int | None = None  #: in the place of the body's own output limit


class Aim(NamedTuple):
    """Where a draft would go, and how its ask is read."""

    dialect: Dialect
    routes: tuple[Route, ...]
    body: bytes
    target: str
    max_tokens: int | None

    def ask(self) -> Ask:
        """Raises BadRequest naming the field, or RequestTooLarge."""
        ask = self.dialect.read_ask(self.body, self.target)
        if self.max_tokens is None or not ask.generates:
            return ask
        return structs.replace(ask, output_cap=self.max_tokens)


def aim(
    draft: Draft, table: Table, prices: PriceBook, now_us: int, allowed_models: frozenset[str] | None = None
) -> Aim:
    """Where a draft would go. Raises BadRequest, NotAllowed, UnknownModel.

    Without a dialect the first one counts in which the model has a price, else the first one that has a route.
    """
    members, prompt = _read(draft)
    if draft.model is None and "model" not in members:
        raise BadRequest("model: is required; name one in the body, by ?model=, or by --model, such as gpt-4o-mini.")
    model = draft.model if draft.model is not None else read_model(members)
    found: dict[str, tuple[tuple[Route, ...], Rates | None]] = {}
    unknown: UnknownModel | None = None
    for name in _candidates(draft.dialect, members, prompt):
        wanted = model.removeprefix("models/") if name in _PLACES else model
        try:
            routes = table.candidates(wanted, name, allowed_models).routes
        except UnknownModel as error:
            unknown = unknown or error
        else:
            found[name] = routes, prices.rates(routes[0].provider, routes[0].model, now_us, route=wanted)
    if not any(rates for _, rates in found.values()) and unknown is not None:
        raise unknown
    name = _likeliest({name: rates for name, (_, rates) in found.items()})
    place = next((place for member, place in _PLACES.get(name, {}).items() if member in members), None)
    by_path = place is not None and draft.model is not None
    return Aim(
        DIALECTS[name], found[name][0], draft.data if by_path else _body(draft, members, prompt, name),
        str(place).format(quote_path(model.removeprefix("models/"))) if by_path else "", draft.max_tokens,
    )  # fmt: skip


def _read(draft: Draft) -> tuple[Body, str | None]:
    """The members of the body, or the bare prompt."""
    try:
        return read_object(draft.data), None
    except BadRequest:
        if not draft.bare or _is_object(draft.data):
            raise
    try:
        return {}, draft.data.decode()
    except UnicodeDecodeError:
        raise BadRequest("FILE: is not text; expected a prompt in UTF-8 or a request's body in JSON") from None


def _is_object(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _candidates(named: str | None, members: Body, prompt: str | None) -> list[str]:
    """The dialects that a draft may be in."""
    if named is not None:
        check_dialect(named)
        return [named]
    if prompt is None:
        for member, names in _SHAPES:
            if member in members:
                return [name for name in names if name in DIALECTS]
    return [name for name in DIALECTS if name != _EMBEDDINGS]


def check_dialect(name: str) -> None:
    """Raises BadRequest for a name that is no dialect's."""
    if name not in DIALECTS:
        raise BadRequest(f"dialect: is not known; expected one of {', '.join(DIALECTS)}.")


def _likeliest(found: dict[str, Rates | None]) -> str:
    """Of dialects that have a route: one with a price, and not embeddings for a model that writes, nor the other way."""
    priced = {name: rates for name, rates in found.items() if rates is not None}
    for name, rates in priced.items():
        if (name == _EMBEDDINGS) == (rates.bands[0].dearest_output is None):
            return name
    return next(iter(priced or found))


def _body(draft: Draft, members: Body, prompt: str | None, dialect: str) -> bytes:
    """The body as it would be sent: the very bytes, unless something goes over them or there is a prompt only."""
    if prompt is None and draft.model is None and draft.max_tokens is None:
        return draft.data
    more: dict[str, Any] = {}
    if draft.model is not None:
        more["model"] = draft.model
    if prompt is not None:
        member = _PROMPTS.get(dialect, "messages")
        message = {"parts": [{"text": prompt}]} if member == "contents" else {"role": "user", "content": prompt}
        more[member] = prompt if member == "input" else [message]
    if draft.max_tokens is not None and dialect not in _PROMPTS:  # others have it elsewhere, and Aim.ask() says it
        members = {name: value for name, value in members.items() if name != "max_completion_tokens"}
        more["max_tokens"] = draft.max_tokens
    return write_object(members | {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in more.items()})


# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Verdict(msgspec.Struct, frozen=True):
    """One budget that covers the call; `refusal` is what the caller would be told, None: it pays."""

    standing: Standing
    asked: int | None  #: what the call would hold of it; None: not known
    refusal: str | None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A call before it is made."""

    ask: Ask
    route: Route
    quote: Quote
    cost: Expectation
    is_priced: bool  #: every route that it may take has a price
    verdicts: list[Verdict]

    @property
    def admitted(self) -> bool:
        """Whether every budget pays."""
        return all(verdict.refusal is None for verdict in self.verdicts)


def preview(
    ask: Ask,
    routes: tuple[Route, ...],
    scopes: Scopes,
    standings: Iterable[Standing],
    *,
    prices: PriceBook,
    limits: Limits,
    densities: Densities,
    now_us: int,
) -> Preview:
    """What a call would cost and meet. Each budget is asked by itself: the line stops at the first one that refuses."""
    quote = estimate(
        prices, ask, routes, default_output_cap=limits.default_output_cap, model_output_caps=limits.output_caps,
        output_ceilings=limits.output_ceilings, densities=densities if limits.quote == "typical" else None,
        at_us=now_us, key=scopes.key,
    )  # fmt: skip
    hold = Hold(
        id="preview/1", call="preview", attempt=1, scopes=scopes, dialect=ask.dialect, provider=routes[0].provider.name,
        model=ask.model, quote_nanos=quote.amount_nanos, quote_usage=quote.usage, at_us=now_us, deadline_us=now_us,
    )  # fmt: skip
    words = [(standing, refusal_of(standing, hold)) for standing in standings]
    return Preview(
        ask=ask, route=routes[0], quote=quote,
        cost=expected(prices, ask, routes[0], quote, densities=densities, at_us=now_us, key=scopes.key),
        is_priced=all(
            prices.rates(each.provider, model, now_us, tier=ask.tier, key=scopes.key, route=ask.model) is not None
            for each in routes
            for model in (each.model, *ask.others)
        ),
        verdicts=[
            Verdict(standing, asked_of(standing.budget.measure, hold), None if refusal is None else str(refusal))
            for standing, refusal in words
        ],
    )  # fmt: skip


async def standings_in(
    reader: Reader | None, budgets: tuple[Budget, ...], scopes: Scopes, model: str, at_us: int
) -> list[Standing]:
    """Every budget that covers such a call, by what a ledger says is spent; without one nothing is. What is held is not known."""
    spent: dict[BalanceKey, int] = {}

    def load(key: BalanceKey) -> int:
        return spent.setdefault(key, 0)

    Book(budgets, load).standings(scopes, model, at_us)  # asks for every balance that counts
    if reader is not None:
        async with reader.snapshot():
            spent |= {key: await reader.spent(key) for key in list(spent)}
    return Book(budgets, load).standings(scopes, model, at_us)


def document(found: Preview, *, held_known: bool) -> dict[str, Any]:
    """The answer as it goes out: dollars as exact decimal text, counts as numbers, null where something is not known."""
    ask, cost, quote = found.ask, found.cost, found.quote
    return {
        "model": ask.model, "provider": found.route.provider.name, "dialect": ask.dialect,
        "prompt_tokens_at_most": ask.prompt_bound, "output_cap": quote.output_cap,
        "low_usd": _amount(cost.low_nanos, "usd"), "expected_usd": _amount(cost.expected_nanos, "usd"),
        "high_usd": _amount(cost.high_nanos, "usd"), "price_version": quote.price_version, "priced": found.is_priced,
        "admitted": found.admitted, "budgets": [_budget(verdict, held_known) for verdict in found.verdicts],
    }  # fmt: skip


def _budget(verdict: Verdict, held_known: bool) -> dict[str, Any]:
    standing, budget = verdict.standing, verdict.standing.budget
    resets = standing.resets_at_us
    return {
        "scope": budget.scope, "id": standing.id, "project": standing.project, "measure": budget.measure,
        "window": budget.window, "limit": _amount(budget.limit, budget.measure),
        "spent": _amount(standing.spent, budget.measure),
        "held": _amount(standing.held, budget.measure) if held_known else None,
        "remaining": _amount(standing.remaining, budget.measure), "asked": _amount(verdict.asked, budget.measure),
        "resets_at": None if resets is None else iso_utc(resets), "admitted": verdict.refusal is None,
        "refusal": verdict.refusal,
    }  # fmt: skip


def _amount(amount: int | None, measure: str) -> str | int | None:
    return format_nanos(amount) if measure == "usd" and amount is not None else amount
