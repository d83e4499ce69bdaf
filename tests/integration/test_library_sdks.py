"""The library over the official SDKs' own objects and live streams: what is booked is what the provider bills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tollkeeper.testing.provider import Cut, FakeProvider, Refuse, serving
from tollkeeper.tracker import CostTracker

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How much is the toll?"}]}
MESSAGES = CHAT | {"model": "claude-haiku-4-5", "max_tokens": 20}
TOLD: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
WHO: dict[str, Any] = {"project_id": "p", "agent_id": "a"}


@asynccontextmanager
async def asking(
    provider: FakeProvider,
) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic, CostTracker]]:
    async with (
        serving(provider) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as chat,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk-ant-test", max_retries=0) as messages,
        CostTracker("memory:", {}) as costs,
    ):
        yield chat, messages, costs


async def test_whole_replies() -> None:
    """A9: a completion, embeddings and a message, as objects and as raw bytes, are booked as billed."""
    provider = FakeProvider(cached_tokens=4, reasoning_tokens=3)
    async with asking(provider) as (chat, messages, costs):
        told = [
            await costs.record_response("openai-chat", await chat.chat.completions.create(**CHAT), **WHO),
            await costs.record_response(
                "openai-embeddings", await chat.embeddings.create(model="text-embedding-3-small", input="toll"), **WHO
            ),
            await costs.record_response("anthropic-messages", await messages.messages.create(**MESSAGES), **WHO),
        ]
        raw = await chat.chat.completions.with_raw_response.create(**CHAT)
        told.append(await costs.record_response("openai-chat", raw.content, http_status=raw.status_code, **WHO))
    assert [each.entry.usage for each in told] == [billed.usage for billed in provider.bill]
    assert [each.entry.served for each in told] == [billed.model for billed in provider.bill]
    assert [(each.booked, each.status, each.entry.outcome) for each in told] == [("booked", "priced", "ok")] * 4


async def test_live_streams() -> None:
    """A9: the SDKs' live streams give the caller their own events, and are booked as billed; helpers' events do no harm."""
    provider = FakeProvider(cached_tokens=4)
    async with asking(provider) as (chat, messages, costs):
        chunks = costs.record_stream(
            "openai-chat", await chat.chat.completions.create(**CHAT, **TOLD), model=CHAT["model"], **WHO
        )
        assert all([isinstance(chunk, openai.types.chat.ChatCompletionChunk) async for chunk in chunks])
        events = costs.record_stream(
            "anthropic-messages",
            await messages.messages.create(**MESSAGES, stream=True),
            model=MESSAGES["model"],
            **WHO,
        )
        assert [event.type async for event in events][-1] == "message_stop"
        async with messages.messages.stream(**MESSAGES) as helped:
            more = costs.record_stream("anthropic-messages", helped, model=MESSAGES["model"], **WHO)
            assert "text" in [event.type async for event in more]
        told = [each.recorded for each in (chunks, events, more)]
    assert [each and each.entry.usage for each in told] == [billed.usage for billed in provider.bill]
    assert [each and (each.status, each.entry.outcome) for each in told] == [("priced", "ok")] * 3


async def test_a_stream_that_breaks() -> None:
    """D3: where the provider breaks off, the SDK's own error reaches the caller, and the call is booked as cut."""
    async with asking(FakeProvider(always=Cut(3))) as (chat, _, costs):
        live = await chat.chat.completions.create(**CHAT, **TOLD)
        stream = costs.record_stream("openai-chat", live, model=CHAT["model"], prompt_tokens=50, **WHO)
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]
        assert stream.recorded is not None
        assert (stream.recorded.status, stream.recorded.entry.outcome) == ("estimated", "cut")


async def test_refusals() -> None:
    """A refusal that an SDK raises is booked by its body and status: an error that costs nothing."""
    async with asking(FakeProvider(always=Refuse(429))) as (chat, _, costs):
        with pytest.raises(openai.APIStatusError) as refused:
            await chat.chat.completions.create(**CHAT)
        error = refused.value
        told = await costs.record_response(
            "openai-chat", error.response.content, http_status=error.status_code, model=CHAT["model"], **WHO
        )
        assert (told.amount_usd, told.entry.outcome, told.entry.http_status) == (0, "error", 429)
