"""Things that are done once, in one process: whose turn each is, and until when it is done."""

from __future__ import annotations

from collections.abc import Mapping


class Turns:
    """`done`: what was done before, until when. Instants in UTC microseconds."""

    def __init__(self, done: Mapping[str, int] | None = None) -> None:
        self._until: dict[str, int] = dict(done or {})

    def claim(self, what: str, now_us: int, for_us: int) -> bool:
        """Take the turn unless it is done, or taken by somebody who still has time for it."""
        if self._until.get(what, 0) > now_us:
            return False
        self._until = {each: until_us for each, until_us in self._until.items() if until_us > now_us}
        self._until[what] = now_us + for_us
        return True

    def done(self, what: str, until_us: int) -> None:
        self._until[what] = until_us
