"""What happens in one simulated run: calls, their clients and providers, the ledger's troubles, shutdown and death.

Everything is drawn from one seed before the run begins, so that a story can be told, and told again. Times are virtual
seconds. What the parts of a script do is in `stage`; what must hold afterwards in `judge`.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final, Literal

import msgspec

from tollkeeper.breaker import Bounds
from tollkeeper.flow import Limits
from tollkeeper.routing import Policy
from tollkeeper.testing.replies import Traits
from tollkeeper.values import Budget

Trouble = Literal[
    "none", "refuses", "breaks", "silent", "status", "status_cut", "stalls", "cut", "cut_event", "error", "error_done",
    "error_first", "pings", "lingers",
]  # fmt: skip
#: What a provider does wrong, and how often of 100.
TROUBLES: Final[dict[Trouble, int]] = {
    "none": 34,
    "refuses": 5,  # no connection
    "breaks": 5,  # after the request, before the answer
    "silent": 4,  # never answers
    "status": 8,  # 4xx or 5xx
    "status_cut": 3,  # the same, and its body breaks off
    "stalls": 8,  # after some bytes, for a while or for ever
    "cut": 10,  # at any byte
    "cut_event": 6,  # between two events
    "error": 6,  # an error inside the reply, and no end marker
    "error_done": 2,  # the same, with an end marker
    "error_first": 2,  # an error, and then the reply after all
    "pings": 3,  # after some events, pings for ever
    "lingers": 4,  # a good reply that does not close after its end marker
}
Lie = Literal["zero", "triple", "absurd", "negative"]
Manner = Literal["stays", "leaves", "slow", "stops"]
FOREVER_S: Final = 1e6
RETRY_RATIO: Final = 0.2
"""Of the calls of the last seconds, so many may be tried again beyond the floor."""
PRICED: Final = "m"
DEAR: Final = "dear"
"""What PRICED is called at some providers, which take twice as much for it."""
UNPRICED: Final = "mystery"
GROUPS: Final = {
    "o": frozenset({"openai-chat", "openai-embeddings", "openai-responses"}),
    "a": frozenset({"anthropic-messages"}),
    "g": frozenset({"google-generate"}),
}
"""What a provider speaks, by the first letter of its name."""


class Placed(msgspec.Struct, frozen=True):
    """One provider."""

    name: str
    credentials: int = 0
    weight: int = 1
    dear: bool = False  #: it calls the model DEAR


class Down(msgspec.Struct, frozen=True, kw_only=True):
    """A provider fails for all, and then recovers."""

    provider: str
    begins_s: float
    ends_s: float
    refuses: bool  #: no connection; else 503


class Provided(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider treats one attempt."""

    trouble: Trouble
    at: float  #: where in the reply, of 1
    connect_s: float
    think_s: float  #: before the answer
    gap_s: float  #: before each chunk
    stall_s: float
    chunk: int  #: bytes
    status: int
    retry_after_s: int | None = None  #: told with an error status
    traits: Traits
    lie: Lie | None  #: about its usage


class Manners(msgspec.Struct, frozen=True, kw_only=True):
    """How the client behaves."""

    manner: Manner
    leaves_s: float | None  #: after its start
    slow_s: float  #: for each piece
    stops_at: int  #: the piece that it does not take


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One call."""

    number: int
    start_s: float
    dialect: str
    body: bytes
    target: str = ""  #: the path and query, in the dialect that names its model there
    project: str
    session: str
    provided: tuple[Provided, ...]  #: its attempts in turn; further ones go as the last
    client: Manners
    cancels_s: tuple[float, ...] = ()  #: after its start; below 0: before its first step
    booking_cancelled_s: float | None = None  #: after its hold began to be settled or let go

    @property
    def model(self) -> str:
        return UNPRICED if UNPRICED.encode() in self.body[:40] or UNPRICED in self.target else PRICED

    @property
    def array(self) -> bool:
        """A stream is one JSON array, and not events."""
        return self.target.endswith(":streamGenerateContent")

    @property
    def events_of_google(self) -> bool:
        """A stream whose end is told with its usage, and which then has no other end than the connection's."""
        return self.target.endswith("?alt=sse")

    @property
    def choices(self) -> int:
        return 2 if b'"n":2' in self.body or b'"candidateCount":2' in self.body else 1


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger's troubles."""

    latency_s: float = 0  #: up to so much before each write, and before its answer
    refused: float = 0  #: share of writes that fail
    unheard: float = 0  #: share of writes that are made and reported as failed
    outages_s: tuple[tuple[float, float], ...] = ()


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    seed: int
    limits: Limits
    budgets: tuple[Budget, ...]
    ledger: Ledger
    calls: tuple[Planned, ...]
    places: tuple[Placed, ...] = tuple(map(Placed, GROUPS))
    policy: Policy = "order"
    downs: tuple[Down, ...] = ()
    bounds: Bounds = Bounds()
    hedge_s: float | None = None  #: what each place usually takes to its first byte; None: no call is hedged
    death_s: float | None  #: every task is dropped; then a new process opens the same ledger
    stop_s: float | None  #: every call is cancelled


def draw(seed: int) -> Script:
    """The script of a seed."""
    rng = Random(seed)  # noqa: S311 - it has to come again
    crowd = rng.random() < 0.1  # many calls of one dialect, which meet at the same breakers
    count, dialects = (rng.randint(8, 14), (rng.choice(_DIALECTS),)) if crowd else (rng.choice(_COUNTS), _DIALECTS)
    limits, places, ends = _limits(rng), _places(rng), rng.random()
    return Script(
        seed=seed, limits=limits, budgets=_budgets(rng), ledger=_ledger(rng), places=places,
        calls=tuple(_call(rng, number, dialects, limits.attempts) for number in range(count)),
        policy=rng.choice(("order", "order", "weighted", "fastest", "cheapest")), downs=_downs(rng, places),
        bounds=_bounds(rng), hedge_s=_hedge_s(seed),
        death_s=rng.uniform(0, 8) if ends < 0.15 else None, stop_s=rng.uniform(0, 8) if ends > 0.85 else None,
    )  # fmt: skip


_COUNTS: Final = (1, 1, 2, 3, 4, 6)
_DIALECTS: Final = tuple(
    dialect
    for dialect, often in (
        ("openai-chat", 6), ("anthropic-messages", 4), ("openai-responses", 4), ("google-generate", 4), ("openai-embeddings", 1),
    )
    for _ in range(often)
)  # fmt: skip


def _places(rng: Random) -> tuple[Placed, ...]:
    return tuple(
        Placed(
            f"{group}{number}", credentials=rng.choice((0, 0, 1, 2)), weight=rng.choice((1, 1, 5)), dear=rng.random() < 0.2
        )
        for group in GROUPS
        for number in range(1, rng.choice((1, 2, 2, 3)) + 1)
    )  # fmt: skip


def _downs(rng: Random, places: tuple[Placed, ...]) -> tuple[Down, ...]:
    return tuple(
        Down(
            provider=place.name, begins_s=begins_s, ends_s=begins_s + rng.choice((0.5, 4.0, 20.0)), refuses=rng.random() < 0.5
        )
        for place in places
        if rng.random() < 0.15
        for begins_s in (rng.choice((0.0, rng.uniform(0, 5))),)
    )  # fmt: skip


def _bounds(rng: Random) -> Bounds:
    open_s = rng.choice((0.2, 1.0, 3.0))
    return Bounds(
        failures=rng.choice((1, 2, 3)), minimum=rng.choice((2, 5, 10)), window_s=rng.choice((5, 30)), slow_s=None,
        open_s=open_s, open_max_s=open_s * rng.choice((1, 2, 8)), probe_s=rng.choice((0.5, 10)),
    )  # fmt: skip


def _hedge_s(seed: int) -> float | None:
    rng = Random(f"{seed} hedge")  # noqa: S311 - of its own: what else is drawn from a seed stays as it was
    return rng.choice((0.02, 0.3, 1.0)) if rng.random() < 0.4 else None


def _limits(rng: Random) -> Limits:
    total_s = rng.choice((8.0, 12.0))
    return Limits(
        attempts=rng.choice((1, 2, 3, 3, 4)), when_all_open=rng.choice(("try", "try", "refuse")),
        first_byte_s=rng.choice((4, 4, 1.5)), idle_s=3, total_s=total_s, hold_ttl_s=total_s + rng.choice((0.5, 10.0)),
        drain_s=rng.choice((0.5, 5.0, 15.0)), drain_limit=rng.choice((0, 1, 8)),
        on_disconnect=rng.choice(("drain", "drain", "cancel")), default_output_cap=rng.choice((64, 12)),
        expose_cost=rng.random() < 0.5, expose_cost_in_streams=rng.random() < 0.3,
    )  # fmt: skip


def _budgets(rng: Random) -> tuple[Budget, ...]:
    possible = (
        Budget(scope="project", measure="usd", window="total", limit=rng.choice((300_000, 2_000_000, 10_000_000))),
        Budget(scope="all", measure="usd", window="minute", limit=rng.choice((1_500_000, 10_000_000))),
        Budget(scope="all", measure="tokens", window="total", limit=rng.choice((400, 2_000, 20_000))),
        Budget(scope="session", measure="requests", window="minute", limit=rng.choice((1, 3, 8))),
        Budget(scope="project", measure="usd", window="day", limit=1, hard=False),
        Budget(scope="session", measure="usd", window="total", limit=None),
    )
    return tuple(budget for budget in possible if rng.random() < 0.2)


def _ledger(rng: Random) -> Ledger:
    if rng.random() < 0.45:
        return Ledger()
    begins = rng.uniform(0, 6)
    return Ledger(
        latency_s=rng.choice((0.001, 0.05, 0.4)),
        refused=rng.choice((0, 0, 0.1, 0.3)),
        unheard=rng.choice((0, 0, 0.1, 0.3)),
        outages_s=((begins, begins + rng.choice((0.1, 1.0, 4.0, 15.0))),) if rng.random() < 0.3 else (),
    )


def _call(rng: Random, number: int, dialects: tuple[str, ...], attempts: int) -> Planned:
    dialect = rng.choice(dialects)
    cancels: tuple[float, ...] = ()
    if rng.random() < 0.12:
        first_s = rng.choice((-1.0, rng.uniform(0, 0.2), rng.uniform(0, 6)))
        cancels = (first_s, first_s + rng.uniform(0.001, 1))[: rng.randint(1, 2)]
    target = _target(rng) if dialect == "google-generate" else ""
    body = _google_body(rng) if target else _body(rng, dialect)
    return Planned(
        number=number, start_s=rng.choice((0.0, rng.uniform(0, 5))), dialect=dialect, body=body, target=target,
        project=f"p{rng.randrange(2)}", session=f"s{rng.randrange(2)}",
        provided=tuple(_provided(rng, good=0.5 * (nth > 0)) for nth in range(attempts)),
        client=_manners(rng), cancels_s=cancels,
        booking_cancelled_s=rng.choice((0, rng.uniform(0, 0.5), rng.uniform(0, 2))) if rng.random() < 0.1 else None,
    )  # fmt: skip


def _body(rng: Random, dialect: str) -> bytes:
    text = " ".join(["toll"] * rng.randint(1, 12))
    body: dict[str, Any] = {"model": UNPRICED if rng.random() < 0.05 else PRICED}
    if dialect == "openai-embeddings":
        return msgspec.json.encode(body | {"input": text})
    if dialect == "openai-responses":
        body["input"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    cap = rng.choice((None, None, 5, 20, 60))
    if dialect == "anthropic-messages":
        body["max_tokens"] = 40 if cap is None else cap
    elif cap is not None:
        body["max_output_tokens" if dialect == "openai-responses" else "max_tokens"] = cap
    if rng.random() < 0.7:
        body["stream"] = True
        if dialect == "openai-chat" and rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    if dialect == "openai-chat" and rng.random() < 0.15:
        body["n"] = 2
    return msgspec.json.encode(body)


def _target(rng: Random) -> str:
    method = rng.choice(("generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"))
    return f"/v1beta/models/{UNPRICED if rng.random() < 0.05 else PRICED}:{method}"


def _google_body(rng: Random) -> bytes:
    body: dict[str, Any] = {"contents": [{"parts": [{"text": " ".join(["toll"] * rng.randint(1, 12))}]}]}
    cap, config = rng.choice((None, None, 5, 20, 60)), dict[str, int]()
    if cap is not None:
        config["maxOutputTokens"] = cap
    if rng.random() < 0.15:
        config["candidateCount"] = 2
    return msgspec.json.encode(body | ({"generationConfig": config} if config else {}))


def _provided(rng: Random, good: float) -> Provided:
    """`good`: how often of 1 nothing is wrong, beside the good ones among TROUBLES."""
    trouble = rng.choices(_TROUBLES, _OFTEN)[0]
    quick = rng.random() < good
    if quick:
        trouble = "none"
    return Provided(
        trouble=trouble, at=rng.random(), connect_s=rng.choice((0, 0.01, rng.uniform(0, 0.1 if quick else 2))),
        think_s=rng.choice((0, 0.02, rng.uniform(0, 0.5 if quick else 5))),
        gap_s=rng.choice((0, 0.001, 0.05, rng.uniform(0, 1))),
        stall_s=rng.choice((1.0, 2.9, FOREVER_S)), chunk=rng.choice((97, 400, 1500, 1500, 65536, 65536)),
        status=rng.choice(_STATUSES), lie=rng.choice(_LIES), retry_after_s=rng.choice((None, None, 1, 5)),
        traits=Traits(
            cached_tokens=rng.choice((0, 0, 3)), reasoning_tokens=rng.choice((0, 0, 10)), tells_usage=rng.random() < 0.9
        ),
    )  # fmt: skip


_TROUBLES: Final = tuple(TROUBLES)
_OFTEN: Final = tuple(TROUBLES.values())
_STATUSES: Final = (400, 401, 402, 404, 422, 429, 429, 500, 503, 529, 302)
_LIES: Final[tuple[Lie | None, ...]] = ("zero", "triple", "absurd", "negative", *[None] * 16)


def _manners(rng: Random) -> Manners:
    manner: Manner = rng.choices(("stays", "leaves", "slow", "stops"), (6, 3, 1, 1))[0]
    goes = manner == "leaves" or (manner == "stops" and rng.random() < 0.5)
    return Manners(
        manner=manner, leaves_s=rng.choice((rng.uniform(0, 0.3), rng.uniform(0, 6))) if goes else None,
        slow_s=rng.choice((0.05, 0.7)) if manner == "slow" else 0, stops_at=rng.randrange(4),
    )  # fmt: skip
