"""What the fake provider answers in Google's dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tollkeeper.testing import google_replies
from tollkeeper.testing.provider import FakeProvider, serving


@asynccontextmanager
async def posting(provider: FakeProvider, body: dict[str, Any], path: str) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        serving(provider) as url,
        aiohttp.ClientSession() as session,
        session.post(url + path, json=body) as response,
    ):
        yield response


GOOGLE: dict[str, Any] = {"contents": [{"parts": [{"text": "How much is the toll?"}]}]}


@pytest.mark.parametrize("form", ["", "?alt=sse"])
async def test_google_replies(form: str) -> None:
    """Google's streams come as an array or as events; each chunk tells the usage so far, thoughts beside what was said."""
    path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent" + form
    provider = FakeProvider(cached_tokens=2, reasoning_tokens=3)
    ask = GOOGLE | {"generationConfig": {"maxOutputTokens": 8, "candidateCount": 2}}
    async with posting(provider, ask, path) as response:
        text = (await response.read()).decode()
    chunks = [json.loads(event[6:]) for event in text.split("\r\n\r\n")[:-1]] if form else json.loads(text)

    said = [chunk["usageMetadata"]["candidatesTokenCount"] for chunk in chunks]
    assert said == sorted(said)
    assert said[-1] == 10  # what the cap leaves of 8 after the thoughts, twice
    assert chunks[-1]["usageMetadata"]["thoughtsTokenCount"] == 6
    assert [each["finishReason"] for chunk in chunks for each in chunk["candidates"] if "finishReason" in each] == [
        "MAX_TOKENS", "MAX_TOKENS",
    ]  # fmt: skip
    (billed,) = provider.bill
    assert (billed.usage.output, billed.usage.reasoning, billed.usage.cache_read, billed.complete) == (16, 6, 2, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1beta/models/m:countTokens", GOOGLE),
        ("/v1/messages/count_tokens", {"model": "m", "messages": [{"role": "user", "content": "toll"}]}),
    ],
)
async def test_counting_is_free(path: str, body: dict[str, Any]) -> None:
    """Counting tokens is answered and not billed; Google's paths take no other methods and no wrong model in a batch."""
    provider = FakeProvider()
    async with posting(provider, body, path) as response:
        assert max(count for count in (await response.json()).values() if isinstance(count, int)) > 4
    assert provider.bill == []
    assert google_replies.google_at("/v1beta/models/m:predict") is None
    async with posting(provider, GOOGLE, "/v1beta/models/m:predict") as response:
        assert response.status == 404
    batch = {"requests": [{"model": "models/other", "content": {"parts": [{"text": "x"}]}}]}
    async with posting(provider, batch, "/v1beta/models/m:batchEmbedContents") as response:
        assert (response.status, (await response.json())["error"]["status"]) == (400, "INVALID_ARGUMENT")
