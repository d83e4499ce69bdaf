"""From a journal's rows to what `apply.lua` is asked to do. Pure: no Redis, no clock.

A row counts once whoever else has booked its id: what stands under the id in Redis decides (`decide`), and the script refuses
the batch if something else stands there by then. What counts is summed per cell and balance before it is sent.

    under the id stands          a settlement                         a revision that somebody asked for
    nothing                      counts                               counts
    an estimate, hold expired    replaces it; another estimate: no    counts, and is what a settlement replaces now
    a settlement, the same       does not count                       does not count (its own revision stands there)
    a settlement, another        conflict: does not count, is told    conflict: does not count, is told

A revision that somebody asked for has a name of its own, and looks at what stands under the id as well (`_revise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import compress
from operator import add, sub
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs

from tollkeeper.ledger import CELL_SUMS, BalanceKey, CellKey, Shape, cells_of, correction, ids_of, sums_of, window_of
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores.redis.blocks import Counted, pack
from tollkeeper.stores.redis.keys import (
    FOREVER_S,
    GLOBAL,
    GLOBAL_SCOPES,
    Deadlines,
    Keys,
    cell_fields,
    day_of,
    digest_of,
    hour_of,
    shape_name,
    tag_of,
)
from tollkeeper.values import TOKEN_KINDS, Entry, Measure, Window

Row = tuple[int, Entry]
MINUTE_US: Final = 60_000_000
#: Places of each kind that are remembered.
PLACES_MAX: Final = 20_000
_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_entry = msgspec.json.Decoder(Entry)
_AMOUNT: Final = CELL_SUMS.index("amount_nanos")
_ATTEMPTS: Final = CELL_SUMS.index("attempts")
_TOKENS: Final = tuple(CELL_SUMS.index(kind) for kind in TOKEN_KINDS)


@lru_cache(4096)
def _window(window: Window, timezone: str, minute: int) -> tuple[int, int]:
    return window_of(window, timezone, minute * MINUTE_US)


def window_at(window: Window, timezone: str, at_us: int) -> tuple[int, int]:
    """`ledger.window_of`, remembered: no window begins within a minute."""
    return _window(window, timezone, at_us // MINUTE_US)


# ── which rows count ─────────────────────────────────────────────────────────────────────────────────────────────────


class Unit(NamedTuple):
    """What was written under one id in one step: a settlement, or a reversal and the next revision."""

    seq: int  #: of its last row
    entry: Entry
    reversal: Entry | None = None

    @property
    def name(self) -> str:
        """The field of its id: settlements of one id meet in one field, each revision asked for has its own."""
        return f"{self.entry.revision if self.entry.by is not None else 0}={self.entry.id}"


def units_of(rows: Iterable[Row]) -> list[Unit]:
    """Rows in their order, pairs put together."""
    units: list[Unit] = []
    reversal: Entry | None = None
    for seq, entry in rows:
        if entry.sign < 0:
            reversal = entry
        else:
            units.append(Unit(seq, entry, reversal))
            reversal = None
    return units


class Verdict(NamedTuple):
    """What a unit counts as, what stands under its name and under its id then, and whether it contradicts what stood there."""

    adds: tuple[Entry, ...]
    mark: str
    settled: str
    conflict: bool = False


def mark_of(entry: Entry) -> str:
    """What is to stand under an id: all of an estimate, for whoever replaces it; a digest of a settlement."""
    return _json(entry).decode() if entry.outcome == "expired" else digest_of(entry)


#: Before what stands under an id: the estimate, or the settlement, that a revision has reversed is still to come. After Redis was
#: emptied journals are applied in any order. Once it has come the sums are what they would have been.
OWES_ESTIMATE: Final = "?"
OWES_SETTLEMENT: Final = "!"


def decide(unit: Unit, stands: str, settled: str = "") -> Verdict:
    """`stands`: under the unit's name. `settled`: under its id, for a revision that somebody asked for."""
    entry, mark = unit.entry, mark_of(unit.entry)
    if entry.by is not None:
        if stands:
            return Verdict((), stands, settled, stands != digest_of(entry))
        return _revise(unit, settled)
    if not stands:
        return Verdict((entry,) if unit.reversal is None else (unit.reversal, entry), mark, mark)
    owes, under = parted(stands)
    estimate = entry.outcome == "expired"
    if owes == OWES_ESTIMATE and estimate:
        return Verdict((entry,), under, under)
    if owes == OWES_SETTLEMENT and mark == under:
        return Verdict((entry,), mark, mark)
    if estimate or not under.startswith("{"):
        return Verdict((), stands, stands, not estimate and under != mark)
    return Verdict(correction(_entry.decode(under), entry), owes + mark, owes + mark)


def _revise(unit: Unit, settled: str) -> Verdict:
    """A revision that somebody asked for counts unless what it was computed from is known not to stand."""
    entry, old, mark = unit.entry, unit.reversal, digest_of(unit.entry)
    if old is None:
        return Verdict((entry,), mark, settled)
    owes, under = parted(settled)
    own = old.by is None  # it corrects what a gateway has booked
    if under.startswith("{"):
        estimate = _entry.decode(under)
        if old.outcome != "expired":  # of a settlement that has replaced it: its own journal is behind
            if not own:
                return Verdict((old, entry), mark, settled)
            replaced = correction(estimate, structs.replace(old, sign=1))
            return Verdict((*replaced, old, entry), mark, owes + digest_of(old))
        newer = entry.revision > estimate.revision
        return Verdict((old, entry), mark, owes + _json(entry).decode() if newer else settled)
    if under and (old.outcome == "expired" or (own and digest_of(old) != under)):
        return Verdict((), "", settled, True)
    if not under and own:
        settled = (
            OWES_ESTIMATE + _json(entry).decode() if old.outcome == "expired" else OWES_SETTLEMENT + digest_of(old)
        )
    return Verdict((old, entry), mark, settled)


def parted(settled: str) -> tuple[str, str]:
    """What is still to come, and what stands."""
    return (settled[:1], settled[1:]) if settled[:1] in (OWES_ESTIMATE, OWES_SETTLEMENT) else ("", settled)


class Decision(msgspec.Struct):
    """What a batch of rows counts as."""

    counted: list[Counted]
    names: dict[str, tuple[str, str]]  #: name → what stands there, what shall
    conflicts: list[Entry]
    groups: list[Group]  #: of what is counted


def decide_all(units: Iterable[Unit], stand: dict[str, str]) -> Decision:
    """All units of a batch, one after the other. `stand`: what Redis said stands under names, nothing where it is silent."""
    counted: list[Counted] = []
    now: dict[str, str] = {}
    conflicts: list[Entry] = []
    for unit in units:
        settled = f"0={unit.entry.id}"
        found = [now.setdefault(each, stand.get(each, "")) for each in (unit.name, settled)]
        verdict = decide(unit, *found)
        now[settled] = verdict.settled
        now[unit.name] = verdict.mark
        counted += (Counted(unit.seq, each) for each in verdict.adds)
        if verdict.conflict:
            conflicts.append(unit.entry)
    names = {name: (stand.get(name, ""), mark) for name, mark in now.items()}
    return Decision(counted, names, conflicts, groups_of(each.entry for each in counted))


# ── what they add ────────────────────────────────────────────────────────────────────────────────────────────────────


class Place(msgspec.Struct, frozen=True, eq=False):
    """Where an entry counts: the fields of hashes that are counted up alike, as those of one id in its hour, day and month."""

    keys: tuple[str, ...]
    deadlines: tuple[int, ...]  #: of the keys
    fields: tuple[str, ...]


class Sums(NamedTuple):
    """What is added to the fields of a place."""

    place: Place
    amounts: list[int]


class Group(NamedTuple):
    """Entries that count in the same cells and balances."""

    first: Entry
    sums: list[int]


class Places:
    """Where entries count. Remembered: most calls are of an agent, a user, a key that was just seen."""

    def __init__(self, keys: Keys, deadlines: Deadlines) -> None:
        self.keys, self.deadlines = keys, deadlines
        self._found: dict[tuple[Any, ...], tuple[Place, ...]] = {}
        self._places: dict[tuple[str, CellKey], Place] = {}  # one of each, whoever counts there

    def cells(self, entry: Entry) -> tuple[Place, ...]:
        name = (entry.scopes, entry.provider, entry.served, entry.other, hour_of(entry.at_us))
        places = self._found.get(name)
        if places is None:
            tag = tag_of(entry.scopes.project)
            alike: dict[tuple[str, str, str], list[CellKey]] = {}
            for cell, _ in cells_of(entry):
                alike.setdefault((cell.scope, cell.project, cell.id), []).append(cell)
            places = self._found[name] = tuple(self._cells(tag, cells) for cells in alike.values())
        return places

    def _cells(self, tag: str, cells: Sequence[CellKey]) -> Place:
        place = self._places.get((tag, cells[0]))
        if place is None:
            place = self._places[tag, cells[0]] = Place(
                tuple(self.keys.cells(tag, cell) for cell in cells),
                tuple(self.deadlines.cells(cell.period, cell.start_us) for cell in cells),
                cell_fields(cells[0].provider, cells[0].model),
            )
        return place

    def balance(self, key: BalanceKey, end_us: int) -> Place:
        found = self._found.get(key)
        if found is None:
            place = Place((self.keys.balance(key),), (self.deadlines.balance(end_us),), ("spent",))
            found = self._found[key] = (place,)
        return found[0]

    def forget(self) -> None:
        """Between two batches: remember no more than PLACES_MAX."""
        for found in (self._found, self._places):
            if len(found) >= PLACES_MAX:
                found.clear()


def groups_of(entries: Iterable[Entry]) -> list[Group]:
    """Many entries become few groups here, and only then many cells."""
    groups: dict[tuple[Any, ...], Group] = {}
    for entry in entries:
        name = (entry.scopes, entry.provider, entry.served, entry.model, entry.other, entry.at_us // MINUTE_US)
        group = groups.get(name)
        if group is None:
            groups[name] = Group(entry, sums_of(entry))
        else:
            group.sums[:] = map(add, group.sums, sums_of(entry))
    return list(groups.values())


def cell_sums(groups: Iterable[Group], places: Places) -> list[Sums]:
    """What the groups add to cells."""
    found: dict[Place, list[int]] = {}
    for first, sums in groups:
        for place in places.cells(first):
            mine = found.get(place)
            found[place] = sums if mine is None else list(map(add, mine, sums))
    return [each for place, amounts in found.items() for each in steps_of(place, amounts)]


def balance_sums(groups: Iterable[Group], shapes: Iterable[Shape], places: Places) -> list[Sums]:
    """What the groups add to the balances of the shapes."""
    found: dict[Place, int] = {}
    shapes = tuple(shapes)
    for first, sums in groups:
        for shape in shapes:
            amount = measured(shape.measure, sums)
            if not amount:
                continue
            start_us, end_us = window_at(shape.window, shape.timezone, first.at_us)
            for project, id in ids_of(shape.scope, first.scopes, first.model):
                place = places.balance(BalanceKey(shape, project, id, start_us), end_us)
                found[place] = found.get(place, 0) + amount
    return [each for place, amount in found.items() for each in steps_of(place, [amount])]


def steps_of(place: Place, amounts: list[int]) -> Iterator[Sums]:
    """Sums in steps each of which a script counts exactly: many entries may come to more than that."""
    while max(amounts) > MAX_NANOS or min(amounts) < -MAX_NANOS:
        step = [max(-MAX_NANOS, min(MAX_NANOS, each)) for each in amounts]
        yield Sums(place, step)
        amounts = list(map(sub, amounts, step))
    yield Sums(place, amounts)


def measured(measure: Measure, sums: Sequence[int]) -> int:
    """What a cell's sums come to in a budget's measure."""
    if measure == "usd":
        return sums[_AMOUNT]
    return sum(sums[kind] for kind in _TOKENS) if measure == "tokens" else sums[_ATTEMPTS]


# ── the script's arguments ───────────────────────────────────────────────────────────────────────────────────────────


Leased = dict[tuple[str, str], int]
"""(field of a lease, key of its balance) → how much of the lease becomes spent."""


class Batch(msgspec.Struct):
    """Everything that `apply.lua` is to do in one slot. `arguments` are its keys and arguments."""

    tag: str
    cursors: list[tuple[str, int, int]]  #: field, from, to
    shapes: frozenset[str] | None  #: None: whatever shapes the slot keeps, this adds to no balance
    ids: tuple[str, ...] = ()  #: hashes in which names are looked for: what the first one says counts
    written: int = 0  #: which of them names are written to
    ids_until_s: int = 0
    names: dict[str, tuple[str, str]] = {}
    ended: list[str] = []
    sums: list[Sums] = []
    blocks: list[tuple[str, int, bytes]] = []  #: key, deadline, data
    leased: Leased = {}

    def arguments(self, keys: Keys) -> tuple[list[str], list[Any]]:
        every = [*keys.slot(self.tag), *self.ids]
        stand, marks = zip(*self.names.values(), strict=True) if self.names else ((), ())
        alike: dict[tuple[tuple[str, ...], tuple[int, ...]], list[Sums]] = {}
        for place, amounts in self.sums:
            if any(amounts):
                name = tuple(compress(place.fields, amounts)), place.deadlines
                alike.setdefault(name, []).append(Sums(place, amounts))
        every += (key for some in alike.values() for place, _ in some for key in place.keys)
        every += (key for key, _, _ in self.blocks)
        until_s = [deadline_s for _, deadline_s, _ in self.blocks]
        keep_s = max((self.ids_until_s, *(max(place.deadlines) for place, _ in self.sums), *until_s))
        batch = (
            keep_s or FOREVER_S, self.cursors, self.shapes,
            len(self.ids), self.written + 1, self.ids_until_s, tuple(self.names), stand, marks, self.ended,
            [(*name, [tuple(filter(None, amounts)) for _, amounts in some]) for name, some in alike.items()],
            until_s, [(*names, amount) for names, amount in self.leased.items()],
        )  # fmt: skip
        return every, [_pack(batch), *(data for _, _, data in self.blocks)]


def project_batch(
    tag: str, journal: str, from_seq: int, to_seq: int, decision: Decision, *, ended: Iterable[str], shapes: frozenset[Shape],
    places: Places, now_us: int, leased: Leased,
) -> Batch:  # fmt: skip
    """What rows up to `to_seq` do in their project's slot."""
    keys, deadlines = places.keys, places.deadlines
    days = deadlines.days(now_us)
    groups = decision.groups
    by_month: dict[int, list[Counted]] = {}
    for counted in decision.counted:
        by_month.setdefault(window_at("month", "UTC", counted.entry.at_us)[0], []).append(counted)
    return Batch(
        tag=tag, cursors=[(journal, from_seq, to_seq)], shapes=frozenset(map(shape_name, shapes)),
        ids=tuple(keys.ids(tag, day_us) for day_us in days), written=days.index(day_of(now_us)),
        ids_until_s=deadlines.ids(now_us), names=decision.names, ended=list(ended),
        sums=cell_sums(groups, places) + balance_sums(groups, shapes, places),
        blocks=[
            (keys.entries(tag, month_us), deadlines.entries(month_us), pack(now_us // 1000, journal, rows))
            for month_us, rows in by_month.items()
        ],
        leased=leased,
    )  # fmt: skip


def global_batch(
    cursors: list[tuple[str, int, int]], groups: Iterable[Group], *, ended: Iterable[str], shapes: frozenset[Shape],
    places: Places, leased: Leased,
) -> Batch:  # fmt: skip
    """What rows of several projects do in the slot of the budgets that have no project."""
    own = [shape for shape in shapes if shape.scope in GLOBAL_SCOPES]
    return Batch(
        tag=GLOBAL, cursors=cursors, shapes=frozenset(map(shape_name, shapes)), ended=list(ended),
        sums=balance_sums(groups if own else (), own, places), leased=leased,
    )  # fmt: skip
