"""The fake provider's responses: the official SDK takes their items and events, and reads the same from both forms."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFunctionWebSearch, ResponseOutputMessage, ResponseReasoningItem

from tollkeeper.testing import responses_events
from tollkeeper.testing.provider import FakeProvider, serving
from tollkeeper.values import Usage

ASK: dict[str, Any] = {"model": "gpt-4o-mini", "input": [{"role": "user", "content": "How much is the toll?"}]}
FUNCTION = {"type": "function", "name": "pay", "strict": False, "parameters": {"type": "object"}}
CALLED = {"tools": [FUNCTION, {"type": "web_search"}], "tool_choice": "required"}


@pytest.mark.parametrize("more", [{}, CALLED], ids=["text", "call"])
async def test_whole_and_streamed_agree(more: dict[str, Any]) -> None:
    """The openai SDK reads the same output and usage from a response and from its events, which are numbered."""
    provider = FakeProvider(cached_tokens=2, reasoning_tokens=3)
    async with (
        serving(provider) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client,
    ):
        whole = await client.responses.create(**ASK, **more)
        async with client.responses.stream(**ASK, **more) as stream:
            events = [event async for event in stream]
            streamed: Any = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    kinds = ["reasoning", "web_search_call", "function_call"] if more else ["reasoning", "message"]
    assert [item.type for item in whole.output] == [item.type for item in streamed.output] == kinds
    said: list[Any] = [whole.output[-1], streamed.output[-1]]
    assert len({each.arguments if more else each.content[0].text for each in said}) == 1
    assert whole.usage == streamed.usage
    assert whole.usage is not None
    (first, second), output = provider.bill, whole.usage.output_tokens
    assert first.usage == second.usage
    prompt = whole.usage.input_tokens - 2
    assert first.usage == Usage(input=prompt, cache_read=2, output=output, reasoning=3, web_search=len(kinds) - 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_output_cap(stream: bool) -> None:
    """No response has more output tokens than its cap, reasoning inside; it says that the cap cut it."""
    provider = FakeProvider(reasoning_tokens=2)
    async with serving(provider) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        reply: Any = await client.responses.create(**ASK, max_output_tokens=5, stream=stream)
        if stream:
            last = [event async for event in reply][-1]
            assert last.type == "response.incomplete"
            reply = last.response
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (reply.usage.output_tokens, provider.bill[0].usage.output, provider.bill[0].complete) == (5, 5, True)


def test_items_are_as_the_sdk_types_them() -> None:
    """Each item has every member that the SDK's own type asks for."""
    message, search = responses_events.message("a", "x", "completed"), responses_events.web_search("b")
    assert ResponseOutputMessage.model_validate(message).id == "a"
    assert ResponseFunctionWebSearch.model_validate(search).action.type == "search"
    assert ResponseReasoningItem.model_validate(responses_events.reasoning("c")).summary == []
