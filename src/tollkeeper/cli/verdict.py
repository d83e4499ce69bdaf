"""What a call would cost and whether its budgets would pay for it, calling nobody.

The rules are the gateway's own: its routes, its quote, its book of budgets, filled from what the ledger says is spent. What
calls under way hold is known only to the gateway that made them, so a verdict can be too kind by that much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tollkeeper.app import routes
from tollkeeper.book import Book
from tollkeeper.config import Config
from tollkeeper.dialects import DIALECTS
from tollkeeper.errors import BadRequest, BudgetExceeded, RateLimited, UnknownModel
from tollkeeper.estimate import Expectation, estimate, expected
from tollkeeper.ledger import BalanceKey
from tollkeeper.prices import PriceBook
from tollkeeper.routing import Table
from tollkeeper.stores import Reader
from tollkeeper.values import Ask, Budget, Hold, Quote, Route, Scopes, Standing, Usage


class Verdict(msgspec.Struct, frozen=True):
    """One budget that covers the call; `refusal` is what the caller would be told, None: it pays."""

    standing: Standing
    refusal: str | None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A call before it is made."""

    ask: Ask
    route: Route
    quote: Quote
    cost: Expectation
    verdicts: list[Verdict]

    @property
    def admitted(self) -> bool:
        """Whether every budget pays."""
        return all(verdict.refusal is None for verdict in self.verdicts)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody means to send: a prompt's text, or a request's body in JSON; the other fields go over it."""

    data: bytes
    model: str | None = None
    dialect: str | None = None  #: None: the first one that leads somewhere
    max_tokens: int | None = None


def read_draft(draft: Draft, table: Table, is_priced: Callable[[Route], bool]) -> tuple[Ask, tuple[Route, ...]]:
    """The ask that a draft comes to, and where it may go. Raises BadRequest, UnknownModel.

    Without a dialect the first one counts in which the model has a price, else the first one that has a route.
    """
    fields = _fields(draft)
    found: dict[str, tuple[Route, ...]] = {}
    unknown: UnknownModel | None = None
    for name in [draft.dialect] if draft.dialect is not None else _speakable(fields):
        if name not in DIALECTS:
            raise BadRequest(f"--dialect: {name!r} is not known; expected one of {', '.join(DIALECTS)}")
        try:
            found[name] = table.candidates(str(fields["model"]), name)
        except UnknownModel as error:
            unknown = unknown or error
    priced = [name for name, candidates in found.items() if is_priced(candidates[0])]
    if unknown is not None and not priced:
        raise unknown
    name = next(iter(priced or found))
    return DIALECTS[name].read_ask(msgspec.json.encode(_body(fields, name))), found[name]


def _fields(draft: Draft) -> dict[str, Any]:
    """The fields of the body; a bare prompt stands under "prompt" until its dialect is known."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(draft.data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            fields = {"prompt": draft.data.decode()}
        except UnicodeDecodeError:
            raise BadRequest("FILE: is not text; expected a prompt in UTF-8 or a request's body in JSON") from None
    if draft.model is not None:
        fields["model"] = draft.model
    if "model" not in fields:
        raise BadRequest("--model: is required where FILE names none; give a model such as gpt-4o-mini")
    if draft.max_tokens is not None:
        fields.pop("max_completion_tokens", None)
        fields["max_tokens"] = draft.max_tokens
    return fields


def _speakable(fields: dict[str, Any]) -> list[str]:
    if "input" in fields and "messages" not in fields:  # one name means an embedding, every other one a reply
        both = ["openai-embeddings", "openai-responses"]
        return both if "embed" in str(fields["model"]) else both[::-1]
    if isinstance(fields.get("prompt"), dict):  # stored at the provider
        return ["openai-responses"]
    return [name for name in DIALECTS if name != "openai-embeddings"]


def _body(fields: dict[str, Any], dialect: str) -> dict[str, Any]:
    """A bare prompt, and the cap of --max-tokens, as the dialect would carry them."""
    if dialect == "openai-responses" and "max_tokens" in fields:
        fields = {"max_output_tokens" if name == "max_tokens" else name: value for name, value in fields.items()}
    if "prompt" not in fields or isinstance(fields["prompt"], dict):
        return fields
    rest = {name: value for name, value in fields.items() if name != "prompt"}
    if dialect in ("openai-embeddings", "openai-responses"):
        return rest | {"input": fields["prompt"]}
    return rest | {"messages": [{"role": "user", "content": fields["prompt"]}]}


async def preview(config: Config, reader: Reader | None, draft: Draft, scopes: Scopes, now_us: int) -> Preview:
    """What a call would cost and meet. Without `reader` nothing is spent yet.

    Raises BadRequest, UnknownModel, ConfigError (the price file), StoreUnavailable.
    """
    prices = PriceBook.load(config.prices)
    ask, candidates = read_draft(
        draft, routes(config, prices), lambda route: prices.rates(route.provider, route.model, now_us) is not None
    )
    quote = estimate(
        prices, ask, candidates, default_output_cap=config.default_output_cap, model_output_caps=config.output_caps,
        at_us=now_us, key=scopes.key,
    )  # fmt: skip
    route, bound = candidates[0], None
    if quote.output_cap is not None:
        bound = Usage(input=ask.prompt_bound, output=quote.output_cap * ask.choices)
    hold = Hold(
        id="preview/1", call="preview", attempt=1, scopes=scopes, dialect=ask.dialect, provider=route.provider.name,
        model=ask.model, quote_nanos=quote.amount_nanos, quote_usage=bound, at_us=now_us, deadline_us=now_us,
    )  # fmt: skip
    return Preview(
        ask=ask, route=route, quote=quote, cost=expected(prices, ask, route, quote, at_us=now_us, key=scopes.key),
        verdicts=await _verdicts(config.budgets, reader, hold),
    )  # fmt: skip


async def _verdicts(budgets: tuple[Budget, ...], reader: Reader | None, hold: Hold) -> list[Verdict]:
    """Each budget asked by itself: the gateway stops at the first one that refuses."""
    spent: dict[BalanceKey, int] = {}

    def load(key: BalanceKey) -> int:
        return spent.setdefault(key, 0)

    Book(budgets, load).standings(hold.scopes, hold.model, hold.at_us)  # asks for every balance that counts
    if reader is not None:
        async with reader.snapshot():
            spent |= {key: await reader.spent(key) for key in list(spent)}
    standings = Book(budgets, load).standings(hold.scopes, hold.model, hold.at_us)
    return [Verdict(standing, _refusal(Book((standing.budget,), load), hold)) for standing in standings]


def _refusal(book: Book, hold: Hold) -> str | None:
    try:
        book.reserve(hold)
    except (BudgetExceeded, RateLimited) as error:
        return str(error)
    return None
