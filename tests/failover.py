"""A gateway before several fake providers that stand in for each other, all on real sockets in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateway import BODIES, CREDENTIAL, Gateway, an_ask, gateway

from tollkeeper.api import CALLS
from tollkeeper.clock import Clock
from tollkeeper.testing.provider import FakeProvider, Served, serving
from tollkeeper.values import Entry, Route

NAMES = ("one", "two", "three")
MODEL = "gpt-4o-mini"  #: what the targets of NAME are called at their providers
NAME = "toll"  #: the name in [routes] that leads to all of them
CHAT = "/v1/chat/completions"
KEYS = [CREDENTIAL, f"{CREDENTIAL}-2", f"{CREDENTIAL}-3"]
ASK: dict[str, Any] = BODIES["openai-chat"] | {"model": NAME}
#: Each path of a call, with a body that asks for NAME.
ASKS = [
    (path.replace("{model}", NAME), an_ask(path, dialect)[1] | ({} if "{model}" in path else {"model": NAME}))
    for path, dialect in CALLS.items()
]
#: No breaker opens: what bounds the attempts is something else.
NO_BREAKERS = "[breaker]\nfailures = 1000\nminimum = 1000\n"

_PROVIDER = """
[providers.NAME]
base_url = "URL"
api_key_env = KEYS
prices = "openai"
dialects = ["openai-chat", "openai-embeddings", "openai-responses", "anthropic-messages", "google-generate"]
[providers.NAME.paths]
openai-chat = "/v1/chat/completions"
openai-embeddings = "/v1/embeddings"
openai-responses = "/v1/responses"
anthropic-messages = "/v1/messages"
google-generate = "/v1beta/models/{{model}}"
"""


@dataclass
class Several:
    """The gateway and its providers, in the order in which they are configured."""

    gw: Gateway
    fakes: list[FakeProvider]
    places: list[Served]
    opened: list[Route]  #: each try to reach a provider, also where there was no connection

    async def ask(self, path: str = CHAT, body: Any = ASK, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case names) and body of a reply."""
        async with self.gw.post(path, body, headers) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            return response.status, told, await response.read()

    async def served_by(self) -> str:
        """Make a call that must go well: the provider that served it."""
        status, headers, body = await self.ask()
        assert status == 200, body
        return headers["x-tollkeeper-provider"]

    def asked(self) -> list[int]:
        """How many requests each provider got."""
        return [len(fake.requests) for fake in self.fakes]

    def keys(self, at: int = 0) -> list[str]:
        """The credentials of a provider's requests."""
        return [each.headers["authorization"].removeprefix("Bearer ") for each in self.fakes[at].requests]

    async def by_provider(self) -> dict[str, list[Entry]]:
        """The entries, each provider's in the order booked."""
        found: dict[str, list[Entry]] = {name: [] for name in NAMES[: len(self.fakes)]}
        for entry in await self.gw.entries():
            found[entry.provider or ""].append(entry)
        return found

    async def agrees(self) -> None:
        """Each provider's bill is what the ledger has of it, to the token, where the provider said what it used."""
        for name, fake in zip(NAMES, self.fakes, strict=False):
            booked = [entry.usage for entry in (await self.by_provider())[name] if entry.outcome != "error"]
            assert booked == [billed.usage for billed in fake.bill]


@asynccontextmanager
async def several(
    folder: Path,
    *fakes: FakeProvider,
    settings: str = "",
    to: Sequence[str] | None = None,
    policy: str = "order",
    keys: int = 1,
    clock: Clock | None = None,
    draw: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Several]:
    """NAME leads to `fakes` (two good ones) in their order, or to the targets in `to` (TOML), by the policy.

    `settings` as of `gateway`, but with the default attempts; `keys`: each provider's credentials; `draw`: pauses are 0.
    """
    found = list(fakes) or [FakeProvider(), FakeProvider()]
    names = NAMES[: len(found)]
    to = [f'"{name}/{MODEL}"' for name in names] if to is None else to
    wanted = [f'"PROVIDER_KEY{suffix}"' for suffix in ("", "_2", "_3")[:keys]]
    async with AsyncExitStack() as stack:
        places = [serving(fake) for fake in found[1:]]
        urls = ["{url}", *[await stack.enter_async_context(place) for place in places]]
        tables = f'[routes.{NAME}]\npolicy = "{policy}"\nto = [{", ".join(to)}]\n'.replace("{", "{{").replace("}", "}}")
        for name, url in zip(names, urls, strict=True):
            table = _PROVIDER.replace("NAME", name).replace("URL", url)
            tables += table.replace("KEYS", f"[{', '.join(wanted)}]")
        default = "" if "attempts" in settings else "attempts = 3\n"
        gw = await stack.enter_async_context(
            gateway(folder, found[0], default + settings, providers=tables, clock=clock)
        )
        gw.app.gate.draw = draw
        yield Several(gw, found, [gw.place, *places], _opened(gw))


def _opened(gw: Gateway) -> list[Route]:
    opened, upstream = list[Route](), gw.app.gate.upstream
    through = upstream.open

    def opening(route: Route, *what: Any) -> Any:
        opened.append(route)
        return through(route, *what)

    upstream.open = opening  # type: ignore[method-assign]
    return opened
