"""OpenAI chat completions: how many tokens a prompt can have, whatever stands in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.json_body import (
    AUDIO_TOKENS,
    FILE_TOKENS,
    TEMPLATE_TOKENS,
    TOOL_PREAMBLE_TOKENS,
    WINDOW_TOKENS,
)
from tollkeeper.dialects.openai_chat import read_ask
from tollkeeper.dialects.openai_prompt import IMAGE_TOKENS, SEARCH_TOKENS


def bound(*parts: Any) -> tuple[int, int]:
    """The prompt bound above the margin, and the body's bytes."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": list(parts)}]}).encode()
    return read_ask(body).prompt_bound - TEMPLATE_TOKENS, len(body)


def test_prompt_bound_covers_what_bytes_do_not() -> None:
    """Images and files have declared bounds; text that only talks about them has none."""
    talk, size = bound({"type": "text", "text": '{"image_url": 1, "file": {"audio": {"id"'})
    assert talk == size
    by_url, size = bound({"type": "image_url", "image_url": {"url": "https://x/y.png"}})
    assert by_url == size + IMAGE_TOKENS
    body = b'{"model":"m","web_search_options": {}}'
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + SEARCH_TOKENS
    by_id, size = bound({"type": "file", "file": {"file_id": "file-1"}})
    assert by_id == size + FILE_TOKENS


def test_inline_images_are_not_text() -> None:
    """An inline image is bounded as an image, however many bytes it has; as text it counts its bytes."""
    pixels = "data:image/png;base64," + "A" * 3_000_000
    inline, _ = bound({"type": "image_url", "image_url": {"url": pixels}})
    assert IMAGE_TOKENS <= inline < IMAGE_TOKENS + 200
    as_text, size = bound({"type": "text", "text": pixels})
    assert as_text == size
    assert bound(7, {"image_url": {"url": pixels}})[0] > len(pixels)  # not the wire's shape: no discount


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "file", "file": {"file_id": "file-1"}}, FILE_TOKENS),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,A"}}, FILE_TOKENS),
        ({"image": "iVBOR"}, IMAGE_TOKENS),
        ({"type": "video_url", "video_url": {"url": "https://x"}}, WINDOW_TOKENS),
        ({"type": "audio_url", "audio_url": {"url": "https://x"}}, WINDOW_TOKENS),
        ({"type": "document_url", "document_url": "https://x"}, WINDOW_TOKENS),
        ({"type": "video", "video": ["https://x"]}, WINDOW_TOKENS),
        ({"type": "input_audio", "input_audio": "https://x"}, WINDOW_TOKENS),
        ({"type": "audio", "audio": "https://x"}, WINDOW_TOKENS),
    ],
)
def test_parts_of_unknown_size(part: dict[str, Any], tokens: int) -> None:
    """C3: what stands behind an id or a URL, or is no text, has a declared bound, and such a prompt is not plain."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()
    ask = read_ask(body)
    inside = len(json.dumps(part["file"]["file_data"])) if "file_data" in part.get("file", {}) else 0
    assert ask.prompt_bound == len(body) - inside + TEMPLATE_TOKENS + tokens
    assert not ask.plain


def test_an_earlier_replys_audio() -> None:
    """What a model said before comes back by its id: it has no more tokens than a reply."""
    body = json.dumps({"model": "m", "messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}).encode()
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + AUDIO_TOKENS


@pytest.mark.parametrize("messages", [{}, 7, [7], [{"content": 7}], [{"content": [7]}], [{"content": [{"file": 7}]}]])
def test_messages_of_another_shape(messages: Any) -> None:
    """C3: what cannot be read may be anything: it counts as a window, and is not plain."""
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + WINDOW_TOKENS
    assert not read_ask(body).plain


def test_names_in_escapes() -> None:
    """C3: a part whose name is written in escapes is that part."""
    body = rb'{"model":"m","messages":[{"content":[{"im\u0061ge_url":{"url":"https://x"}}]}]}'
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + IMAGE_TOKENS


def test_all_media_fill_one_window() -> None:
    """A request of a hundred images is bounded by the longest window, above its own text."""
    bounded, size = bound(*[{"type": "image_url", "image_url": {"url": "https://x"}}] * 100)
    assert bounded == size + WINDOW_TOKENS


@pytest.mark.parametrize(
    "fields",
    [
        {"web_search_options": {}}, {"tools": [{"type": "web_search"}]}, {"tools": [{"type": "openrouter:web_search"}]},
        {"tools": [{"type": "browser_search"}]}, {"search_parameters": {"mode": "on"}}, {"plugins": [{"id": "web"}]},
        {"model": "openai/gpt-4o:online"}, {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]},
    ],
    ids=str,
)  # fmt: skip
def test_searches_add_to_the_prompt(fields: dict[str, Any]) -> None:
    """C3: whatever asks for a search at the provider has its declared bound."""
    body = json.dumps({"model": "m", "messages": []} | fields).encode()
    ask = read_ask(body)
    tools = TOOL_PREAMBLE_TOKENS if "tools" in fields else 0
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS + tools + SEARCH_TOKENS
    assert not ask.plain


def test_inline_files_and_recordings() -> None:
    """A PDF counts as a file alone; a recording has a token per 16 bytes, in the two forms that are documented; others all."""
    pdf = {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + "A" * 3_000_000}
    assert FILE_TOKENS <= bound({"type": "file", "file": pdf})[0] < FILE_TOKENS + 300
    text = {"filename": "a.csv", "file_data": "data:text/csv;base64," + "A" * 3_000_000}
    assert bound({"type": "file", "file": text})[0] > FILE_TOKENS + 3_000_000
    for form, most in (("wav", 200_300), ("mp3", 200_300), ("flac", 3_200_300)):
        sound = {"type": "input_audio", "input_audio": {"data": "A" * 3_200_000, "format": form}}
        assert most - 300 <= bound(sound)[0] < most
        assert not read_ask(json.dumps({"model": "m", "messages": [{"content": [sound]}]}).encode()).plain


def test_a_tools_parameters_are_no_media() -> None:
    """A tool with a parameter named file, or an image in its schema, holds no file: the prompt is plain."""
    tool = {"type": "function", "function": {"parameters": {"properties": {"file": {"type": "string"}, "image": {}}}}}
    body = json.dumps({"model": "m", "messages": [], "tools": [tool]}).encode()
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + TOOL_PREAMBLE_TOKENS
    assert read_ask(body).plain
