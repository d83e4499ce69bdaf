"""What the OpenAI dialects share: the usage object with every compatible provider's habits, and the shape of errors.

Usage on the wire counts a token in several places; here it becomes disjoint kinds. The habits are told apart by their
numbers, not by a provider's name (facts/usage-and-prices.md §2 rule 4), with prompt + completion as P + C:

    cached > P                     the prompt leaves out what was cached (grok on Azure): input is P
    total - P - C = reasoning      reasoning stands outside C (xAI): output is C + reasoning
    total - P - C = prompt audio   audio stands outside P (Mistral): input is P, the audio beside it
    total - P - C = any other > 0  thinking that is not shown (Gemini): output, marked inferred

What OpenAI writes to a cache for 12 hours and not for 30 minutes is the longer-lived kind, as Anthropic's hour is.
DeepSeek's `prompt_cache_hit_tokens` and Mistral's `num_cached_tokens` are read where the details lack cached tokens.
A provider's own cost: OpenRouter `cost` (with the upstream's where the key is the caller's own), Perplexity
`cost.total_cost`, xAI `cost_in_usd_ticks` of 1e-10 dollars.

Responses have the same object with other names for prompt (`input_tokens`) and completion (`output_tokens`).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final

import msgspec

from tollkeeper.dialects.json_body import Body, read_field
from tollkeeper.dialects.json_reply import ABSENT, Count, is_there, known, read_members, read_usd, refusal_numbers
from tollkeeper.errors import TollkeeperError
from tollkeeper.money import CONTEXT
from tollkeeper.values import Ask, Usage

IMAGE_TOKENS: Final = 50_000
"""An image in a prompt, by URL or inline: gpt-4o-mini counts the most, 2,833 + 8 tiles of 5,667 = 48,169."""

_TICK: Final = Decimal("1e-10")  # dollars
_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class _Lifetimes(msgspec.Struct):
    ttl_12h_tokens: Count | None = None


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    cache_write_tokens_details: _Lifetimes | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class _Tools(msgspec.Struct):
    web_search_requests: Count | None = None


class _XaiTools(msgspec.Struct):
    web_search_calls: Count | None = None
    x_search_calls: Count | None = None
    file_search_calls: Count | None = None
    document_search_calls: Count | None = None
    code_interpreter_calls: Count | None = None


class _Wire(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    reasoning_tokens: Count | None = None
    prompt_cache_hit_tokens: Count | None = None
    num_cached_tokens: Count | None = None
    num_search_queries: Count | None = None
    server_tool_use: _Tools | None = None
    server_tool_use_details: _Tools | None = None
    service_tier: str | None = None
    is_byok: bool | None = None
    cost: msgspec.Raw = ABSENT
    cost_details: msgspec.Raw = ABSENT
    cost_in_usd_ticks: msgspec.Raw = ABSENT


class _ResponseWire(_Wire):
    prompt_tokens: Count | None = msgspec.field(default=None, name="input_tokens")
    completion_tokens: Count | None = msgspec.field(default=None, name="output_tokens")
    prompt_tokens_details: _Details | None = msgspec.field(default=None, name="input_tokens_details")
    completion_tokens_details: _Details | None = msgspec.field(default=None, name="output_tokens_details")
    server_side_tool_usage_details: _XaiTools | None = None


class Counted(msgspec.Struct, frozen=True):
    """A usage object as read."""

    usage: Usage
    inferred: bool  #: some of it was worked out, not stated
    tier: str | None
    reported_usd: Decimal | None  #: what the provider says that it charged


_NOTHING: Final = _Details()
_NAMES: Final = msgspec.json.Decoder(Annotated[list[str], msgspec.Meta(max_length=16)] | None)
_WIRE: Final = msgspec.json.Decoder(_Wire)
_RESPONSE_WIRE: Final = msgspec.json.Decoder(_ResponseWire)


def read_others(fields: Body) -> tuple[str, ...]:
    """The fall-backs that a body names for its provider (OpenRouter's `models`). Raises BadRequest."""
    found = read_field(fields, "models", _NAMES, "a list of at most 16 names of models")
    return () if found is None else tuple(found)


def read_usage(raw: msgspec.Raw | bytes) -> Counted | None:
    """A usage object in disjoint kinds, None where it states no count at all.

    Raises one of UNREADABLE for an object of another shape or with a count that no call can have.
    """
    return _counted(_WIRE.decode(raw))


def read_response_usage(raw: msgspec.Raw | bytes) -> tuple[Counted | None, dict[str, int]]:
    """The usage object of a response, and the tools' calls that it states, by usage kind. Raises as `read_usage`."""
    wire = _RESPONSE_WIRE.decode(raw)
    counted, xai = _counted(wire), wire.server_side_tool_usage_details
    if xai is not None:
        return counted, {
            "web_search": known(xai.web_search_calls) + known(xai.x_search_calls),
            "file_search": known(xai.file_search_calls) + known(xai.document_search_calls),
            "code_session": known(xai.code_interpreter_calls),
        }
    stated = _searches(wire)
    return counted, {} if stated is None else {"web_search": stated}


def _counted(wire: _Wire) -> Counted | None:
    prompt, completion, total = wire.prompt_tokens, wire.completion_tokens, wire.total_tokens
    if prompt is None and completion is None and total is None:
        return None
    inferred = prompt is None
    unstated = max(0, known(total) - known(prompt) - known(completion))
    if prompt is None:
        prompt, unstated = unstated, 0
    if completion is None:
        completion = unstated
        inferred = inferred or unstated > 0
    asked = wire.prompt_tokens_details or _NOTHING
    given = wire.completion_tokens_details or _NOTHING
    cached = known(asked.cached_tokens, wire.prompt_cache_hit_tokens, wire.num_cached_tokens)
    reasoning = known(given.reasoning_tokens, wire.reasoning_tokens)
    written, audio, image = known(asked.cache_write_tokens), known(asked.audio_tokens), known(asked.image_tokens)
    spoken, drawn = known(given.audio_tokens), known(given.image_tokens)
    lifetimes = asked.cache_write_tokens_details
    long = 0 if lifetimes is None else min(written, known(lifetimes.ttl_12h_tokens))

    beyond = 0 if total is None else total - prompt - completion
    if cached > prompt:
        prompt += cached
        beyond -= cached if beyond == cached else 0
    if beyond > 0:
        if beyond == reasoning + audio and reasoning and audio:
            prompt, completion = prompt + audio, completion + reasoning
        elif beyond == audio:
            prompt += audio
        else:
            completion += beyond
            inferred = inferred or beyond != reasoning
            reasoning = max(reasoning, beyond)
    text = prompt - cached - written - audio - image
    said = completion - spoken - drawn
    usage = Usage(
        input=max(0, text),
        cache_read=cached,
        cache_write_5m=written - long,
        cache_write_1h=long,
        output=max(0, said),
        input_audio=audio,
        output_audio=spoken,
        input_image=image,
        output_image=drawn,
        web_search=known(_searches(wire)),
        reasoning=min(reasoning, completion),
    )
    return Counted(usage, inferred or text < 0 or said < 0, wire.service_tier, _reported(wire))


def _searches(wire: _Wire) -> int | None:
    for tools in (wire.server_tool_use, wire.server_tool_use_details):
        if tools is not None and tools.web_search_requests is not None:
            return tools.web_search_requests
    return wire.num_search_queries


def _reported(wire: _Wire) -> Decimal | None:
    """What the provider says that the call costs, in dollars."""
    if is_there(wire.cost_in_usd_ticks):
        return read_usd(wire.cost_in_usd_ticks, _TICK)
    if not is_there(wire.cost):
        return None
    if bytes(wire.cost).startswith(b"{"):
        return read_usd(read_members(wire.cost).get("total_cost", ABSENT))
    cost = read_usd(wire.cost)
    if wire.is_byok and cost is not None:  # `cost` is the reseller's fee alone; without the rest it is no total
        upstream = read_usd(read_members(wire.cost_details).get("upstream_inference_cost", ABSENT))
        return None if upstream is None else CONTEXT.add(cost, upstream)
    return cost


def refusal(error: TollkeeperError, request_id: str) -> bytes:
    """The body of a refused or failed call, as OpenAI shapes errors, with a budget's numbers beside."""
    return msgspec.json.encode({"error": shown_error(error), "request_id": request_id})


def broken(error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
    """The event that ends a stream which broke after content; no [DONE] follows it."""
    del ask
    return b"data: " + refusal(error, request_id) + b"\n\n"


def shown_error(error: TollkeeperError) -> dict[str, object]:
    """An error as OpenAI shapes it."""
    kind = _ERROR_TYPES.get(error.http_status) or (
        "invalid_request_error" if error.http_status < 500 else "server_error"
    )
    return {"message": str(error), "type": kind, "param": None, "code": error.code, **refusal_numbers(error)}
