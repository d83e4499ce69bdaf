"""`tollkeeper demo`: the real gateway on a real socket, driven by the official SDKs, in front of the shipped fake provider.

    openai, anthropic SDKs ──→ gateway (budgets, ledger in a temporary folder) ──→ fake provider, which keeps its own bill

Several projects, agents, sessions and users call at once, streamed and not; then one agent loops into its session's budget.
At the end the ledger is shown and held against the provider's bill. All follows from the texts below: each run has the same
figures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import uvloop
from rich.padding import Padding
from rich.text import Text

from tollkeeper import app as gateway
from tollkeeper.cli import render
from tollkeeper.cli.gather import gather
from tollkeeper.clock import SystemClock
from tollkeeper.config import load
from tollkeeper.errors import ConfigError
from tollkeeper.ledger import window_of
from tollkeeper.reports import Grouping, Report, plan
from tollkeeper.stores import Reader
from tollkeeper.testing.provider import FakeProvider
from tollkeeper.testing.serving import serving
from tollkeeper.values import Usage

SESSION_LIMIT: Final = "0.05"
SHOWN: Final[tuple[Grouping, ...]] = ("project", "agent", "model")
LOOP_MAX: Final = 100
"""Calls after which the looping agent would be stopped by the demo itself."""
CACHED: Final = 1024
_CONFIG: Final = """\
host = "127.0.0.1"
port = {port}
store = "sqlite:///demo.sqlite"
data_dir = {folder}

[providers.openai]
base_url = "{provider}/v1"

[providers.anthropic]
base_url = "{provider}/v1"

[[budgets]]                # one run of an agent may spend this much, and not a nano-dollar more
scope = "session"
id = "night-run"
project = "research"
window = "total"
limit = "{limit}"

[[budgets]]                # counted and told in headers, never refused
scope = "project"
window = "month"
limit = "25"
hard = false
"""
_HANDBOOK: Final = "A traveller pays at each gate, and the keeper writes down who, when and how much. " * 120
KEYS: Final = {"OPENAI_API_KEY": "sk-demo", "ANTHROPIC_API_KEY": "sk-ant-demo"}


class Played(NamedTuple):
    """What the SDKs saw."""

    calls: int  #: answered
    loop_calls: int  #: of them the looping agent's
    refusal: str  #: what ended the loop


class Clients:
    """The official SDKs, pointed at a gateway: nothing but their base URL is set."""

    def __init__(self, url: str) -> None:
        from anthropic import AsyncAnthropic
        from openai import AsyncOpenAI

        self.openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        self.anthropic = AsyncAnthropic(base_url=url, api_key="any", max_retries=0)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()


def needed() -> None:
    """Raises ConfigError where the SDKs are not installed."""
    missing = [name for name in ("openai", "anthropic") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"demo: needs the SDK {' and '.join(missing)}; run pip install 'tollkeeper[demo]'")


def run(port: int, keep: bool) -> bool:
    """Play the demo on `port` (0: a free one), and with `keep` serve on until Ctrl-C. True: all figures agree.

    Raises ConfigError for a port in use or a missing SDK.
    """
    needed()
    with TemporaryDirectory(prefix="tollkeeper-demo-") as folder:
        return uvloop.run(_run(Path(folder), port, keep))


async def _run(folder: Path, port: int, keep: bool) -> bool:
    fake = FakeProvider(cached_tokens=CACHED)
    async with serving(fake) as provider, _gateway(folder, port, provider) as (app, url, server):
        playing = asyncio.create_task(_show(fake, app, url))
        await asyncio.wait({playing, server.task}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():  # Ctrl-C
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            return True
        agrees = playing.result()
        if keep and agrees:
            _say(f"Serving on {url} until Ctrl-C.", "bold")
            await server.task
        return agrees


def settings(folder: Path, port: int, provider: str) -> str:
    """The gateway's configuration file: everything goes to the provider at this URL."""
    return _CONFIG.format(port=port, folder=json.dumps(str(folder)), provider=provider, limit=SESSION_LIMIT)


class _Server(NamedTuple):
    task: asyncio.Task[None]


@asynccontextmanager
async def _gateway(folder: Path, port: int, provider: str) -> AsyncIterator[tuple[gateway.App, str, _Server]]:
    """The gateway as `tollkeeper serve` runs it, in this event loop."""
    path = folder / "tollkeeper.toml"
    path.write_text(settings(folder, port, provider))
    config = load(path, KEYS)
    with gateway.listen(config) as listening:
        app = gateway.build(config)
        server = gateway.server(app)
        async with app.running(path, KEYS):
            task = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                yield app, f"http://127.0.0.1:{listening.getsockname()[1]}", _Server(task)
            finally:
                server.should_exit = True
                await task


# ── what is played ───────────────────────────────────────────────────────────────────────────────────────────────────


def _for(project: str, agent: str | None = None, **more: str) -> dict[str, str]:
    """The headers that say for whom a call is."""
    scopes = {"project": project, **({} if agent is None else {"agent": agent}), **more}
    return {f"x-tollkeeper-{scope}": name for scope, name in scopes.items()}


async def play(clients: Clients) -> Played:
    """All calls: three projects at once, then the loop."""
    counts = await asyncio.gather(_helpdesk(clients), _research(clients), _website(clients))
    loop_calls, refusal = await _loop(clients)
    return Played(sum(counts) + loop_calls, loop_calls, refusal)


async def _helpdesk(clients: Clients) -> int:
    """A triage agent streams, an answering agent does not; each ticket is a session, its writer a user."""
    calls: list[Awaitable[Any]] = []
    for number, user in enumerate(("ada", "grace", "alan", "edsger"), 1):
        session = f"ticket-{number}"
        question = f"{_HANDBOOK} {user} asks: what is the toll at gate {number}?"
        calls += [
            _streamed(clients, "gpt-4o-mini", question, _for("helpdesk", "triage", session=session, user=user)),
            _claude(clients, question, _for("helpdesk", "answer", session=session, user=user, tags="paid,eu")),
        ]
    return len(await asyncio.gather(*calls))


async def _research(clients: Clients) -> int:
    """Two agents of one project; the reader marks its source for the provider's cache."""
    calls: list[Awaitable[Any]] = []
    for chapter in range(3):
        source = {"type": "text", "text": f"Chapter {chapter}. {_HANDBOOK}", "cache_control": {"type": "ephemeral"}}
        calls += [
            clients.anthropic.messages.create(
                model="claude-sonnet-4-6", max_tokens=200, system=[source],  # type: ignore[list-item]  # a plain dict
                messages=[{"role": "user", "content": "Sum it up."}],
                extra_headers=_for("research", "reader", session="survey"),
            ),
            _asked(clients, "gpt-4o", f"Write chapter {chapter}: {_HANDBOOK}", _for("research", "writer", session="survey")),
        ]  # fmt: skip
    return len(await asyncio.gather(*calls))


async def _website(clients: Clients) -> int:
    """Embeddings, a call without an agent, and a model that nobody has a price for."""
    headers = _for("website", "search")
    await asyncio.gather(
        *(clients.openai.embeddings.create(
            model="text-embedding-3-small", input=[_HANDBOOK] * (page + 1), extra_headers=headers
        ) for page in range(3)),
        _asked(clients, "gpt-4o-mini", "Good morning.", _for("website")),
        _asked(clients, "acme-large-9000", "What do you cost?", headers),
    )  # fmt: skip
    return 5


async def _loop(clients: Clients) -> tuple[int, str]:
    """An agent that never stops by itself: its session's budget stops it. The calls it made, and the refusal."""
    from openai import APIStatusError

    headers, text = _for("research", "crawler", session="night-run"), _HANDBOOK
    for calls in range(LOOP_MAX):
        try:
            answer = await _asked(clients, "gpt-4o", text, headers)
        except APIStatusError as refused:
            if refused.status_code != 402:
                raise
            return calls, refused.message
        text += str(answer.choices[0].message.content)
    return LOOP_MAX, "The budget did not stop it."


async def _asked(clients: Clients, model: str, text: str, headers: dict[str, str]) -> Any:
    return await clients.openai.chat.completions.create(
        model=model, max_tokens=300, messages=[{"role": "user", "content": text}], extra_headers=headers
    )


async def _streamed(clients: Clients, model: str, text: str, headers: dict[str, str]) -> None:
    stream = await clients.openai.chat.completions.create(
        model=model, stream=True, messages=[{"role": "user", "content": text}], extra_headers=headers
    )
    async for _ in stream:
        pass


async def _claude(clients: Clients, text: str, headers: dict[str, str]) -> None:
    async with clients.anthropic.messages.stream(
        model="claude-haiku-4-5", max_tokens=200, messages=[{"role": "user", "content": text}], extra_headers=headers
    ) as stream:
        await stream.get_final_message()


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


async def _show(fake: FakeProvider, app: gateway.App, url: str) -> bool:
    """Play, then print the reports and hold the ledger against the provider's bill."""
    _say(f"The gateway is on {url}, a fake provider behind it; the openai and anthropic SDKs call.")
    clock = SystemClock()
    began_us = clock.now_us()
    clients = Clients(url)
    try:
        played = await play(clients)
    finally:
        await clients.close()
    _say(f"\n{played.calls} calls of three projects were answered, streamed and not.")
    _say(f"An agent in a loop got {played.loop_calls} answers, then its session's budget refused (402):")
    render.show(lambda width: Padding(Text(played.refusal, "yellow"), (0, 2, 1, 2)))
    span = window_of("month", "UTC", began_us)[0], window_of("month", "UTC", clock.now_us())[1]
    store = app.gate.store
    await store.prune(clock.now_us(), app.config.retention)  # the hourly chore: it also brings the cells up to date
    for by in SHOWN:
        found = await gather(store, plan(by, None, *span))
        render.show(lambda width, found=found: render.table(found, width))  # type: ignore[misc]  # bound in the loop
        _say("")
    agrees = await _checked(store, fake, found)
    openai, anthropic = f'OpenAI(base_url="{url}/v1", api_key="any")', f'Anthropic(base_url="{url}", api_key="any")'
    _say("\nYour own SDK, pointed at it; for real providers set OPENAI_API_KEY and run tollkeeper serve:", "bold")
    _say(f"  {openai}\n  {anthropic}\n  for whom: the headers x-tollkeeper-project, -agent, -session, -user, -tags")
    return agrees


async def _checked(store: Reader, fake: FakeProvider, found: Report) -> bool:
    """Say whether the ledger agrees with its entries and with the provider's own count."""
    wrong, size = await store.verify(), await store.size()
    billed = billed_usage(fake)
    same = (len(fake.bill), billed) == (found.total.attempts, counted_usage(found))
    _say(
        f"verify: {size.cells} cells and {size.balances} balances, {len(wrong)} differences over {size.entries} entries"
    )
    _say(
        f"The provider's own bill: {len(fake.bill)} requests, {billed.tokens:,} tokens; "
        f"{'the ledger has the same.' if same else f'the ledger has {found.total.attempts}, {found.total.tokens:,}.'}"
    )
    return same and not wrong


def billed_usage(fake: FakeProvider) -> Usage:
    """What the provider counted, added up."""
    return Usage(**{kind: sum(getattr(line.usage, kind) for line in fake.bill) for kind in Usage.__struct_fields__})


def counted_usage(found: Report) -> Usage:
    """What the ledger counted."""
    return Usage(**{kind: getattr(found.total, kind) for kind in Usage.__struct_fields__})


def _say(text: str, style: str = "") -> None:
    render.show(lambda width: Text(text, style))
