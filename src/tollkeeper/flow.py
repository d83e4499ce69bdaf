"""THE LINE: one function, one task, the whole life of a call.

    identify → candidates → estimate → reserve → open → relay + meter → settle → end of reply
                                       └──────── an attempt (attempt.py) ────────┘

The end of the reply (`[DONE]`, the last byte) follows the durable record. A client that leaves does not end the call: its reply
is drained to be counted, or closed and booked at its estimate.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec import structs

from tollkeeper import headers
from tollkeeper.attempt import make, told
from tollkeeper.call import Call, Gate, Limits, Reply, Request
from tollkeeper.cancellation import Deadline
from tollkeeper.errors import BudgetExceeded, RateLimited, TollkeeperError
from tollkeeper.estimate import estimate
from tollkeeper.keys import credential, scopes_for
from tollkeeper.routing import check_allowed

__all__ = ["Call", "Gate", "Limits", "Reply", "Request", "run"]


async def run(gate: Gate, request: Request, reply: Reply) -> None:
    """Serve one call, from its bytes to the end of its reply. Raises nothing but CancelledError."""
    call = Call(id=gate.new_id(), prices=gate.prices)
    failure: TollkeeperError | None = None
    try:
        _aim(gate, request, call)
        attempt = await make(gate, request, call, call.routes[0], reply)
        failure = attempt.failure
    except TollkeeperError as error:
        failure = error
    finally:
        gate.draining -= call.draining
    with suppress(TimeoutError):  # who does not read the end is not waited for: the connection closes
        async with Deadline() as patience:
            patience.move(asyncio.get_running_loop().time() + gate.limits.idle_s)
            await _finish(gate, request, call, reply, failure)


def _aim(gate: Gate, request: Request, call: Call) -> None:
    """Who asks for what, where it may go, and what it costs at most. Raises RequestError."""
    now_us, limits = gate.clock.now_us(), gate.limits
    key = gate.keys.identify(credential(request.headers), now_us)
    call.ask = ask = request.dialect.read_ask(request.body, request.target)
    call.scopes = scopes = scopes_for(key, request.headers, ask.user, limits.default_project)
    allowed = None if key is None else key.models
    check_allowed(ask.others, allowed)
    call.routes = gate.table.candidates(ask.model, request.dialect.name, allowed)
    if ask.free:
        return
    call.quote = estimate(
        call.prices, ask, call.routes, default_output_cap=limits.default_output_cap, model_output_caps=limits.output_caps,
        output_ceilings=limits.output_ceilings, densities=gate.densities if limits.quote == "typical" else None,
        at_us=now_us, key=scopes.key,
    )  # fmt: skip


async def _finish(gate: Gate, request: Request, call: Call, reply: Reply, failure: TollkeeperError | None) -> None:
    dialect, attempt = request.dialect, call.attempt
    answer, entry, last = (None, None, b"") if attempt is None else (attempt.answer, attempt.entry, attempt.last)
    fields = told(call)
    if entry is not None and gate.limits.expose_cost:
        fields += headers.of_cost(entry.charge)
    if entry is not None and answer is not None and answer.is_stream and gate.limits.expose_cost_in_streams:
        last = headers.comment(entry.charge) + last
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
        await reply.start(answer.status, [*answer.headers, *fields, headers.length(last)])
        await reply.end(last)
    else:
        assert failure is not None
        standing = failure.refusal.standing if isinstance(failure, (BudgetExceeded, RateLimited)) else None
        final = headers.of_refusal(standing, gate.clock.now_us(), failure)
        body = dialect.refusal(failure, call.id)
        await reply.start(failure.http_status, [headers.JSON, *fields, *final, headers.length(body)])
        await reply.end(body)
