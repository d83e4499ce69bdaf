"""What a failed attempt means: may it be tried again, here or elsewhere, and whose breaker hears of it. Pure.

What is known is looked up in this order, and the first table that knows it decides:

    1. the failure       ours, the client's, no connection, no answer, broken off      _FAILURES
    2. the message       how it begins, where the type does not tell                   _PHRASES
    3. the error's type  or code, or reason                                            _TYPES
    4. the status        of HTTP, else the one that the error tells or stands for      _STATUSES, _STATUS_OF

One table serves all dialects: their types differ by spelling, and endpoints that are like OpenAI's send their makers' own.
A message may repeat what a client sent, so it decides by its beginning alone, and beside a status or type of its provider:
no client can close a key for the others.
Where a client alone is the reason, no breaker hears of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tollkeeper.dialects.json_reply import UNREADABLE
from tollkeeper.errors import StreamBroken, TollkeeperError, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tollkeeper.json_array import ArraySplitter
from tollkeeper.sse import Event, Splitter

MAX_BODY: Final = 65_536
"""Bytes of an error's body that are looked at."""
NO_CREDIT_S: Final = 3600.0
REFUSED_S: Final = 600.0
MIN_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 3600.0


class Verdict(NamedTuple):
    """What follows from a failed attempt."""

    again: bool  #: the same route may be tried again, after a pause
    elsewhere: bool  #: another route, by key or provider, may serve it
    level: Literal["provider", "key", "model"] | None  #: what failed, and unless ignored whose breaker hears of it
    effect: Literal["fail", "block", "ignore"]  #: a failure in the window; open for `for_s`; nothing
    for_s: float | None  #: with "block": for how long, seconds
    reason: str  #: for logs and the API: nothing in it comes from a client


_CALLERS: Final = Verdict(False, False, None, "ignore", None, "the request's own")
_TOO_MUCH: Final = Verdict(False, True, None, "ignore", None, "too large for this key")
_NO_CREDIT: Final = Verdict(False, True, "key", "block", NO_CREDIT_S, "no credit")
_REFUSED: Final = Verdict(False, True, "key", "block", REFUSED_S, "key refused")
_NOT_THERE: Final = Verdict(False, True, "model", "block", REFUSED_S, "not found there")
_OTHER_METHOD: Final = Verdict(False, True, "model", "ignore", None, "not there, or not for this method")
_LIMITED: Final = Verdict(False, True, "model", "fail", None, "rate limited")
_BUSY: Final = Verdict(True, True, "model", "fail", None, "overloaded")
_SICK: Final = Verdict(True, True, "model", "fail", None, "server error")
_LEFT: Final = Verdict(False, False, None, "ignore", None, "the client left")
_OURS: Final = Verdict(False, False, None, "ignore", None, "not the provider's")

_PAUSED: Final = (_LIMITED, _BUSY)
"""For these a provider says how long: then they block instead."""

#: A failure that is no answer → verdict.
_FAILURES: Final[dict[type[TollkeeperError], Verdict]] = {
    UpstreamUnreachable: Verdict(True, True, "provider", "fail", None, "unreachable"),
    UpstreamTimeout: Verdict(False, True, "model", "fail", None, "no answer in time"),
    StreamBroken: Verdict(True, True, "model", "fail", None, "broken off"),
}

#: Where a row counts (a status or a type), how the message begins, verdict.
_PHRASES: Final[tuple[tuple[int | str, re.Pattern[str], Verdict], ...]] = (
    (403, re.compile(r"You do not have permission to access the File|CachedContent "), _CALLERS),  # Google: a 404
    (403, re.compile(r"\S+ requires moderation|Content violates usage guidelines"), _CALLERS),  # OpenRouter; xAI
    # OpenAI: a chat model asked for embeddings, or the other way round; any client can, and neither key nor model is at fault
    (403, re.compile(r"You are not allowed to (?:generate embeddings|sample) from this model"), _OTHER_METHOD),
    (403, re.compile(r"Your organization must be verified to use the model"), _NOT_THERE),  # OpenAI: that one alone
    (402, re.compile(r"This request requires more credits, or fewer max_tokens|Prompt tokens limit"), _TOO_MUCH),
    ("rate_limit_exceeded", re.compile(r"Request too large"), _TOO_MUCH),  # for a minute: it can never pass
    # Anthropic's; behind a colon it would say what is wrong with a member, whose name is the client's
    ("invalid_request_error", re.compile(r"(?s)Your credit balance is too low(?!.*: )"), _NO_CREDIT),
    ("invalid_request_error", re.compile(r"(?s)You have reached your specified API usage limits(?!.*: )"), _NO_CREDIT),
    ("invalid_request_error", re.compile(r"(?s)This organization has been disabled(?!.*: )"), _REFUSED),
    (429, re.compile(r"Your team \S+ has (?:either )?used all"), _NO_CREDIT),  # xAI
    (403, re.compile(r"Key limit exceeded|This API method requires billing"), _NO_CREDIT),  # OpenRouter; Google
    (429, re.compile(r"Your prepayment credits are depleted|Your project has exceeded its \w+ spending"), _NO_CREDIT),
    ("FAILED_PRECONDITION", re.compile(r".*\b(?:enable|requires?) billing\b"), _NO_CREDIT),
    ("INVALID_ARGUMENT", re.compile(r"API key not valid|API [Kk]ey not found|API key expired"), _REFUSED),
    ("Client specified an invalid argument", re.compile(r"Incorrect API key provided"), _REFUSED),  # xAI
    (400, re.compile(r"Model Not Exist|\S+ is not a valid model ID"), _NOT_THERE),
    # Google's, of a model that is not there as well: it does not say which
    (404, re.compile(r"models/\S+ is not found for API version \S+, or is not supported for "), _OTHER_METHOD),
    (404, re.compile(r"(?:The |Publisher )?[Mm]odels?\b|No endpoints found for"), _NOT_THERE),
)

#: An error's type, code or reason → verdict, whatever the status.
_TYPES: Final[dict[str, Verdict]] = {
    # no credit: by OpenAI, by others like it, by Anthropic, by Google
    **dict.fromkeys(
        (
            "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "credit_balance_exhausted",
            "organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded",
            "exceeded_current_quota_error", "billing_error", "BILLING_DISABLED",
        ),
        _NO_CREDIT,
    ),
    **dict.fromkeys(
        (
            "invalid_api_key", "account_deactivated", "access_terminated", "authentication_error", "permission_error",
            "UNAUTHENTICATED", "PERMISSION_DENIED", "API_KEY_INVALID",
        ),
        _REFUSED,
    ),
    **dict.fromkeys(("model_not_found", "invalid_model", "DeploymentNotFound"), _NOT_THERE),
    **dict.fromkeys(
        (
            "rate_limit_exceeded", "rate_limit_error", "RateLimitReached", "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED",
            "MODEL_CAPACITY_EXHAUSTED",
        ),
        _LIMITED,
    ),
    **dict.fromkeys(
        (
            "overloaded", "server_is_overloaded", "slow_down", "service_unavailable_error", "engine_overloaded_error",
            "overloaded_error", "UNAVAILABLE",
        ),
        _BUSY,
    ),
    **dict.fromkeys(
        (
            "context_length_exceeded", "content_filter", "content_policy_violation", "invalid_prompt",
            "previous_response_not_found", "tool_use_failed", "request_too_large", "image_content_policy_violation",
            "invalid_image", "invalid_image_format", "invalid_image_mode", "invalid_image_url", "invalid_base64_image",
            "image_too_large", "image_too_small", "image_parse_error", "image_file_too_large", "image_file_not_found",
            "unsupported_image_media_type", "empty_image_file", "failed_to_download_image",
        ),
        _CALLERS,
    ),
}  # fmt: skip

#: A type → the status that it stands for, where HTTP's says nothing: an error inside a reply that began with 200.
_STATUS_OF: Final = {
    "invalid_request_error": 400, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
    "not_found_error": 404, "NOT_FOUND": 404,
    "api_error": 500, "server_error": 500, "INTERNAL": 500, "timeout_error": 504, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip

_STATUSES: Final = {
    401: _REFUSED, 402: _NO_CREDIT, 403: _REFUSED, 408: _SICK, 429: _LIMITED, 503: _BUSY, 529: _BUSY,
}  # fmt: skip
#: (first status of a range, verdict), for what is not above. A redirect: nothing is served at this address.
_RANGES: Final = ((500, _SICK), (400, _CALLERS), (300, _NOT_THERE))

_NUMBER: Final = re.compile(r"\d{1,300}(?:\.\d{0,300})?", re.ASCII)


def verdict_of(
    failure: TollkeeperError | None,
    status: int | None,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    now_us: int,
    content: bool = False,
    client_left: bool = False,
) -> Verdict:
    """The verdict on one attempt. Never raises.

    `status` and `headers` are the provider's, None and empty where it sent none; `body` is its error: a body, or the text
    of the stream's events. `content`: some was relayed before, so that nobody may try it once more. `client_left` also
    where the time that ran out is the client's: by its own limit, or because it did not read.
    """
    if client_left:
        return _LEFT
    if failure is not None and not isinstance(failure, UpstreamError):
        return _OURS._replace(reason=f"{_OURS.reason}: {failure.code}")
    refused = status is not None and status >= 300
    broken = None if failure is None or refused else _FAILURES.get(type(failure))
    error = _error_in(body[:MAX_BODY], flat=refused)
    if broken is not None:
        found = broken
    elif failure is None and error is None and not refused:
        return _OURS
    else:
        told = 200 if failure is None else failure.http_status
        found = _answered(told if status is None else status, headers, error or {}, now_us, readable=error is not None)
    return found._replace(again=False, elsewhere=False) if content else found


def _answered(
    sent: int, headers: Sequence[tuple[bytes, bytes]], error: dict[str, Any], now_us: int, *, readable: bool
) -> Verdict:
    """A provider's own error."""
    types, status = _types(error), sent
    if status < 300:
        status = _told(error) or next((_STATUS_OF[each] for each in types if each in _STATUS_OF), 500)
    found = _phrased(status, types, error)
    if found is None:
        found = next((_TYPES[each] for each in types if each in _TYPES), None) or _STATUSES.get(status)
    if found is None and status == 404 and not readable:
        found = _NOT_THERE  # not the API's own answer: there is none at this address
    if found is None:
        found = next(verdict for first, verdict in _RANGES if status >= first)
    known = next((f" {each}" for each in types if each in _TYPES or each in _STATUS_OF), "")
    reason = f"{found.reason}: {sent}{known}"
    pause_s = _pause_s(headers, error, now_us) if found in _PAUSED else None
    if pause_s is not None:
        return found._replace(again=False, effect="block", for_s=pause_s, reason=reason)
    return found._replace(reason=reason)


def _phrased(status: int, types: list[str], error: dict[str, Any]) -> Verdict | None:
    message = error.get("message")
    if not isinstance(message, str):
        return None
    for where, begins, verdict in _PHRASES:
        if (where == status or where in types) and begins.match(message):
            return verdict
    return None


# ---- what an error says ---------------------------------------------------------------------------------------------


def _error_in(body: bytes, *, flat: bool) -> dict[str, Any] | None:
    """The first error in a body or in a stream's events. `flat`: a whole object may be one, without being called so."""
    for document in _documents(body):
        match document:
            case {"error": dict() as error} | {"response": {"error": dict() as error}}:
                return error
            case {"error": str() as message}:  # xAI, Ollama: the text, perhaps a code beside it
                return {**document, "message": message}
            case {"type": "error"} | {"object": "error"}:
                return dict(document)
            case {"message": _} if flat:
                return dict(document)
    return None


def _documents(body: bytes) -> Iterator[Any]:
    """The JSON values in a body, an array's elements or a stream's events; what cannot be read is passed over."""
    try:
        whole = msgspec.json.decode(body)
    except UNREADABLE:
        for event in _events(body):
            with suppress(*UNREADABLE):
                yield msgspec.json.decode(event.data)
    else:
        yield from whole if isinstance(whole, list) else (whole,)


def _events(body: bytes) -> list[Event]:
    splitter = ArraySplitter() if body.lstrip()[:1] in (b"[", b",") else Splitter()
    try:
        return splitter.feed(body + b"\n\n")
    except StreamBroken:
        return []


def _types(error: dict[str, Any]) -> list[str]:
    """An error's reasons, code, type and status, the most special first."""
    found = [detail.get("reason") for detail in _details(error)]
    found += [error.get("code"), error.get("type"), error.get("status")]
    return [each for each in found if isinstance(each, str)]


def _told(error: dict[str, Any]) -> int | None:
    """The status that an error tells as a number."""
    for name in ("code", "status_code", "status"):
        value = error.get(name)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


def _details(error: dict[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    return [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []


# ---- how long a provider asks to wait -------------------------------------------------------------------------------


def _pause_s(headers: Sequence[tuple[bytes, bytes]], error: dict[str, Any], now_us: int) -> float | None:
    """The longest pause that a provider asks for, in seconds within the bounds; None where it asks for none."""
    asked: list[float | None] = []
    for name, value in headers:
        text = value.decode("latin-1").strip()
        match name.lower():
            case b"retry-after":
                seconds = _number(text)
                asked.append(_until_s(text, now_us) if seconds is None else seconds)
            case b"retry-after-ms":
                milliseconds = _number(text)
                asked.append(None if milliseconds is None else milliseconds / 1000)
    for detail in _details(error):
        delay = detail.get("retryDelay")  # "34.4s"
        if isinstance(delay, str) and delay.endswith("s"):
            asked.append(_number(delay[:-1]))
    known = [each for each in asked if each is not None]
    return min(max(*known, MIN_PAUSE_S), MAX_PAUSE_S) if known else None


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _until_s(text: str, now_us: int) -> float | None:
    """Seconds until an HTTP date; None for what is none, and for the past."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000"
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp() - now_us / 1_000_000
    return seconds if seconds > 0 else None
