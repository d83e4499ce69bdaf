"""What a fake provider answers in Google's dialect, where the path names the model and the method.

Streams come as events with `alt=sse` and as one JSON array without it; each chunk tells the usage so far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import unquote
from zlib import crc32

from tollkeeper.testing.faults import Piece
from tollkeeper.testing.replies import BadAskError, Reply, Traits, _check, _words, encode, tokens
from tollkeeper.values import Usage

Answerer = Callable[[dict[str, Any], int, Traits], Reply]

_TARGET: Final = re.compile(r"/v1(?:beta)?/models/([^:]+):(\w+)(?:\?(.*))?")


def google_at(target: str) -> tuple[str, Answerer] | None:
    """The dialect's name and what answers at a path and query; None: there is nothing."""
    found = _TARGET.fullmatch(target)
    methods: dict[str, Callable[..., Reply]] = {
        "generateContent": partial(_generate, form=None),
        "streamGenerateContent": partial(_generate, form="sse" if found and found[3] == "alt=sse" else "array"),
        "embedContent": _embed,
        "batchEmbedContents": _embed,
        "countTokens": _count,
    }
    if found is None or found[2] not in methods:
        return None
    return "google-generate", partial(_answer, methods[found[2]], unquote(found[1]))


def _answer(method: Callable[..., Reply], model: str, body: dict[str, Any], number: int, traits: Traits) -> Reply:
    return method(model, body, number, traits)


def _prompt(body: dict[str, Any]) -> int:
    contents = _check(body, "contents", list)
    if not all(isinstance(content, dict) for content in contents):
        raise BadAskError("Invalid value at 'contents': expected objects.")
    prompt = sum(4 + tokens(content.get("parts")) for content in contents)
    return prompt + tokens((body.get("systemInstruction") or {}).get("parts")) + tokens(body.get("tools"))


def _generate(model: str, body: dict[str, Any], number: int, traits: Traits, form: str | None) -> Reply:
    prompt, config = _prompt(body), body.get("generationConfig") or {}
    cap, choices = config.get("maxOutputTokens"), config.get("candidateCount") or 1
    thought = traits.reasoning_tokens if cap is None else min(traits.reasoning_tokens, cap)
    answers = [
        _words({"messages": body["contents"]}, None if cap is None else cap - thought, choice)
        for choice in range(choices)
    ]
    said = sum(len(text) for text, _ in answers)
    cached = min(traits.cached_tokens, prompt)
    called = _called(body)

    def chunk(candidates: list[dict[str, Any]], so_far: int) -> bytes:
        usage = {
            "promptTokenCount": prompt, "candidatesTokenCount": so_far,
            "totalTokenCount": prompt + so_far + thought * choices,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
        } | ({"thoughtsTokenCount": thought * choices} if thought else {})  # fmt: skip
        if cached:
            usage |= {"cachedContentTokenCount": cached}
        told = {"usageMetadata": usage} if traits.tells_usage else {}
        return encode({"candidates": candidates} | told | {"modelVersion": model, "responseId": f"fake-{number:08d}"})

    if form is None:
        whole = [_candidate(n, "".join(text), capped, called) for n, (text, capped) in enumerate(answers)]
        pieces = [Piece(chunk(whole, said), said + thought * choices, thought * choices)]
    else:
        pieces = [_formed(n, form, piece) for n, piece in enumerate(_chunks(answers, thought, called, chunk))]
        if form == "array":
            pieces.append(Piece(b"\n]\n"))
    counted = Usage(
        input=prompt - cached, cache_read=cached, output=said + thought * choices, reasoning=thought * choices
    )
    return Reply(model=model, stream=form is not None, array=form == "array", usage=counted, pieces=pieces)


def _called(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function that is called where the client declares some and must be asked: the first one, without arguments."""
    mode = ((body.get("toolConfig") or {}).get("functionCallingConfig") or {}).get("mode")
    declared = [each for tool in body.get("tools") or [] for each in tool.get("functionDeclarations") or []]
    return {"functionCall": {"name": declared[0]["name"], "args": {}}} if mode == "ANY" and declared else None


def _candidate(index: int, text: str, capped: bool | None, called: dict[str, Any] | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": text}, *([called] if called else [])]
    end = {} if capped is None else {"finishReason": "MAX_TOKENS" if capped else "STOP"}
    return {"content": {"parts": parts, "role": "model"}, **end, "index": index}


def _chunks(
    answers: list[tuple[list[str], bool]],
    thought: int,
    called: dict[str, Any] | None,
    chunk: Callable[[list[dict[str, Any]], int], bytes],
) -> Iterator[Piece]:
    so_far = 0
    for index, (text, capped) in enumerate(answers):
        yield Piece(chunk([_candidate(index, "", None)], so_far), thought, thought)
        for word in text:
            so_far += 1
            yield Piece(chunk([_candidate(index, word, None)], so_far), 1)
        yield Piece(chunk([_candidate(index, "", capped, called)], so_far))


def _formed(at: int, form: str, piece: Piece) -> Piece:
    if form == "sse":
        return piece._replace(raw=b"data: " + piece.raw + b"\r\n\r\n")
    return piece._replace(raw=(b",\n" if at else b"[") + piece.raw)


def _embed(model: str, body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """One vector for the content, or for each of a batch's requests."""
    requests = body.get("requests")
    contents = [_check(request, "content", dict) for request in requests or [body]]
    for request in requests or [body]:
        if request.get("model") not in (None, f"models/{model}"):
            raise BadAskError("model must match the model in the path")
    prompt = sum(tokens(content.get("parts")) for content in contents)
    vectors = [{"values": [((crc32(encode(each)) >> n) & 255) / 255 for n in range(8)]} for each in contents]
    usage = {"usageMetadata": {"promptTokenCount": prompt}} if traits.tells_usage else {}
    found: dict[str, Any] = {"embedding": vectors[0]} if requests is None else {"embeddings": vectors}
    return Reply(model=model, stream=False, usage=Usage(input=prompt), pieces=[Piece(encode(found | usage))])


def _count(model: str, body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """How many tokens a prompt has: free."""
    prompt = _prompt(body.get("generateContentRequest") or body)
    told = {"totalTokens": prompt, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}]}
    return Reply(model=model, stream=False, free=True, usage=Usage(), pieces=[Piece(encode(told))])
