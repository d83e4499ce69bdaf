"""Anthropic messages: how many tokens a prompt can have, whatever stands in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.anthropic_messages import read_ask
from tollkeeper.dialects.anthropic_prompt import BUILT_IN_TOOL_TOKENS, IMAGE_TOKENS
from tollkeeper.dialects.json_body import (
    FILE_TOKENS,
    SERVER_TOOL_TOKENS,
    TEMPLATE_TOKENS,
    TOOL_PREAMBLE_TOKENS,
    WINDOW_TOKENS,
)


def bound(*blocks: Any, **fields: Any) -> tuple[int, int]:
    """The prompt bound above the margin, and the body's bytes."""
    message = {"role": "user", "content": list(blocks)}
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [message], **fields}).encode()
    return read_ask(body).prompt_bound - TEMPLATE_TOKENS, len(body)


def test_prompt_bound_covers_what_bytes_do_not() -> None:
    """Images, documents and tools that run at the provider have declared bounds."""
    cases = [
        ({"type": "image", "source": {"type": "url", "url": "https://x"}}, {}, IMAGE_TOKENS),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, {}, FILE_TOKENS),
        ({"type": "text", "text": '"type": "image"'}, {}, 0),
        (
            {},
            {"tools": [{"type": "web_search_20250305"}, {"type": "custom"}]},
            TOOL_PREAMBLE_TOKENS + SERVER_TOOL_TOKENS,
        ),
    ]
    for block, fields, tokens in cases:
        bounded, size = bound(block, **fields)
        assert bounded == size + tokens


def test_inline_images_are_not_text() -> None:
    """An inline image is bounded as an image, in a tool's result too; other blocks count their bytes."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}}
    result = {"type": "tool_result", "content": [image, {"type": "text", "text": "x"}]}
    bounded, _ = bound(image, result)
    assert 2 * IMAGE_TOKENS <= bounded < 2 * IMAGE_TOKENS + 500
    assert bound(image | {"type": "text"})[0] > 3_000_000
    assert bound(image, 7)[0] > 3_000_000  # not the wire's shape: no discount


def test_documents_are_bounded_by_what_they_are() -> None:
    """A PDF is a file, however many bytes it has; a text stands in the body, and its bytes bound it as they do any text."""
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 3_000_000}}
    assert FILE_TOKENS <= bound(pdf)[0] < FILE_TOKENS + 300
    assert FILE_TOKENS <= bound(pdf, pdf)[0] < FILE_TOKENS + 500  # together they fill one window
    for source in (
        {"type": "text", "media_type": "text/plain", "data": "A" * 50_000},
        {"type": "content", "content": "A" * 50_000},
        {"type": "text", "media_type": "application/pdf", "data": "A" * 50_000},
    ):
        bounded, size = bound({"type": "document", "source": source})
        assert bounded == size
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 50_000}}
    bounded, _ = bound({"type": "document", "source": {"type": "content", "content": [image]}})
    assert IMAGE_TOKENS <= bounded < IMAGE_TOKENS + 400
    other, size = bound({"type": "document", "source": pdf["source"] | {"media_type": "text/csv"}})  # type: ignore[operator]
    assert other == size + FILE_TOKENS


@pytest.mark.parametrize("messages", [{}, 7, [7], [{"content": 7}], [{"content": [{"type": 7}]}]])
def test_messages_of_another_shape(messages: Any) -> None:
    """C3: what cannot be read may be anything: it counts as a window, and is not plain."""
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": messages}).encode()
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + WINDOW_TOKENS
    assert not read_ask(body).plain


@pytest.mark.parametrize(
    "block",
    [
        {"type": "web_search_tool_result", "content": {"type": "web_search_tool_result_error", "error_code": "x"}},
        {"type": "code_execution_tool_result", "content": {"type": "code_execution_result", "content": []}},
        {"type": "search_result", "source": "https://x", "title": "t", "content": [{"type": "text", "text": "x"}]},
        {"type": "tool_result", "tool_use_id": "t", "content": "x"},
        {"type": "thinking", "thinking": "x", "signature": "y"},
    ],
    ids=lambda block: block["type"],
)
def test_other_blocks_are_text(block: dict[str, Any]) -> None:
    """Blocks of every shape that the wire has are read, and bounded by their bytes."""
    bounded, size = bound(block)
    assert bounded == size


def test_tools_described_at_the_provider() -> None:
    """A built-in tool has few bytes here and up to 1,000 tokens there, each of them."""
    tools = [{"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728"}, {"type": "computer_20251124"}]
    bounded, size = bound(tools=tools)
    assert bounded == size + TOOL_PREAMBLE_TOKENS + 3 * BUILT_IN_TOOL_TOKENS
    assert bounded > 346 + 245 + 700 + 735 + 499  # as documented, with computer use's own system prompt


def test_compaction_reads_the_prompt_twice() -> None:
    """What the provider sums up by itself is read once for that, and what is left of it once more."""
    edits = {"context_management": {"edits": [{"type": "compact_20260112"}]}}
    bounded, size = bound(**edits)
    assert bounded == 2 * size + TEMPLATE_TOKENS


@pytest.mark.parametrize(
    ("blocks", "fields", "plain"),
    [
        ([{"type": "text", "text": "an image"}], {}, True),
        ([], {"tools": [{"name": "image", "input_schema": {}}, {"type": "bash_20250124"}]}, True),
        ([{"type": "image", "source": {"type": "url", "url": "https://x"}}], {}, False),
        ([{"type": "document", "source": {"type": "text", "data": "x"}}], {}, True),
        ([{"type": "document", "source": {"type": "url", "url": "https://x"}}], {}, False),
        ([], {"tools": [{"type": "web_fetch_20250910"}]}, False),
        ([], {"tools": [{"type": "tool_search_tool_regex_20251119"}]}, False),
        ([], {"mcp_servers": [{}]}, False),
        ([], {"context_management": {"edits": [{"type": "compact_20260112"}]}}, False),
    ],
)
def test_only_text_is_plain(blocks: list[Any], fields: dict[str, Any], plain: bool) -> None:
    """A prompt is plain where nothing but its own text makes its tokens."""
    message = {"role": "user", "content": blocks}
    assert (
        read_ask(json.dumps({"model": "m", "max_tokens": 1, "messages": [message], **fields}).encode()).plain == plain
    )
