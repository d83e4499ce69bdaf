"""THE LINE: one function, one task, the whole life of a call.

    identify → candidates → estimate → reserve → open → relay + meter → settle → end of reply
                                       └──────── an attempt (attempt.py) ────────┘

An attempt that failed before its first content may be followed by another one, there or elsewhere (retry.py). The end of the
reply (`[DONE]`, the last byte) follows the durable record. A client that leaves does not end the call: its reply is drained to be
counted, or closed and booked at its estimate.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec import structs

from tollkeeper import headers
from tollkeeper.attempt import make, told, watch
from tollkeeper.call import Attempt, Call, Gate, Limits, Reply, Request
from tollkeeper.cancellation import Deadline
from tollkeeper.errors import BudgetExceeded, HeldOff, RateLimited, TollkeeperError, UnknownModel
from tollkeeper.estimate import estimate
from tollkeeper.hedging import race
from tollkeeper.keys import credential, scopes_for
from tollkeeper.retry import Tries
from tollkeeper.routing import Candidates, check_allowed, ordered
from tollkeeper.values import Quote, Route

__all__ = ["Call", "Gate", "Limits", "Reply", "Request", "run"]


async def run(gate: Gate, request: Request, reply: Reply) -> None:
    """Serve one call, from its bytes to the end of its reply. Raises nothing but CancelledError."""
    call = Call(id=gate.new_id(), prices=gate.prices)
    failure: TollkeeperError | None = None
    try:
        _aim(gate, request, call)
        failure = await _serve(gate, request, call, reply)
    except TollkeeperError as error:
        failure = error
    finally:
        gate.draining -= call.draining
    with suppress(TimeoutError):  # who does not read the end is not waited for: the connection closes
        async with Deadline() as patience:
            patience.move(asyncio.get_running_loop().time() + gate.limits.idle_s)
            await _finish(gate, request, call, reply, failure)


# ── where it may go ──────────────────────────────────────────────────────────────────────────────────────────────────


def _aim(gate: Gate, request: Request, call: Call) -> None:
    """Who asks for what, where it may go, and what it costs at most. Raises RequestError."""
    key = gate.keys.identify(credential(request.headers), gate.clock.now_us())
    call.ask = ask = request.dialect.read_ask(request.body, request.target)
    call.scopes = scopes_for(key, request.headers, ask.user, gate.limits.default_project)
    allowed = None if key is None else key.models
    check_allowed(ask.others, allowed)
    _go_to(gate, call, gate.table.candidates(ask.model, request.dialect.name, allowed))


def _go_to(gate: Gate, call: Call, candidates: Candidates) -> None:
    """Put the routes in the order in which they are tried. The quote is that of the dearest."""
    assert call.ask is not None
    gate.turn += 1
    call.routes = ordered(
        candidates, draw=gate.draw, turn=gate.turn,
        cost=lambda route: _quote(gate, call, (route,)).amount_nanos,
        latency=lambda route: gate.health.latency_s(route.place),
    )  # fmt: skip
    if not call.ask.free:
        call.quote = _quote(gate, call, candidates.routes)


def _quote(gate: Gate, call: Call, routes: tuple[Route, ...]) -> Quote:
    limits, ask, scopes = gate.limits, call.ask, call.scopes
    assert ask is not None
    assert scopes is not None
    return estimate(
        call.prices, ask, routes, default_output_cap=limits.default_output_cap, model_output_caps=limits.output_caps,
        output_ceilings=limits.output_ceilings, densities=gate.densities if limits.quote == "typical" else None,
        at_us=gate.clock.now_us(), key=scopes.key,
    )  # fmt: skip


def _instead(gate: Gate, request: Request, call: Call, failure: TollkeeperError | None) -> bool:
    """Turn to the cheaper model that the budget names which has refused; once, and before anything was sent."""
    if not isinstance(failure, (BudgetExceeded, RateLimited)) or call.sent or call.instead_of is not None:
        return False
    model = failure.refusal.standing.budget.instead
    if model is None:
        return False
    try:
        candidates = gate.table.candidates(model, request.dialect.name)
    except UnknownModel:  # it does not speak the caller's dialect: the refusal stands
        return False
    assert call.ask is not None
    call.instead_of, call.ask = call.ask.model, structs.replace(call.ask, model=model)
    _go_to(gate, call, candidates)
    return True


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _serve(gate: Gate, request: Request, call: Call, reply: Reply) -> TollkeeperError | None:
    """Attempts, one after the other, until one serves or no other may; what the last one failed by. Raises HeldOff."""
    gate.retries.called(gate.clock.monotonic_s())
    tries, route = _begin(gate, call)
    while True:
        if gate.latencies is None or call.quote is None:  # what is free is sooner than what it is asked for
            attempt = await make(gate, request, call, route, reply, may_move=tries.more)
        else:
            attempt = await race(gate, gate.latencies, request, call, route, reply, tries)
        if _instead(gate, request, call, attempt.failure):
            tries, route = _begin(gate, call)
            continue
        following = await _following(gate, call, tries, attempt, reply)
        if following is None:
            return attempt.failure
        route = following


def _begin(gate: Gate, call: Call) -> tuple[Tries, Route]:
    """The first route that is open; where none is, the one that is back first: never are all left out, unless it is declared."""
    tries = Tries(call.routes, gate.limits.attempts, lambda route: gate.health.allows(route.place))
    first = tries.first()
    if first is not None:
        return tries, first
    places = {route.place: route for route in call.routes}
    back = gate.health.first_back(places)
    if gate.limits.when_all_open == "refuse":
        left_s = gate.health.open_until_s(back) - gate.clock.monotonic_s()
        raise HeldOff("every provider of this model failed just now; ask again in a moment", retry_after_s=left_s)
    return tries, tries.take(places[back])


async def _following(gate: Gate, call: Call, tries: Tries, attempt: Attempt, reply: Reply) -> Route | None:
    """Where to try again, after the pause that it takes; None: it stays with this attempt."""
    if attempt.verdict is None or call.started or call.leaving:
        return None
    following = tries.after(attempt.route, attempt.verdict, gate.draw)
    if following is None or not gate.retries.take(gate.clock.monotonic_s()):
        return None
    loop = asyncio.get_running_loop()
    watch(gate, call, reply)
    while following is not None and (call.ends_s is None or loop.time() + following.pause_s < call.ends_s):
        await asyncio.sleep(following.pause_s)  # also where there is none: a client that has left is seen now
        if reply.left:
            break
        if gate.health.allows(following.route.place):  # others may have shut it meanwhile, or be its probe
            return following.route
        following = tries.after(attempt.route, attempt.verdict, gate.draw)
    gate.retries.put_back(gate.clock.monotonic_s())
    return None


# ── the end of the reply ─────────────────────────────────────────────────────────────────────────────────────────────


async def _finish(gate: Gate, request: Request, call: Call, reply: Reply, failure: TollkeeperError | None) -> None:
    dialect, attempt = request.dialect, call.attempt
    answer, entry, last = (None, None, b"") if attempt is None else (attempt.answer, attempt.entry, attempt.last)
    fields = told(call)
    if call.charges and gate.limits.expose_cost:
        fields += headers.of_cost(call.charges)
    if entry is not None and answer is not None and answer.is_stream and gate.limits.expose_cost_in_streams:
        last = headers.comment(call.charges) + last
    if call.started:
        assert call.ask is not None
        assert answer is not None
        array = call.ask.array and not answer.is_stream  # as it came, whatever was asked for
        end = dialect.broken(failure, call.id, structs.replace(call.ask, array=array)) if failure is not None else b""
        await reply.end(last + end)
    elif (
        attempt is not None
        and answer is not None
        and (failure is None or (attempt.complete and failure.http_status == answer.status))
    ):
        passed = answer.headers if failure is None or call.made == 1 else headers.final(answer.headers)
        await reply.start(answer.status, [*passed, *fields, headers.length(last)])
        await reply.end(last)
    else:
        assert failure is not None
        final = headers.of_refusal(failure, gate.clock.now_us(), tried=call.made)
        body = dialect.refusal(failure, call.id)
        await reply.start(failure.http_status, [headers.JSON, *fields, *final, headers.length(body)])
        await reply.end(body)
