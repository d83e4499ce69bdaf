"""What a call can cost at most, before it goes out.

The quote is the dearest candidate's bound: the prompt at its upper bound and every choice at the output cap. The client's
own cap counts, or the model's ceiling where that is lower. A call without a cap gets the configured one, which the dialect
writes into the request (`written_cap`) where a hard budget relies on it. Without any there is no bound, and the quote says
so (`output_cap` None for an ask that generates), so that a hard budget can refuse it.

With `densities`, the prompt counts with as many tokens as such prompts typically have, where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tollkeeper.density import Densities
from tollkeeper.prices import PriceBook
from tollkeeper.values import Ask, Part, Quote, Reading, Route, Usage

BYTES_PER_TOKEN = 4
"""English text and code have about four bytes a token: for expectations, never for a bound."""


def estimate(
    book: PriceBook,
    ask: Ask,
    routes: tuple[Route, ...],
    *,
    default_output_cap: int | None,
    model_output_caps: Mapping[str, int] = {},
    output_ceilings: Mapping[str, int] = {},
    densities: Densities | None = None,
    at_us: int,
    key: str | None = None,
) -> Quote:
    """The upper bound over every route that the call may take, and every model that its body lets a provider serve.

    `amount_nanos` is None where a route has no price or the call no bound. `output_cap` is per choice; 0 where the reply has
    no output tokens; None where nothing bounds it. ValueError without a route.
    """
    if not routes:
        raise ValueError("routes: expected at least one route to estimate")
    cap, written = output_cap(ask, default_output_cap, model_output_caps, output_ceilings)
    output_tokens = 0 if cap is None else cap * ask.choices
    amounts, prompt = list[int | None](), 0
    for route in routes:
        tokens = None if densities is None else densities.at_most(route, ask)
        if tokens is None:
            tokens = ask.prompt_bound
        prompt = max(prompt, tokens)
        for model in (route.model, *ask.others):
            amount = book.quote_nanos(
                route.provider, model, tokens, output_tokens, at_us, tier=ask.tier, speed=ask.speed, geo=ask.geo,
                key=key, route=ask.model,
            )  # fmt: skip
            amounts.append(amount)
    known = [amount for amount in amounts if amount is not None]
    bounded = cap is not None and len(known) == len(amounts)
    return Quote(
        amount_nanos=max(known) if bounded else None,
        usage=None if cap is None else Usage(input=prompt, output=output_tokens),
        output_cap=cap,
        written_cap=written,
        price_version=book.version,
    )


def output_cap(
    ask: Ask, default_output_cap: int | None, model_output_caps: Mapping[str, int], output_ceilings: Mapping[str, int]
) -> tuple[int | None, int | None]:
    """Output tokens that one choice may have, None: unbounded; and the cap to be written for that, None: none is needed.

    What the client asked for, or what is configured for the model or by default; never above the model's ceiling, which
    is a fact about its replies and not asked of the provider.
    """
    if not ask.generates:
        return 0, None
    ceiling = output_ceilings.get(ask.model)
    if ask.output_cap is not None:
        return ask.output_cap if ceiling is None else min(ask.output_cap, ceiling), None
    configured = model_output_caps.get(ask.model, default_output_cap)
    if configured is None or (ceiling is not None and ceiling <= configured):
        return ceiling, None
    return configured, configured


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may cost, for people: nanos, None where it is not known. Only `high` is a bound."""

    low_nanos: int | None  #: the prompt as most such prompts are, else at four bytes a token; no output
    expected_nanos: int | None  #: the same prompt, and half of the output cap
    high_nanos: int | None  #: the quote


def expected(
    book: PriceBook,
    ask: Ask,
    route: Route,
    quote: Quote,
    *,
    densities: Densities | None = None,
    at_us: int,
    key: str | None = None,
) -> Expectation:
    """Low, expected and high cost of a call on one route; `quote` is its upper bound from `estimate`."""
    prompt = None if densities is None else densities.about(route, ask)
    if prompt is None:
        prompt = -(-ask.prompt_bound // BYTES_PER_TOKEN)
    half = None if quote.output_cap is None else quote.output_cap * ask.choices // 2
    return Expectation(
        low_nanos=_plain_nanos(book, ask, route, prompt, 0, at_us, key),
        expected_nanos=None if half is None else _plain_nanos(book, ask, route, prompt, half, at_us, key),
        high_nanos=quote.amount_nanos,
    )


def _plain_nanos(
    book: PriceBook, ask: Ask, route: Route, prompt: int, output: int, at_us: int, key: str | None
) -> int | None:
    """The charge for plain text of this many tokens: no cache, no audio."""
    reading = Reading(parts=(Part(Usage(input=prompt, output=output)),), tier=ask.tier, speed=ask.speed, geo=ask.geo)
    return book.charge(
        reading, provider=route.provider, model=route.model, at_us=at_us, estimated=True, key=key, route=ask.model
    ).computed_nanos
