"""Anthropic's usage object in disjoint kinds.

Input, cache reads and cache writes stand apart on this wire already. `iterations[]` lists the model's turns inside one call
(tools, compaction, advisor, fall-back), each priced at its own model and context size: where it is given it is the usage,
because the top level leaves some of its entries out.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.json_reply import Count, known
from tollkeeper.values import Part, Usage


class _Writes(msgspec.Struct):
    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _Thinking(msgspec.Struct):
    thinking_tokens: Count | None = None


class _Tools(msgspec.Struct):
    web_search_requests: Count | None = None


class _Counts(msgspec.Struct):
    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _Writes | None = None
    output_tokens: Count | None = None
    output_tokens_details: _Thinking | None = None


class _Turn(_Counts):
    type: str = "message"
    model: str | None = None


class Wire(_Counts):
    server_tool_use: _Tools | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    iterations: list[_Turn] | None = None


_WIRE: Final = msgspec.json.Decoder(Wire)
_APART: Final = frozenset(("compaction", "advisor_message"))
"""Turns whose tokens the top level leaves out."""


def read_wire(raw: msgspec.Raw | bytes) -> Wire:
    """A usage object as it stands. Raises one of UNREADABLE for another shape or a count that no call can have."""
    return _WIRE.decode(raw)


def read_parts(wire: Wire, model: str | None) -> tuple[tuple[Part, ...], bool]:
    """One part per turn, or one in all; and whether something had to be inferred."""
    total, inferred = _usage(wire)
    searches = 0
    if wire.server_tool_use is not None and wire.server_tool_use.web_search_requests is not None:
        searches = wire.server_tool_use.web_search_requests
    if not wire.iterations:
        return (Part(msgspec.structs.replace(total, web_search=searches), model),), inferred
    read = [(turn, *_usage(turn)) for turn in wire.iterations]
    parts = [Part(usage, turn.model or model) for turn, usage, _ in read]
    # Searches and thinking are told in all: they go to the longest answer.
    main = max(range(len(read)), key=lambda at: (read[at][0].type not in _APART, read[at][1].output))
    usage = parts[main].usage
    reasoning = min(usage.output, max(usage.reasoning, total.reasoning))
    parts[main] = Part(msgspec.structs.replace(usage, web_search=searches, reasoning=reasoning), parts[main].model)
    return tuple(parts), inferred or any(part_inferred for _, _, part_inferred in read) or not _agree(read, total)


def _agree(read: list[tuple[_Turn, Usage, bool]], total: Usage) -> bool:
    """Whether the turns explain the top level: it is the sum of the answers, or the fall-back's answer alone."""
    for kinds in (("message",), ("fallback_message",), ("message", "fallback_message")):
        turns = [usage for turn, usage, _ in read if turn.type in kinds]
        if turns and (sum(u.input_tokens for u in turns), sum(u.output for u in turns)) == (
            total.input_tokens,
            total.output,
        ):
            return True
    return False


def _usage(wire: _Counts) -> tuple[Usage, bool]:
    """Counts in disjoint kinds; input, cache reads and cache writes stand apart on this wire already."""
    split = wire.cache_creation or _Writes()
    short, long = known(split.ephemeral_5m_input_tokens), known(split.ephemeral_1h_input_tokens)
    written = short + long if wire.cache_creation_input_tokens is None else wire.cache_creation_input_tokens
    output = known(wire.output_tokens)
    thinking = 0 if wire.output_tokens_details is None else known(wire.output_tokens_details.thinking_tokens)
    usage = Usage(
        input=known(wire.input_tokens),
        cache_read=known(wire.cache_read_input_tokens),
        cache_write_5m=max(0, written - long),  # what the split does not explain has the usual lifetime
        cache_write_1h=min(long, written),
        output=output,
        reasoning=min(thinking, output),
    )
    return usage, wire.input_tokens is None or written < short + long
