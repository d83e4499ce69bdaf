"""Tools that ran at the provider: openai_tools counts what is billed, and says when it cannot."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tollkeeper.dialects.openai_tools import (
    PICTURES,
    Item,
    ToolUsage,
    pictures,
    read_item,
    read_items,
    read_tool_usage,
    units,
)
from tollkeeper.values import Part, Usage

SEARCH = {"type": "web_search_call", "action": {"type": "search", "queries": ["a", "b"]}}
PAGE = {"type": "web_search_call", "action": {"type": "open_page"}}
FIND = {"type": "web_search_call", "action": {"type": "find_in_page"}}
DRAWN = {"type": "image_generation_call", "action": "generate", "result": "AAAA"}


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def told(value: Any) -> ToolUsage:
    return read_tool_usage(raw(value))


def ran(container: str | None) -> dict[str, Any]:
    return {"type": "code_interpreter_call", "container_id": container}


def shell(**environment: str) -> dict[str, Any]:
    return {"type": "shell_call", "action": {"commands": ["ls"]}, "environment": environment or None}


@pytest.mark.parametrize(
    ("items", "counts"),
    [
        ([], (0, 0, 0)),
        ([SEARCH, PAGE, FIND], (1, 0, 0)),
        ([{"type": "web_search_call", "status": "completed"}], (1, 0, 0)),  # from before there were actions
        ([{"type": "file_search_call"}, {"type": "file_search_call"}], (0, 2, 0)),
        ([ran("c1"), ran("c1"), ran("c2")], (0, 0, 2)),
        ([ran(None), ran(None)], (0, 0, 2)),
        ([ran("c1"), shell(type="container_reference", container_id="c1")], (0, 0, 1)),
        ([shell(type="local"), shell()], (0, 0, 0)),
        ([{"type": "mcp_call"}, {"type": "function_call"}, {"type": "message", "content": []}, DRAWN], (0, 0, 0)),
    ],
)
def test_items_are_counted(items: list[Any], counts: tuple[int, int, int]) -> None:
    """A4: a search is an action that searched, a code session a container; MCP and functions cost nothing themselves."""
    found = units(read_items(raw(items)), {}, told(None), every_item=False)
    assert (found["web_search"], found["file_search"], found["code_session"]) == counts


def test_what_the_provider_states_comes_first() -> None:
    """A4: its billable searches are right, 0 too; the quirk of resellers that bill every item is above all."""
    items = read_items(raw([SEARCH, PAGE]))
    none = told({"web_search": {"num_requests": 0}})
    assert units(items, {}, none, every_item=False)["web_search"] == 0
    assert units(items, {"web_search": 5, "file_search": 3}, told(None), every_item=False) == {
        "web_search": 5, "file_search": 3, "code_session": 0,
    }  # fmt: skip
    assert units(items, {"web_search": 5}, none, every_item=False)["web_search"] == 0
    assert units(items, {"web_search": 5}, none, every_item=True)["web_search"] == 2


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        ({"input_tokens": 50, "output_tokens": 1056}, Usage(input=50, output_image=1056)),
        (
            {
                "input_tokens": 400, "input_tokens_details": {"text_tokens": 50, "image_tokens": 350},
                "output_tokens": 1060, "output_tokens_details": {"text_tokens": 4, "image_tokens": 1056},
            },
            Usage(input=50, input_image=350, output=4, output_image=1056),
        ),
        (
            {
                "input_tokens": 400, "input_tokens_details": {"text_tokens": 50, "image_tokens": 350}, "output_tokens": 9,
                "cached_tokens": 120, "cached_tokens_details": {"cached_text_tokens": 20, "cached_image_tokens": 100},
            },
            Usage(input=30, cache_read=120, input_image=250, output_image=9),
        ),
        ({"input_tokens": 50, "output_tokens": 9, "cached_tokens": 20}, Usage(input=30, cache_read=20, output_image=9)),
    ],
)  # fmt: skip
def test_pictures(counted: dict[str, Any], usage: Usage) -> None:
    """A4: a picture's tokens stand in disjoint kinds, at the model that the response's tools name."""
    tools = [{"type": "function", "name": "f"}, {"type": "image_generation", "model": "gpt-image-2"}]
    drawn = told({"image_gen": counted})
    assert pictures([], raw(tools), drawn) == Part(usage, "gpt-image-2")
    assert pictures([], raw([{"type": "image_generation"}]), drawn) == Part(usage, PICTURES)


def test_pictures_without_a_count_have_no_price() -> None:
    """A5: a picture of which nobody says what it used is not 0: its part is at a model without a price."""
    nothing = told({"image_gen": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}})
    for silent in (nothing, told(None), told({})):
        assert pictures(read_items(raw([DRAWN])), raw([]), silent) == Part(Usage(), PICTURES)
        assert pictures(read_items(raw([SEARCH])), raw([]), silent) is None


@pytest.mark.parametrize("odd", [7, "x", [7], {"a": 1}, [{"type": 3}], None])
def test_other_shapes_cost_nothing(odd: Any) -> None:
    """H4: an output of another shape raises nothing."""
    assert all(each == Item() for each in read_items(raw(odd)))
    assert read_item(raw([odd])) == Item()
    assert units([], {}, told(odd), every_item=True) == {"web_search": 0, "file_search": 0, "code_session": 0}
    assert pictures([], raw(odd), told(odd)) is None
    absurd = told({"image_gen": {"input_tokens": -1}, "web_search": {"num_requests": 2}})
    assert units([], {}, absurd, every_item=False)["web_search"] == 0
