"""What gateways of one Redis tell each other of providers: who asked to be left alone, and until when.

It is advice. Each gateway's own breakers decide, no call waits for it, and while Redis is away nothing is told or heard. There
are names and instants in it, never a secret; gateways that share a Redis have the same keys under the same names.
"""

from __future__ import annotations

from typing import Any, Final, cast

from tollkeeper.errors import StoreUnavailable
from tollkeeper.failures import MAX_PAUSE_S
from tollkeeper.health import LEVELS, Name
from tollkeeper.stores.redis.apply import Shared, pairs
from tollkeeper.stores.redis.ask import Script
from tollkeeper.stores.redis.keys import decode, encode

#: Places that are told of at a time: clients may name models, and each gateway reads all of it.
PLACES_MAX: Final = 256
#: Microseconds from now for which another one's word counts at most.
_AHEAD_US: Final = int(MAX_PAUSE_S) * 10**6
_open: Final = Script("open")


class Advice:
    """Of one gateway."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._untold: dict[Name, int] = {}

    def tell(self, name: Name, until_us: int) -> None:
        """Have the others hear at the next exchange that a place serves nobody until then (UTC microseconds)."""
        if name in self._untold or len(self._untold) < PLACES_MAX:
            self._untold[name] = max(until_us, self._untold.get(name, 0))

    async def exchange(self, now_us: int) -> dict[Name, int]:
        """Tell what is new, and hear what anybody told that is not over. Never raises for Redis: what is new waits for it."""
        told, self._untold = self._untold, {}
        shared = self._shared
        keep_s = shared.deadlines.once(max(told.values(), default=0))
        args: list[Any] = [now_us // 1000, PLACES_MAX, keep_s]
        for name, until_us in told.items():
            args += (_field(name), until_us // 1000)
        try:
            found = pairs(await shared.link.ask(_open([shared.keys.open], args)))
        except StoreUnavailable:
            for name, until_us in told.items():
                if until_us > now_us:
                    self.tell(name, until_us)
            return {}
        names = {_name(field.decode()): int(until_ms) * 1000 for field, until_ms in found.items()}
        return {name: min(until_us, now_us + _AHEAD_US) for name, until_us in names.items() if name is not None}


def _field(name: Name) -> str:
    return ":".join(map(encode, name))


def _name(field: str) -> Name | None:
    """A name read back; None for what a newer version may have written."""
    parts = tuple(decode(each) for each in field.split(":"))
    return cast(Name, parts) if len(parts) == 4 and parts[0] in LEVELS else None
