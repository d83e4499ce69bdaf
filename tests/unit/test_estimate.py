"""tollkeeper.estimate: the quote of a call, and what people may expect."""

from __future__ import annotations

import pytest
from msgspec import structs

from tollkeeper.density import Densities
from tollkeeper.estimate import estimate, expected, output_cap
from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.values import Ask, Provider, Quote, Route, Usage

NOON = 1_795_348_800_000_000
OPENAI = Provider(name="openai", base_url="", dialects=frozenset(), prices="openai")
LOCAL = Provider(name="local", base_url="", dialects=frozenset())
GPT, MINI, EMBEDDING = (Route(OPENAI, name) for name in ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small"))


def ask(
    *, prompt: int = 1000, cap: int | None = 100, choices: int = 1, generates: bool = True, tier: str | None = None
) -> Ask:
    return Ask(
        dialect="openai-chat",
        model="my-model",
        stream=False,
        body={},
        prompt_bound=prompt,
        output_cap=cap,
        choices=choices,
        generates=generates,
        tier=tier,
        plain=True,
    )


def quoted(
    wanted: Ask,
    *routes: Route,
    default: int | None = None,
    caps: dict[str, int] | None = None,
    ceilings: dict[str, int] | None = None,
    densities: Densities | None = None,
) -> Quote:
    return estimate(
        PriceBook(), wanted, routes, default_output_cap=default, model_output_caps=caps or {},
        output_ceilings=ceilings or {}, densities=densities, at_us=NOON,
    )  # fmt: skip


def test_quote_is_prompt_and_cap() -> None:
    """The prompt at its bound and every choice at the cap: 1,000 in and 3 x 100 out of gpt-4o are 0.0055."""
    quote = quoted(ask(choices=3), GPT)
    assert (quote.amount_nanos, quote.usage, quote.output_cap) == (5_500_000, Usage(input=1000, output=300), 100)
    assert quote.price_version == PriceBook().version


def test_dearest_candidate_counts() -> None:
    """The bound is over every route that the call may take, in whatever order."""
    assert quoted(ask(), MINI, GPT) == quoted(ask(), GPT, MINI) == quoted(ask(), GPT)
    assert quoted(ask(), MINI) != quoted(ask(), GPT)


def test_fall_backs_in_the_body_count() -> None:
    """P3: a provider may serve any model that the body names for it; one without a price makes the call unpriced."""
    others = structs.replace(ask(), others=("gpt-4o",))
    assert quoted(others, MINI).amount_nanos == quoted(ask(), GPT).amount_nanos
    assert quoted(structs.replace(ask(), others=("gpt-4o", "auto")), MINI).amount_nanos is None


@pytest.mark.parametrize(
    ("cap", "default", "caps", "expected_cap"),
    [
        (100, 4096, {"my-model": 7}, 100),
        (0, 4096, {}, 0),
        (None, 4096, {}, 4096),
        (None, 4096, {"my-model": 7}, 7),
        (None, None, {"my-model": 7}, 7),
        (None, None, {"other": 7}, None),
        (None, 0, {}, 0),
    ],
)
def test_output_cap(cap: int | None, default: int | None, caps: dict[str, int], expected_cap: int | None) -> None:
    """C3: the client's cap, else the one for the model, else the default; 0 is a cap."""
    written = expected_cap if cap is None else None
    assert output_cap(ask(cap=cap), default, caps, {}) == (expected_cap, written)
    quote = quoted(ask(cap=cap), GPT, default=default, caps=caps)
    assert (quote.output_cap, quote.written_cap) == (expected_cap, written)


@pytest.mark.parametrize(
    ("cap", "default", "ceiling", "bounded", "written"),
    [
        (100, None, 7, 7, None),  # below the client's own: it bounds, and the client's stays as it is
        (7, None, 100, 7, None),
        (None, 4096, 100, 100, None),  # the model ends before the configured cap: nothing needs to be written
        (None, 100, 100, 100, None),
        (None, 100, 4096, 100, 100),
        (None, None, 100, 100, None),  # a bound, where there would be none
        (0, None, 100, 0, None),
    ],
)
def test_a_ceiling_bounds_and_is_never_written(
    cap: int | None, default: int | None, ceiling: int, bounded: int, written: int | None
) -> None:
    """C3: no reply of the model is longer than its ceiling, for each choice alone; a name that is not exact has none."""
    for choices in (1, 3):
        quote = quoted(ask(cap=cap, choices=choices), GPT, default=default, ceilings={"my-model": ceiling})
        assert (quote.output_cap, quote.written_cap) == (bounded, written)
        assert quote.usage == Usage(input=1000, output=bounded * choices)
        assert quote.amount_nanos == 1000 * 2500 + bounded * choices * 10_000
    other = quoted(ask(cap=cap), GPT, default=default, ceilings={"my": ceiling, "my-model-2": ceiling})
    assert other.output_cap == (cap if cap is not None else default)
    nothing = quoted(ask(cap=cap, generates=False), EMBEDDING, default=default, ceilings={"my-model": ceiling})
    assert (nothing.output_cap, nothing.written_cap) == (0, None)


def test_unbounded_is_said() -> None:
    """C3: no cap and no default is no bound: no amount and no cap, for an ask that generates."""
    wanted = ask(cap=None)
    quote = quoted(wanted, GPT)
    assert (quote.amount_nanos, quote.output_cap, quote.usage) == (None, None, None)
    assert wanted.generates


def test_embeddings_have_no_output() -> None:
    """A call without output tokens is bounded by its prompt, whatever the default cap."""
    quote = quoted(ask(cap=None, generates=False), EMBEDDING, default=4096)
    assert (quote.amount_nanos, quote.output_cap, quote.usage) == (20_000, 0, Usage(input=1000))


def test_one_unpriced_candidate_leaves_no_bound() -> None:
    """A5: a route without a price has no known cost, so the whole quote has none; its tokens are still bounded."""
    quote = quoted(ask(), GPT, Route(LOCAL, "mine"))
    assert (quote.amount_nanos, quote.output_cap, quote.usage) == (None, 100, Usage(input=1000, output=100))


def test_tier_asked_for() -> None:
    """A4: a call that asks for priority is quoted at priority; one that asks for flex may be served at standard."""
    gpt = Route(OPENAI, "gpt-5.4")
    standard = quoted(ask(), gpt).amount_nanos
    assert standard is not None
    assert quoted(ask(tier="priority"), gpt).amount_nanos == 2 * standard
    assert quoted(ask(tier="flex"), gpt).amount_nanos == standard


def test_no_route_is_refused() -> None:
    """An estimate needs a route."""
    with pytest.raises(ValueError, match="routes: expected at least one"):
        quoted(ask())


def test_typical_prompts() -> None:
    """What was learned of a route counts for it, the bound for those that are not known; never more than the bound."""
    densities = Densities(9_000)
    for _ in range(50):
        densities.learn(GPT, ask(), 250)
    typical, bound = quoted(ask(), GPT, densities=densities), quoted(ask(), GPT)
    assert typical.usage == Usage(input=258, output=100)
    assert typical.amount_nanos == 258 * 2500 + 100 * 10_000 < (bound.amount_nanos or 0)
    both = quoted(ask(), MINI, GPT, densities=densities)
    assert both.usage == Usage(input=1000, output=100)  # nothing is known of the other one
    assert both.amount_nanos == typical.amount_nanos
    assert quoted(ask(), MINI, densities=densities) == quoted(ask(), MINI)


def test_expected() -> None:
    """Low is the prompt at four bytes a token; expected adds half of the cap; high is the quote."""
    book, wanted = PriceBook(), ask(prompt=4001, cap=100, choices=2)
    quote = quoted(wanted, GPT)
    found = expected(book, wanted, GPT, quote, at_us=NOON)
    assert found.low_nanos == 1001 * 2500
    assert found.expected_nanos == 1001 * 2500 + 100 * 10_000
    assert found.high_nanos == quote.amount_nanos == 4001 * 2500 + 200 * 10_000


def test_expected_of_the_unknown() -> None:
    """What is not known is None: no price at all, or no cap to take half of."""
    book, unbounded = PriceBook(), ask(cap=None)
    found = expected(book, unbounded, GPT, quoted(unbounded, GPT), at_us=NOON)
    assert (found.low_nanos, found.expected_nanos, found.high_nanos) == (2_500 * 250, None, None)
    mine = Route(LOCAL, "mine")
    assert expected(book, ask(), mine, quoted(ask(), mine), at_us=NOON).low_nanos is None
    free = PriceBook(parse('[[price]]\nmodel = "mine"\ninput = 0\noutput = 0'))
    quote = estimate(free, ask(), (mine,), default_output_cap=None, at_us=NOON)
    assert expected(free, ask(), mine, quote, at_us=NOON).high_nanos == 0


def test_quote_is_for_the_key_the_name_asked_for_and_the_way() -> None:
    """P3: entries by key and by route bound the call that they will price; so do a speed and a place asked for."""
    book = PriceBook(
        parse(
            '[[price]]\nroute = "my-model"\ninput = 3\noutput = 4\n'
            '[[price]]\nkey = "ci"\nmodels = ["*"]\nmultiplier = "0.5"'
        )
    )
    amounts = [
        estimate(book, ask(), (GPT,), default_output_cap=None, at_us=NOON, key=key).amount_nanos for key in (None, "ci")
    ]
    assert amounts == [3_400_000, 1_700_000]
    quote = estimate(book, ask(), (GPT,), default_output_cap=None, at_us=NOON, key="ci")
    assert expected(book, ask(), GPT, quote, at_us=NOON, key="ci").low_nanos == 375_000
    claude = Route(Provider(name="anthropic", base_url="", dialects=frozenset(), prices="anthropic"), "claude-opus-5-5")
    fast = structs.replace(ask(prompt=1_000_000, cap=0), speed="fast", geo="us")
    assert quoted(fast, claude).amount_nanos == 17_600_000_000
