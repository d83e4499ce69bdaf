"""Opening a slot: from when on a gateway may reserve in it. The slot is then of this epoch, and keeps the balances asked for.

A shape's balances begin with what the slot's entries add (`fill.py`). Everything here blocks: it is for threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tollkeeper.ledger import Shape
from tollkeeper.stores.redis.apply import Doubted, Shared, shapes_of
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.fill import Filling
from tollkeeper.stores.redis.keys import FOREVER_S, GLOBAL

#: Steps in a row that find that a batch was quicker.
TRIES_MAX: Final = 100


def open_slot(shared: Shared, tag: str, epoch: str, shapes: Iterable[Shape]) -> None:
    """Open a slot and fill the balances of shapes that it does not keep. Raises Doubted, StoreUnavailable."""
    link, keys, known = shared.link, shared.keys, shared.shapes
    opened = Ask(("HGET", keys.cursor(GLOBAL), _mark(tag)))
    now, mark = link.run(Ask(("GET", keys.epoch)), opened)
    if now is None or now.decode() != epoch:
        raise Doubted("store: Redis has begun again from nothing")
    (own,) = link.run(Ask(("HGET", keys.cursor(tag), "epoch")))  # asked later: it is opened before it is marked
    if tag != GLOBAL and mark == now != own:
        shared.renew(epoch)
        raise Doubted("store: a server of Redis has begun again from nothing")
    (kept,) = link.run(Ask(("SMEMBERS", keys.shapes(tag))))
    known[tag] = shapes_of(kept)
    missing: list[Shape | None] = [shape for shape in dict.fromkeys(shapes) if shape not in known[tag]]
    for shape in missing or [None]:
        _fill(shared, tag, epoch, shape)
    known[tag] |= frozenset(filter(None, missing))
    if tag != GLOBAL and mark != now:
        cursor = keys.cursor(GLOBAL)
        link.run(Ask(("HSET", cursor, _mark(tag), epoch)), Ask(("EXPIREAT", cursor, FOREVER_S)))


def _mark(tag: str) -> str:
    """Where the slot of all projects says in which epoch another slot was opened: that one alone may be emptied."""
    return f"open@{tag}"


def _fill(shared: Shared, tag: str, epoch: str, shape: Shape | None) -> None:
    filling, moved = Filling(shared, tag, shape), 0
    filling.read()
    while (told := filling.write(epoch)) != "filled":
        moved = moved + 1 if told == "moved" else 0
        if moved >= TRIES_MAX:
            raise Doubted(f"store: the balances of {shape} cannot be filled: entries keep coming")
        if told == "moved":
            filling.read()
