"""Logs of OpenAI-style responses, one a line, read by the very reducers that the gateway meters with.

    {"object": "chat.completion", …}                              a response as it came: chat, responses, embeddings
    {"request": {…}, "response": {…}}                             the same with the request that asked for it
    {"custom_id": …, "response": {"status_code": 200, "body": …}} the Batch API's output file: served at the batch tier

The request, where there is one, names the model that was asked for and the user. The time is `created` or `created_at` of the
response, else of what is around it, else the one given beside the file (embeddings have none).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.dialects import DIALECTS
from tollkeeper.dialects.json_reply import ABSENT, ABSURD, UNREADABLE, error_label, is_there
from tollkeeper.importing.records import Given, Members, Record, fitting, instant, members, shown, since_1970, values
from tollkeeper.settlement import INFERRED, NO_USAGE
from tollkeeper.tracker import arguments
from tollkeeper.values import Reading, Scopes

name: Final = "openai"

#: `object` of a response → the dialect that reads it.
OBJECTS: Final = {
    "chat.completion": "openai-chat",
    "text_completion": "openai-chat",
    "response": "openai-responses",
    "list": "openai-embeddings",
}
_UNDONE: Final = ("queued", "in_progress")
_MARKS: Final = ("object", "choices", "response", "custom_id")
_TIMES: Final = ("created", "created_at")
_TEXT: Final = msgspec.json.Decoder(str)


class _Logged(msgspec.Struct, frozen=True):
    """A response taken out of what is around it."""

    body: msgspec.Raw
    around: Members
    request: Members
    is_batch: bool


def fits(members: Members) -> bool:
    """A response, or something with a response in it."""
    return any(mark in members for mark in _MARKS)


def read(raw: bytes, given: Given) -> Record:
    """A line's object. Raises ValueError: why it cannot be booked."""
    logged = _unwrapped(raw)
    body = members(logged.body, "the response")
    reading = _reading(body, logged, dialect := _dialect(body), given.quirks)
    model = _text(logged.request, "model") or reading.model
    if model is None:
        failed = "" if reading.error is None else f" of a call that failed ({reading.error})"
        raise ValueError(f"model: neither the response{failed} nor a request beside it names one")
    user = _text(logged.request, "user") or _text(logged.request, "safety_identifier") or _text(body, "user")
    request_id = _text(body, "id") or _text(logged.around, "id")
    return Record(
        at_us=_time(body, logged.around, given), dialect=dialect, provider=given.provider,
        model=arguments.model(model), request_id=arguments.optional(request_id, "id"), reading=reading,
        scopes=Scopes(project=given.project, agent=given.agent, user=fitting(user)),
        outcome="ok" if reading.error is None else "error", is_free=reading.error is not None and not reading.parts,
        note=reading.error or reading.note or _note(reading),
    )  # fmt: skip


def _note(reading: Reading) -> str | None:
    if not reading.parts:
        return NO_USAGE
    return INFERRED if reading.inferred else None


def _unwrapped(raw: bytes) -> _Logged:
    around = members(raw)
    if not is_there(around.get("response", ABSENT)) and ("response" in around or "custom_id" in around):
        raise ValueError(f"response: there is none: {error_label(around.get('error', ABSENT))}")
    if "response" not in around:
        return _Logged(msgspec.Raw(raw), {}, {}, is_batch=False)
    request = members(around["request"], "request") if is_there(around.get("request", ABSENT)) else {}
    if is_there(request.get("body", ABSENT)):
        request = members(request["body"], "request.body")
    response = members(around["response"], "response")
    body = response.get("body", ABSENT)
    return _Logged(body if is_there(body) else around["response"], around, request, is_batch="custom_id" in around)


def _dialect(body: Members) -> str:
    """Who reads a response: by its `object`; servers that leave it out speak chat."""
    kind = _text(body, "object")
    if kind is None and ("choices" in body or "error" in body):
        kind = "chat.completion"
    dialect = OBJECTS.get(kind or "")
    if dialect is None or dialect not in DIALECTS:
        whole = "; log whole responses, not the pieces of a stream" if kind and kind.endswith(".chunk") else ""
        raise ValueError(f"object: expected one of {', '.join(OBJECTS)}, got {shown(kind)}{whole}")
    return dialect


def _reading(body: Members, logged: _Logged, dialect: str, quirks: frozenset[str]) -> Reading:
    if _text(body, "status") in _UNDONE:
        raise ValueError(f"status: the response is {_text(body, 'status')}; log it when it is done")
    if is_there(usage := body.get("usage", ABSENT)):
        for part, value in members(usage, "usage").items():
            if bytes(value).startswith(b"{"):
                members(value, f"usage.{part}")
    reducer = DIALECTS[dialect].reducer(stream=False, hide_usage=False, quirks=quirks)
    reducer.whole(bytes(logged.body))
    reading = reducer.reading()
    if reading.note == ABSURD:
        raise ValueError("usage: it has a count that no call can have")
    return structs.replace(reading, tier="batch") if logged.is_batch else reading


def _time(body: Members, around: Members, given: Given) -> int:
    for place in (body, around):
        for field in _TIMES:
            if is_there(place.get(field, ABSENT)):
                value = values(b'{"at":%s}' % bytes(place[field]))["at"]
                return instant(value, field, given) if isinstance(value, str) else since_1970(value, field, given)
    if given.at_us is None:
        raise ValueError(f"{_TIMES[0]}: the response does not say when it was made; give the time with the file (at)")
    return given.at_us


def _text(members: Members, name: str) -> str | None:
    """A text member; None where it is absent, empty or something else."""
    try:
        return _TEXT.decode(members.get(name, b"null")) or None
    except UNREADABLE:
        return None
