"""The fake provider's responses, asked by the official SDK: one bill, streamed or whole."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from tests.gateway import BODIES

from tollkeeper.testing.provider import FakeProvider, serving
from tollkeeper.testing.replies import Traits
from tollkeeper.testing.responses_replies import openai_responses


@pytest.mark.parametrize("cap", [None, 5])
async def test_responses_whole_and_streamed_agree(cap: int | None) -> None:
    """A response has one output, usage and bill, streamed or whole; one that its cap cut short is incomplete."""
    provider = FakeProvider(cached_tokens=2, reasoning_tokens=3)
    asked = BODIES["openai-responses"] | ({} if cap is None else {"max_output_tokens": cap})
    async with serving(provider) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]

    last: Any = events[-1]
    assert last.type == f"response.{whole.status}" == f"response.{'incomplete' if cap else 'completed'}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.response.output_text == whole.output_text != ""
    assert whole.usage == last.response.usage
    first, second = provider.bill
    assert first.usage == second.usage
    assert whole.usage is not None
    assert first.usage.output == whole.usage.output_tokens == (cap or first.usage.output)
    assert first.usage.input_tokens == whole.usage.input_tokens


def test_responses_bill_is_what_was_sent() -> None:
    """Each piece of a response's stream tells its tokens: calls, searches and thoughts too."""
    tools = [{"type": "function", "name": "f"}, {"type": "web_search"}]
    reply = openai_responses(
        {"model": "m", "input": "x", "stream": True, "tools": tools}, 1, Traits(reasoning_tokens=3)
    )
    assert sum(piece.tokens for piece in reply.pieces) == reply.usage.output
    assert sum(piece.reasoning for piece in reply.pieces) == reply.usage.reasoning == 3
    assert reply.usage.web_search == 1
