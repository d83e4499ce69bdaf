"""One attempt of a call: held, sent, relayed and metered, settled.

The frame that reserves is the frame that settles. The hold is named before it is asked for, so that a lost answer can be
settled too. Settling is shielded from cancellation and tried again within bounds. Nothing else reserves, opens or settles.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from urllib.parse import quote as quote_path

from tollkeeper import headers
from tollkeeper.call import Attempt, Call, Gate, Reply, Request
from tollkeeper.cancellation import Deadline, to_its_end
from tollkeeper.errors import (
    BadRequest,
    Conflict,
    Outrun,
    StoreError,
    StreamBroken,
    TollkeeperError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from tollkeeper.failures import verdict_of
from tollkeeper.health import Pass
from tollkeeper.meter import Meter
from tollkeeper.settlement import Course, entry_for, entry_of, nothing_owed
from tollkeeper.upstream import Answer
from tollkeeper.values import Entry, Hold, Reading, Route

log = logging.getLogger("tollkeeper")

#: Seconds between the tries of a settlement that the ledger did not take. What is still owed then is tried again by chores.
SETTLE_PAUSES_S = (0.05, 0.2, 0.5, 1.0)
#: Seconds that a provider may take to close its stream after its end marker.
AFTER_END_S = 1.0
#: Seconds that a client may take to read, all in all, before a reply that takes too long says nothing of its provider.
UNREAD_S = 1.0
#: Bytes that are kept back while another route may still serve: pings and the first events.
HELD_BACK_MAX = 64 << 10


async def make(
    gate: Gate, request: Request, call: Call, route: Route, reply: Reply, *, may_move: bool = False
) -> Attempt:
    """Try a route, from the hold to the entry. Raises nothing but CancelledError, and then the account is right too."""
    call.made += 1
    attempt = call.attempt = Attempt(
        number=call.made, route=route, deadline=Deadline(), started_s=gate.clock.monotonic_s(), may_move=may_move
    )  # fmt: skip
    call.attempts.append(attempt)
    place = route.place
    leave_to_go = gate.health.admit(place) or gate.health.force(place)
    try:
        async with attempt.deadline:
            path = _path(request, call, route)
            await _reserve(gate, request, call, attempt)
            await _relay(gate, request, call, attempt, path, reply)
        attempt.ended = True
    except TollkeeperError as error:
        attempt.failure, attempt.ended = error, True
    except TimeoutError:
        attempt.failure, attempt.ended = _timed_out(call, attempt), True
    finally:  # also when cancelled: then the account is put right, and nothing else
        attempt.over = True
        if attempt.opening is not None and not attempt.opening.sent:
            attempt.sent, attempt.counted = False, _is_followed(call, attempt)
            call.sent -= not attempt.counted
        _judge(gate, call, attempt, leave_to_go)
        if attempt.hold is not None:
            attempt.entry = await _put_right(gate, call, attempt)
    return attempt


def _is_followed(call: Call, attempt: Attempt) -> bool:
    """Whether a hold of a later attempt is out: it counts as a further one, so that this one has to stay counted."""
    later = call.attempts[attempt.number :]
    return attempt.hold is not None and any(each.hold is not None and not each.let_go for each in later)


def _path(request: Request, call: Call, route: Route) -> str:
    """Where it goes below the provider's base URL. Raises BadRequest for a model's name that would lead out of there."""
    ask, dialect = call.ask, request.dialect
    assert ask is not None
    begins = dict(route.provider.paths).get(dialect.name)
    path = ask.path if begins is None else begins + ask.path.removeprefix(dialect.path)
    if "{model}" not in path:
        return path
    if not {"", ".", ".."}.isdisjoint(route.model.split("/")):
        raise BadRequest("model: expected a name without '..' or an empty part, as it stands in the provider's path.")
    return path.replace("{model}", quote_path(route.model))


# ── reserve ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _reserve(gate: Gate, request: Request, call: Call, attempt: Attempt) -> None:
    ask, quote, route, now_us = call.ask, call.quote, attempt.route, gate.clock.now_us()
    assert ask is not None
    if quote is None:  # it costs nothing
        return
    assert call.scopes is not None
    attempt.hold = Hold(
        id=f"{call.id}/{attempt.number}", call=call.id, attempt=call.sent + 1, scopes=call.scopes, dialect=request.dialect.name,
        provider=route.provider.name, model=ask.model, quote_nanos=quote.amount_nanos, quote_usage=quote.usage,
        at_us=now_us, deadline_us=now_us + int(gate.limits.hold_ttl_s * 1_000_000), price_version=quote.price_version,
        sent=route.model if route.model != ask.model else None, tier=ask.tier,
        speed=ask.speed, geo=ask.geo,
    )  # fmt: skip
    attempt.grant = await gate.store.reserve(attempt.hold)


# ── relay and meter ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _relay(gate: Gate, request: Request, call: Call, attempt: Attempt, path: str, reply: Reply) -> None:
    ask, route, limits, deadline = call.ask, attempt.route, gate.limits, attempt.deadline
    assert ask is not None
    dialect, provider, now_s = request.dialect, route.provider, asyncio.get_running_loop().time
    if attempt.lost or call.leaving:  # while its hold was asked for
        raise _cut_off(call)
    if attempt.grant.capped and call.quote is not None:
        attempt.cap = call.quote.written_cap
    body = dialect.write_body(ask, model=route.model, output_cap=attempt.cap, quirks=provider.quirks)
    if call.ends_s is None:
        call.ends_s = now_s() + limits.total_s
    ends_s = call.ends_s
    deadline.move(min(ends_s, now_s() + limits.first_byte_s))
    if ask.stream or limits.on_disconnect == "cancel":  # else its reply is read to the end in any case
        watch(gate, call, reply)
    attempt.sent = True
    call.sent += 1
    call.asked = route
    attempt.sent_s = sent_s = gate.clock.monotonic_s()
    attempt.opening = gate.upstream.open(route, dialect.name, path, body, request.headers)
    async with attempt.opening as answer:
        attempt.answer, attempt.first_byte_s = answer, gate.clock.monotonic_s() - sent_s
        attempt.is_stream = is_stream = answer.is_stream or (ask.array and answer.status < 300)
        attempt.meter = meter = Meter(
            dialect, stream=is_stream, hide_usage=not ask.wants_usage, quirks=provider.quirks,
            array=is_stream and not answer.is_stream,
        )  # fmt: skip
        if not (call.leaving or attempt.lost):
            deadline.move(min(ends_s, now_s() + limits.idle_s))
        while chunk := await answer.read():
            data = meter.feed(chunk)
            if meter.ended:
                attempt.complete = True
                deadline.move(None)
                attempt.last += data + await _rest(answer, meter)
                break
            came_s = read_s = now_s()
            if data:
                await _send(call, attempt, reply, data)
                read_s = now_s()
                attempt.unread_s += read_s - came_s
            if not (call.leaving or attempt.lost):
                deadline.move(min(ends_s, read_s + limits.idle_s))
    reading = meter.finish()
    attempt.last += meter.tail
    attempt.complete = True
    if not is_stream:
        attempt.last = meter.body
    if answer.status >= 300:
        raise _refused(answer, provider.name)
    if is_stream and reading.error is not None and not (call.started or meter.content):
        raise UpstreamRefused(502, f"provider {provider.name} answered with an error: {reading.error}")
    if is_stream and reading.error is None and not reading.ended:
        attempt.complete = False
        raise StreamBroken(f"provider {provider.name} ended its stream without the end marker")
    if not _failed_inside(attempt):  # else it may still be tried elsewhere
        _claim(call, attempt)


async def _send(call: Call, attempt: Attempt, reply: Reply, data: bytes) -> None:
    """Relay a piece. The headers go with the first one: a stream that begins with an error gets a status of its own."""
    if call.winner is not attempt:
        answer, meter = attempt.answer, attempt.meter
        assert answer is not None
        assert meter is not None
        attempt.last += data
        kept_back = attempt.may_move and len(attempt.last) < HELD_BACK_MAX
        if not meter.content and (meter.error is not None or kept_back):
            return
        if not _claim(call, attempt):
            return
        call.started = True
        data, attempt.last = attempt.last, b""
        attempt.sending = True
        await reply.start(answer.status, answer.headers + told(call))
    attempt.sending = True
    await reply.send(data)
    attempt.sending = False


def _claim(call: Call, attempt: Attempt) -> bool:
    """The call is its first claimant's: that is told True, now and later. Others that are under way are cut."""
    if call.winner is None:
        call.winner = call.attempt = attempt
        call.asked = attempt.route
        for other in call.attempts:
            if not (other is attempt or other.over):
                other.lost = True
                _cut(other, 0)
    return call.winner is attempt


def _cut(attempt: Attempt, in_s: float) -> None:
    """End it so soon, unless its reply was read to the end."""
    if not (attempt.complete or attempt.deadline.expired):
        attempt.deadline.move(asyncio.get_running_loop().time() + in_s)


async def _rest(answer: Answer, meter: Meter) -> bytes:
    """What still comes after the end marker; a provider that then breaks off, or does not close, has done its work."""
    rest = b""
    with suppress(TimeoutError, StreamBroken):
        async with asyncio.timeout(AFTER_END_S):
            while chunk := await answer.read():
                rest += meter.feed(chunk)
    return rest


def watch(gate: Gate, call: Call, reply: Reply) -> None:
    """Hear of it when the client leaves."""
    if not call.watched:
        call.watched = True
        reply.on_left(lambda: leave(gate, call))


def leave(gate: Gate, call: Call) -> None:
    """The client has gone: drain within bounds, or stop at once; nothing more is tried."""
    if call.leaving or any(each.complete and each.good for each in call.attempts):
        return
    call.leaving = True
    for attempt in call.attempts:
        if attempt.over:
            continue
        drain = gate.limits.on_disconnect == "drain" and gate.draining < gate.limits.drain_limit and attempt.sent
        call.draining += drain
        gate.draining += drain
        _cut(attempt, gate.limits.drain_s if drain else 0)


def _timed_out(call: Call, attempt: Attempt) -> TollkeeperError:
    if attempt.lost or call.leaving:
        return _cut_off(call)
    if attempt.answer is None:
        return UpstreamTimeout("the provider did not answer in time")
    return UpstreamTimeout("the reply took too long: the provider stalled, or the client did not read")


def _cut_off(call: Call) -> TollkeeperError:
    if call.leaving:
        return StreamBroken("the client left before the end of its reply")
    return Outrun("another attempt had content first")


def _refused(answer: Answer, provider: str) -> UpstreamRefused:
    """A provider's own error. What concerns the gateway's credential is the operator's business, not the client's."""
    if answer.status == 401 or not 400 <= answer.status < 600:  # HTTP knows none above
        return UpstreamRefused(502, f"provider {provider} answered {answer.status}; check its base_url and key")
    return UpstreamRefused(answer.status)


# ── what it says of the provider ─────────────────────────────────────────────────────────────────────────────────────


def _judge(gate: Gate, call: Call, attempt: Attempt, leave_to_go: Pass) -> None:
    """Tell the breakers how it went, and find out whether it may be tried again."""
    answer, meter, failure, health = attempt.answer, attempt.meter, attempt.failure, gate.health
    if failure is None and attempt.ended and not _failed_inside(attempt):
        health.report(leave_to_go, failed=None, first_byte_s=attempt.first_byte_s)
        return
    refused = failure is not None and not isinstance(failure, UpstreamError)
    if refused or not attempt.ended:  # here, or it was cancelled
        health.report(leave_to_go, failed=None, ignore=True)
        return
    body = attempt.last or (meter.error or "").encode() if meter is not None else b""
    verdict = verdict_of(
        failure, None if answer is None else answer.status, () if answer is None else answer.headers, body,
        now_us=gate.clock.now_us(), content=call.started and call.winner is attempt,
        client_left=attempt.lost or call.leaving or _by_the_client(call, attempt),
    )  # fmt: skip
    waited_s = gate.clock.monotonic_s() - attempt.started_s if answer is None else attempt.first_byte_s
    fails = verdict.effect == "fail"
    health.report(
        leave_to_go, failed=verdict.level if fails else None, ignore=not fails, first_byte_s=waited_s,
        reason=verdict.reason,
    )  # fmt: skip
    if verdict.effect == "block" and verdict.level is not None and verdict.for_s is not None:
        health.block(attempt.route.place, verdict.level, gate.clock.monotonic_s() + verdict.for_s, verdict.reason)
    attempt.verdict = verdict


def _failed_inside(attempt: Attempt) -> bool:
    """Whether a reply with a good status is an error: a stream with one, or a whole body of one, for which no usage is stated."""
    meter = attempt.meter
    return meter is not None and meter.error is not None and (attempt.is_stream or not meter.finish().parts)


def _by_the_client(call: Call, attempt: Attempt) -> bool:
    """Whether the time that ran out is the client's: it did not read, or too slowly for the whole reply."""
    over = call.ends_s is not None and asyncio.get_running_loop().time() >= call.ends_s
    return attempt.sending or (over and attempt.unread_s >= UNREAD_S)


# ── settle ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _put_right(gate: Gate, call: Call, attempt: Attempt) -> Entry | None:
    """Book what was used, or let the hold go if nothing was sent; to the end, whatever cancels us meanwhile."""
    assert attempt.hold is not None
    entry = _entry(gate, call, attempt) if attempt.sent or attempt.counted else None
    due = entry if entry is not None else attempt.hold
    try:
        await _book(gate, due)
        if entry is not None:
            call.charges.append(entry.charge)
        elif due in gate.owed:  # a hold that may yet expire counts the call: no other attempt may count it too
            attempt.verdict = None
        else:
            attempt.let_go = True
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


def _entry(gate: Gate, call: Call, attempt: Attempt) -> Entry:
    answer, meter, ask, quote, route, hold = (
        attempt.answer, attempt.meter, call.ask, call.quote, attempt.route, attempt.hold
    )  # fmt: skip
    assert ask is not None
    assert quote is not None
    assert hold is not None
    latency_ms = round((gate.clock.monotonic_s() - attempt.started_s) * 1000)
    if attempt.counted:
        return entry_for(
            hold, Reading(), nothing_owed(hold.price_version), sent=route.model, latency_ms=latency_ms,
            outcome="left" if call.leaving or attempt.lost else "cut",
            note=None if attempt.failure is None else attempt.failure.code,
        )  # fmt: skip
    whole = answer is not None and not attempt.is_stream
    reading = Reading() if meter is None else meter.finish()
    course = Course(
        hold=hold, provider=route.provider, sent=route.model, prompt_bound=ask.prompt_bound,
        choices=ask.choices, answered=answer is not None, http_status=None if answer is None else answer.status,
        is_stream=attempt.is_stream, reading=reading,
        content=meter is not None and meter.content, body_bytes=len(meter.body) if meter is not None and whole else 0,
        complete=attempt.complete, left=call.leaving or (attempt.lost and not attempt.complete),
        capped=attempt.cap == quote.written_cap, failure=attempt.failure, latency_ms=latency_ms,
    )  # fmt: skip
    if attempt.failure is None and reading.final and len(reading.parts) == 1 and not reading.inferred:
        gate.densities.learn(route, ask, reading.usage.input_tokens)
    return entry_of(call.prices, course)


def told(call: Call) -> headers.Headers:
    """The headers of a call's reply, as far as they are known while it begins."""
    attempt = call.attempt
    tightest, cap = (None, None) if attempt is None else (attempt.grant.tightest, attempt.cap)
    return headers.of_call(call.id, call.asked, call.sent, tightest, cap, call.instead_of)
