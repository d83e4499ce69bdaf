"""What a fake provider answers: a request's body in, the pieces of a reply and its usage out.

Everything follows from the request: a prompt token is four bytes of text (and four for each message), an output token
one word. So a reader of the reply, a reader of the bill and a reader of the request come to the same counts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from struct import pack
from typing import Any, Final
from zlib import crc32

import msgspec

from tollkeeper.testing.faults import Piece, Refuse
from tollkeeper.values import Usage

encode = msgspec.json.encode
CREATED: Final = 1_767_225_600
WORDS: Final = (
    "every",
    "crossing",
    "is",
    "counted",
    "and",
    "its",
    "toll",
    "written",
    "down",
    "once",
    "in",
    "the",
    "book",
)
SERVED: Final = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
}
"""Names that providers answer with their dated model; others come back as asked."""


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """How this provider counts, beyond the request."""

    cached_tokens: int = 0  #: prompt tokens read from a cache, up to the prompt's own
    reasoning_tokens: int = 0  #: output tokens spent before the first word, up to the output cap
    tells_usage: bool = True


class Reply(msgspec.Struct, kw_only=True):
    """One good answer: `pieces` are the events of a stream or the one whole body; `usage` is what all of it costs."""

    model: str
    stream: bool
    usage: Usage
    pieces: list[Piece]
    array: bool = False  #: a stream that comes as one JSON array
    free: bool = False  #: costs nothing


class BadAskError(Exception):
    """The provider would answer 400 with this message."""


def _check(body: dict[str, Any], field: str, kinds: type | tuple[type, ...]) -> Any:
    value = body.get(field)
    if not isinstance(value, kinds) or not value:
        raise BadAskError(f"Missing or wrong required parameter: '{field}'.")
    return value


def _cap(body: dict[str, Any], *fields: str) -> int | None:
    for field in fields:
        cap = body.get(field)
        if cap is not None:
            if type(cap) is not int or cap < 1:
                raise BadAskError(f"Invalid '{field}': expected a whole number of at least 1.")
            return cap
    return None


def tokens(value: Any) -> int:
    """Prompt tokens of a text, a content block or a list of them."""
    match value:
        case None:
            return 0
        case str():
            return -(-len(value.encode()) // 4)
        case list():
            return sum(map(tokens, value))
        case {"text": str(text)}:
            return tokens(text)
    return -(-len(encode(value)) // 4)


def _prompt(body: dict[str, Any], *beside: str) -> int:
    messages = _check(body, "messages", list)
    if not all(isinstance(message, dict) for message in messages):
        raise BadAskError("Invalid 'messages': expected objects.")
    return sum(4 + tokens(message.get("content")) for message in messages) + sum(
        tokens(body.get(name)) for name in beside
    )


def _words(body: dict[str, Any], room: int | None, choice: int = 0) -> tuple[list[str], bool]:
    """The answer's words (each one token), and whether the cap cut it short."""
    seed = crc32(encode(body.get("messages"))) + choice
    length = 8 + seed % 25
    capped = room is not None and room < length
    text = [WORDS[(seed + n) % len(WORDS)] for n in range(room if capped and room is not None else length)]
    return [word if n == 0 else " " + word for n, word in enumerate(text)], capped


def openai_chat(body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """POST /v1/chat/completions. A stream tells its usage only where `stream_options.include_usage` asks for it."""
    asked = _check(body, "model", str)
    prompt, cap, choices = _prompt(body, "tools"), _cap(body, "max_completion_tokens", "max_tokens"), body.get("n") or 1
    thought = traits.reasoning_tokens if cap is None else min(traits.reasoning_tokens, cap)
    answers = [_words(body, None if cap is None else cap - thought, choice) for choice in range(choices)]
    output = sum(thought + len(words) for words, _ in answers)
    cached = min(traits.cached_tokens, prompt)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": thought * choices, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    }  # fmt: skip
    model = SERVED.get(asked, asked)
    head = {
        "id": f"chatcmpl-{number:08d}", "object": "chat.completion", "created": CREATED, "model": model,
        "service_tier": "default" if body.get("service_tier") in (None, "auto") else body["service_tier"],
        "system_fingerprint": "fp_fake",
    }  # fmt: skip
    told = usage if traits.tells_usage else None
    if body.get("stream"):
        asks = bool((body.get("stream_options") or {}).get("include_usage"))
        pieces = list(_openai_events(head | {"object": "chat.completion.chunk"}, answers, thought, told, asks=asks))
    else:
        whole = head | {"choices": [_choice(n, "".join(words), capped) for n, (words, capped) in enumerate(answers)]}
        pieces = [Piece(encode(whole | ({} if told is None else {"usage": told})), output, thought * choices)]
    counted = Usage(input=prompt - cached, cache_read=cached, output=output, reasoning=thought * choices)
    return Reply(model=model, stream=bool(body.get("stream")), usage=counted, pieces=pieces)


def _choice(index: int, text: str, capped: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": "length" if capped else "stop"}


def _openai_events(
    head: dict[str, Any],
    answers: list[tuple[list[str], bool]],
    thought: int,
    usage: dict[str, Any] | None,
    *,
    asks: bool,
) -> Iterator[Piece]:
    unused = {"usage": None} if asks else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, count: int = 0, thought: int = 0) -> Piece:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return Piece(b"data: " + encode(head | {"choices": [choice]} | unused) + b"\n\n", count, thought)

    for index, (words, capped) in enumerate(answers):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, thought, thought)
        for word in words:
            yield chunk(index, {"content": word}, None, 1)
        yield chunk(index, {}, "length" if capped else "stop")
    if asks and usage is not None:
        yield Piece(b"data: " + encode(head | {"choices": [], "usage": usage}) + b"\n\n")
    yield Piece(b"data: [DONE]\n\n")


def openai_embeddings(body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """POST /v1/embeddings: one vector for each input, as floats or base64."""
    model = _check(body, "model", str)
    asked = _check(body, "input", (str, list))
    inputs = [asked] if isinstance(asked, str) or isinstance(asked[0], int) else asked
    prompt = sum(tokens(text) if isinstance(text, str) else len(text) for text in inputs)
    size = _cap(body, "dimensions") or 8
    data = []
    for index, text in enumerate(inputs):
        seed = crc32(encode(text))
        vector = [((seed >> (n % 24)) & 255) / 255 for n in range(size)]
        packed = body.get("encoding_format") == "base64"
        embedding = base64.b64encode(pack(f"<{size}f", *vector)).decode() if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"usage": {"prompt_tokens": prompt, "total_tokens": prompt}} if traits.tells_usage else {}
    whole = encode({"object": "list", "data": data, "model": model} | usage)
    return Reply(model=model, stream=False, usage=Usage(input=prompt), pieces=[Piece(whole)])


def _marked(body: dict[str, Any]) -> dict[str, int]:
    """Tokens of the blocks that `cache_control` marks, by how long they live."""
    places = [body.get("system"), body.get("tools"), *(message.get("content") for message in body["messages"])]
    blocks = [block for place in places if isinstance(place, list) for block in place if isinstance(block, dict)]
    written = {"5m": 0, "1h": 0}
    for block in blocks:
        if isinstance(control := block.get("cache_control"), dict):
            written["1h" if control.get("ttl") == "1h" else "5m"] += tokens(block)
    return written


def anthropic_messages(body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """POST /v1/messages. Blocks marked by `cache_control` are cache writes; `input_tokens` is what no cache touched."""
    asked, cap = _check(body, "model", str), _cap(body, "max_tokens")
    if cap is None:
        raise BadAskError("max_tokens: Field required")
    prompt, written = _prompt(body, "system", "tools"), _marked(body)
    fresh = prompt - written["5m"] - written["1h"]
    cached, thought = min(traits.cached_tokens, fresh), min(traits.reasoning_tokens, cap)
    words, capped = _words(body, cap - thought)
    output, model = thought + len(words), SERVED.get(asked, asked)
    counted = Usage(
        input=fresh - cached, cache_read=cached, cache_write_5m=written["5m"], cache_write_1h=written["1h"],
        output=output, reasoning=thought,
    )  # fmt: skip
    prompt_side = {
        "input_tokens": counted.input,
        "cache_creation_input_tokens": written["5m"] + written["1h"],
        "cache_read_input_tokens": cached,
    }
    by_age = {"ephemeral_5m_input_tokens": written["5m"], "ephemeral_1h_input_tokens": written["1h"]}
    spent = {"output_tokens": output, "output_tokens_details": {"thinking_tokens": thought}}
    first = prompt_side | {"cache_creation": by_age, "output_tokens": 1, "service_tier": "standard"}
    message: dict[str, Any] = {
        "model": model, "id": f"msg_{number:08d}", "type": "message", "role": "assistant",
        "content": [], "stop_reason": None, "stop_sequence": None,
    }  # fmt: skip
    told, stop = traits.tells_usage, "max_tokens" if capped else "end_turn"
    if body.get("stream"):
        begin = message | ({"usage": first} if told else {})
        end = {"delta": {"stop_reason": stop, "stop_sequence": None}} | ({"usage": prompt_side | spent} if told else {})
        pieces = list(_anthropic_events(begin, words, thought, end))
    else:
        content = [{"type": "text", "text": "".join(words)}]
        whole = message | {"content": content, "stop_reason": stop} | ({"usage": first | spent} if told else {})
        pieces = [Piece(encode(whole), output, thought)]
    return Reply(model=model, stream=bool(body.get("stream")), usage=counted, pieces=pieces)


def _anthropic_events(message: dict[str, Any], words: list[str], thought: int, end: dict[str, Any]) -> Iterator[Piece]:
    def event(name: str, count: int = 0, thought: int = 0, **members: Any) -> Piece:
        return Piece(b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name} | members)), count, thought)

    yield event("message_start", thought, thought, message=message)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    for word in words:
        yield event("content_block_delta", 1, index=0, delta={"type": "text_delta", "text": word})
    yield event("content_block_stop", index=0)
    yield event("message_delta", **end)
    yield event("message_stop")


#: status → (OpenAI type, OpenAI code, Anthropic type, message)
ERRORS: Final = {
    400: ("invalid_request_error", None, "invalid_request_error", "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "authentication_error", "Incorrect API key provided."),
    403: ("insufficient_permissions", None, "permission_error", "Not allowed."),
    404: ("invalid_request_error", "not_found", "not_found_error", "There is nothing at this path."),
    429: ("requests", "rate_limit_exceeded", "rate_limit_error", "Rate limit reached."),
    500: ("server_error", None, "api_error", "The server had an error."),
    529: ("server_error", "overloaded", "overloaded_error", "Overloaded."),
}


def error_body(refusal: Refuse, dialect: str, request_id: str) -> bytes:
    """An error as the dialect words it."""
    kind, code, anthropic_kind, message = ERRORS.get(refusal.status, ERRORS[400 if refusal.status < 500 else 500])
    message = refusal.message or message
    if dialect == "anthropic-messages":
        error = {"type": refusal.type or anthropic_kind, "message": message}
        return encode({"type": "error", "error": error, "request_id": request_id})
    if dialect == "google-generate":
        status = refusal.type or {429: "RESOURCE_EXHAUSTED"}.get(refusal.status, "INVALID_ARGUMENT")
        return encode({"error": {"code": refusal.status, "message": message, "status": status}})
    return encode(
        {"error": {"message": message, "type": refusal.type or kind, "param": None, "code": refusal.code or code}}
    )


def error_piece(refusal: Refuse, dialect: str, request_id: str, *, stream: bool, array: bool = False) -> Piece:
    """The same error inside a reply that began well."""
    body = error_body(refusal, dialect, request_id)
    if not stream or array:
        return Piece(b",\n" + body if array else body)
    if dialect == "openai-responses":
        body = b'{"type":"error",' + body[1:]
    name = b"event: error\n" if dialect in ("anthropic-messages", "openai-responses") else b""
    return Piece(name + b"data: " + body + b"\n\n")


def anthropic_count(body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """POST /v1/messages/count_tokens: free."""
    model, prompt = _check(body, "model", str), _prompt(body, "system", "tools")
    return Reply(model=model, stream=False, free=True, usage=Usage(), pieces=[Piece(encode({"input_tokens": prompt}))])
