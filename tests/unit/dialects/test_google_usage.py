"""Google's usageMetadata in disjoint kinds."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tollkeeper.dialects.google_usage import Wire, read_tier, read_usage, searches_charged
from tollkeeper.values import Usage


def wire(**members: Any) -> Wire:
    return msgspec.json.decode(json.dumps(members), type=Wire)


def details(**tokens: int) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": count} for modality, count in tokens.items()]


def test_thoughts_are_output() -> None:
    """A3: 923 of candidates and 785 of thoughts are 1,708 of output; the prompt that tools added is input."""
    read = wire(promptTokenCount=46, toolUsePromptTokenCount=360, candidatesTokenCount=923, thoughtsTokenCount=785)
    assert read_usage(read) == (Usage(input=406, output=1708, reasoning=785), False)


def test_cached_is_inside_the_prompt() -> None:
    """What came from a cache is a part of the prompt; more of it than there is prompt is inferred, never negative."""
    assert read_usage(wire(promptTokenCount=1087, cachedContentTokenCount=1081))[0] == Usage(input=6, cache_read=1081)
    assert read_usage(wire(promptTokenCount=10, cachedContentTokenCount=12)) == (Usage(cache_read=12), True)


@pytest.mark.parametrize(("image", "audio"), [("IMAGE", "AUDIO"), (2, 4)])
def test_modalities(image: str | int, audio: str | int) -> None:
    """Audio and images have kinds of their own, by name or by number, repeated or not; the rest is plain."""
    read = wire(
        promptTokenCount=1000,
        toolUsePromptTokenCount=10,
        cachedContentTokenCount=300,
        candidatesTokenCount=100,
        promptTokensDetails=[
            {"modality": "TEXT", "tokenCount": 100},
            {"modality": image, "tokenCount": 250},
            {"modality": audio, "tokenCount": 200},
            {"modality": "VIDEO", "tokenCount": 50},
            {"modality": audio, "tokenCount": 50},
            {"modality": "of tomorrow", "tokenCount": 7},
        ],
        toolUsePromptTokensDetails=[{"modality": audio, "tokenCount": 10}],
        cacheTokensDetails=[{"modality": audio, "tokenCount": 60}, {"modality": image, "tokenCount": 40}],
        candidatesTokensDetails=[{"modality": image, "tokenCount": 70}, {"modality": audio, "tokenCount": 20}],
    )
    usage, inferred = read_usage(read)
    assert usage == Usage(
        input=300, cache_read=240, cache_read_audio=60, input_audio=200, input_image=210,
        output=10, output_image=70, output_audio=20,
    )  # fmt: skip
    assert (usage.input_tokens, usage.output_tokens, inferred) == (1010, 100, False)


def test_details_never_make_a_total() -> None:
    """Details that add up to less leave the rest plain, and such that add up to more are cut to the count."""
    less = wire(promptTokenCount=100, promptTokensDetails=details(TEXT=1, AUDIO=2))
    assert read_usage(less)[0] == Usage(input=98, input_audio=2)
    more = wire(promptTokenCount=10, candidatesTokenCount=5, promptTokensDetails=details(AUDIO=8, IMAGE=8))
    assert read_usage(more)[0] == Usage(input_audio=8, input_image=2, output=5)
    assert read_usage(wire(promptTokenCount=3, promptTokensDetails=[{"modality": "AUDIO"}]))[0] == Usage(input=3)


def test_totals() -> None:
    """A total alone is a prompt, and a total that nothing explains is marked; both are inferred."""
    assert read_usage(wire(totalTokenCount=14)) == (Usage(input=14), True)
    assert read_usage(wire(promptTokenCount=5, candidatesTokenCount=5, totalTokenCount=11))[1]
    assert not read_usage(wire(promptTokenCount=5, candidatesTokenCount=5, totalTokenCount=10))[1]


def test_what_states_a_count() -> None:
    """A tier alone is no count; one count is."""
    assert not wire(trafficType="ON_DEMAND").counts
    assert not wire().counts
    assert wire(promptTokenCount=0).counts


@pytest.mark.parametrize("count", [-1, 1.5, 10**9 + 1, "7", True, [], None])
def test_absurd_counts(count: Any) -> None:
    """A count that no call can have makes the whole object unreadable; null is absent."""
    if count is None:
        assert not wire(promptTokenCount=count).counts
        return
    with pytest.raises(msgspec.ValidationError):
        wire(promptTokenCount=5, candidatesTokenCount=count)


@pytest.mark.parametrize(
    ("members", "tier"),
    [
        ({"serviceTier": "standard"}, "standard"),
        ({"serviceTier": "PRIORITY", "trafficType": "ON_DEMAND"}, "priority"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "on_demand_flex"),
        ({"trafficType": 1}, "on_demand"),
        ({"trafficType": 2}, "provisioned_throughput"),
        ({"trafficType": 9}, "traffic type 9"),
        ({}, None),
    ],
)
def test_tiers(members: dict[str, Any], tier: str | None) -> None:
    """A4: the tier that served, by name or number; an unknown number is said, not taken for the usual."""
    assert read_tier(wire(**members)) == tier


@pytest.mark.parametrize(
    ("model", "charged"),
    [
        ("gemini-2.5-flash", 1),
        ("gemini-1.5-pro", 1),
        ("gemini-2", 1),
        ("gemini-3-flash", 3),
        ("gemini-20", 3),
        (None, 3),
    ],
)
def test_searches(model: str | None, charged: int) -> None:
    """A4: searches are charged by query from Gemini 3 on, and once a prompt before it; unknown models by query."""
    assert searches_charged(3, model) == charged
    assert searches_charged(0, model) == 0
