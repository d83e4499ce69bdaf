"""Google's usageMetadata in disjoint kinds.

Input is the prompt and what tools added to it, with what came from a cache inside; output is the candidates and the
thoughts. The details by modality only move counts between kinds: they may be missing, repeated, or add up to less than
the totals, which always stand. Audio and images have kinds of their own; video, documents and text are plain input.

The wire is JSON of protocol buffers: a count of 0 is left out, and a modality or a tier is a name, or its number where
the client asked for numbers.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.dialects.json_reply import Count, known
from tollkeeper.values import Usage

_IMAGE: Final[frozenset[str | int]] = frozenset(("IMAGE", 2))
_AUDIO: Final[frozenset[str | int]] = frozenset(("AUDIO", 4))
_TRAFFIC: Final = {0: "unspecified", 1: "on_demand", 2: "provisioned_throughput"}
_BEFORE_QUERIES: Final = re.compile(r"gemini-[12](?:[.-]|$)")
"""Models whose grounding is charged by prompt: from Gemini 3 on each query is."""


class Detail(msgspec.Struct, rename="camel", gc=False):
    modality: str | int | None = None
    token_count: Count | None = None


Details = list[Detail] | None


class Wire(msgspec.Struct, rename="camel", gc=False):
    """A usageMetadata as it stands. Decoding fails for another shape and for a count that no call can have."""

    prompt_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    candidates_token_count: Count | None = None
    thoughts_token_count: Count | None = None
    total_token_count: Count | None = None
    prompt_tokens_details: Details = None
    tool_use_prompt_tokens_details: Details = None
    cache_tokens_details: Details = None
    candidates_tokens_details: Details = None
    service_tier: str | int | None = None
    traffic_type: str | int | None = None

    @property
    def counts(self) -> bool:
        """Whether it states any count."""
        return not (
            self.prompt_token_count is None
            and self.candidates_token_count is None
            and self.total_token_count is None
            and self.thoughts_token_count is None
        )


def read_usage(wire: Wire, searches: int = 0) -> tuple[Usage, bool]:
    """The usage, and whether something of it had to be inferred."""
    prompt, cached = known(wire.prompt_token_count), known(wire.cached_content_token_count)
    candidates, thoughts = known(wire.candidates_token_count), known(wire.thoughts_token_count)
    asked = prompt + known(wire.tool_use_prompt_token_count)
    inferred = cached > asked
    if wire.prompt_token_count is None and wire.total_token_count is not None:
        asked = max(asked, wire.total_token_count - candidates - thoughts)
        inferred = inferred or asked > 0
    inferred = inferred or known(wire.total_token_count) > asked + candidates + thoughts  # something is not explained
    heard = _sum(wire.prompt_tokens_details, _AUDIO) + _sum(wire.tool_use_prompt_tokens_details, _AUDIO)
    seen = _sum(wire.prompt_tokens_details, _IMAGE) + _sum(wire.tool_use_prompt_tokens_details, _IMAGE)
    cached_audio = min(cached, _sum(wire.cache_tokens_details, _AUDIO))
    cached_image = min(cached - cached_audio, _sum(wire.cache_tokens_details, _IMAGE))
    fresh = max(0, asked - cached)
    audio = min(fresh, max(0, heard - cached_audio))
    image = min(fresh - audio, max(0, seen - cached_image))
    spoken = min(candidates, _sum(wire.candidates_tokens_details, _AUDIO))
    drawn = min(candidates - spoken, _sum(wire.candidates_tokens_details, _IMAGE))
    usage = Usage(
        input=fresh - audio - image,
        cache_read=cached - cached_audio,
        output=candidates - spoken - drawn + thoughts,
        input_audio=audio,
        cache_read_audio=cached_audio,
        output_audio=spoken,
        input_image=image,
        output_image=drawn,
        web_search=searches,
        reasoning=thoughts,
    )
    return usage, inferred


def read_tier(wire: Wire) -> str | None:
    """The tier that served; a number that no documentation explains stays a number, which no price knows."""
    if wire.service_tier is not None:
        return str(wire.service_tier).lower()
    traffic = wire.traffic_type
    if isinstance(traffic, int):
        return _TRAFFIC.get(traffic, f"traffic type {traffic}")
    return None if traffic is None else traffic.lower()


def searches_charged(queries: int, model: str | None) -> int:
    """Searches to pay for: distinct queries, or one for the prompt where the model is older than that."""
    return min(queries, 1) if model is not None and _BEFORE_QUERIES.match(model) else queries


def _sum(details: Details, modality: frozenset[str | int]) -> int:
    """Tokens of a modality: it may be listed more than once."""
    if not details:
        return 0
    return sum(known(each.token_count) for each in details if each.modality in modality)
