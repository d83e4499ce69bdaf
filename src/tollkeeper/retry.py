"""Whether a call is tried again, where, and after which pause. Pure: time and chance are passed in.

This is the only layer that tries again: the connections below it never do, and a client whose call was tried again is told not to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tollkeeper.failures import Verdict
from tollkeeper.values import Route

#: Seconds over which calls and further tries are counted, and so many further tries in them that are always free.
WINDOW_S: Final = 10
FLOOR: Final = 10
#: Seconds that the longest first and the longest later pause may take, before the same route is tried again.
PAUSE_S: Final = 0.25
PAUSE_MAX_S: Final = 4.0


class RetryBudget:
    """Further tries are no more than `ratio` of the calls of the last seconds, and a floor: a storm of them ends by itself.

    At a ratio of 0 there are none.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._floor = FLOOR if ratio else 0
        self._calls, self._tries = [0] * WINDOW_S, [0] * WINDOW_S
        self._second = 0

    def called(self, now_s: float) -> None:
        """A call begins."""
        self._calls[self._at(now_s)] += 1

    def take(self, now_s: float) -> bool:
        """Whether one more try is paid for; it is then taken."""
        at = self._at(now_s)
        if sum(self._tries) >= self._ratio * sum(self._calls) + self._floor:
            return False
        self._tries[at] += 1
        return True

    def put_back(self, now_s: float) -> None:
        """One that was taken just now was not made."""
        at = self._at(now_s)
        self._tries[at] = max(0, self._tries[at] - 1)

    def _at(self, now_s: float) -> int:
        second = int(now_s)
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._calls[passed % WINDOW_S] = self._tries[passed % WINDOW_S] = 0
        self._second = max(self._second, second)
        return self._second % WINDOW_S


class Next(NamedTuple):
    """Where the next try goes, and after how long."""

    route: Route
    pause_s: float = 0.0


class Tries:
    """The routes of one call, best first: which is next. `allows` says whether a route's breakers let it through."""

    def __init__(self, routes: Sequence[Route], most: int, allows: Callable[[Route], bool]) -> None:
        self._untried = list(routes)
        self._left = most
        self._again = 0
        self._allows = allows

    def first(self) -> Route | None:
        """The first route that is open to calls; None: none is."""
        return self._next(lambda route: True)

    def after(self, route: Route, verdict: Verdict, draw: Callable[[], float]) -> Next | None:
        """Where to go after a try that failed so; `draw` gives a number from 0 to 1. None: it stays with that."""
        if self._left <= 0:
            return None
        if verdict.elsewhere:
            other = self._next(lambda each: not _shares(verdict, route, each))
            if other is not None:
                return Next(other)
        if not verdict.again or not self._allows(route):
            return None
        self._left -= 1
        self._again += 1
        return Next(route, draw() * min(PAUSE_MAX_S, PAUSE_S * 2 ** (self._again - 1)))

    def beside(self, route: Route) -> Route | None:
        """Where a second try may go while one at this route is under way: the next that is open; nothing is taken."""
        return self._open(lambda each: each != route) if self._left > 0 else None

    def put_back(self, route: Route) -> None:
        """It was taken, and not tried."""
        self._untried.insert(0, route)
        self._left += 1

    def take(self, route: Route) -> Route:
        """This one, whatever its breakers say."""
        self._untried.remove(route)
        self._left -= 1
        return route

    @property
    def more(self) -> bool:
        """Whether another route could still be tried."""
        return self._left > 0 and bool(self._untried)

    def _next(self, suits: Callable[[Route], bool]) -> Route | None:
        found = self._open(suits)
        return None if found is None else self.take(found)

    def _open(self, suits: Callable[[Route], bool]) -> Route | None:
        """The first that is left, suits, and may be tried; nothing is taken."""
        return next((each for each in self._untried if suits(each) and self._allows(each)), None)


def _shares(verdict: Verdict, one: Route, other: Route) -> bool:
    """Whether what failed at one route fails at the other as well."""
    if verdict.level == "model" or one.provider.name != other.provider.name:
        return False
    return verdict.level == "provider" or one.credential == other.credential
