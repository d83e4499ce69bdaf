"""What must hold of a call's attempts in a simulated run: one after the other, and two at once where calls are hedged."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tollkeeper.attempt import AFTER_END_S
from tollkeeper.testing.stage import Story, Tried


def of_course(story: Story, booked: Collection[str]) -> Iterator[str]:
    """When none may follow, or be made beside another. `booked`: the ids of the call's entries."""
    tries = story.tries
    made = [tried for tried in tries if tried.opened_s is not None or not tried.is_hedge]
    if len(made) > story.limits.attempts:
        yield f"{len(made)} attempts, and {story.limits.attempts} are allowed"
    if story.id and [tried.id for tried in tries] != [f"{story.id}/{tried.number}" for tried in tries]:
        yield f"its holds are {[tried.id for tried in tries]}"
    for tried in tries[1:]:
        at = f"attempt {tried.number} was made"
        if tried.after_start:
            yield f"{at} after the reply had begun"
        if tried.after_left:
            yield f"{at} for a client that had left"
        for wrong in _of_hedge(story, tried) if tried.is_hedge else _of_following(story, tried):
            yield f"{at} {wrong}"
    if story.status is not None and len(story.latest) == 2:
        ended_s = min(tried.closed_s or 0 for tried in story.latest)
        if ended_s > story.started_s + AFTER_END_S + 0.1:
            yield f"two attempts are still read {ended_s - story.started_s:.3f} s after the reply has begun"
    for tried in tries:
        if tried.lost and (tried.beside is None or tried.beside.lost or not tried.beside.delivered):
            yield f"attempt {tried.number} was cut for another one, and none had content"
    sent = sum(tried.seen or tried.id in booked for tried in story.opened)
    cut = sum(tried.is_hedge and not (tried.seen or tried.refused) for tried in story.opened)  # before it was there
    told = int(story.headers.get(b"x-tollkeeper-attempts", b"0"))
    if story.status is not None and not (story.died or story.cancelled) and not sent <= told <= sent + cut:
        yield f"{sent} attempts went out, and the client is told of {told}"


def _of_following(story: Story, tried: Tried) -> Iterator[str]:
    """An attempt after others: all of them have failed, by what another one may do better."""
    previous = story.tries[tried.number - 2]
    both = [each for each in (previous, previous.beside) if each is not None]
    if not any(each.opened_s is not None for each in both):
        yield "after one that was refused here"
    if all(is_the_clients(each) for each in both):
        yield f"after the client's own {previous.provided.status}"
    if any(is_good(story, each) or (each.eof and each.provided.trouble in ("none", "lingers")) for each in both):
        yield "after a good one"


def _of_hedge(story: Story, tried: Tried) -> Iterator[str]:
    """An attempt beside another one: that has no answer for so long, and this one goes to another place."""
    first = tried.beside
    assert first is not None
    assert first.opened_s is not None
    if story.hedge_s is None:
        yield "beside another one"
    elif tried.asked_s - first.opened_s < story.hedge_s - 1e-6:
        yield f"beside another one {tried.asked_s - first.opened_s:.3f} s after that"
    if tried.after_answer:
        yield "beside one that had answered"
    if tried.others > 1:
        yield "as the third at a time"
    if tried.route is not None and tried.route == first.route:
        yield f"at {tried.where}, as the one beside it"


def serving(story: Story) -> list[Tried]:
    """Whose reply the client may have: of the latest attempts those that were not cut for the other one."""
    return [tried for tried in story.latest if not tried.lost]


def is_good(story: Story, tried: Tried) -> bool:
    """Whether its provider does nothing wrong, and all in time."""
    provided, limits = tried.provided, story.limits
    if provided.trouble not in ("none", "lingers") or tried.opened_s is None:
        return False
    if provided.trouble == "lingers" and (story.planned.events_of_google or (tried.reply and not tried.reply.stream)):
        return False  # there is no end but the connection's
    size = sum(len(piece.raw) for piece in tried.pieces)
    begun_s = tried.opened_s - (story.opened[0].opened_s or 0)
    lasts_s = provided.connect_s + provided.think_s + provided.gap_s * (1 + size // provided.chunk)
    in_time = provided.connect_s + provided.think_s < limits.first_byte_s - 0.1
    return in_time and begun_s + lasts_s < limits.total_s - 1.2


def is_the_clients(tried: Tried) -> bool:
    """Refused for what the client asks."""
    trouble, status = tried.provided.trouble, tried.provided.status
    if not tried.answered or not trouble.startswith("status"):
        return False
    return status in (400, 422) or (status == 404 and tried.eof)
