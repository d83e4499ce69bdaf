"""THE LINE: one function, one task, the whole life of a call.

    identify → candidates → estimate → reserve → open → relay + meter → settle → end of reply

The frame that reserves is the frame that settles. The hold is named before it is asked for, so that a lost answer can be
settled too. Settling is shielded from cancellation and tried again within bounds; the end of the reply (`[DONE]`, the last
byte) follows the durable record. A client that leaves does not end the call: its reply is drained to be counted, or closed
and booked at its estimate. Nothing else reserves, opens or settles.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, Protocol
from urllib.parse import quote as quote_path

import msgspec
from msgspec import structs

from tollkeeper import headers
from tollkeeper.cancellation import Deadline, to_its_end
from tollkeeper.clock import Clock
from tollkeeper.density import Densities
from tollkeeper.dialects import Dialect
from tollkeeper.errors import (
    BudgetExceeded,
    Conflict,
    RateLimited,
    StoreError,
    StreamBroken,
    TollkeeperError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tollkeeper.estimate import estimate
from tollkeeper.keys import KeyRing, credential, scopes_for
from tollkeeper.meter import Meter
from tollkeeper.prices import PriceBook
from tollkeeper.routing import Table, check_allowed
from tollkeeper.settlement import Course, entry_of
from tollkeeper.stores import Store
from tollkeeper.upstream import Answer, Upstream
from tollkeeper.values import Ask, Entry, Grant, Hold, Quote, Reading, Route

log = logging.getLogger("tollkeeper")

#: Seconds between the tries of a settlement that the ledger did not take. What is still owed then is tried again by chores.
SETTLE_PAUSES_S = (0.05, 0.2, 0.5, 1.0)
#: Seconds that a provider may take to close its stream after its end marker.
AFTER_END_S = 1.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a call, in seconds and tokens."""

    first_byte_s: float = 120
    idle_s: float = 60
    total_s: float = 600
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
    densities: Densities = msgspec.field(default_factory=Densities)
    new_id: Callable[[], str]
    draining: int = 0  #: replies being read for clients that have left
    owed: list[Entry | Hold] = []  #: entries to book and holds to let go that the ledger did not take yet

    async def pay(self, due: Entry | Hold) -> None:
        """Book an entry, or let go of a hold for which nothing is owed. Raises StoreError."""
        await (self.store.settle(due) if isinstance(due, Entry) else self.store.void(due.id))


class Call(msgspec.Struct, kw_only=True, eq=False):
    """One call under way: what is known of it so far."""

    id: str
    started_s: float
    deadline: Deadline
    prices: PriceBook  #: those at its admission: a price that changes meanwhile changes nothing
    ask: Ask | None = None
    quote: Quote | None = None
    hold: Hold | None = None
    route: Route | None = None
    grant: Grant = Grant()
    answer: Answer | None = None
    is_stream: bool = False  #: the answer is read piece by piece
    meter: Meter | None = None
    cap: int | None = None  #: the output cap that a hard budget made us set
    sent: bool = False  #: the provider may have seen the request
    complete: bool = False  #: the reply was read to its end: a client that leaves now changes nothing
    over: bool = False  #: nothing more is read: what is left is booking, and telling the client
    leaving: bool = False  #: the client has gone; what is left is drained, or cut off by policy
    draining: bool = False  #: counted in Gate.draining
    started: bool = False  #: the client has its headers
    last: bytes = b""  #: what follows the durable record


async def run(gate: Gate, request: Request, reply: Reply) -> None:
    """Serve one call, from its bytes to the end of its reply. Raises nothing but CancelledError."""
    call = Call(id=gate.new_id(), started_s=gate.clock.monotonic_s(), deadline=Deadline(), prices=gate.prices)
    failure: TollkeeperError | None = None
    entry: Entry | None = None
    try:
        async with call.deadline:
            await _reserve(gate, request, call)
            await _relay(gate, request, call, reply)
    except TollkeeperError as error:
        failure = error
    except TimeoutError:
        failure = _timed_out(call)
    finally:  # also when cancelled: then the account is put right, and nothing else
        call.over = True
        gate.draining -= call.draining
        if call.hold is not None:
            entry = await _put_right(gate, call, failure)
    with suppress(TimeoutError):  # who does not read the end is not waited for: the connection closes
        async with Deadline() as patience:
            patience.move(asyncio.get_running_loop().time() + gate.limits.idle_s)
            await _finish(gate, request, call, reply, failure, entry)


# ── reserve ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _reserve(gate: Gate, request: Request, call: Call) -> None:
    now_us, limits = gate.clock.now_us(), gate.limits
    key = gate.keys.identify(credential(request.headers), now_us)
    call.ask = ask = request.dialect.read_ask(request.body, request.target)
    scopes = scopes_for(key, request.headers, ask.user, limits.default_project)
    allowed = None if key is None else key.models
    check_allowed(ask.others, allowed)
    routes = gate.table.candidates(ask.model, request.dialect.name, allowed).routes
    call.route = routes[0]
    if ask.free:
        return
    call.quote = quote = estimate(
        call.prices, ask, routes, default_output_cap=limits.default_output_cap, model_output_caps=limits.output_caps,
        output_ceilings=limits.output_ceilings, densities=gate.densities if limits.quote == "typical" else None,
        at_us=now_us, key=scopes.key,
    )  # fmt: skip
    call.hold = Hold(
        id=f"{call.id}/1", call=call.id, attempt=1, scopes=scopes, dialect=request.dialect.name,
        provider=call.route.provider.name, model=ask.model, quote_nanos=quote.amount_nanos, quote_usage=quote.usage,
        at_us=now_us, deadline_us=now_us + int(limits.hold_ttl_s * 1_000_000), price_version=quote.price_version,
        sent=call.route.model if call.route.model != ask.model else None, tier=ask.tier,
        speed=ask.speed, geo=ask.geo,
    )  # fmt: skip
    call.grant = await gate.store.reserve(call.hold)


# ── relay and meter ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _relay(gate: Gate, request: Request, call: Call, reply: Reply) -> None:
    ask, route, limits = call.ask, call.route, gate.limits
    assert ask is not None
    assert route is not None
    dialect, provider, now_s = request.dialect, route.provider, asyncio.get_running_loop().time
    if call.grant.capped and call.quote is not None:
        call.cap = call.quote.written_cap
    body = dialect.write_body(ask, model=route.model, output_cap=call.cap, quirks=provider.quirks)
    begins = dict(provider.paths).get(dialect.name)
    path = ask.path if begins is None else begins + ask.path.removeprefix(dialect.path)
    if "{model}" in path:
        path = path.replace("{model}", quote_path(route.model))
    ends_s = now_s() + limits.total_s
    call.deadline.move(min(ends_s, now_s() + limits.first_byte_s))
    if ask.stream or limits.on_disconnect == "cancel":  # else its reply is read to the end in any case
        reply.on_left(lambda: _leave(gate, call))
    call.sent = True
    async with gate.upstream.open(route, dialect.name, path, body, request.headers) as answer:
        call.answer = answer
        call.is_stream = is_stream = answer.is_stream or (ask.array and answer.status < 300)
        call.meter = meter = Meter(
            dialect, stream=is_stream, hide_usage=not ask.wants_usage, quirks=provider.quirks,
            array=is_stream and not answer.is_stream,
        )  # fmt: skip
        if not call.leaving:
            call.deadline.move(min(ends_s, now_s() + limits.idle_s))
        while chunk := await answer.read():
            data = meter.feed(chunk)
            if meter.ended:
                call.complete = True
                call.deadline.move(None)
                call.last += data + await _rest(answer, meter)
                break
            if data:
                await _send(call, answer, meter, reply, data)
            if not call.leaving:
                call.deadline.move(min(ends_s, now_s() + limits.idle_s))
    reading = meter.finish()
    call.last += meter.tail
    call.complete = True
    if not is_stream:
        call.last = meter.body
    if answer.status >= 300:
        raise _refused(answer, provider.name)
    if is_stream and reading.error is not None and not (call.started or meter.content):
        raise UpstreamRefused(502, f"provider {provider.name} answered with an error: {reading.error}")
    if is_stream and reading.error is None and not reading.ended:
        call.complete = False
        raise StreamBroken(f"provider {provider.name} ended its stream without the end marker")


async def _send(call: Call, answer: Answer, meter: Meter, reply: Reply, data: bytes) -> None:
    """Relay a piece. The headers go with the first one: a stream that begins with an error gets a status of its own."""
    if not call.started:
        call.last += data
        if meter.error is not None and not meter.content:
            return
        call.started = True
        data, call.last = call.last, b""
        await reply.start(answer.status, answer.headers + _told(call))
    await reply.send(data)


async def _rest(answer: Answer, meter: Meter) -> bytes:
    """What still comes after the end marker; a provider that then breaks off, or does not close, has done its work."""
    rest = b""
    with suppress(TimeoutError, StreamBroken):
        async with asyncio.timeout(AFTER_END_S):
            while chunk := await answer.read():
                rest += meter.feed(chunk)
    return rest


def _leave(gate: Gate, call: Call) -> None:
    """The client has gone: drain within bounds, or stop at once."""
    if call.leaving or call.complete or call.over:
        return
    call.leaving = True
    drain = gate.limits.on_disconnect == "drain" and gate.draining < gate.limits.drain_limit
    if drain:
        call.draining = True
        gate.draining += 1
    if not call.deadline.expired:
        call.deadline.move(asyncio.get_running_loop().time() + (gate.limits.drain_s if drain else 0))


def _timed_out(call: Call) -> TollkeeperError:
    if call.leaving:
        return StreamBroken("the client left before the end of its reply")
    if call.answer is None:
        return UpstreamTimeout("the provider did not answer in time")
    return UpstreamTimeout("the reply took too long: the provider stalled, or the client did not read")


def _refused(answer: Answer, provider: str) -> UpstreamRefused:
    """A provider's own error. What concerns the gateway's credential is the operator's business, not the client's."""
    if answer.status == 401 or answer.status < 400:
        return UpstreamRefused(502, f"provider {provider} answered {answer.status}; check its base_url and key")
    return UpstreamRefused(answer.status)


# ── settle ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _put_right(gate: Gate, call: Call, failure: TollkeeperError | None) -> Entry | None:
    """Book what the call used, or let its hold go if nothing was sent; to the end, whatever cancels us meanwhile."""
    assert call.hold is not None
    sent = call.sent and not isinstance(failure, UpstreamUnreachable)
    entry = _entry(gate, call, failure) if sent else None
    due = entry if entry is not None else call.hold
    try:
        await _book(gate, due)
    except asyncio.CancelledError:  # the ledger's calls are idempotent: once more, and now to the end
        await to_its_end(_book(gate, due))
        raise
    return entry


async def _book(gate: Gate, due: Entry | Hold) -> None:
    """Never raises: what the ledger does not take now is owed, and tried again by chores."""
    for pause_s in (*(SETTLE_PAUSES_S if isinstance(due, Entry) else ()), None):
        try:
            await gate.pay(due)
        except StoreError as error:
            if pause_s is not None and not isinstance(error, Conflict):
                await asyncio.sleep(pause_s)
                continue
            log.error("call %s is not booked yet, it will be tried again: %s", due.call, error)
            gate.owed.append(due)
        return


def _entry(gate: Gate, call: Call, failure: TollkeeperError | None) -> Entry:
    answer, meter = call.answer, call.meter
    assert call.ask is not None
    assert call.quote is not None
    assert call.hold is not None
    assert call.route is not None
    whole = answer is not None and not call.is_stream
    reading = Reading() if meter is None else meter.finish()
    course = Course(
        hold=call.hold, provider=call.route.provider, sent=call.route.model, prompt_bound=call.ask.prompt_bound,
        choices=call.ask.choices, answered=answer is not None, http_status=None if answer is None else answer.status,
        is_stream=call.is_stream, reading=reading,
        content=meter is not None and meter.content, body_bytes=len(meter.body) if meter is not None and whole else 0,
        complete=call.complete, left=call.leaving, capped=call.cap == call.quote.written_cap, failure=failure,
        latency_ms=round((gate.clock.monotonic_s() - call.started_s) * 1000),
    )  # fmt: skip
    if failure is None and reading.final and len(reading.parts) == 1 and not reading.inferred:
        gate.densities.learn(call.route, call.ask, reading.usage.input_tokens)
    return entry_of(call.prices, course)


# ── the end of the reply ─────────────────────────────────────────────────────────────────────────────────────────────


def _told(call: Call) -> headers.Headers:
    return headers.of_call(call.id, call.route, int(call.sent), call.grant.tightest, call.cap)


async def _finish(
    gate: Gate, request: Request, call: Call, reply: Reply, failure: TollkeeperError | None, entry: Entry | None
) -> None:
    dialect, answer, last = request.dialect, call.answer, call.last
    told = _told(call)
    if entry is not None and gate.limits.expose_cost:
        told += headers.of_cost(entry.charge)
    if entry is not None and answer is not None and answer.is_stream and gate.limits.expose_cost_in_streams:
        last = headers.comment(entry.charge) + last
    if call.started:
        assert call.ask is not None
        assert answer is not None
        array = call.ask.array and not answer.is_stream  # as it came, whatever was asked for
        end = dialect.broken(failure, call.id, structs.replace(call.ask, array=array)) if failure is not None else b""
        await reply.end(last + end)
    elif failure is None or (answer is not None and call.complete and failure.http_status == answer.status):
        assert answer is not None
        await reply.start(answer.status, [*answer.headers, *told, headers.length(last)])
        await reply.end(last)
    else:
        standing = failure.refusal.standing if isinstance(failure, (BudgetExceeded, RateLimited)) else None
        final = headers.of_refusal(standing, gate.clock.now_us(), failure)
        body = dialect.refusal(failure, call.id)
        await reply.start(failure.http_status, [headers.JSON, *told, *final, headers.length(body)])
        await reply.end(body)
