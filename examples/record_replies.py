"""Book what providers answered, without counting tokens by hand. Runs offline: python examples/record_replies.py

`reply` and `chunks` stand for what your own client gets: bytes, dicts and the official SDKs' objects do alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tollkeeper import CostTracker

reply: dict[str, Any] = {
    "id": "msg_01J5b4NzQ9mRkW3tYcVxHs7D",
    "model": "claude-haiku-4-5-20251001",
    "content": [{"type": "text", "text": "Forty-two."}],
    "usage": {"input_tokens": 56_322, "cache_read_input_tokens": 72_960, "output_tokens": 87},
}


async def chunks() -> AsyncIterator[dict[str, Any]]:
    for word in ("Forty", "-", "two"):
        yield {"model": "gpt-4o-mini", "choices": [{"delta": {"content": word}}]}
    yield {"model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 1200, "completion_tokens": 300}}


async def main() -> None:
    async with CostTracker(store="memory:", settings={}) as tracker:
        for _ in range(2):  # the provider's id says that it is the same reply
            told = await tracker.record_response("anthropic-messages", reply, project_id="shop", agent_id="writer")
            print(f"{told.entry.call}: ${told.amount_usd}, {told.booked}")

        call: dict[str, Any] = {"project_id": "shop", "model": "gpt-4o-mini", "prompt_tokens": 5000}
        async with tracker.record_stream("openai-chat", chunks(), **call) as stream:
            async for chunk in stream:
                print(*(choice["delta"]["content"] for choice in chunk["choices"]), end="")
        print(f": ${stream.recorded.amount_usd}, {stream.recorded.status}")

        async with tracker.record_stream("openai-chat", chunks(), **call) as stream:
            async for _ in stream:
                break  # estimated by what was seen
        print(f"left early: ${stream.recorded.amount_usd}, {stream.recorded.status}")

        usage = {"inputTokens": 1200, "outputTokens": 300, "totalTokens": 1500}
        async with tracker.hold("shop", "writer", "us.amazon.nova-micro-v1:0", 5000, provider="bedrock") as hold:
            told = await hold.settle_response("bedrock-converse", {"output": {}, "usage": usage})
            print(f"held ${hold.quote_usd}, cost ${told.amount_usd}")


if __name__ == "__main__":
    asyncio.run(main())
