"""LiteLLM's spend logs: rows of its table LiteLLM_SpendLogs, as JSON or CSV.

What it counted is taken; what it computed is not: `spend` is a float and its own idea of the price, not the provider's word.
Our price counts, theirs stands in the entry's note and in the summary. How it counts (checked against its source, 2026-11):

* `prompt_tokens` is the whole prompt, for Anthropic too: cache reads and writes are inside. Its older versions left them out,
  which shows where they are more than the prompt.
* The details are in `metadata.usage_object`, in older rows in `metadata.additional_usage_values`.
* A row with `cache_hit` was answered from its own cache, and one with status `failure` by an error: nothing is owed.
* Times without a zone are UTC. `api_key` is a hash already; what does not look like one is hashed here.
"""

from __future__ import annotations

import re
from datetime import UTC
from decimal import Decimal
from typing import Any, Final

import msgspec

from tollkeeper.dialects.json_reply import UNREADABLE, Count
from tollkeeper.importing.records import Given, Members, Record, digest, fitting, instant, members
from tollkeeper.money import format_nanos, to_nanos
from tollkeeper.tracker import arguments
from tollkeeper.values import MAX_MODEL, Part, Reading, Scopes, Usage

name: Final = "litellm"

_HASHED: Final = re.compile(r"[0-9a-f]{64}|litellm_proxy_master_key")
_BATCHES: Final = ("aretrieve_batch", "retrieve_batch")


class _Row(msgspec.Struct, kw_only=True):
    """The columns that are read; the others are about serving the call."""

    request_id: str
    startTime: str  # noqa: N815 theirs
    model: str | None = None
    model_group: str | None = None
    custom_llm_provider: str | None = None
    call_type: str | None = None
    spend: Decimal | None = None
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    api_key: str | None = None
    team_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    end_user: str | None = None
    user: str | None = None
    cache_hit: str | bool | None = None
    status: str | None = None
    request_tags: msgspec.Raw = msgspec.Raw(b"null")
    metadata: msgspec.Raw = msgspec.Raw(b"null")


class _Writes(msgspec.Struct):
    ephemeral_1h_input_tokens: Count | None = None


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_creation_tokens: Count | None = None
    cache_creation_token_details: _Writes | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class _Tools(msgspec.Struct):
    web_search_requests: Count | None = None


class _Used(msgspec.Struct):
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    server_tool_use: _Tools | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class _Metadata(msgspec.Struct):
    usage_object: _Used | None = None
    additional_usage_values: _Used | None = None
    error_information: dict[str, Any] | None = None


_ROW: Final = msgspec.json.Decoder(_Row, strict=False)  # a CSV's numbers are text
_METADATA: Final = msgspec.json.Decoder(_Metadata | None)
_TAGS: Final = msgspec.json.Decoder(list[str] | None)
_TEXT: Final = msgspec.json.Decoder(str)
_NOTHING: Final = _Details()


def fits(members: Members) -> bool:
    """Columns that no other log has together."""
    return "startTime" in members and "request_id" in members


def read(raw: bytes, given: Given) -> Record:
    """A row. Raises ValueError: why it cannot be booked."""
    members(raw)
    row: _Row = _decoded(_ROW, raw, "the row")
    metadata: _Metadata = _decoded(_METADATA, _inner(row.metadata), "metadata") or _Metadata()
    is_hit = str(row.cache_hit).lower() == "true"
    is_failure = row.status == "failure"
    used = metadata.usage_object or metadata.additional_usage_values or _Used()
    usage = None if is_hit else _usage(row, used)
    is_free = is_hit or (is_failure and usage is None)
    spend = arguments.cost(row.spend, "spend")
    asked = row.model_group or row.model or ("unknown" if is_failure else "")
    return Record(
        at_us=instant(row.startTime, "startTime", given, UTC), dialect=name,
        provider=arguments.optional(row.custom_llm_provider or given.provider, "custom_llm_provider"),
        model=arguments.name(asked, "model", MAX_MODEL), request_id=arguments.name(row.request_id, "request_id"),
        scopes=Scopes(
            project=fitting(row.team_id) or given.project, agent=fitting(row.agent_id) or given.agent,
            session=fitting(row.session_id), user=fitting(row.end_user or row.user), key=_key(row.api_key),
            tags=arguments.labels(_tags(row), "request_tags"),
        ),
        reading=Reading(
            parts=() if usage is None else (Part(usage),), model=row.model or None, final=True,
            tier="batch" if row.call_type in _BATCHES else used.service_tier, speed=used.speed, geo=used.inference_geo,
        ),
        outcome="error" if is_failure else "ok", is_free=is_free, note=_note(spend, metadata, is_hit, is_failure),
        other_usd=spend,
    )  # fmt: skip


def _usage(row: _Row, used: _Used) -> Usage | None:
    """Their counts in disjoint kinds; None: it was not counted in tokens, so what it used is not known."""
    prompt, output = row.prompt_tokens or 0, row.completion_tokens or 0
    asked, given = used.prompt_tokens_details or _NOTHING, used.completion_tokens_details or _NOTHING
    read = max(used.cache_read_input_tokens or 0, asked.cached_tokens or 0)
    written = max(used.cache_creation_input_tokens or 0, asked.cache_creation_tokens or 0)
    if read + written > prompt:  # an older version: they stand beside it
        prompt += read + written
    if not prompt and not output:
        return None
    writes = asked.cache_creation_token_details
    for_1h = 0 if writes is None else min(written, writes.ephemeral_1h_input_tokens or 0)
    audio, image = asked.audio_tokens or 0, asked.image_tokens or 0
    spoken, drawn = given.audio_tokens or 0, given.image_tokens or 0
    return Usage(
        input=max(0, prompt - read - written - audio - image), cache_read=read, cache_write_5m=written - for_1h,
        cache_write_1h=for_1h, input_audio=audio, input_image=image, output=max(0, output - spoken - drawn),
        output_audio=spoken, output_image=drawn, reasoning=min(output, given.reasoning_tokens or 0),
        web_search=0 if used.server_tool_use is None else used.server_tool_use.web_search_requests or 0,
    )  # fmt: skip


def _note(spend: Decimal | None, metadata: _Metadata, is_hit: bool, is_failure: bool) -> str | None:
    """What the entry's figures do not say: codes and figures, never text of a prompt or an error."""
    said = ["answered from LiteLLM's cache"] if is_hit else []
    if is_failure:
        error = (metadata.error_information or {}).get("error_class")
        said.append(error[:100] if isinstance(error, str) and error else "failure")
    if spend is not None:
        said.append(f"LiteLLM computed ${format_nanos(to_nanos(spend))}")
    return "; ".join(said) or None


def _tags(row: _Row) -> list[str]:
    """Its tags, of which it makes some itself from headers of any length."""
    found = _decoded(_TAGS, _inner(row.request_tags), "request_tags") or ()
    return [name for tag in found if (name := fitting(tag)) is not None]


def _key(hashed: str | None) -> str | None:
    """The key's id: its hash as LiteLLM keeps it. Anything else might be a secret, and is not stored."""
    if not hashed:
        return None
    return hashed if _HASHED.fullmatch(hashed) else digest(hashed)


def _inner(raw: msgspec.Raw) -> bytes:
    """A column of JSON: as such, or as text, as CSV and some exports have it."""
    column = bytes(raw)
    return _TEXT.decode(column).encode() or b"null" if column.startswith(b'"') else column


def _decoded(decoder: msgspec.json.Decoder[Any], raw: bytes, what: str) -> Any:
    """Raises ValueError that names the column."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message, _, column = str(error).partition(" - at `$.")
        raise ValueError(f"{column.rstrip('`') or what}: {message[:1].lower()}{message[1:]}") from None
    except UNREADABLE as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
