"""What the line works with: a gateway's parts and bounds, one request and where its reply goes, one call and its attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import msgspec

from tollkeeper.cancellation import Deadline
from tollkeeper.clock import Clock
from tollkeeper.density import Densities
from tollkeeper.dialects import Dialect
from tollkeeper.errors import TollkeeperError
from tollkeeper.failures import Verdict
from tollkeeper.health import Health
from tollkeeper.keys import KeyRing
from tollkeeper.latency import Latencies
from tollkeeper.meter import Meter
from tollkeeper.prices import PriceBook
from tollkeeper.retry import RetryBudget
from tollkeeper.routing import Table
from tollkeeper.stores import Store
from tollkeeper.upstream import Answer, Opening, Upstream
from tollkeeper.values import Ask, Charge, Entry, Grant, Hold, Quote, Route, Scopes


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a call, in seconds and tokens."""

    first_byte_s: float = 120
    idle_s: float = 60
    total_s: float = 600
    attempts: int = 3
    when_all_open: Literal["try", "refuse"] = "try"
    hold_ttl_s: float = 660
    drain_s: float = 60
    drain_limit: int = 32
    on_disconnect: Literal["drain", "cancel"] = "drain"
    default_output_cap: int | None = 4096
    output_caps: Mapping[str, int] = {}
    output_ceilings: Mapping[str, int] = {}
    quote: Literal["bound", "typical"] = "bound"
    default_project: str = "default"
    expose_cost: bool = True
    expose_cost_in_streams: bool = False


class Request(msgspec.Struct, frozen=True):
    """A client's request: its dialect, headers (lower-case names), body and target."""

    dialect: Dialect
    headers: Mapping[bytes, bytes]
    body: bytes
    target: str = ""  #: the path and query that it came to: some dialects name the model there


class Reply(Protocol):
    """Where the reply goes. Nothing here fails for a client that has left."""

    left: bool

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status and headers."""

    async def send(self, data: bytes) -> None:
        """A piece of the body; waits while the client is slow."""

    async def end(self, data: bytes = b"") -> None:
        """The last piece."""

    def on_left(self, callback: Callable[[], None]) -> None:
        """Have it called once if the client leaves before the end."""


class Gate(msgspec.Struct, kw_only=True, eq=False):
    """What the line works with."""

    clock: Clock
    keys: KeyRing
    table: Table
    prices: PriceBook
    store: Store
    upstream: Upstream
    limits: Limits
    health: Health
    retries: RetryBudget
    latencies: Latencies | None = None  #: by which a call is hedged; None: none is
    densities: Densities = msgspec.field(default_factory=Densities)
    new_id: Callable[[], str]
    draw: Callable[[], float]  #: numbers from 0 to 1, by which weights and pauses are drawn
    turn: int = 0  #: calls so far: whose credential begins
    hedges: int = 0  #: calls that were sent to a second place while the first one had no answer
    hedges_served: int = 0  #: those of them that the second one served
    draining: int = 0  #: replies being read for clients that have left
    owed: list[Entry | Hold] = []  #: entries to book and holds to let go that the ledger did not take yet

    async def pay(self, due: Entry | Hold) -> None:
        """Book an entry, or let go of a hold for which nothing is owed. Raises StoreError."""
        await (self.store.settle(due) if isinstance(due, Entry) else self.store.void(due.id))


class Call(msgspec.Struct, kw_only=True, eq=False):
    """One call under way: what is known of it so far."""

    id: str
    prices: PriceBook  #: those at its admission: a price that changes meanwhile changes nothing
    ask: Ask | None = None
    scopes: Scopes | None = None
    instead_of: str | None = None  #: the model asked for, where a budget has turned the call to another one
    routes: list[Route] = []  #: as they are to be tried
    quote: Quote | None = None
    made: int = 0  #: attempts begun: the number in their holds' ids
    sent: int = 0  #: attempts that a provider may have seen
    asked: Route | None = None  #: where the latest of them went, or the one that serves
    ends_s: float | None = None  #: when all attempts must be over, by the running loop's clock
    leaving: bool = False  #: the client has gone; what is left is drained, or cut off by policy
    watched: bool = False  #: whether the client leaves
    draining: int = 0  #: of its attempts, counted in Gate.draining
    charges: list[Charge] = []  #: of its attempts so far
    started: bool = False  #: the client has its headers
    attempts: list[Attempt] = []  #: all that were begun
    attempt: Attempt | None = None  #: the latest one, or the one whose reply or failure the client gets
    winner: Attempt | None = None  #: the one that serves: the first with content, or with a whole good reply


class Attempt(msgspec.Struct, kw_only=True, eq=False):
    """One try of a call at a route."""

    number: int
    route: Route
    deadline: Deadline
    started_s: float
    may_move: bool = False  #: until its first content another route may serve: nothing goes out before
    lost: bool = False  #: another attempt has the call: this one is cut, and nothing of it goes out
    grant: Grant = Grant()
    cap: int | None = None  #: the output cap that a hard budget made us set
    sent_s: float | None = None  #: when
    first_byte_s: float | None = None  #: how long the provider's answer took
    sending: bool = False  #: the client is waited for, and not the provider
    unread_s: float = 0.0  #: for how long it was, all in all
    ended: bool = False  #: by itself: it was not cancelled
    hold: Hold | None = None
    opening: Opening | None = None
    answer: Answer | None = None
    is_stream: bool = False  #: the answer is read piece by piece
    meter: Meter | None = None
    sent: bool = False  #: the provider may have seen the request
    let_go: bool = False  #: nothing is left of its hold
    counted: bool = False  #: it was not sent, and is booked at nothing: a later attempt has the next number
    complete: bool = False  #: the reply was read to its end: a client that leaves now changes nothing
    over: bool = False  #: nothing more is read: what is left is booking, and telling the client
    last: bytes = b""  #: what follows the durable record
    failure: TollkeeperError | None = None
    entry: Entry | None = None
    verdict: Verdict | None = (
        None  #: what its failure means for another attempt; None: it did not fail, or not by a provider
    )

    @property
    def good(self) -> bool:
        """Nothing has failed so far, here or at its provider, and no other attempt has the call."""
        return self.failure is None and self.verdict is None and not self.lost
