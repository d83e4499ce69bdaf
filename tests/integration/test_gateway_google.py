"""Google's SDK and Google's own paths against the gateway: what is booked is what the provider billed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.genai import errors, types
from tests.gateway import BODIES, CREDENTIAL, Gateway, an_ask, budget, gateway, until

from tollkeeper.api import FREE
from tollkeeper.keys import hash_secret
from tollkeeper.testing.provider import Cut, FakeProvider, NoUsage, Refuse

MODEL = "gemini-2.5-flash"
ASK = BODIES["google-generate"]
WHOLE = f"/v1beta/models/{MODEL}:generateContent"
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent"
FREE_ASKS = [an_ask(path, name) for path, name in FREE.items()]
RICH = budget("project", "1000")


async def streamed(gw: Gateway, seen: list[Any], **more: Any) -> None:
    """Every chunk of a streamed call that Google's SDK makes."""
    stream = await gw.google(project="alpha", session="s1").aio.models.generate_content_stream(
        model=MODEL, contents="toll", **more
    )
    async for chunk in stream:
        seen.append(chunk)  # noqa: PERF401 - those before an error too


async def relayed(gw: Gateway, path: str, body: Any = ASK) -> tuple[int, bytes]:
    async with gw.post(path, body) as response:
        return response.status, await response.read()


# ---- the SDK --------------------------------------------------------------------------------------------------------


async def test_generate_content(tmp_path: Path) -> None:
    """A3: an SDK's call is one entry with the provider's usage, thoughts as output, the cached part apart."""
    async with gateway(tmp_path, FakeProvider(cached_tokens=4, reasoning_tokens=3)) as gw:
        client = gw.google(project="alpha", agent="writer", session="s1", user="u1")
        reply = await client.aio.models.generate_content(model=MODEL, contents="How much is the toll?")
        entry = await gw.entry()
    told = reply.usage_metadata
    assert told is not None
    assert reply.text
    assert entry.usage == gw.fake.bill[0].usage
    assert entry.usage.tokens == told.total_token_count
    assert (entry.usage.cache_read, entry.usage.reasoning) == (4, 3)
    assert entry.usage.output == (told.candidates_token_count or 0) + (told.thoughts_token_count or 0)
    assert (entry.model, entry.served, entry.provider, entry.dialect) == (MODEL, MODEL, "google", "google-generate")
    assert (entry.scopes.project, entry.scopes.agent, entry.scopes.session) == ("alpha", "writer", "s1")
    usage = entry.usage  # at 0.30, 0.03 and 2.50 dollars per million
    assert entry.charge.amount_nanos == usage.input * 300 + usage.cache_read * 30 + usage.output * 2500
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")


@pytest.mark.parametrize("model", [MODEL, f"models/{MODEL}", f"google/{MODEL}"])
async def test_names_of_models(tmp_path: Path, model: str) -> None:
    """A6: however the SDK writes the name, the provider gets its own name, with the gateway's credential in its header."""
    async with gateway(tmp_path) as gw:
        await gw.google().aio.models.generate_content(model=model, contents="toll")
        entry = await gw.entry()
    (got,) = gw.fake.requests
    assert (got.path, got.headers["x-goog-api-key"]) == (WHOLE, CREDENTIAL)
    assert "authorization" not in got.headers
    assert "x-goog-api-client" not in got.headers
    assert entry.model == model.removeprefix("models/")


async def test_generate_content_stream(tmp_path: Path) -> None:
    """A3: a streamed call is booked by its last chunk; the SDK reads every chunk."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=3)) as gw:
        stream = await gw.google().aio.models.generate_content_stream(model=MODEL, contents="toll")
        chunks = [chunk async for chunk in stream]
        entry = await gw.entry()
    assert entry.usage == gw.fake.bill[0].usage
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata.total_token_count == entry.usage.tokens
    assert len("".join(chunk.text or "" for chunk in chunks).split()) == entry.usage.output - 3
    assert (entry.outcome, entry.charge.status) == ("ok", "priced")


async def test_without_asyncio(tmp_path: Path) -> None:
    """The SDK that waits for its replies works alike, streamed or not."""
    async with gateway(tmp_path) as gw:
        client = gw.google()
        reply = await asyncio.to_thread(client.models.generate_content, model=MODEL, contents="toll")
        chunks = await asyncio.to_thread(
            lambda: list(client.models.generate_content_stream(model=MODEL, contents="toll"))
        )
        await until(lambda: gw.booked(2))
        one, other = await gw.entries()
    assert reply.text == "".join(chunk.text or "" for chunk in chunks)
    assert one.usage == other.usage


async def test_function_calls(tmp_path: Path) -> None:
    """Tools pass as they are, and the SDK finds the call of one in the reply."""
    declared = types.FunctionDeclaration(name="toll_of", description="The toll of a road.")
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
        ),
        system_instruction="Be brief.",
        max_output_tokens=50,
    )
    async with gateway(tmp_path, settings=RICH) as gw:
        reply = await gw.google().aio.models.generate_content(model=MODEL, contents="toll", config=config)
        entry = await gw.entry()
    assert reply.function_calls is not None
    assert [call.name for call in reply.function_calls] == ["toll_of"]
    assert gw.fake.requests[0].json()["generationConfig"]["maxOutputTokens"] == 50
    assert entry.usage == gw.fake.bill[0].usage


async def test_embeddings(tmp_path: Path) -> None:
    """A batch of embeddings, as the SDK sends it, is booked by its prompt, and the model's name is right in each of it."""
    async with gateway(tmp_path) as gw:
        reply = await gw.google().aio.models.embed_content(
            model="google/gemini-embedding-001", contents=["toll", "book"]
        )
        entry = await gw.entry()
    (got,) = gw.fake.requests
    assert got.path == "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    assert {request["model"] for request in got.json()["requests"]} == {"models/gemini-embedding-001"}
    assert reply.embeddings is not None
    assert len(reply.embeddings) == 2
    assert (entry.usage, entry.usage.output) == (gw.fake.bill[0].usage, 0)
    assert entry.charge.amount_nanos == entry.usage.input * 150


async def test_embeddings_without_usage(tmp_path: Path) -> None:
    """A model that states no usage is booked by the request's bytes, and marked."""
    async with gateway(tmp_path, FakeProvider(always=NoUsage())) as gw:
        await gw.google().aio.models.embed_content(model="gemini-embedding-001", contents="toll")
        entry = await gw.entry()
    assert (entry.charge.status, entry.usage.output) == ("estimated", 0)
    assert entry.usage.input > gw.fake.bill[0].usage.input


async def test_models(tmp_path: Path) -> None:
    """Google's SDK lists what can be asked for, and can ask for it by that name; OpenAI's, at the same path, reads its own."""
    async with gateway(tmp_path) as gw:
        names = [model.name async for model in await gw.google().aio.models.list()]
        assert f"models/google/{MODEL}" in names
        await gw.google().aio.models.generate_content(model=f"models/google/{MODEL}", contents="toll")
        async with gw.openai() as client:
            assert f"google/{MODEL}" in {model.id async for model in client.models.list()}
        async with gw.session.get(gw.url + "/v1beta/models") as response:
            assert (await response.json())["models"][0]["name"].startswith("models/")
        await gw.entry()


async def test_refusal(tmp_path: Path) -> None:
    """C7: a refusal is the SDK's ClientError with the numbers, and is not asked again, whatever its retries say."""
    async with gateway(tmp_path, settings=budget("session", "0.001", window="total")) as gw:
        asks = gw.asks()
        retries = types.HttpRetryOptions(attempts=4, initial_delay=0.01)
        config = types.GenerateContentConfig(http_options=types.HttpOptions(retry_options=retries))
        client = gw.google(project="alpha", session="s1")
        with pytest.raises(errors.ClientError) as refused:
            await client.aio.models.generate_content(model=MODEL, contents="toll", config=config)
        with pytest.raises(errors.ClientError) as also:
            await streamed(gw, [], config=config)
        assert await gw.untouched()
    assert len(asks) == 2
    for error in (refused.value, also.value):
        assert (error.code, error.status) == (402, "RESOURCE_EXHAUSTED")
        assert "session 's1' of project 'alpha'" in str(error.message)
        numbers = error.details["error"]["details"][0]["metadata"]
        assert (numbers["scope"], numbers["limit"], numbers["spent"], numbers["id"]) == ("session", "0.001", "0", "s1")


async def test_sdk_reads_a_broken_stream(tmp_path: Path) -> None:
    """D3: Google's SDK raises its own error for a stream that broke, after the chunks that came."""
    async with gateway(tmp_path, FakeProvider(always=Cut(3))) as gw:
        seen: list[Any] = []
        with pytest.raises(errors.ServerError) as broken:
            await streamed(gw, seen)
        await gw.entry()
    assert (len(seen), broken.value.code) == (3, 502)


async def test_budgets_hold(tmp_path: Path) -> None:
    """C1: of many calls at once exactly those pass that the budget pays for."""
    async with gateway(tmp_path, settings=budget("project", 5, measure="requests", window="total")) as gw:
        client = gw.google()
        asked = [client.aio.models.generate_content(model=MODEL, contents="toll") for _ in range(20)]
        done = Counter(type(each).__name__ for each in await asyncio.gather(*asked, return_exceptions=True))
        await until(lambda: gw.booked(5))
    assert done == {"GenerateContentResponse": 5, "ClientError": 15}
    assert len(gw.fake.bill) == 5


async def test_output_cap(tmp_path: Path) -> None:
    """C3: under a hard budget a call without an output cap gets one; it bounds thoughts and text together."""
    async with gateway(tmp_path, FakeProvider(reasoning_tokens=3), settings="default_output_cap = 5\n" + RICH) as gw:
        async with gw.post(WHOLE, ASK | {"generationConfig": {"topK": 1}}) as response:
            assert response.headers["x-tollkeeper-output-cap"] == "5"
            assert (await response.json())["candidates"][0]["finishReason"] == "MAX_TOKENS"
        entry = await gw.entry()
    assert gw.fake.requests[0].json() == ASK | {"generationConfig": {"topK": 1, "maxOutputTokens": 5}}
    assert (entry.usage.output, entry.usage.reasoning) == (5, 3)


# ---- free -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), FREE_ASKS, ids=list(FREE))
async def test_counting_is_free(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """C6: counting tokens passes on a spent budget, is neither held nor booked nor billed, and needs a key all the same."""
    keys = f'[[keys]]\nid = "k"\nproject = "alpha"\nhash = "{hash_secret("s")}"\n'
    async with gateway(tmp_path, settings=budget("all", 0, measure="requests") + keys) as gw:
        async with gw.post(path, body) as response:
            assert response.status == 401
        assert gw.fake.requests == []
        async with gw.post(path, body, {"x-goog-api-key": "s"}) as response:
            assert response.status == 200, await response.text()
            assert [count for count in (await response.json()).values() if isinstance(count, int)][0] > 0  # noqa: RUF015
            assert not [name for name in response.headers if "cost" in name]
        gw.fake.next(Refuse(429))
        async with gw.post(path, body, {"x-goog-api-key": "s"}) as response:
            assert response.status == 429
        assert (await gw.entries(), await gw.live(), gw.fake.bill) == ([], [], [])
        assert [got.path for got in gw.fake.requests] == [path.replace("/v1/models", "/v1beta/models")] * 2


async def test_sdks_count_tokens(tmp_path: Path) -> None:
    """Google's and Anthropic's SDKs count tokens on a spent budget; what is asked goes to the model's provider."""
    async with gateway(tmp_path, settings=budget("all", 0)) as gw:
        counted = await gw.google().aio.models.count_tokens(model=f"google/{MODEL}", contents="x" * 40)
        async with gw.anthropic() as client:
            also = await client.messages.count_tokens(
                model="claude-haiku-4-5", messages=[{"role": "user", "content": "x" * 40}]
            )
        assert (counted.total_tokens, also.input_tokens) == (14, 14)
        assert (await gw.entries(), gw.fake.bill) == ([], [])


async def test_a_path_of_the_providers_own(tmp_path: Path) -> None:
    """C6: a provider's own path holds for all of a dialect: a free request never becomes one that is billed."""
    tables = (
        """
[providers.anthropic]
base_url = "{url}"
paths = { anthropic-messages = "/v1/messages" }
api_key_env = "PROVIDER_KEY"
[providers.google]
base_url = "{url}"
paths = { google-generate = "/v1beta/models/{model}" }
credential_headers = { google-generate = "authorization" }
api_key_env = "PROVIDER_KEY"
""".replace("{ ", "{{ ")
        .replace(" }", " }}")
        .replace("{model}", "{{model}}")
    )
    async with gateway(tmp_path, providers=tables) as gw:
        for path, body in FREE_ASKS:
            assert (await relayed(gw, path, body))[0] == 200
        assert (await relayed(gw, STREAM + "?alt=sse"))[0] == 200
        await gw.entry()
    counting = f"/v1beta/models/{MODEL}:countTokens"
    assert [got.path for got in gw.fake.requests] == ["/v1/messages/count_tokens", counting, counting, STREAM]
    assert gw.fake.requests[-1].headers["authorization"] == f"Bearer {CREDENTIAL}"
