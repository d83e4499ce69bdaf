"""Reservations in Redis: one step over all budgets of a slot, in each slot of a call or in none.

What this process holds is kept here too, so that it can be asserted again in a Redis that has forgotten it, and so that a hard
budget may go on by what it declares (`when_away`) while Redis is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.book import Balance, Budgets, asked_of, grant_of, refused, standing_of
from tollkeeper.errors import ConfigError, Conflict, StoreUnavailable
from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.stores.journal import Journal
from tollkeeper.stores.redis_apply import Doubted, Shared
from tollkeeper.stores.redis_batch import window_at
from tollkeeper.stores.redis_keys import GLOBAL, GLOBAL_SCOPES, balance_tag, shape_name, tag_of
from tollkeeper.stores.redis_link import Ask, Script
from tollkeeper.stores.redis_slots import open_slot
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes, Standing

#: The largest amount that a script compares exactly.
AMOUNT_MAX: Final = 2**53 - 1
#: How often a reservation opens its slots and tries again.
OPENINGS_MAX: Final = 5
#: Holds given up that are remembered: a Redis that comes back as it was some time ago may have them.
GONE_MAX: Final = 10_000
PAGE: Final = 500
_reserve: Final = Script("reserve")
_void: Final = Script("void")
_json: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Hold).decode

Numbers = dict[BalanceKey, tuple[int, int]]
"""(spent, held) of balances."""
Covering = list[tuple[Budget, BalanceKey, int]]
"""Budgets that cover a call, each with its balance and the end of its window."""


class Leg(NamedTuple):
    """What a hold takes of one balance."""

    key: BalanceKey
    end_us: int
    asked: int | None
    limit: int | None  #: None: it never refuses


class Held(NamedTuple):
    """A hold of this process that stands. Without `legs` no budget covers it, and only the journal knows of it."""

    hold: Hold
    legs: tuple[Leg, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The slots that have a part of it."""
        return tuple(dict.fromkeys(balance_tag(leg.key) for leg in self.legs))

    def field(self, tag: str) -> str:
        """Its name in a slot; in the one without a project it says whose it is."""
        return f"{tag_of(self.hold.scopes.project)}/{self.hold.id}" if tag == GLOBAL else self.hold.id


class Holds:
    """`epoch()`, `applied(tag)`: the epoch in which this process has recovered last, the last row that a slot has of it."""

    def __init__(
        self, shared: Shared, journal: Journal, *, epoch: Callable[[], str], applied: Callable[[str], int]
    ) -> None:
        self._shared, self._journal = shared, journal
        self._epoch, self._applied = epoch, applied
        self._budgets = Budgets()
        self._lock = Lock()
        self._held: dict[str, Held] = {}
        self._gone: dict[str, Held] = {}  # must not stand in Redis
        self._away: dict[BalanceKey, int] = {}  # admitted while it was away

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self._budgets.shapes

    def take(self, budgets: Iterable[Budget]) -> None:
        """Replace the limits. Raises ConfigError for one that no script could compare exactly."""
        budgets = tuple(budgets)
        for budget in budgets:
            if budget.limit is not None and budget.limit > AMOUNT_MAX:
                raise ConfigError(
                    f"budgets: the limit of the {budget.window} budget of {budget.scope} is above what a Redis store compares "
                    f"exactly; expected at most {AMOUNT_MAX} (usd: 9007199.254740991)"
                )
        self._budgets = Budgets(budgets)

    # ── reserve ──

    async def reserve(self, hold: Hold) -> Grant:
        """`Store.reserve`."""
        lived = self._held.get(hold.id)
        if lived is not None and lived.hold != hold:
            raise Conflict(f"hold {hold.id!r} exists with other contents; use a new id")
        covering = self.covering(hold.scopes, hold.model, hold.at_us)
        held = lived if lived is not None else Held(hold, _legs(covering, hold))
        if not held.legs:
            await self._intend(held)
            return grant_of([])
        if self._shared.link.state != "ready":
            return await self._reserve_away(held, covering)
        self._held[hold.id] = held
        self._gone.pop(hold.id, None)
        try:
            numbers = await self._reserve_in_all(held)
        except StoreUnavailable:
            self._held.pop(hold.id, None)
            self._give_up(held)
            raise
        except Exception:
            if lived is None:
                self._held.pop(hold.id, None)
            raise
        return grant_of(_balances(covering, numbers))

    async def _reserve_in_all(self, held: Held) -> Numbers:
        """Reserve in every slot, or in none. Raises BudgetExceeded, RateLimited, Conflict, StoreUnavailable."""
        link, tags = self._shared.link, held.tags
        for _ in range(OPENINGS_MAX):
            answers = await link.asks([self._ask(held, tag) for tag in tags])
            numbers: Numbers = {}
            granted, closed, failures = list[str](), list[str](), list[Exception]()
            for tag, answer in zip(tags, answers, strict=True):
                legs = _in(held, tag)
                match answer[0]:
                    case b"held" | b"known":
                        granted.append(tag)
                        numbers |= _numbers(legs, answer[1:])
                    case b"refused":
                        failures.append(self._refusal(held.hold, legs[int(answer[1]) - 1], _numbers(legs, answer[2:])))
                    case b"conflict":
                        failures.append(Conflict(f"hold {held.hold.id!r} exists with other contents; use a new id"))
                    case b"behind":
                        failures.append(
                            self._doubted(f"Redis has row {answer[1].decode()} of this journal, and had more")
                        )
                    case _:
                        closed.append(tag)
            if (failures or closed) and granted:
                await link.asks([self._release(held, tag) for tag in granted])
            if failures:
                if granted:
                    self._give_up(held)
                raise failures[0]
            if not closed:
                return numbers
            await asyncio.to_thread(self._open, held, closed)
        raise StoreUnavailable("store: the slots of this call's budgets cannot be opened just now; try again")

    def _doubted(self, reason: str) -> Doubted:
        self._shared.link.tell("doubted", reason)
        return Doubted(f"store: {reason}; it is checked before anything else is admitted")

    def _open(self, held: Held, tags: Iterable[str]) -> None:
        self._shared.register([held.hold.scopes.project])
        for tag in tags:
            try:
                open_slot(self._shared, tag, self._epoch(), [leg.key.shape for leg in _in(held, tag)])
            except Doubted as error:
                self._shared.link.tell("doubted", str(error))
                raise

    def _ask(self, held: Held, tag: str, *, whatever: bool = False) -> Ask:
        hold, keys = held.hold, self._shared.keys
        names = [keys.cursor(tag), keys.shapes(tag), keys.holds(tag), keys.due(tag), keys.index(tag)]
        args: list[Any] = [
            self._epoch(), self._journal.id, 0 if tag == GLOBAL else self._applied(tag), held.field(tag), _json(hold),
            hold.deadline_us // 1000, self._shared.deadlines.hold(hold.deadline_us), "1" if whatever else "",
        ]  # fmt: skip
        for leg in _in(held, tag):
            name = keys.balance(leg.key)
            names.append(name)
            asked = "" if leg.asked is None else min(leg.asked, AMOUNT_MAX)
            limit = "" if leg.limit is None else leg.limit
            args += (
                shape_name(leg.key.shape), asked, limit, self._shared.deadlines.balance(leg.end_us),
                name.rpartition("}:")[2], leg.key.start_us // 10**6,
            )  # fmt: skip
        return _reserve(names, args)

    def _release(self, held: Held, tag: str) -> Ask:
        return _void([self._shared.keys.holds(tag), self._shared.keys.due(tag)], [held.field(tag)])

    def covering(self, scopes: Scopes, model: str, at_us: int) -> Covering:
        found = []
        for budget, shape, project, id in self._budgets.covering(scopes, model):
            start_us, end_us = window_at(shape.window, shape.timezone, at_us)
            found.append((budget, BalanceKey(shape, project, id, start_us), end_us))
        return found

    def _refusal(self, hold: Hold, leg: Leg, numbers: Numbers) -> Exception:
        for budget, balance in _balances(self.covering(hold.scopes, hold.model, hold.at_us), numbers):
            if balance.key == leg.key and budget.hard:
                return refused(standing_of(budget, balance), leg.asked, hold)
        return StoreUnavailable("store: the budgets have changed meanwhile; try again")

    # ── while Redis is away ──

    async def _reserve_away(self, held: Held, covering: Covering) -> Grant:
        """Admit what every hard budget lets each gateway admit now. Raises StoreUnavailable."""
        with self._lock:
            if held.hold.id not in self._held:
                for budget, key, _ in covering:
                    if budget.hard and budget.limit is not None:
                        used, asked = self._away.get(key, 0), asked_of(budget, held.hold)
                        if asked != 0 and (asked is None or used + asked > budget.when_away):
                            raise StoreUnavailable(
                                f"store: Redis is not there ({self._shared.link.reason}); until it is back the {budget.window} "
                                f"budget of {budget.scope} {key.id or key.project or 'all'!r} lets this gateway admit no more "
                                "(when_away)"
                            )
                for leg in held.legs:
                    self._away[leg.key] = self._away.get(leg.key, 0) + (leg.asked or 0)
        await self._intend(held)
        return grant_of(_balances(covering, {leg.key: (0, self._away.get(leg.key, 0)) for leg in held.legs}))

    async def _intend(self, held: Held) -> None:
        """Make a hold that Redis does not know safe in the journal."""
        self._held[held.hold.id] = held
        try:
            await self._journal.reserve(held.hold)
        except BaseException:
            self._held.pop(held.hold.id, None)
            raise

    # ── the end of a hold ──

    async def void(self, hold_id: str) -> None:
        """`Store.void`."""
        held = self._held.pop(hold_id, None)
        if held is None:
            return
        await self._journal.void(hold_id)
        if held.legs:
            self._give_up(held)
            with suppress(StoreUnavailable):
                await self._shared.link.asks([self._release(held, tag) for tag in held.tags])

    def _give_up(self, held: Held) -> None:
        self._gone[held.hold.id] = held
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]

    async def let_go(self, hold: Hold) -> None:
        """End another gateway's hold, for which nothing is owed any more."""
        held = Held(hold, ())
        tags = (tag_of(hold.scopes.project), GLOBAL)
        await self._shared.link.asks([self._release(held, tag) for tag in tags])

    def ends(self, entry: Entry) -> bool:
        """Whether an entry ends a hold of this process: the one of its id, if it is its own project's."""
        held = self._held.get(entry.id)
        return held is not None and held.hold.scopes.project == entry.scopes.project

    def settled(self, entry: Entry) -> bool:
        """An entry is safe in the journal: Redis lets go of its hold when it is applied. Whether the hold covers it until then."""
        if entry.by is not None or not self.ends(entry):
            return False
        quote, quoted = (hold := self._held.pop(entry.id).hold).quote_nanos, hold.quote_usage
        spent = entry.charge.amount_nanos
        return (spent is None or (quote is not None and spent <= quote)) and (
            quoted is not None and entry.usage.tokens <= quoted.tokens
        )

    def due(self, now_us: int) -> list[Hold]:
        """Holds of this process past their deadline."""
        return [held.hold for held in list(self._held.values()) if held.hold.deadline_us <= now_us]

    # ── what stands ──

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        covering = self.covering(scopes, model, at_us)
        slots: dict[str, list[Shape]] = {}
        for _, key, _ in covering:
            slots.setdefault(balance_tag(key), []).append(key.shape)
        await asyncio.to_thread(self._list_and_keep, [scopes.project], slots)
        keys = [key for _, key, _ in covering]
        answers = await self._shared.link.asks(
            [Ask(("HMGET", self._shared.keys.balance(key), "spent", "held")) for key in keys]
        )
        numbers = {key: (int(spent or 0), int(held or 0)) for key, (spent, held) in zip(keys, answers, strict=True)}
        return [standing_of(budget, balance) for budget, balance in _balances(covering, numbers)]

    def keep(self, tags: Iterable[str]) -> None:
        """Open slots for every shape that is limited; on a thread."""
        own = [shape for shape in self.shapes if shape.scope not in GLOBAL_SCOPES]
        rest = [shape for shape in self.shapes if shape.scope in GLOBAL_SCOPES]
        self._keep(dict.fromkeys(tags, own) | {GLOBAL: rest})

    def _list_and_keep(self, projects: Iterable[str], slots: dict[str, list[Shape]]) -> None:
        """A slot that is open is one of a project that is listed: holds in it are found."""
        self._shared.register(projects)
        self._keep(slots)

    def _keep(self, slots: dict[str, list[Shape]]) -> None:
        """Open slots for shapes that they do not keep yet."""
        shared = self._shared
        unheard = [tag for tag in slots if tag not in shared.shapes]
        answers = shared.link.run(*(Ask(("SMEMBERS", shared.keys.shapes(tag))) for tag in unheard))
        for tag, answer in zip(unheard, answers, strict=True):
            shared.heard(tag, sorted(answer))
        for tag, shapes in slots.items():
            if not shared.shapes[tag].issuperset(shapes):
                open_slot(shared, tag, self._epoch(), shapes)

    def live(self, tags: Iterable[str]) -> list[Hold]:
        """Holds that stand in Redis, of all gateways; on a thread."""
        keys = self._shared.keys
        answers = self._shared.link.run(*(Ask(("HVALS", keys.holds(tag))) for tag in (*tags, GLOBAL)))
        holds = {hold.id: hold for found in answers for hold in map(_hold_in, found)}
        return list(holds.values())

    def dead(self, tags: Iterable[str], before_us: int) -> list[Hold]:
        """Holds in Redis whose deadline is before an instant; on a thread."""
        keys = self._shared.keys
        found: dict[str, Hold] = {}
        tags = [*tags, GLOBAL]
        due = self._shared.link.run(
            *(Ask(("ZRANGEBYSCORE", keys.due(tag), "-inf", before_us // 1000, "LIMIT", 0, PAGE)) for tag in tags)
        )
        for tag, fields in zip(tags, due, strict=True):
            if fields:
                (texts,) = self._shared.link.run(Ask(("HMGET", keys.holds(tag), *fields)))
                found |= {hold.id: hold for hold in (_hold_in(text) for text in texts if text is not None)}
        return list(found.values())

    # ── after Redis was away ──

    def reassert(self) -> None:
        """Make every hold of this process stand in Redis, and none that it has given up; on a thread."""
        held = [each for each in list(self._held.values()) if each.legs]
        self._shared.register({each.hold.scopes.project for each in held})
        self.keep(self._shared.projects())
        for each in held:
            self._keep_all(each)
        asks = [self._release(each, tag) for each in list(self._gone.values()) for tag in each.tags]
        asks += [self._ask(each, tag, whatever=True) for each in held for tag in each.tags]
        for at in range(0, len(asks), PAGE):
            self._shared.link.run(*asks[at : at + PAGE])
        self._away.clear()

    def _keep_all(self, held: Held) -> None:
        self._keep({tag: [leg.key.shape for leg in _in(held, tag)] for tag in held.tags})


def _legs(covering: Covering, hold: Hold) -> tuple[Leg, ...]:
    """One for each balance; where a hard and a soft budget share it, the hard one limits."""
    legs: dict[BalanceKey, Leg] = {}
    for budget, key, end_us in covering:
        limit = budget.limit if budget.hard else None
        if key not in legs or limit is not None:
            legs[key] = Leg(key, end_us, asked_of(budget, hold), limit)
    return tuple(legs.values())


def _in(held: Held, tag: str) -> list[Leg]:
    return [leg for leg in held.legs if (leg.key.shape.scope in GLOBAL_SCOPES) == (tag == GLOBAL)]


def _numbers(legs: Sequence[Leg], answer: Sequence[Any]) -> Numbers:
    return {leg.key: (int(answer[at * 2]), int(answer[at * 2 + 1])) for at, leg in enumerate(legs)}


def _balances(covering: Covering, numbers: Numbers) -> list[tuple[Budget, Balance]]:
    found = []
    for budget, key, end_us in covering:
        if key in numbers:
            balance = Balance(key, end_us, numbers[key][0])
            balance.held = numbers[key][1]
            found.append((budget, balance))
    return found


def _hold_in(text: bytes) -> Hold:
    """What stands behind the legs."""
    return _decode(text.partition(b"\n")[2])
