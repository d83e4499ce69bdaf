"""What a response costs beside its tokens: searches, containers and images, each counted once."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from tests.pricing import NOON

from tollkeeper.dialects.json_reply import UNREADABLE
from tollkeeper.dialects.openai_responses_usage import DRAWN_MOST, Spent, read_response, read_spent
from tollkeeper.prices import PriceBook
from tollkeeper.values import Part, Reading, Usage


def spent(usage: dict[str, Any] | None = None, *, every: bool = False, **members: Any) -> Spent:
    """The account of a response with 20 tokens in and 30 out."""
    counts = {"input_tokens": 20, "output_tokens": 30, "total_tokens": 50} | (usage or {})
    response = read_response(json.dumps({"usage": counts} | members).encode())
    found = read_spent(response, "gpt-5", every_search_item=every)
    assert found is not None
    return found


def search(kind: str) -> dict[str, Any]:
    return {"type": "web_search_call", "action": {"type": kind}}


def ran(container: str | None) -> dict[str, Any]:
    return {"type": "code_interpreter_call", "container_id": container}


OUTPUT = [
    search("search"),
    search("open_page"),
    {"type": "file_search_call"},
    ran("a"),
    ran("a"),
    ran("b"),
    {"type": "mcp_call"},
]
COUNTED = {"web_search": 1, "file_search": 1, "code_session": 2}
TOKENS = {
    "plain": ({}, Usage(input=20, output=30)),
    "cached, written and reasoned": (
        {
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6},
            "output_tokens_details": {"reasoning_tokens": 9},
        },
        Usage(input=10, cache_read=4, cache_write_5m=6, output=30, reasoning=9),
    ),
    "audio and images": (
        {
            "input_tokens_details": {"audio_tokens": 3, "image_tokens": 5, "text_tokens": 12},
            "output_tokens_details": {"audio_tokens": 7, "image_tokens": 2},
        },
        Usage(input=12, input_audio=3, input_image=5, output=21, output_audio=7, output_image=2),
    ),
    "reasoning outside": (
        {"total_tokens": 60, "output_tokens_details": {"reasoning_tokens": 10}},
        Usage(input=20, output=40, reasoning=10),
    ),
    "cached outside": ({"input_tokens_details": {"cached_tokens": 25}}, Usage(input=20, cache_read=25, output=30)),
}


@pytest.mark.parametrize(("usage", "read"), TOKENS.values(), ids=TOKENS)
def test_tokens(usage: dict[str, Any], read: Usage) -> None:
    """Kinds are disjoint, and a provider's habits are told apart by the numbers, as in chat."""
    found = spent(usage)
    assert (found.parts, found.inferred, found.reported_usd) == ((Part(read, "gpt-5"),), False, None)


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {
    "by the items": ({}, {}, COUNTED),
    "OpenAI's own word": ({}, {"tool_usage": {"web_search": {"num_requests": 5}}}, COUNTED | {"web_search": 5}),
    "its own zero": ({}, {"tool_usage": {"web_search": {"num_requests": 0}}}, COUNTED | {"web_search": 0}),
    "it says nothing": ({}, {"tool_usage": {"web_search": {"num_requests": None}}}, COUNTED),
    "xAI's own word": (
        {
            "server_side_tool_usage_details": {
                "web_search_calls": 2, "x_search_calls": 1, "file_search_calls": 4, "document_search_calls": 3,
                "code_interpreter_calls": 6, "mcp_calls": 9,
            }
        },
        {},
        {"web_search": 3, "file_search": 7, "code_session": 6},
    ),
    "OpenRouter's own word": ({"server_tool_use": {"web_search_requests": 4}}, {}, COUNTED | {"web_search": 4}),
    "no items": ({}, {"output": []}, {}),
    "items of another shape": ({}, {"output": ["web_search_call"]}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("usage", "members", "calls"), CALLS.values(), ids=CALLS)
def test_calls(usage: dict[str, Any], members: dict[str, Any], calls: dict[str, int]) -> None:
    """A count that the provider states is its word; else items count, a container once, an opened page not at all."""
    (part,) = spent(usage, **{"output": OUTPUT, **members}).parts
    assert part.usage == Usage(input=20, output=30, **calls)


def test_every_search_item() -> None:
    """A reseller that bills each item does so whatever its upstream states."""
    (part,) = spent(every=True, output=OUTPUT, tool_usage={"web_search": {"num_requests": 1}}).parts
    assert part.usage.web_search == 2


def test_drawn_images() -> None:
    """Images have tokens of their own at the drawing model; text and pixels apart."""
    drawn = {
        "input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 300, "output_tokens_details": {"text_tokens": 0, "image_tokens": 300}, "total_tokens": 350,
    }  # fmt: skip
    tools = [{"type": "web_search"}, {"type": "image_generation", "model": "gpt-image-1-mini"}]
    image = Usage(input=10, input_image=40, output_image=300)
    assert spent(tools=tools, tool_usage={"image_gen": drawn}).parts[1] == Part(image, "gpt-image-1-mini")
    del drawn["output_tokens_details"]
    assert spent(tool_usage={"image_gen": drawn}).parts[1] == Part(image, "gpt-5")  # which has no price for images
    none = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert len(spent(tool_usage={"image_gen": none}).parts) == 1


def test_images_without_tokens() -> None:
    """An image whose tokens are not stated is never free, and never exact: whoever drew it, it has no price of its own."""
    drawn = [{"type": "image_generation_call", "result": "AAAA"}] * 2
    found = spent(output=drawn, tools=[{"type": "image_generation", "model": "gpt-image-1"}])
    assert found.parts[1] == Part(Usage(output_image=2 * DRAWN_MOST), "gpt-5")
    assert found.inferred
    reading = Reading(parts=found.parts, model="gpt-5", final=True)
    charge = PriceBook().charge(reading, provider=None, model="gpt-5", at_us=NOON)
    assert (charge.status, charge.missing) == ("partial", ("output_image",))


def test_reported_cost() -> None:
    """xAI's ticks and OpenRouter's dollars are read as written."""
    assert spent({"cost_in_usd_ticks": 160708500}).reported_usd == Decimal("0.01607085")
    assert spent({"cost": 0.00123}).reported_usd == Decimal("0.00123")


@pytest.mark.parametrize("usage", [{"input_tokens": -1}, {"output_tokens": 10**12}, {"input_tokens_details": 7}])
def test_absurd_counts_are_refused(usage: dict[str, Any]) -> None:
    """F4: a count that no call can have makes the whole object unreadable."""
    with pytest.raises(UNREADABLE):
        spent(usage)
    with pytest.raises(UNREADABLE):
        spent(tool_usage={"web_search": {"num_requests": -1}})
    assert read_spent(read_response(b'{"usage":{}}'), None, every_search_item=False) is None
