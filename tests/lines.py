"""Short scripts for the simulator: one call, or a few, that go as a test says."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs

from tollkeeper.breaker import Bounds
from tollkeeper.flow import Limits
from tollkeeper.routing import Policy
from tollkeeper.testing.replies import Traits
from tollkeeper.testing.script import FOREVER_S, GROUPS, Down, Ledger, Manners, Placed, Planned, Provided, Script
from tollkeeper.testing.scripted_provider import answer_to
from tollkeeper.testing.simulate import Run
from tollkeeper.values import Budget, Entry

GOOD = Provided(
    trouble="none", at=0, connect_s=0.01, think_s=0.01, gap_s=0.01, stall_s=FOREVER_S, chunk=700, status=500,
    traits=Traits(), lie=None,
)  # fmt: skip
STAYS = Manners(manner="stays", leaves_s=None, slow_s=0, stops_at=0)
LIMITS = Limits(
    attempts=1, first_byte_s=4, idle_s=3, total_s=12, hold_ttl_s=30, drain_s=5, drain_limit=8, default_output_cap=64
)
PLACES = tuple(map(Placed, GROUPS))
TWO = (Placed("o1"), Placed("o2"))
"""Two providers that speak OpenAI's dialects, in this order."""
BOUNDS = Bounds()
STREAMS: list[tuple[str, bool | str]] = [
    ("openai-chat", True),
    ("anthropic-messages", True),
    ("openai-responses", True),
    ("google-generate", True),
    ("google-generate", "array"),
]
MARKED = [shape for shape in STREAMS if shape != ("google-generate", True)]
"""Streams with an end marker: Google's events end with the connection."""
SLOW = Ledger(latency_s=0.01)
SHAPES = [
    *STREAMS,
    ("openai-chat", False),
    ("anthropic-messages", False),
    ("openai-responses", False),
    ("google-generate", False),
    ("openai-embeddings", False),
]


def a_call(
    dialect: str = "openai-chat",
    stream: bool | str = True,
    *,
    number: int = 0,
    start_s: float = 0,
    cap: int = 20,
    body: dict[str, Any] | None = None,
    client: Manners = STAYS,
    leaves_s: float | None = None,
    further: tuple[Provided, ...] = (),
    **provided: Any,
) -> Planned:
    """A call; `provided` changes GOOD, `body` the request; `further` is what its further attempts meet."""
    asked: dict[str, Any] = {"model": "m"}
    target = ""
    if dialect == "google-generate":
        asked = {"contents": [{"parts": [{"text": "toll toll"}]}], "generationConfig": {"maxOutputTokens": cap}}
        method = {False: "generateContent", True: "streamGenerateContent?alt=sse", "array": "streamGenerateContent"}
        target = f"/v1beta/models/m:{method[stream]}"
    elif dialect == "openai-embeddings":
        asked["input"] = "toll toll"
    elif dialect == "openai-responses":
        asked |= {"input": "toll toll", "max_output_tokens": cap}
    else:
        asked |= {"messages": [{"role": "user", "content": "toll toll"}], "max_tokens": cap}
    if stream and not target:
        asked["stream"] = True
    if leaves_s is not None:
        client = structs.replace(client, manner="leaves", leaves_s=leaves_s)
    return Planned(
        number=number, start_s=start_s, dialect=dialect, body=msgspec.json.encode(asked | (body or {})), project="p",
        target=target, session="s", provided=(structs.replace(GOOD, **provided), *further), client=client,
    )  # fmt: skip


def a_run(
    *calls: Planned,
    ledger: Ledger = SLOW,
    budgets: tuple[Budget, ...] = (),
    places: tuple[Placed, ...] = PLACES,
    policy: Policy = "order",
    downs: tuple[Down, ...] = (),
    bounds: Bounds = BOUNDS,
    death_s: float | None = None,
    hedge_s: float | None = None,
    **limits: Any,
) -> Run:
    """A run of these calls, not played yet; `limits` changes LIMITS."""
    return Run(
        Script(
            seed=0, limits=structs.replace(LIMITS, **limits), budgets=budgets, ledger=ledger, calls=calls,
            places=places, policy=policy, downs=downs, bounds=bounds, death_s=death_s, stop_s=None, hedge_s=hedge_s,
        )
    )  # fmt: skip


def played(*calls: Planned, **settings: Any) -> Run:
    """The run, over, after everything that must hold was found to hold."""
    run = a_run(*calls, **settings)
    assert run.play() == []
    return run


def entry(run: Run, number: int = 0) -> Entry:
    """The one entry of a call."""
    (found,) = run.entries(number)
    return found


def events(planned: Planned) -> list[bytes]:
    """The pieces that the provider would send: what the gateway asks of it always has its usage."""
    asked = msgspec.json.decode(planned.body)
    if planned.dialect == "openai-chat" and asked.get("stream"):
        asked["stream_options"] = {"include_usage": True}
    return [piece.raw for piece in answer_to(planned, msgspec.json.encode(asked))[1]]
