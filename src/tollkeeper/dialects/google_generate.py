"""Google's generateContent and streamGenerateContent, and beside them embeddings and the counting of tokens.

The model stands in the path, and so does whether the reply is streamed: with `alt=sse` as events, without it as one JSON
array. Names are read in both spellings that Google takes, camelCase and snake_case. The cap on output bounds what the model
thinks as well as what it says.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec

from tollkeeper.dialects.google_prompt import prompt_of
from tollkeeper.dialects.google_reply import Reducer
from tollkeeper.dialects.json_body import (
    Body,
    read_field,
    read_larger,
    read_model,
    read_object,
    read_text,
    write_object,
)
from tollkeeper.dialects.json_reply import ABSENT, read_members, refusal_numbers
from tollkeeper.errors import BadRequest, TollkeeperError
from tollkeeper.values import MAX_MODEL, Ask

name: Final = "google-generate"
path: Final = "/models/{model}"

MAX_CANDIDATES: Final = 8
_TARGET: Final = re.compile(r"/v1(?:beta)?/models/(?P<model>.+):(?P<method>[A-Za-z]+)")
_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class _Method(NamedTuple):
    streams: bool = False
    generates: bool = True
    free: bool = False


_METHODS: Final = {
    "generateContent": _Method(),
    "streamGenerateContent": _Method(streams=True),
    "embedContent": _Method(generates=False),
    "batchEmbedContents": _Method(generates=False),
    "countTokens": _Method(generates=False, free=True),
}
_BY_MEMBER: Final = {"requests": "batchEmbedContents", "content": "embedContent"}
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_REQUESTS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | None)


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Without a target, a member `model` of the body stands in for the path's.

    Raises BadRequest naming the field, or RequestTooLarge.
    """
    fields = read_object(body)
    where, _, query = target.partition("?")
    if where:
        model, verb = _place(where)
    else:
        model = read_model(fields).removeprefix("models/")
        verb = next((verb for member, verb in _BY_MEMBER.items() if member in fields), "generateContent")
        fields = {member: value for member, value in fields.items() if member != "model"}
    method = _METHODS[verb]
    form = _form(query) if method.streams else ""
    config = _config(fields)
    _requests(fields)
    cap = read_larger(config, "maxOutputTokens", "max_output_tokens")
    bound, plain = prompt_of(body, fields)
    choices = read_larger(config, "candidateCount", "candidate_count", 1, MAX_CANDIDATES)
    return Ask(
        dialect=name,
        path=f"{path}:{verb}{form}",
        free=method.free,
        model=model,
        stream=method.streams,
        array=method.streams and not form,
        body=fields,
        prompt_bound=bound,
        plain=plain,
        output_cap=cap if method.generates else 0,
        choices=1 if choices is None else choices,
        generates=method.generates,
        tier=read_text(fields, "serviceTier") or read_text(fields, "service_tier"),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but a model's name and, where none was set, the cap."""
    del quirks
    fields = dict(ask.body)
    place = msgspec.Raw(msgspec.json.encode(f"models/{model}"))
    if "model" in fields:
        fields["model"] = place
    if "requests" in fields:  # a batch of embeddings names the model in each
        requests = [request | {"model": place} for request in _requests(fields)]
        fields["requests"] = msgspec.Raw(write_object(requests))
    for member in ("generateContentRequest", "generate_content_request"):
        inner = read_members(fields.get(member, ABSENT))
        if "model" in inner:
            fields[member] = msgspec.Raw(write_object(inner | {"model": place}))
    if ask.output_cap is None and output_cap is not None:
        config = _config(fields) | {"maxOutputTokens": msgspec.Raw(b"%d" % output_cap)}
        config.pop("max_output_tokens", None)  # null, or there would be a cap
        member = "generation_config" if "generation_config" in fields else "generationConfig"
        fields[member] = msgspec.Raw(write_object(config))
    return write_object(fields)


def _place(where: str) -> tuple[str, str]:
    """Model and method of a request's path."""
    found = _TARGET.fullmatch(where)
    if found is None or found["method"] not in _METHODS:
        raise BadRequest(f"The path names no method of this dialect; it has {', '.join(_METHODS)}.")
    try:
        model = unquote_to_bytes(found["model"]).decode().removeprefix("models/")
    except UnicodeDecodeError:
        model = ""
    if not model.isprintable() or len(model) > MAX_MODEL or not {"", ".", ".."}.isdisjoint(model.split("/")):
        raise BadRequest(f"The path names no model: expected 1 to {MAX_MODEL} printable characters, without '..'.")
    return model, found["method"]


def _form(query: str) -> str:
    """The query to pass on: how a stream is to come. Whatever else stands there, a key above all, goes nowhere."""
    forms = parse_qs(query, max_num_fields=100).get("alt", ["json"]) if query else ["json"]
    if forms not in (["json"], ["sse"]):
        raise BadRequest("alt: expected sse, or json for one array, once.")
    return "?alt=sse" if forms == ["sse"] else ""


def _config(fields: Body) -> Body:
    """The generation config's members; empty where there is none."""
    if "generationConfig" in fields and "generation_config" in fields:
        raise BadRequest("generationConfig: the body names this member in two spellings; name it once.")
    found: Body = {}
    for member in ("generationConfig", "generation_config"):
        if read_field(fields, member, _MEMBERS, "an object"):
            found = read_object(bytes(fields[member]))  # which refuses a count that stands there twice
    return found


def _requests(fields: Body) -> list[Body]:
    return read_field(fields, "requests", _REQUESTS, "a list of objects") or []


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage, quirks
    return Reducer()


def refusal(error: TollkeeperError, request_id: str) -> bytes:
    """The body of a refused or failed call, as Google shapes errors: a budget's numbers are its metadata, all as text."""
    return msgspec.json.encode({"error": _error(error), "request_id": request_id})


def broken(error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
    """What ends a stream which broke after content: an event, or the last element of the array, which it closes."""
    if ask is not None and ask.array:
        return b",\n" + refusal(error, request_id) + b"\n]"
    return b"data: " + refusal(error, request_id) + b"\n\n"


def _error(error: TollkeeperError) -> dict[str, object]:
    status = _STATUSES.get(error.http_status) or ("INVALID_ARGUMENT" if error.http_status < 500 else "INTERNAL")
    numbers = {key: str(value) for key, value in refusal_numbers(error).items() if value is not None}
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code.upper(),
        "domain": "tollkeeper",
        "metadata": numbers,
    }
    return {"code": error.http_status, "message": str(error), "status": status, "details": [info]}
