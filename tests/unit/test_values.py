"""tollkeeper.values: sums of usage, what a refusal says, and how instants and amounts are written."""

from __future__ import annotations

import sqlite3
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.ledger import CELL_SUMS
from tollkeeper.stores.sqlite.file import MIGRATIONS
from tollkeeper.testing.samples import AT_US, USD
from tollkeeper.values import (
    KINDS,
    MAX_TOKENS,
    Budget,
    Credential,
    Measure,
    Part,
    Provider,
    Reading,
    Refusal,
    Route,
    ScopeKind,
    Standing,
    Usage,
    iso_utc,
    moment_of,
    show_amount,
    us_of,
)

PROMPT = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "cache_read_audio", "input_image",
)  # fmt: skip
GENERATED = ("output", "output_audio", "output_image")
NO_TOKENS = ("web_search", "file_search", "audio_seconds", "code_session", "reasoning")

usages = st.builds(Usage, **dict.fromkeys(KINDS, st.integers(0, MAX_TOKENS)))

BUDGET = Budget(scope="session", limit=USD, window="day")
STANDING = Standing(
    budget=BUDGET, id="s", project="p", window_start_us=0, resets_at_us=AT_US, spent=USD // 2, held=USD // 10
)


# ── usage ──


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_counts_once(kind: str) -> None:
    """A token is of the prompt or generated, never both; searches and the information `reasoning` are no tokens."""
    usage = Usage(**{kind: 7})
    assert (usage.input_tokens, usage.output_tokens) == (7 * (kind in PROMPT), 7 * (kind in GENERATED))
    assert usage.tokens == (0 if kind in NO_TOKENS else 7)


@given(usages)
def test_sums_are_of_all_kinds(usage: Usage) -> None:
    """Kinds are disjoint: the whole is the plain sum of its kinds."""
    assert usage.input_tokens == sum(getattr(usage, kind) for kind in PROMPT)
    assert usage.output_tokens == sum(getattr(usage, kind) for kind in GENERATED)
    assert usage.tokens == sum(getattr(usage, kind) for kind in KINDS if kind not in NO_TOKENS)


@given(st.lists(usages, max_size=4))
def test_a_reading_adds_up_its_parts(parts: list[Usage]) -> None:
    """Kind by kind, whichever model each part is of; no part is no usage."""
    reading = Reading(parts=tuple(Part(usage, f"m{number}") for number, usage in enumerate(parts)))
    assert structs.astuple(reading.usage) == tuple(sum(getattr(usage, kind) for usage in parts) for kind in KINDS)


def test_kinds_are_the_ledgers_columns() -> None:
    """A cell's sums are written by position: its columns stand in the order of CELL_SUMS."""
    connection = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        connection.executescript(migration)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(cell)")]
    connection.close()
    assert tuple(columns[-len(CELL_SUMS) :]) == CELL_SUMS
    assert KINDS[-1] == "reasoning"


# ── budgets ──


@pytest.mark.parametrize(
    ("limit", "spent", "held", "remaining"),
    [
        (10, 0, 0, 10),
        (10, 3, 4, 3),
        (10, 3, 7, 0),
        (10, 11, 0, 0),  # a settlement above its hold is recorded
        (10, 3, 8, 0),
        (0, 0, 0, 0),
        (None, 3, 4, None),
    ],
)
def test_remaining(limit: int | None, spent: int, held: int, remaining: int | None) -> None:
    """C5: what is neither spent nor held, never below 0; `null` has no limit, 0 blocks."""
    budget = structs.replace(BUDGET, limit=limit)
    assert structs.replace(STANDING, budget=budget, spent=spent, held=held).remaining == remaining


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (
            "over",
            "cannot pay for this call: limit $1, spent $0.5, held $0.1, this call may need $0.75; resets 2026-01-15T12:00:00Z.",
        ),
        ("unpriced", "is in usd and this model has no price; add one to the price file, or use a priced model."),
        ("unbounded", "needs an output cap; set max_tokens in the request or default_output_cap in the settings."),
    ],
)
def test_a_refusal_says_why(reason: str, says: str) -> None:
    """C7: scope, id, window, limit, spent, held, asked and reset; or what is missing and where to set it."""
    refusal = Refusal(standing=STANDING, asked=USD * 3 // 4, reason=reason)  # type: ignore[arg-type]
    assert refusal.message() == f"The day budget of session 's' of project 'p' {says}"


@pytest.mark.parametrize(
    ("scope", "id", "project", "name"),
    [
        ("all", "", "", "all"),
        ("project", "p", "p", "project 'p'"),
        ("key", "x", "", "key 'x'"),
        ("model", "x", "", "model 'x'"),
        *((scope, "x", "p", f"{scope} 'x' of project 'p'") for scope in ("agent", "session", "user", "tag")),
    ],
)
def test_a_refusal_names_its_scope(scope: ScopeKind, id: str, project: str, name: str) -> None:
    """C8: with its project where it belongs to one; `all` has no id, and a project is its own."""
    standing = structs.replace(STANDING, budget=structs.replace(BUDGET, scope=scope), id=id, project=project)
    says = f"The day budget of {name} cannot pay for this call"
    assert Refusal(standing=standing, asked=1).message().startswith(says)


@pytest.mark.parametrize(
    ("measure", "numbers"),
    [
        ("tokens", "limit 9 tokens, spent 8 tokens, held 0 tokens, this call may need 2 tokens; resets never."),
        (
            "requests",
            "limit 9 requests, spent 8 requests, held 0 requests, this call may need 2 requests; resets never.",
        ),
    ],
)
def test_a_refusal_counts_in_its_measure(measure: Measure, numbers: str) -> None:
    """Counts are no dollars; a budget in all never resets."""
    budget = Budget(scope="all", limit=9, measure=measure, window="total")
    standing = structs.replace(STANDING, budget=budget, id="", project="", spent=8, held=0, resets_at_us=None)
    says = f"The total budget of all cannot pay for this call: {numbers}"
    assert Refusal(standing=standing, asked=2).message() == says


# ── writing ──


@pytest.mark.parametrize(
    ("amount", "measure", "shown"),
    [
        (500_000_000, "usd", "$0.5"),
        (1, "usd", "$0.000000001"),
        (0, "usd", "$0"),
        (1200, "tokens", "1200 tokens"),
        (0, "requests", "0 requests"),
        (None, "usd", "none"),
        (None, "tokens", "none"),
    ],
)
def test_show_amount(amount: int | None, measure: str, shown: str) -> None:
    """To the nano, in the measure's unit; None is none and never 0."""
    assert show_amount(amount, measure) == shown


@pytest.mark.parametrize(
    ("at_us", "written"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (AT_US, "2026-01-15T12:00:00Z"),
        (AT_US + 999_999, "2026-01-15T12:00:00Z"),
        (-1, "1969-12-31T23:59:59Z"),
    ],
)
def test_iso_utc(at_us: int, written: str) -> None:
    """UTC, whole seconds rounded down."""
    assert iso_utc(at_us) == written


@given(st.integers(0, 253_402_300_799))
def test_iso_utc_reads_back(at_s: int) -> None:
    """Every second up to the year 9999 is read back as it was."""
    assert datetime.fromisoformat(iso_utc(at_s * 1_000_000)).astimezone(UTC).timestamp() == at_s


def test_a_provider_does_not_show_its_secret() -> None:
    """H2: neither its credential nor its headers are in what is logged of it."""
    provider = Provider(
        name="openai", base_url="https://api.example", dialects=frozenset(), credentials=(Credential("KEY", "canary"),),
        headers=(("x-extra", "canary"),),
    )  # fmt: skip
    assert repr(provider) == "Provider('openai', 'https://api.example')"
    assert "canary" not in f"{provider} {provider!r}"
    route = Route(provider, "m", provider.credentials[0])
    assert "canary" not in f"{route} {route!r} {provider.credentials}"
    assert repr(route.credential) == "Credential('KEY')"


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        (date(2027, 1, 31), "2027-01-31T00:00:00Z"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
        (datetime(2027, 1, 31, 12, tzinfo=UTC), "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00", None),
        ("soon", None),
        (2027, None),
        (None, None),
    ],
)
def test_moments(value: object, iso: str | None) -> None:
    """I2: a day is its midnight in UTC; a time without a zone, and what is no time, is no instant."""
    moment = moment_of(value)
    assert (None if moment is None else iso_utc(us_of(moment))) == iso
