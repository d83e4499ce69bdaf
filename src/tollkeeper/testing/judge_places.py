"""What must hold of the breakers in a simulated run: the attempts of all calls against the changes that the breakers told of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from math import ceil
from typing import Final, NamedTuple

from tollkeeper.health import Change, Level
from tollkeeper.retry import FLOOR, WINDOW_S
from tollkeeper.testing.judge_course import is_good, is_the_clients
from tollkeeper.testing.script import RETRY_RATIO, Ledger, Planned, Script
from tollkeeper.testing.stage import Story, Tried
from tollkeeper.values import Place

#: A provider's own word → which level it shuts, and for how long where it does not say. Seconds.
SHUTS: Final[dict[int, tuple[Level, float | None]]] = {
    401: ("key", 600), 402: ("key", 3600), 403: ("key", 600), 429: ("model", None), 503: ("model", None), 529: ("model", None),
}  # fmt: skip
Changes = list[tuple[float, Change]]


class Sent(NamedTuple):
    """An attempt that went out, and where to."""

    story: Story
    tried: Tried
    place: Place

    def shares(self, level: Level, place: Place) -> bool:
        """Whether it went there, as far as that level tells places apart."""
        return self._at(level) == {"provider": place[:1], "key": place[:2], "model": place}[level]

    def at(self, change: Change) -> bool:
        """Whether it went to the place of a breaker."""
        return self.shares(change.level, Place(change.provider, change.key, change.model))

    @property
    def heard(self) -> bool:
        """It came to its end, and how it ended says something of its provider."""
        left = self.tried.lost or self.story.left or self.story.cancelled or self.story.died
        return self.tried.closed_s is not None and not left

    def _at(self, level: Level) -> tuple[str, ...]:
        return {"provider": self.place[:1], "key": self.place[:2], "model": self.place}[level]


def of_run(
    script: Script, stories: list[Story], changes: Changes, places: Callable[[Planned], list[Place]]
) -> Iterator[str]:
    """What is wrong. `changes`: with their times, of the latest process; `places`: where a call can go."""
    since_s = script.death_s or 0.0
    sent = [
        Sent(story, tried, tried.route.place)
        for story in stories
        for tried in story.tries
        if tried.asked_s >= since_s and tried.route is not None and tried.opened_s is not None
    ]
    yield from _of_openings(script, sent, changes)
    yield from _of_shut(sent)
    yield from _of_down(script, sent, changes)
    further = sum(each.tried.number > 1 for each in sent)
    if script.ledger == Ledger(latency_s=script.ledger.latency_s) and further < FLOOR:
        yield from _of_staying(sent, changes, places)
    yield from _of_further(sent, len(stories))


def _of_openings(script: Script, sent: list[Sent], changes: Changes) -> Iterator[str]:
    """E3: only a provider's own faults open a breaker, and as many as are declared."""
    openings: Counter[Change] = Counter()
    for at_s, change in changes:
        if change.after != "open":
            continue
        breaker = change._replace(before="closed", until_s=0, reason="")
        openings[breaker] += 1
        faults = [
            each.tried
            for each in sent
            if each.at(change) and (each.tried.closed_s or 0) <= at_s
            and not (is_good(each.story, each.tried) or is_the_clients(each.tried) or each.tried.lost)
        ]  # fmt: skip
        told = any(tried.provided.trouble.startswith("status") for tried in faults)
        needed = 1 if told else min(script.bounds.failures, ceil(script.bounds.ratio * script.bounds.minimum))
        if len(faults) < max(needed, openings[breaker]):
            yield f"{change} after {len(faults)} faults of the provider"


def _of_shut(sent: list[Sent]) -> Iterator[str]:
    """E3, E4: nobody goes where a provider said that it serves nobody for a while."""
    for each in sent:
        tried, word = each.tried, SHUTS.get(each.tried.provided.status)
        if word is None or not each.heard or not tried.answered or not tried.provided.trouble.startswith("status"):
            continue
        level, for_s = word[0], tried.provided.retry_after_s if word[1] is None else word[1]
        if for_s is None:
            continue
        for other in sent:
            begun_s, shut_s = other.tried.asked_s, tried.closed_s or 0
            if other.shares(level, each.place) and not other.tried.forced and shut_s < begun_s < shut_s + for_s:
                yield f"{other.tried.id} goes to {tried.where} {begun_s - shut_s:.3f} s after its {tried.provided.status}"


def _of_down(script: Script, sent: list[Sent], changes: Changes) -> Iterator[str]:
    """E1: a provider that fails for all is asked as often as it takes to know that, and by one probe at a time then."""
    levels: dict[str, Level] = {down.provider: "provider" if down.refuses else "model" for down in script.downs}
    at_place = defaultdict[tuple[str, ...], list[Sent]](list)
    for each in sent:
        level = levels.get(each.place.provider)
        if level is not None:
            at_place[each.place[:1] if level == "provider" else each.place].append(each)
    for place, here in at_place.items():
        ended = sorted(
            (each for each in here if each.tried.closed_s is not None), key=lambda each: each.tried.closed_s or 0
        )
        known_s = _known_s(script, ended)
        if known_s is None or any((s.tried.closed_s or 0) - s.tried.asked_s >= script.bounds.probe_s for s in ended):
            continue
        of_it = [(at_s, change) for at_s, change in changes if here[0].at(change) and change.level == levels[place[0]]]
        if not any(change.after == "open" for at_s, change in of_it if at_s <= known_s):
            yield f"{place} failed {script.bounds.failures} times in a row, and is open to calls at {known_s:.3f} s"
        later = [each for each in ended if each.heard and each.tried.down and each.tried.asked_s > known_s]
        asked = sum(not each.tried.forced for each in later)
        probes = sum(change.after == "half_open" for _, change in of_it)
        if asked > probes:
            yield f"{place} is known to be down, and asked {asked} times with {probes} probes"


def _known_s(script: Script, ended: list[Sent]) -> float | None:
    """When so many in a row had failed that its breaker must have opened."""
    in_a_row = 0
    for each in ended:
        failed = each.heard and each.tried.down and (each.tried.refused or each.tried.answered)
        in_a_row = in_a_row + 1 if failed else 0
        if in_a_row >= script.bounds.failures:
            return each.tried.closed_s
    return None


def _of_staying(sent: list[Sent], changes: Changes, places: Callable[[Planned], list[Place]]) -> Iterator[str]:
    """D5: a failed attempt is not the end while another provider has nothing against it, and the bounds allow it."""
    for each in sent:
        story, tried = each.story, each.tried
        if (
            tried.beside is not None
            or tried is not story.tries[-1]
            or tried.number >= story.limits.attempts
            or not each.heard
        ):
            continue
        if not _could_move(tried) or (tried.closed_s or 0) - story.tries[0].asked_s > story.limits.total_s - 5:
            continue
        gone = {other.route.place.provider for other in story.tries if other.route is not None}
        for place in places(story.planned):
            free = not any(Sent(story, tried, place).at(change) for _, change in changes)
            if free and place.provider not in gone:
                yield f"{tried.id} failed at {tried.where} by {tried.provided.trouble}, and {place} was not tried"


def _could_move(tried: Tried) -> bool:
    """It failed before any content, by what another provider may do better."""
    trouble = tried.provided.trouble
    if trouble.startswith("status"):
        return tried.answered and tried.provided.status not in (400, 404, 422)
    if trouble in ("error", "error_done") and tried.reply is not None and tried.reply.stream:
        return tried.eof and all(piece.tokens == piece.reasoning for piece in tried.pieces)
    return trouble in ("refuses", "breaks", "silent")


def _of_further(sent: list[Sent], calls: int) -> Iterator[str]:
    """E5: further attempts are bounded over all calls. A pause of up to a second lies between the leave and the attempt."""
    times = sorted(each.tried.asked_s for each in sent if each.tried.number > 1)
    most = ceil(RETRY_RATIO * calls + FLOOR)
    for first_s, last_s in zip(times, times[most:], strict=False):
        if last_s - first_s < WINDOW_S - 2:
            yield f"more than {most} further attempts from {first_s:.3f} to {last_s:.3f} s"
