"""A hedge: a second attempt of a call, elsewhere, where the first one has no answer after the time that its place usually takes.

Each has its own hold, permit and entry. Which one serves is decided in one place, `attempt._claim`: the first with content,
or with a whole good reply. The other is cut then, and booked for what it may have used. A call never fails by its hedge: what
refuses that one leaves the call with the first attempt, and its route and its share of the retries are there as before.
"""

from __future__ import annotations

import asyncio

from tollkeeper.attempt import make, watch
from tollkeeper.call import Attempt, Call, Gate, Reply, Request
from tollkeeper.latency import Latencies
from tollkeeper.retry import Tries
from tollkeeper.values import Route

#: Seconds after which to look again for an attempt that waits for its hold.
LOOK_S = 0.01


async def race(
    gate: Gate, latencies: Latencies, request: Request, call: Call, route: Route, reply: Reply, tries: Tries
) -> Attempt:
    """As `attempt.make`, with a hedge where one is due; the attempt that serves, else the one that failed last.

    Both are over when it returns or is cancelled. Where the first fails, the call stays with the hedge, and the other way round.
    """
    assert call.ask is not None
    late_s = latencies.usual_s(route.place, call.ask.stream) if tries.more else None
    if late_s is None:
        attempt = await make(gate, request, call, route, reply, may_move=tries.more)
        _learn(gate, latencies, call, attempt)
        return attempt
    hedge, outlasted = None, False
    async with asyncio.TaskGroup() as group:
        first = group.create_task(make(gate, request, call, route, reply, may_move=True))
        if await _is_late(gate, call, first, late_s):
            hedge = group.create_task(_elsewhere(gate, request, call, route, reply, tries))
            await asyncio.wait((first, hedge), return_when=asyncio.FIRST_COMPLETED)
            outlasted = first.done()
    attempt, other = first.result(), None if hedge is None else hedge.result()
    _learn(gate, latencies, call, attempt)
    if other is not None:
        gate.hedges += 1
        gate.hedges_served += call.winner is other
        if other.good:
            _learn(gate, latencies, call, other)
        attempt = call.winner or (other if outlasted else attempt)
    call.attempt = attempt
    if attempt.sent:
        call.asked = attempt.route
    return attempt


async def _is_late(gate: Gate, call: Call, first: asyncio.Task[Attempt], late_s: float) -> bool:
    """Wait: True once the attempt was sent so long ago and has no answer, False as soon as it has one or is over."""
    wait_s = late_s
    while True:
        await asyncio.wait((first,), timeout=wait_s)
        if not _waits(call):
            return False
        sent_s = call.attempts[-1].sent_s
        wait_s = LOOK_S if sent_s is None else sent_s + late_s - gate.clock.monotonic_s()
        if wait_s <= 0:
            return True


def _waits(call: Call) -> bool:
    """Whether the latest attempt still waits for its provider's first byte, or for its hold."""
    attempt = call.attempts[-1]
    return not (attempt.over or attempt.answer is not None or call.leaving)


async def _elsewhere(
    gate: Gate, request: Request, call: Call, route: Route, reply: Reply, tries: Tries
) -> Attempt | None:
    """The hedge; None: no other place may be asked, no budget pays for it, or it came too late to be sent."""
    other = tries.beside(route)
    if other is None or not _waits(call):
        return None
    watch(gate, call, reply)
    if reply.left or not gate.retries.take(gate.clock.monotonic_s()):
        return None
    attempt = await make(gate, request, call, tries.take(other), reply, may_move=True)
    if attempt.opening is not None:
        return attempt
    tries.put_back(other)
    gate.retries.put_back(gate.clock.monotonic_s())
    return None


def _learn(gate: Gate, latencies: Latencies, call: Call, attempt: Attempt) -> None:
    """What went well counts. So does what its hedge has outrun, by how long it was waited for: else only the quick ones would be
    known, and the p95 would sink with each hedge.
    """
    assert call.ask is not None
    if attempt.sent_s is None or not (attempt.good or attempt.lost):
        return
    waited_s = gate.clock.monotonic_s() - attempt.sent_s if attempt.first_byte_s is None else attempt.first_byte_s
    latencies.add(attempt.route.place, call.ask.stream, waited_s)
