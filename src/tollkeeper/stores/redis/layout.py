"""Which layout the keys in Redis have. A gateway that knows a newer one moves them, before it looks at anything else.

1  ids by the hour of their entry, so that one booked again at another instant was not found
2  ids by the day on which they were booked
"""

from __future__ import annotations

from typing import Final

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.keys import DAY_US, FOREVER_S, HOUR_US, day_of, hour_of

LAYOUT: Final = 2
_move: Final = Script("move")


def bring_up(shared: Shared) -> None:
    """Bring Redis to this layout; repeated, or by several gateways at once, it does no harm. Raises StoreUnavailable."""
    (found,) = shared.link.run(Ask(("GET", shared.keys.layout)))
    layout = int(found or 1)
    if layout > LAYOUT:
        raise StoreUnavailable(
            f"store: Redis has keys of layout {layout}, and this Tollkeeper knows up to {LAYOUT}: run the newer version"
        )
    if layout < LAYOUT:
        for tag in shared.projects():
            _move_ids(shared, tag)
        shared.link.run(Ask(("SET", shared.keys.layout, LAYOUT, "EXAT", FOREVER_S)))


def _move_ids(shared: Shared, tag: str) -> None:
    """From each hour that may still have some; those of the first hour of a day stand where they would be looked for."""
    keys, now_us = shared.keys, shared.now_us()
    days = shared.deadlines.days(now_us)
    hours = range(hour_of(min(days)), hour_of(now_us) + 1, HOUR_US)
    for hour_us in (each for each in hours if each % DAY_US):
        shared.link.run(_move([keys.ids(tag, hour_us), keys.ids(tag, day_of(now_us))], [shared.deadlines.ids(now_us)]))
