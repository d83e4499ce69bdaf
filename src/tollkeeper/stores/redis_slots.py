"""Opening a slot: from when on a gateway may reserve in it. The slot is then of this epoch, and keeps the balances asked for.

A shape's balances begin with what the slot's entries add, read and set between two batches (`fill.lua`). Everything here
blocks: it is for threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tollkeeper.ledger import BalanceKey, Shape, spent_by
from tollkeeper.stores.redis_apply import Doubted, Shared, blocks_of, pairs
from tollkeeper.stores.redis_batch import window_at
from tollkeeper.stores.redis_before import begins_with
from tollkeeper.stores.redis_keys import FOREVER_S, GLOBAL, decode, shape_name
from tollkeeper.stores.redis_link import Ask, Script
from tollkeeper.values import Entry

_fill: Final = Script("fill")
TRIES_MAX: Final = 20


def open_slot(shared: Shared, tag: str, epoch: str, shapes: Iterable[Shape]) -> None:
    """Open a slot and fill the balances of shapes that it does not keep. Raises Doubted, StoreUnavailable."""
    link, keys = shared.link, shared.keys
    opened = Ask(("HGET", keys.cursor(GLOBAL), _mark(tag)))
    now, mark = link.run(Ask(("GET", keys.epoch)), opened)
    if now is None or now.decode() != epoch:
        raise Doubted("store: Redis has begun again from nothing")
    (own,) = link.run(Ask(("HGET", keys.cursor(tag), "epoch")))  # asked later: it is opened before it is marked
    if tag != GLOBAL and mark == now != own:
        shared.renew(epoch)
        raise Doubted("store: a server of Redis has begun again from nothing")
    (kept,) = link.run(Ask(("SMEMBERS", keys.shapes(tag))))
    shared.heard(tag, sorted(kept))
    missing: list[Shape | None] = [shape for shape in dict.fromkeys(shapes) if shape not in shared.shapes[tag]]
    for shape in missing or [None]:
        for _ in range(TRIES_MAX):
            if _fill_once(shared, tag, epoch, shape):
                break
        else:
            raise Doubted(f"store: the balances of {shape} cannot be filled: entries keep coming")
    shared.shapes[tag] |= frozenset(filter(None, missing))
    if tag != GLOBAL and mark != now:
        cursor = keys.cursor(GLOBAL)
        link.run(Ask(("HSET", cursor, _mark(tag), epoch)), Ask(("EXPIREAT", cursor, FOREVER_S)))


def _mark(tag: str) -> str:
    """Where the slot of all projects says in which epoch another slot was opened: that one alone may be emptied."""
    return f"open@{tag}"


def _fill_once(shared: Shared, tag: str, epoch: str, shape: Shape | None) -> bool:
    link, keys = shared.link, shared.keys
    (batch,) = link.run(Ask(("HGET", keys.cursor(tag), "batch")))
    spent: dict[BalanceKey, int] = {}
    if shape is not None:
        (found,) = link.run(Ask(("HGETALL", keys.before(tag))))
        project = "" if tag == GLOBAL else shared.projects().get(tag, "")
        for id, amount in begins_with(shape, pairs(found)):
            spent[BalanceKey(shape, project, decode(id), 0)] = amount
        for entry in _entries(shared, tag):
            for key, amount in spent_by((shape,), entry):
                spent[key] = spent.get(key, 0) + amount
    names = [keys.cursor(tag), keys.shapes(tag), keys.index(tag)]
    args: list[object] = [epoch, FOREVER_S, "" if shape is None else shape_name(shape), batch or "0"]
    now_s = shared.now_us() // 10**6
    for key, amount in spent.items():
        _, end_us = window_at(key.shape.window, key.shape.timezone, key.start_us)
        until_s = shared.deadlines.balance(end_us)
        if until_s > now_s:
            name = keys.balance(key)
            names.append(name)
            args += (until_s, name.rpartition("}:")[2], key.start_us // 10**6, amount)
    (answer,) = link.run(_fill(names, args))
    return bool(answer[0] == b"filled")


def _entries(shared: Shared, tag: str) -> Iterator[Entry]:
    if tag != GLOBAL:
        for block in blocks_of(shared, tag):
            yield from (entry for _, entry in block.rows)
        return
    # Of each project what this slot's cursors cover: the rest will be applied here with the shape that is filled now.
    (cursors,) = shared.link.run(Ask(("HGETALL", shared.keys.cursor(GLOBAL))))
    covered = pairs(cursors)
    for each in shared.projects():
        for block in blocks_of(shared, each):
            upto = int(covered.get(f"{block.journal}@{each}".encode(), 0))
            yield from (entry for seq, entry in block.rows if seq <= upto)
