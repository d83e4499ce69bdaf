"""Holds as they stand in Redis: what makes one stand or end in a slot, and which there are."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from tollkeeper.ledger import Shape
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores.redis.apply import Doubted, Shared, pairs
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.keys import GLOBAL, shape_name, tag_of
from tollkeeper.stores.redis.legs import Held, Slot, field_of, hold_in
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.values import Hold

PAGE: Final = 500
_reserve: Final = Script("reserve")
_void: Final = Script("void")
#: Before the owner: the hold has a part in another slot.
_PARTED: Final = "&"
_json: Final = msgspec.json.Encoder().encode


class Holding:
    """`epoch()`, `applied(tag)`: the epoch in which this process has recovered last, the last row that a slot has of `journal`."""

    def __init__(
        self, shared: Shared, journal: str, *, epoch: Callable[[], str], applied: Callable[[str], int]
    ) -> None:
        self._shared, self._journal = shared, journal
        self._epoch, self._applied = epoch, applied
        self._text: tuple[Hold | None, bytes] = (None, b"")  # the last one: a hold is asked for in each of its slots
        self._owner = f"#{secrets.token_hex(8)}"  # of what this process holds; the journal may have had other owners

    def ask(self, held: Held, tag: str, slot: Slot, *, whatever: bool = False) -> Ask:
        """Reserve a hold's part of a slot, `whatever` the limits say."""
        hold, shared = held.hold, self._shared
        of, text = self._text
        if of is not hold:
            text = _json(hold)
            self._text = hold, text
        if slot.script is None:
            places = [shared.places.balance(leg.key, leg.end_us) for leg in slot.legs]
            names = (*shared.keys.slot(tag), *(key for place in places for key in place.keys))
            slot.script = (
                names,
                [
                    (leg, shape_name(leg.key.shape), "" if leg.limit is None else leg.limit, place.deadlines[0])
                    for leg, place in zip(slot.legs, places, strict=True)
                ],
            )
        names, legs = slot.script
        args: list[Any] = [
            self._epoch(), self._journal, 0 if tag == GLOBAL else self._applied(tag), held.field(tag), text,
            hold.deadline_us // 1000, shared.deadlines.hold(hold.deadline_us), "1" if whatever else "",
            self._owner if whatever or len(held.slots) < 2 else f"{_PARTED} {self._owner}",
        ]  # fmt: skip
        for leg, shape, limit, deadline_s in legs:
            asked = leg.asked(hold)
            args += (shape, "" if asked is None else min(asked, MAX_NANOS), limit, deadline_s)
        return _reserve(names, args)

    def stand_again(self, held: Sequence[Held]) -> None:
        """Make holds that were granted stand in each slot, whatever the limits say; on a thread. Raises StoreUnavailable."""
        parts = [(each, tag) for each in held for tag in each.slots]
        for _ in range(2):
            answers = self.run([self.ask(each, tag, each.slots[tag], whatever=True) for each, tag in parts])
            if any(answer[0] == b"behind" for answer in answers):
                raise Doubted("store: Redis has fewer rows of this journal than it had")
            parts = [part for part, answer in zip(parts, answers, strict=True) if answer[0] in (b"epoch", b"shapes")]
            closed: dict[str, list[Shape]] = {}
            for each, tag in parts:
                closed.setdefault(tag, []).extend(leg.key.shape for leg in each.slots[tag].legs)
            for tag, shapes in closed.items():
                open_slot(self._shared, tag, self._epoch(), shapes)
        if parts:
            raise Doubted("store: slots of live holds cannot be opened")

    def run(self, asks: Sequence[Ask]) -> list[Any]:
        """The answers, asked for in pages; on a thread."""
        pages = [asks[at : at + PAGE] for at in range(0, len(asks), PAGE)]
        return [answer for page in pages for answer in self._shared.link.run(*page)]

    def release(self, held: Held, tag: str) -> Ask:
        """Let go of it."""
        return self.end(tag, [held.field(tag)])

    def end(self, tag: str, fields: Iterable[str]) -> Ask:
        """Let go of holds by their names in a slot, of at most PAGE: a script takes only so many."""
        return _void([self._shared.keys.holds(tag), self._shared.keys.due(tag)], fields)

    def end_of(self, project: str, id: str) -> list[Ask]:
        """Let go of a project's hold, whosever it is, in each slot that may have it."""
        own = tag_of(project)
        return [self.end(tag, [field_of(id, own, tag)]) for tag in (own, GLOBAL)]

    def live(self, tags: Iterable[str]) -> list[Hold]:
        """Holds of all gateways; on a thread."""
        keys = self._shared.keys
        answers = self._shared.link.run(*(Ask(("HVALS", keys.holds(tag))) for tag in (*tags, GLOBAL)))
        holds = {hold.id: hold for found in answers for hold in map(hold_in, found)}
        return list(holds.values())

    def dead(self, tags: Iterable[str], before_us: int) -> tuple[list[Hold], list[Hold]]:
        """Those whose deadline is before an instant: calls that may have gone out, and those that did not; on a thread.

        Of a hold in two slots one part alone is left where the other one was refused, or has ended: no call waits for it. But a
        slot that was emptied since says nothing.
        """
        keys = self._shared.keys
        found, parts = dict[tuple[str, str], Hold](), dict[tuple[str, str], tuple[str, str]]()
        tags = [*tags, GLOBAL]
        due = self._shared.link.run(
            *(Ask(("ZRANGEBYSCORE", keys.due(tag), "-inf", before_us // 1000, "LIMIT", 0, PAGE)) for tag in tags)
        )
        for tag, fields in zip(tags, due, strict=True):
            if fields:
                (texts,) = self._shared.link.run(Ask(("HMGET", keys.holds(tag), *fields)))
                for text in filter(None, texts):
                    hold = hold_in(text)
                    name = hold.scopes.project, hold.id
                    found[name] = hold
                    if f" {_PARTED} #".encode() in b" " + text.partition(b"\n")[0]:
                        other = tag_of(hold.scopes.project) if tag == GLOBAL else GLOBAL
                        parts[name] = other, field_of(hold.id, tag, other)
        asks = [
            ask
            for tag, field in parts.values()
            for ask in (Ask(("HEXISTS", keys.holds(tag), field)), Ask(("HGET", keys.cursor(tag), "begun")))
        ]
        answers = self._shared.link.run(*asks) if asks else []
        apart = {
            name
            for name, there, begun in zip(parts, answers[::2], answers[1::2], strict=True)
            if not there and begun is not None and int(begun) < self._shared.deadlines.of_redis(found[name].at_us)
        }
        return [hold for name, hold in found.items() if name not in apart], [found[name] for name in apart]

    def own(self, tags: Iterable[str]) -> dict[str, dict[str, str]]:
        """Those of this process: slot → name there → the hold's id; on a thread."""
        keys, tags = self._shared.keys, [*tags, GLOBAL]
        found: dict[str, dict[str, str]] = {}
        answers = self._shared.link.run(*(Ask(("HGETALL", keys.holds(tag))) for tag in tags))
        for tag, texts in zip(tags, answers, strict=True):
            found[tag] = {
                field.decode(): hold_in(text).id
                for field, text in pairs(texts).items()
                if text.partition(b"\n")[0].endswith(self._owner.encode())
            }
        return found
