"""The gateway's own response headers."""

from __future__ import annotations

import pytest
from msgspec import structs

from tollkeeper import headers
from tollkeeper.errors import (
    BadRequest,
    BudgetExceeded,
    Draining,
    HeldOff,
    RateLimited,
    StoreUnavailable,
    UpstreamTimeout,
)
from tollkeeper.values import Budget, Charge, ChargeStatus, Provider, Refusal, Route, Standing

ROUTE = Route(Provider(name="openai", base_url="https://x/v1", dialects=frozenset()), "gpt-4o")
USD = Standing(
    budget=Budget(scope="project", limit=1_500_000_000), id="alpha", project="alpha", window_start_us=0,
    resets_at_us=1_767_225_600_000_000, spent=250_000_001, held=1_000_000_000,
)  # fmt: skip
PAID: tuple[tuple[int | None, ChargeStatus], ...] = ((0, "priced"), (10_000_000, "estimated"), (None, "unpriced"))


def test_of_call() -> None:
    """A reply tells its id; where it went only if it went somewhere; the output cap only if a budget set it."""
    assert headers.of_call("r1", None, 0, None) == [(b"x-tollkeeper-request-id", b"r1")]
    assert headers.of_call("r1", ROUTE, 0, None) == [(b"x-tollkeeper-request-id", b"r1")]
    assert headers.of_call("r1", ROUTE, 1, None, cap=0)[1:] == [
        (b"x-tollkeeper-provider", b"openai"),
        (b"x-tollkeeper-model", b"gpt-4o"),
        (b"x-tollkeeper-attempts", b"1"),
        (b"x-tollkeeper-output-cap", b"0"),
    ]


@pytest.mark.parametrize("model", ["modèle", "模型", "a\u2028b", "x\r\nset-cookie: a=b"])
def test_names_are_header_values(model: str) -> None:
    """H4: a model's name of any characters becomes printable ASCII: it ends no line."""
    told = dict(headers.of_call("r", structs.replace(ROUTE, model=model), 1, None))[b"x-tollkeeper-model"]
    assert told.isascii()
    assert told.decode().isprintable()
    assert len(told) == len(model)


def test_of_budget() -> None:
    """Dollars for usd and whole numbers else; what is left never below 0; never for what has no limit."""
    assert headers.of_budget(USD) == [
        (b"x-tollkeeper-budget-limit", b"1.5"),
        (b"x-tollkeeper-budget-remaining", b"0.249999999"),
        (b"x-tollkeeper-budget-reset", b"2026-01-01T00:00:00Z"),
    ]
    over = structs.replace(
        USD, budget=Budget(scope="key", measure="tokens", limit=5), spent=7, held=0, resets_at_us=None
    )  # fmt: skip
    assert [value for _, value in headers.of_budget(over)] == [b"5", b"0", b"never"]
    assert headers.of_budget(structs.replace(USD, budget=Budget(scope="project", limit=None))) == []
    zero = structs.replace(USD, budget=Budget(scope="project", limit=0))
    assert [value for _, value in headers.of_budget(zero)][:2] == [b"0", b"0"]


def test_of_cost() -> None:
    """A cost of 0 is told, an unknown one is not; both say how far it is known."""
    assert headers.of_cost([Charge(amount_nanos=0, status="priced")]) == [
        (b"x-tollkeeper-cost", b"0"),
        (b"x-tollkeeper-cost-status", b"priced"),
    ]
    assert headers.of_cost([Charge(amount_nanos=None, status="unpriced")]) == [
        (b"x-tollkeeper-cost-status", b"unpriced")
    ]
    assert headers.comment([Charge(amount_nanos=1, status="estimated")]) == (
        b": x-tollkeeper-cost 0.000000001\n: x-tollkeeper-cost-status estimated\n\n"
    )


def test_the_cost_of_several_attempts() -> None:
    """B5: what they cost together, as well known as the least known of them."""
    free, cents, unknown = (Charge(amount_nanos=nanos, status=status) for nanos, status in PAID)
    assert headers.of_cost([free, cents]) == [
        (b"x-tollkeeper-cost", b"0.01"),
        (b"x-tollkeeper-cost-status", b"estimated"),
    ]
    assert headers.of_cost([cents, unknown]) == [(b"x-tollkeeper-cost-status", b"unpriced")]


def test_tried_again_here() -> None:
    """After several attempts an SDK is told not to try again, whatever the provider says."""
    passed = [(b"x-should-retry", b"true"), (b"retry-after", b"5")]
    assert headers.final(passed) == [(b"retry-after", b"5"), (b"x-should-retry", b"false")]


@pytest.mark.parametrize(("left_s", "seconds"), [(-1, b"1"), (0.2, b"1"), (2.1, b"3")])
def test_held_off(left_s: float, seconds: bytes) -> None:
    """E5: terminal for SDKs; who waits is told when a provider is back."""
    told = headers.of_refusal(HeldOff("x", retry_after_s=left_s), 0)
    assert told == [(b"x-should-retry", b"false"), (b"retry-after", seconds)]


@pytest.mark.parametrize(
    ("ahead_us", "seconds"), [(1, b"1"), (1_000_000, b"1"), (1_000_001, b"2"), (-5, b"1"), (59_999_999, b"60")]
)
def test_retry_after(ahead_us: int, seconds: bytes) -> None:
    """C7: Retry-After is whole seconds, rounded up so that asking then is not too early, and at least 1."""
    assert USD.resets_at_us is not None
    error = RateLimited(Refusal(standing=USD, asked=1))
    told = dict(headers.of_refusal(error, USD.resets_at_us - ahead_us))
    assert told[b"retry-after"] == seconds


def test_what_is_not_to_be_retried() -> None:
    """C7: refusals of a request are terminal for SDKs; what another moment may cure is not; 402 has no Retry-After."""
    for error in (
        BadRequest("x"),
        BudgetExceeded(Refusal(standing=USD, asked=1)),
        RateLimited(Refusal(standing=USD, asked=1)),
    ):
        assert (b"x-should-retry", b"false") in headers.of_refusal(error, 0)
    for later in (Draining("x"), StoreUnavailable("x"), UpstreamTimeout("x")):
        assert headers.of_refusal(later, 0, tried=1) == []
        assert headers.of_refusal(later, 0, tried=2) == [(b"x-should-retry", b"false")]
    told = dict(headers.of_refusal(BudgetExceeded(Refusal(standing=USD, asked=1)), 0))
    assert b"retry-after" not in told
    assert told[b"x-tollkeeper-budget-limit"] == b"1.5"


def test_length() -> None:
    """Content-Length counts bytes."""
    assert headers.length("é".encode()) == (b"content-length", b"2")
