"""shipped.toml: what the price data lack, priced without a file of one's own."""

from __future__ import annotations

import pytest
from tests.pricing import NOON, charge, provider, us

from tollkeeper.prices import data as price_data
from tollkeeper.prices.file import shipped
from tollkeeper.prices.override import EVERY
from tollkeeper.values import Usage


def test_every_shipped_name_is_a_model_of_the_data() -> None:
    """A6: no entry is for a name that means nothing there: it would price a model that nobody has."""
    names = {(entry.provider, name) for entry in shipped() for name in entry.models if name != EVERY}
    assert [each for each in sorted(names) if price_data.find(*each) is None] == []


@pytest.mark.parametrize(
    ("at", "usd"),
    [
        ("2026-11-22T02:00:00", "0.15"),  # Sunday
        ("2026-11-23T02:00:00", "0.3"),  # Monday, 10:00 in Beijing
        ("2026-11-23T00:59:59", "0.15"),
        ("2026-11-23T09:59:59", "0.3"),
        ("2026-11-23T10:00:00", "0.15"),
        ("2026-11-20T09:00:00", "0.3"),  # Friday
        ("2026-11-21T09:00:00", "0.15"),  # Saturday
        ("2026-10-05T02:00:00", "0.15"),  # Monday of the National Day week
        ("2026-10-08T02:00:00", "0.3"),
        ("2026-09-25T02:00:00", "0.15"),  # Mid-Autumn Festival, a Friday
        ("2026-09-05T02:00:00", "0.22"),  # the earlier list, a Saturday
        ("2026-09-04T02:00:00", "0.44"),
        ("2026-08-22T02:00:00", "0.44"),  # a Saturday before weekends were off-peak
        ("2026-08-16T15:59:59", "0.14"),  # before there were peaks
        ("2026-08-12T02:00:00", "0.14"),
        ("2026-08-16T16:00:00", "0.22"),
    ],
)
def test_deepseek_by_day_and_hour(at: str, usd: str) -> None:
    """A4: peaks on weekdays in Beijing alone, not on holidays, and none before there were any."""
    found = charge(Usage(input=1), "deepseek-v4-flash", place=provider("deepseek"), at_us=us(at))
    assert (found.terms[0].usd, found.status) == (usd, "priced")


@pytest.mark.parametrize(
    ("at", "usd"),
    [
        ("2026-11-22T02:00:00", "0.66"),
        ("2026-11-23T02:00:00", "1.32"),
        ("2026-10-01T02:00:00", "0.66"),
        ("2026-08-16T02:00:00", "0.435"),
        ("2026-08-16T18:00:00", "0.66"),
    ],
)
def test_deepseek_pro(at: str, usd: str) -> None:
    """A4: the same for the larger model."""
    found = charge(Usage(input=1), "deepseek-v4-pro", place=provider("deepseek"), at_us=us(at))
    assert found.terms[0].usd == usd


@pytest.mark.parametrize(
    ("model", "geo", "speed", "tier", "usd", "status"),
    [
        ("claude-opus-5-5", "us", None, None, "4.4", "priced"),
        ("claude-opus-5-5", "us", "fast", None, "8.8", "priced"),
        ("claude-opus-5-5", "us", None, "batch", "2.2", "priced"),
        ("claude-opus-5-5", "global", None, None, "4", "priced"),
        ("claude-sonnet-4-6", "US", None, None, "3.3", "priced"),
        ("claude-sonnet-4-5", "us", None, None, "3", "partial"),
        ("claude-opus-5-5", "eu", None, None, "4", "partial"),
    ],
)
def test_inference_in_the_us(model: str, geo: str, speed: str | None, tier: str | None, usd: str, status: str) -> None:
    """A4: tokens cost 1.1 times as much on the models that know it, on top of speed and batch; searches do not."""
    usage = Usage(input=10, web_search=2)
    found = charge(usage, model, place=provider("anthropic"), geo=geo, speed=speed, tier=tier)
    assert ([term.usd for term in found.terms], found.status) == ([usd, "10"], status)


@pytest.mark.parametrize(
    ("place", "model", "usage", "usd"),
    [
        ("openrouter", "openai/gpt-4.1-mini", Usage(web_search=1), "10"),
        ("openrouter", "anthropic/claude-opus-5.5", Usage(web_search=1), "10"),
        ("openai", "gpt-5.4", Usage(code_session=1), "30"),
        ("azure", "gpt-5.4", Usage(code_session=1), "30"),
        ("openai", "gpt-4o-audio-preview", Usage(input_audio=1), "40"),
        ("openai", "gpt-4o-audio-preview-2024-12-17", Usage(output_audio=1), "80"),
        ("openai", "gpt-4o-audio-preview-2024-10-01", Usage(input_audio=1), "100"),
        ("openai", "gpt-4o-mini-audio-preview-2024-12-17", Usage(input_audio=1), "10"),
    ],
)
def test_kinds_that_the_data_lack(place: str, model: str, usage: Usage, usd: str) -> None:
    """A4: searches at OpenRouter, containers, tokens of audio have their own price, and nothing is missing."""
    found = charge(usage, model, place=provider(place))
    assert ([term.usd for term in found.terms], found.status) == ([usd], "priced")


def test_what_has_no_source_stays_missing() -> None:
    """A5: a search by an engine whose price depends on what it finds has no price, and is said."""
    found = charge(Usage(input=1, web_search=1), "mistralai/mistral-nemo", place=provider("openrouter"), at_us=NOON)
    assert (found.status, found.missing) == ("partial", ("web_search",))


def test_the_cut_of_a_cache_price() -> None:
    """Sonnet 5.5 read from its cache at twice the price until its day."""
    found = [
        charge(Usage(cache_read=1), "claude-sonnet-5-5", place=provider("anthropic"), at_us=us(at)).terms[0].usd
        for at in ("2026-10-06T23:59:59", "2026-10-07T00:00:00")
    ]
    assert found == ["0.2", "0.1"]


def test_xai_searches() -> None:
    """A4: a search costs 5 USD per thousand with every model of xAI."""
    found = charge(Usage(input=1, web_search=2), "grok-4.3", place=provider("x-ai"))
    assert [(term.kind, term.quantity, term.usd, term.per) for term in found.terms][-1] == ("web_search", 2, "5", 1000)
    assert found.status == "priced"


@pytest.mark.parametrize(("prompt", "usd"), [(200_000, "1.25"), (200_001, "2.5")])
def test_gemini_pro_hears_at_the_price_of_text(prompt: int, usd: str) -> None:
    """A4: audio costs what text costs, on both sides of the context step."""
    found = charge(Usage(input=prompt - 10, input_audio=10), "gemini-2.5-pro", place=provider("google"))
    assert {term.usd for term in found.terms} == {usd}
    assert found.status == "priced"
