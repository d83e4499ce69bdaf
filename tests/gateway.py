"""A gateway before a fake provider, both on real sockets in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
from google import genai

from tollkeeper import app, config
from tollkeeper.api import CALLS
from tollkeeper.clock import Clock
from tollkeeper.server import BoundedHttp
from tollkeeper.testing.provider import FakeProvider, Served, serving, spoken_at
from tollkeeper.testing.replies import Traits
from tollkeeper.values import Entry, Hold

CREDENTIAL = "sk-provider-3f1c9a77"
ENVIRON = {"PROVIDER_KEY": CREDENTIAL, "PROVIDER_KEY_2": CREDENTIAL + "-2", "PROVIDER_KEY_3": CREDENTIAL + "-3"}
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How much is the toll?"}]}
BODIES: dict[str, dict[str, Any]] = {
    "openai-chat": CHAT,
    "openai-embeddings": {"model": "text-embedding-3-small", "input": "toll"},
    "anthropic-messages": CHAT | {"model": "claude-haiku-4-5", "max_tokens": 20},
    "openai-responses": {"model": "gpt-4o-mini", "input": "How much is the toll?"},
    "google-generate": {"contents": [{"role": "user", "parts": [{"text": "How much is the toll?"}]}]},
}
"""A small good request in each dialect. A new dialect needs one here: the tests go through api.CALLS."""
EMBEDDED: dict[str, Any] = {"content": {"parts": [{"text": "toll"}]}}
#: What other methods of a dialect ask, by the end of their path.
OTHERS: dict[str, dict[str, Any]] = {
    ":embedContent": EMBEDDED,
    ":batchEmbedContents": {"requests": [EMBEDDED | {"model": "models/gemini-embedding-001"}]},
}


def an_ask(path: str, dialect: str) -> tuple[str, dict[str, Any]]:
    """A path of the table with its model, and a good body for it."""
    other = next((body for end, body in OTHERS.items() if path.endswith(end)), None)
    model = "gemini-2.5-flash" if other is None else "gemini-embedding-001"
    return path.replace("{model}", model), BODIES[dialect] if other is None else other


ASKS = [an_ask(path, name) for path, name in CALLS.items()]
WHOLE = [(path, body) for path, body in ASKS if ":stream" not in path]
STREAMS = [(path, body | {"stream": True}) for path, body in ASKS if "model" in body and "embeddings" not in path]


def model_of(path: str, body: dict[str, Any]) -> str:
    """The model that a request asks for: in its body, or in its path."""
    return str(body.get("model") or path.partition("models/")[2].partition(":")[0])


PROVIDERS = """
[providers.openai]
base_url = "{url}/v1"
api_key_env = "PROVIDER_KEY"
[providers.anthropic]
base_url = "{url}/v1"
api_key_env = "PROVIDER_KEY"
[providers.google]
base_url = "{url}/v1beta"
api_key_env = "PROVIDER_KEY"
dialects = ["google-generate"]
"""


@dataclass
class Gateway:
    """What a test talks to, and what it looks at."""

    url: str
    app: app.App
    fake: FakeProvider
    fake_url: str
    place: Served  #: of the provider: to be shut and reopened
    file: Path
    session: aiohttp.ClientSession
    settings: str  #: the configuration as written
    failures: list[str] = field(default_factory=list)  #: exceptions that nobody caught, unfinished tasks

    async def entries(self) -> list[Entry]:
        """All of the ledger, in the order booked."""
        return [entry async for entry in self.app.gate.store.entries(0, 2**60)]

    def asks(self) -> list[Any]:
        """One element for each call that comes in from now on."""
        seen, call = list[Any](), self.app.api._call

        async def counting(*args: Any) -> None:
            seen.append(args)
            await call(*args)

        self.app.api._call = counting  # type: ignore[method-assign]
        return seen

    async def live(self) -> list[Hold]:
        return await self.app.gate.store.live()

    async def entry(self) -> Entry:
        """The only entry, once it is booked; and no hold is left."""
        await until(lambda: self.booked(1))
        (entry,) = await self.entries()
        assert await self.live() == []
        return entry

    async def booked(self, count: int) -> bool:
        """Whether so many entries are booked and no hold is left."""
        return len(await self.entries()) >= count and not await self.live()

    async def untouched(self) -> bool:
        """Whether nothing reached the provider, the ledger or a budget."""
        return not (await self.entries() or await self.live() or self.fake.requests)

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        """A request without an SDK: `async with gateway.post(...) as response`."""
        kind = "data" if isinstance(body, (bytes, str)) or hasattr(body, "__aiter__") else "json"
        return self.session.post(self.url + path, headers=headers, **{kind: body}, **more)

    def openai(self, **headers: str) -> openai.AsyncOpenAI:
        """The official SDK, its retries as it comes; `agent="a"` becomes x-tollkeeper-agent."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="tk_any", default_headers=_scopes(headers))

    def anthropic(self, **headers: str) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.url, api_key="tk_any", default_headers=_scopes(headers))

    def google(self, **headers: str) -> genai.Client:
        return genai.Client(
            api_key="tk_any", http_options={"base_url": self.url, "headers": _scopes(headers)}, vertexai=False
        )

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Bytes on a socket of their own, all that comes back until the gateway closes it: status, headers, body."""
        reader, writer = await self.connect()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        return parsed(answer)

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.url.removeprefix("http://").split(":")
        return await asyncio.open_connection(host, int(port), **options)


def pieces(path: str, body: dict[str, Any]) -> list[bytes]:
    """The events that the fake provider sends for the first request that it gets, usage asked for as the gateway does."""
    asked = body | {"stream_options": {"include_usage": True}}
    answerer = spoken_at(path)[1]
    assert answerer is not None
    return [piece.raw for piece in answerer(asked, 1, Traits()).pieces]


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower-case names) and the rest of the first reply in `answer`; status 0 where nothing came."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1]) if head else 0
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}, body


def request(body: bytes, path: str = "/v1/chat/completions", *, head: bytes = b"", length: int | None = None) -> bytes:
    """A request as bytes, closing its connection."""
    size = len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n%b\r\n%b" % (
        path.encode(), size, head, body,
    )  # fmt: skip


async def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    """Wait for what other tasks bring about. The limit is for a test that fails."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if asyncio.iscoroutine(holds) else holds:
                return
            await asyncio.sleep(0.001)


@asynccontextmanager
async def gateway(
    folder: Path,
    fake: FakeProvider | None = None,
    settings: str = "",
    *,
    providers: str = PROVIDERS,
    store: str = "memory:",
    clock: Clock | None = None,
    watch_file: bool = False,
    url: str | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway with `settings` (TOML; its tables come last) before `fake`, or before nothing at `url`.

    One attempt a call where `settings` say nothing of them: what a provider does is seen as it is.

    At the end: every hold must be gone, and nothing may have failed without being caught.
    """
    fake = FakeProvider() if fake is None else fake
    failures: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(str(context)))
    if "attempts" not in settings:
        settings = "attempts = 1\n" + settings
    place = serving(fake)
    async with place as fake_url:
        written = f'store = "{store}"\ndata_dir = "{folder}"\n' + settings + providers.format(url=url or fake_url)
        file = write(folder, written)
        built = app.build(config.load(file, ENVIRON), clock)
        async with (
            built.running(file if watch_file else None, ENVIRON),
            serving(built.api, http=BoundedHttp) as gateway_url,
            aiohttp.ClientSession(auto_decompress=False) as session,
        ):
            found = Gateway(gateway_url, built, fake, fake_url, place, file, session, written, failures)
            yield found
            await until(lambda: _quiet(found))
            assert await built.gate.store.verify() == []
    assert failures == []


def write(folder: Path, settings: str) -> Path:
    """The configuration file of a gateway."""
    folder.mkdir(exist_ok=True)
    file = folder / "tollkeeper.toml"
    file.write_text(settings)
    return file


async def _quiet(found: Gateway) -> bool:
    return not (await found.live() or found.app.gate.draining or found.app.gate.owed)


def _scopes(headers: Mapping[str, str]) -> dict[str, str]:
    return {f"x-tollkeeper-{name}": value for name, value in headers.items()}


def budget(scope: str, limit: int | str, **more: str | int | bool) -> str:
    """A [[budgets]] table."""
    fields = {"scope": scope, "limit": limit} | more
    return "[[budgets]]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in fields.items())


def _toml(value: str | int | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
