"""What a Gemini prompt can have at most."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.google_prompt import (
    BYTES_PER_TOKEN,
    DOCUMENT_TOKENS,
    IMAGE_TOKENS,
    WINDOW_TOKENS,
    prompt_of,
)
from tollkeeper.dialects.json_body import SERVER_TOOL_TOKENS, TEMPLATE_TOKENS, TOOL_PREAMBLE_TOKENS, read_object

DATA = "A" * 4000


def media(body: dict[str, Any], text: int = 0) -> int:
    """Tokens of the bound beyond the body's own bytes; `text` of them are not counted as text."""
    raw = json.dumps(body).encode()
    around = TEMPLATE_TOKENS + (TOOL_PREAMBLE_TOKENS if "tools" in body else 0)
    return prompt_of(raw, read_object(raw))[0] - len(raw) - around + text


def of(*parts: Any) -> dict[str, Any]:
    return {"contents": [{"parts": list(parts)}]}


def inline(kind: str, **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": kind, "data": DATA}, **more}


QUOTED = len(DATA) + 2


def test_text_is_bounded_by_its_bytes() -> None:
    """C3: plain text has at most one token a byte; text that talks about media adds nothing."""
    assert media(of({"text": 'an "inlineData": {} and "fileData": {"fileUri": 1}'})) == 0


@pytest.mark.parametrize(
    ("part", "tokens", "left_out"),
    [
        (inline("image/png"), IMAGE_TOKENS, QUOTED),
        (inline("IMAGE/JPEG"), IMAGE_TOKENS, QUOTED),
        (inline("audio/mp3"), 300 + QUOTED // BYTES_PER_TOKEN, QUOTED),
        (inline("video/mp4"), 300 + QUOTED // BYTES_PER_TOKEN, QUOTED),
        (inline("video/mp4", videoMetadata={"fps": 24}), WINDOW_TOKENS, QUOTED),
        (inline("application/pdf"), DOCUMENT_TOKENS, QUOTED),
        (inline("text/plain"), 0, 0),
        ({"inline_data": {"mime_type": "image/png", "data": DATA}}, IMAGE_TOKENS, QUOTED),
        ({"fileData": {"mimeType": "image/png", "fileUri": "u"}}, IMAGE_TOKENS, 0),
        ({"fileData": {"mimeType": "application/pdf", "fileUri": "u"}}, DOCUMENT_TOKENS, 0),
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "u"}}, WINDOW_TOKENS, 0),
        ({"file_data": {"file_uri": "u"}}, WINDOW_TOKENS, 0),
        ({"functionResponse": {"parts": [inline("image/png")]}}, IMAGE_TOKENS, QUOTED),
        ({"function_response": {"parts": [{"fileData": {"mimeType": "image/png"}}]}}, IMAGE_TOKENS, 0),
    ],
)
def test_media(part: Any, tokens: int, left_out: int) -> None:
    """C3: each kind of medium has its declared bound, inside the body or by URI, in either spelling, anywhere in a turn."""
    assert media(of(part), left_out) == tokens
    for place in ("systemInstruction", "system_instruction", "content"):
        assert media({"contents": [], place: {"parts": part}}, left_out) == tokens
    assert media({"requests": [{"content": {"parts": [part]}}]}, left_out) == tokens


def test_names_in_escapes() -> None:
    """H4: a member whose name is written in escapes is seen too."""
    raw = b'{"contents":[{"parts":[{"file\\u0044ata":{"fileUri":"u"}}]}]}'
    assert prompt_of(raw, read_object(raw))[0] == len(raw) + TEMPLATE_TOKENS + WINDOW_TOKENS


def test_media_where_nobody_looks() -> None:
    """C3: media in an unknown place, or in a body of another shape, count as a whole window."""
    part = {"fileData": {"mimeType": "image/png"}}
    assert media({"somewhere": part}) == WINDOW_TOKENS
    assert media({"contents": [7, {"parts": [part]}]}) == WINDOW_TOKENS


def test_prompts_kept_at_the_provider() -> None:
    """C3: a prompt that is kept there may be as long as the window; null keeps none."""
    assert media({"contents": [], "cachedContent": "cachedContents/1"}) == WINDOW_TOKENS
    assert media({"contents": [], "cached_content": "cachedContents/1"}) == WINDOW_TOKENS
    assert media({"contents": [], "cachedContent": None}) == 0


@pytest.mark.parametrize(
    ("tools", "tokens"),
    [
        ([{"functionDeclarations": [{"name": "codeExecution"}]}], 0),
        ([{"googleSearch": {}}], SERVER_TOOL_TOKENS),
        ([{"googleSearch": {}, "codeExecution": {}}, {"function_declarations": []}], 2 * SERVER_TOOL_TOKENS),
        ({"fileSearch": {}}, SERVER_TOOL_TOKENS),
        ([{"urlContext": {}}], WINDOW_TOKENS),
        ([7], WINDOW_TOKENS),
        (None, 0),
    ],
)
def test_tools(tools: Any, tokens: int) -> None:
    """C3: what tools fetch at the provider has a declared bound; functions of the client's fetch nothing."""
    assert media({"contents": [], "tools": tools}) == tokens


def test_all_together_fit_the_window() -> None:
    """C3: no prompt is longer than the window, so media together count as one at most."""
    video = {"fileData": {"mimeType": "video/mp4", "fileUri": "u"}}
    assert media(of(video, video) | {"cachedContent": "c", "tools": [{"urlContext": {}}]}) == WINDOW_TOKENS


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (of({"text": "hi"}), True),
        (of({"text": "hi"}) | {"tools": [{"functionDeclarations": []}]}, True),
        (of(inline("image/png")), False),
        (of(inline("text/plain")), False),
        ({"contents": [], "cachedContent": "c"}, False),
        ({"contents": [], "tools": [{"googleSearch": {}}]}, False),
    ],
)
def test_plain_asks_are_text_alone(body: dict[str, Any], plain: bool) -> None:
    """Prompts of text may be quoted by what such prompts have; media, kept prompts and what a tool fetches may not."""
    raw = json.dumps(body).encode()
    assert prompt_of(raw, read_object(raw))[1] is plain
