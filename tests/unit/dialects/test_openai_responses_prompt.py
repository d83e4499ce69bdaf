"""openai_responses_prompt: what the prompt of a response can have at most."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects.json_body import FILE_TOKENS, SERVER_TOOL_TOKENS, TEMPLATE_TOKENS, TOOL_PREAMBLE_TOKENS
from tollkeeper.dialects.openai_responses import read_ask
from tollkeeper.dialects.openai_responses_prompt import HELD_TOKENS, MODE_TOKENS
from tollkeeper.dialects.openai_wire import IMAGE_TOKENS


def beyond(**fields: Any) -> int:
    """The prompt bound above the body's bytes and the margin."""
    body = json.dumps({"model": "m", "input": "x"} | fields).encode()
    return read_ask(body).prompt_bound - len(body) - TEMPLATE_TOKENS


def parts(*content: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(content)}]}


BEYOND: dict[str, tuple[dict[str, Any], int]] = {
    "text that talks about it": (parts({"type": "input_text", "text": '"type": "input_image" "item_reference"'}), 0),
    "image by URL": (parts({"type": "input_image", "image_url": "https://x/y.png"}), IMAGE_TOKENS),
    "image by id": (parts({"type": "input_image", "file_id": "file-1"}), IMAGE_TOKENS),
    "file": (parts({"type": "input_file", "file_id": "file-1"}, {"type": "input_file", "file_url": "https://x"}), FILE_TOKENS),
    "screen by id": (
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}}]},
        IMAGE_TOKENS,
    ),
    "audio inline": (parts({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}), 0),
    "earlier response": ({"previous_response_id": "resp_1"}, HELD_TOKENS),
    "null is nothing": ({"previous_response_id": None, "conversation": None, "prompt": None, "tools": None}, TOOL_PREAMBLE_TOKENS),
    "conversation": ({"conversation": {"id": "conv_1"}}, HELD_TOKENS),
    "stored prompt": ({"prompt": {"id": "pmpt_1"}}, HELD_TOKENS),
    "item by id": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, HELD_TOKENS),
    "item by id alone": ({"input": [{"id": "msg_1"}, {"type": "message", "id": "msg_2", "content": "x"}]}, HELD_TOKENS),
    "all that is held once": ({"prompt": {"id": "p"}, "previous_response_id": "r"}, HELD_TOKENS),
    "pro mode": ({"reasoning": {"mode": "pro"}}, MODE_TOKENS),
    "the usual mode": ({"reasoning": {"effort": "high", "mode": "standard"}}, 0),
    "the caller's tools": ({"tools": [{"type": "function"}, {"type": "local_shell"}]}, TOOL_PREAMBLE_TOKENS),
    "the provider's tools": (
        {"tools": [{"type": "web_search_2025_08_26"}, {"type": "file_search"}, {"type": "mcp"}]},
        3 * SERVER_TOOL_TOKENS + TOOL_PREAMBLE_TOKENS,
    ),
    "a tool of tomorrow": ({"tools": [{"type": "oracle"}]}, SERVER_TOOL_TOKENS + TOOL_PREAMBLE_TOKENS),
    "a plugin": ({"plugins": [{"id": "web"}]}, SERVER_TOOL_TOKENS),
    "tools of another shape": ({"tools": 7}, TOOL_PREAMBLE_TOKENS),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "tokens"), BEYOND.values(), ids=BEYOND)
def test_prompt_bound_covers_what_bytes_do_not(fields: dict[str, Any], tokens: int) -> None:
    """C3: what does not stand in the body has declared bounds; text that only talks about it has none."""
    assert beyond(**fields) == tokens


def test_escapes_hide_nothing() -> None:
    """C3: a name may be written with escapes; what it names counts all the same."""
    body = rb'{"model":"m","input":[{"role":"user","content":[{"type":"input_\u0069mage","file_id":"f"}]}]}'
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + IMAGE_TOKENS


def test_plain_asks_are_text_alone() -> None:
    """Prompts of text may be quoted by what such prompts have; what is held or run at the provider may not."""
    assert read_ask(b'{"model":"m","input":"hi"}').plain
    for more in ({"previous_response_id": "r"}, {"tools": [{"type": "web_search"}]}, parts({"type": "input_audio"})):
        assert not read_ask(json.dumps({"model": "m", "input": "hi", **more}).encode()).plain


def test_inline_images_are_not_text() -> None:
    """An inline image is bounded as an image, however many bytes it has; as text it counts its bytes."""
    pixels = "data:image/png;base64," + "A" * 3_000_000
    shot = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": pixels}}
    drawn = {"type": "image_generation_call", "result": pixels}
    given = {"type": "function_call_output", "output": [{"type": "input_image", "image_url": pixels}]}
    for item in (shot, drawn, given, *parts({"type": "input_image", "image_url": pixels})["input"]):
        bound = read_ask(json.dumps({"model": "m", "input": [item]}).encode()).prompt_bound
        assert IMAGE_TOKENS <= bound < IMAGE_TOKENS + 600
    assert read_ask(json.dumps({"model": "m", "input": pixels}).encode()).prompt_bound > len(pixels)
    untyped = parts({"image_url": pixels})["input"]
    for odd in ([7, {"type": "input_image", "image_url": pixels}], untyped):  # not the wire's shape: no discount
        assert read_ask(json.dumps({"model": "m", "input": odd}).encode()).prompt_bound > len(pixels)
