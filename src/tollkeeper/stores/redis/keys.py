"""Names in Redis, and how long each thing stays. `docs/reference/redis.md` describes them for other programs.

All keys of a project share one hash tag, so that one script may change them together. Ids are percent-encoded: a separator
never stands in one, and no two ids meet. Budgets of scope `all`, `key` and `model` have no project: their keys share GLOBAL.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from tollkeeper.ledger import CELL_SUMS, BalanceKey, CellKey, Period, Shape, window_of
from tollkeeper.stores import Retention
from tollkeeper.values import OTHER, Entry, ScopeKind

#: The hash tag of what belongs to no project; no project's tag has a star in it.
GLOBAL: Final = "*"
#: Scopes whose balances live under GLOBAL.
GLOBAL_SCOPES: Final = frozenset({"all", "key", "model"})
#: "Forever" as a deadline: the end of the year 9999, in UTC seconds.
FOREVER_S: Final = 253_402_300_799
#: A balance is kept so long after its window's end: as the embedded store does.
BALANCE_KEEP_S: Final = 62 * 86400
#: Slots and shapes whose names are remembered.
SLOTS_MAX: Final = 10_000
_US: Final = 1_000_000
HOUR_US: Final = 3600 * _US
DAY_US: Final = 24 * HOUR_US
#: By how many seconds the clocks of two gateways may differ.
SKEW_S: Final = 60
#: Ids of a day stay so much longer than they are looked at: whoever prunes drops them in the background before Redis does at once.
SPARE_S: Final = 7200
_encode: Final = msgspec.msgpack.Encoder().encode


@lru_cache(100_000)
def tag_of(project: str) -> str:
    """A project's hash tag: 16 characters, 80 bits of its name's hash."""
    digest = hashlib.blake2b(project.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return base64.b32encode(digest).decode().lower()


def encode(name: str) -> str:
    """An id inside a key or field: letters, digits and `_.-~` stay, every other byte is %XX."""
    return quote(name, safe="", errors="surrogatepass")


def decode(text: str) -> str:
    return unquote(text, errors="surrogatepass")


@lru_cache(SLOTS_MAX)
def shape_name(shape: Shape) -> str:
    """A shape as it stands in keys: scope:measure:window:zone."""
    return f"{shape.scope}:{shape.measure}:{shape.window}:{encode(shape.timezone)}"


def shape_of(name: str) -> Shape:
    scope, measure, window, zone = name.split(":")
    return Shape(scope, measure, window, decode(zone))  # type: ignore[arg-type]


class Keys:
    """The names under one prefix."""

    def __init__(self, prefix: str = "tollkeeper") -> None:
        self.prefix = prefix
        self.epoch = self.of(GLOBAL, "epoch")  #: string: made anew whenever Redis was found empty
        self.members = self.of(GLOBAL, "members")  #: hash: journal → when and where its gateway was last alive
        self.projects = self.of(GLOBAL, "projects")  #: hash: tag → the project's name
        self.since = self.of(GLOBAL, "since")  #: hash: kind of row → pruned before this instant, UTC microseconds
        self.rebuild = self.of(
            GLOBAL, "rebuild"
        )  #: string: everything is dropped just now; no gateway begins until it is gone
        self.layout = self.of(GLOBAL, "layout")  #: string: of the keys (layout.py)
        self.open = self.of(
            GLOBAL, "open"
        )  #: hash: place that calls go to → until when it serves nobody, UTC milliseconds
        self.sweeper = self.of(GLOBAL, "sweeper")  #: string: who looks for dead gateways' holds just now

        self.slot = lru_cache(SLOTS_MAX)(self._slot)  #: tag → the keys that each script on a slot begins with

    def of(self, tag: str, what: str) -> str:
        return f"{self.prefix}:{{{tag}}}:{what}"

    def _slot(self, tag: str) -> tuple[str, ...]:
        return self.cursor(tag), self.shapes(tag), self.holds(tag), self.due(tag), self.index(tag)

    def cursor(self, tag: str) -> str:
        """Hash: journal → last row applied here; and `epoch`, the epoch in which the slot was opened."""
        return self.of(tag, "cursor")

    def shapes(self, tag: str) -> str:
        """Set: shapes whose balances are kept in this slot."""
        return self.of(tag, "shapes")

    def holds(self, tag: str) -> str:
        """Hash: hold's id → what it holds of which balance and for which process, then the hold as JSON."""
        return self.of(tag, "holds")

    def due(self, tag: str) -> str:
        """Sorted set: hold's id → its deadline, UTC milliseconds."""
        return self.of(tag, "due")

    def leases(self, tag: str) -> str:
        """Hash: journal, space, name of a balance → what its gateway has leased of it: part of what the balance holds."""
        return self.of(tag, "leases")

    def index(self, tag: str) -> str:
        """Sorted set: the dated keys of this slot (without prefix and tag) → the start of their period, UTC seconds."""
        return self.of(tag, "index")

    def once(self, what: str) -> str:
        """String: who is at a thing that is done once, or "done"."""
        return self.of(GLOBAL, f"once:{encode(what)}")

    def balance(self, key: BalanceKey) -> str:
        """Hash {spent, held} of one balance."""
        return self.of(
            balance_tag(key), f"balance:{shape_name(key.shape)}:{encode(key.id)}:{key.start_us}"
        )  # the tag says the project

    def balance_key(self, key: str, project: str) -> BalanceKey:
        """A balance's key read back."""
        scope, measure, window, zone, id, start_us = key.rpartition("}:balance:")[2].split(":")
        shape = shape_of(f"{scope}:{measure}:{window}:{zone}")
        return BalanceKey(shape, "" if scope in GLOBAL_SCOPES else project, decode(id), int(start_us))

    def cells(self, tag: str, key: CellKey) -> str:
        """Hash of the cells of one period and id: provider|model|sum → count. Small: a long hash is slow to count up.

        `others` instead of `cells`: the project is past the cardinality cap and counts under `_other`.
        """
        what = "others" if key.project == OTHER else "cells"
        return self.of(tag, f"{what}:{key.period}:{key.scope}:{encode(key.id)}:{key.start_us}")

    def entries(self, tag: str, month_us: int) -> str:
        """List of blocks: entries as they were counted, in the order in which they were (blocks.py)."""
        return self.of(tag, f"entries:{month_us}")

    def before(self, tag: str) -> str:
        """Hash: scope:id:measure → what pruned entries had spent, which a refilled slot cannot read any more."""
        return self.of(tag, "before")

    def ids(self, tag: str, day_us: int) -> str:
        """Hash: revision=id → what was booked under it that UTC day, for those who book it again."""
        return self.of(tag, f"ids:{day_us}")

    def seen(self, tag: str, scope: ScopeKind, month_us: int) -> str:
        """Set: ids of a scope that have cells of their own in a month; past the cap others count under `_other`."""
        return self.of(tag, f"seen:{scope}:{month_us}")


def balance_tag(key: BalanceKey) -> str:
    """The slot that keeps a balance."""
    return GLOBAL if key.shape.scope in GLOBAL_SCOPES else tag_of(key.project)


@lru_cache(SLOTS_MAX)
def cell_fields(provider: str, model: str) -> tuple[str, ...]:
    """The fields of a cell in its hash, one for each of CELL_SUMS."""
    before = f"{encode(provider)}|{encode(model)}|"
    return tuple(before + name for name in CELL_SUMS)


def hour_of(at_us: int) -> int:
    return at_us - at_us % HOUR_US


def day_of(at_us: int) -> int:
    return at_us - at_us % DAY_US


class Deadlines:
    """Until when a key is kept, in UTC seconds of Redis's clock, which is `ahead_s` of ours (a clock that is passed in may stand
    anywhere). `dedupe_s`: how long an id is remembered after its day.
    """

    def __init__(self, retention: Retention, dedupe_s: int = 86400, ahead_s: int = 0) -> None:
        self.retention = retention
        self._keeps = {"hour": retention.hour_s, "day": retention.day_s, "month": retention.month_s}
        self._entries_s = retention.entries_s
        self._dedupe_s, self._ahead_s = dedupe_s, ahead_s

    def cells(self, period: Period, start_us: int) -> int:
        return self._after(window_of(period, "UTC", start_us)[1], self._keeps[period])

    def entries(self, month_us: int) -> int:
        return self._after(window_of("month", "UTC", month_us)[1], self._entries_s)

    def balance(self, end_us: int) -> int:
        return self._after(end_us, BALANCE_KEEP_S)

    def once(self, until_us: int) -> int:
        return self._after(until_us, 0)

    def of_redis(self, at_us: int) -> int:
        """An instant of ours by Redis's clock."""
        return at_us + self._ahead_s * _US

    def hold(self, deadline_us: int) -> int:
        """Nobody may have looked for it until then."""
        return self._after(deadline_us, BALANCE_KEEP_S)

    def days(self, now_us: int) -> tuple[int, ...]:
        """The days of booking in which an id may stand that is remembered, the newest first, in UTC microseconds.

        Tomorrow is one of them where another gateway's clock may have reached it.
        """
        first, last = (day_of(now_us + seconds * _US) for seconds in (-self._dedupe_s, SKEW_S))
        return tuple(range(last, first - 1, -DAY_US))

    def ids(self, now_us: int) -> int:
        """Of what is booked now, whenever it happened: what is replayed or imported is remembered as long as what is new."""
        return self._after(day_of(now_us) + DAY_US, self._dedupe_s + SPARE_S)

    def _after(self, end_us: int, keep_s: int | None) -> int:
        return FOREVER_S if keep_s is None else min(FOREVER_S, end_us // _US + 1 + keep_s + self._ahead_s)


def digest_of(entry: Entry) -> str:
    """What must be the same when an id is booked again (`ledger.is_late`), in 12 characters."""
    parts = (
        entry.scopes, entry.dialect, entry.provider, entry.model, entry.served, entry.usage, entry.charge.amount_nanos
    )  # fmt: skip
    return binascii.b2a_base64(hashlib.blake2b(_encode(parts), digest_size=9).digest(), newline=False).decode()
