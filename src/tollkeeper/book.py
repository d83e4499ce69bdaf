"""Live holds and balances in memory: says yes or no to a reservation at once.

The stores own durability. They ask the book first (`reserve`), write, and tell it what has been booked (`settled`,
`recorded`) only after the write is safe; until then the hold stands, so a budget errs on the side of refusing. Every change
here is one step without a wait: no lock is needed within one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple

from tollkeeper.errors import BudgetExceeded, Conflict, RateLimited
from tollkeeper.ledger import FOREVER_US, BalanceKey, Shape, amount_of, ids_of, window_of
from tollkeeper.values import Budget, Entry, Grant, Hold, Measure, Refusal, Scopes, Standing

#: Balances kept in memory; the least lately used beyond it are read again from the store when needed.
BALANCES_MAX: Final = 50_000
#: Kinds of calls whose balances are found at once.
_COVERS_MAX: Final = 4096


class Balance:
    """What one scope has spent and holds in one window."""

    __slots__ = ("end_us", "held", "key", "spent", "unsaved")

    def __init__(self, key: BalanceKey, end_us: int, spent: int) -> None:
        self.key = key
        self.end_us = end_us
        self.spent = spent
        self.held = 0
        self.unsaved = 0  #: writes under way that change it: it must stay in memory until they are safe


class Live(NamedTuple):
    """A hold that stands, with what it holds of each balance."""

    hold: Hold
    legs: tuple[tuple[Balance, int], ...]


class Cover(NamedTuple):
    """What calls of the same scopes and model meet, from `from_us` until `until_us`."""

    from_us: int
    until_us: int
    pairs: tuple[tuple[Budget, Balance], ...]  #: the budgets that cover such a call
    balances: tuple[tuple[Measure, Balance], ...]  #: all that its entry changes


class Rules:
    """The budgets of one shape, looked up by (project, id): the most specific one counts."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], Budget] = {}

    def add(self, budget: Budget) -> None:
        project = "" if budget.scope in ("all", "key", "model") else budget.project
        id = budget.id
        if budget.scope == "project":
            project, id = (budget.id if budget.id != "*" else budget.project), ""
        elif budget.scope == "all":
            id = ""
        self._by_name[project, id] = budget

    def find(self, project: str, id: str) -> Budget | None:
        by_name = self._by_name
        for name in ((project, id), (project, "*"), ("*", id), ("*", "*")):
            budget = by_name.get(name)
            if budget is not None:
                return budget
        return None


class Budgets:
    """The limits of a ledger: which of them cover a call."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._rules: dict[tuple[Shape, bool], Rules] = {}
        for budget in budgets:
            shape = Shape(budget.scope, budget.measure, budget.window, budget.timezone)
            self._rules.setdefault((shape, budget.hard), Rules()).add(budget)
        self.shapes = tuple(dict.fromkeys(shape for shape, _ in self._rules))

    def covering(self, scopes: Scopes, model: str) -> list[tuple[Budget, Shape, str, str]]:
        """Every budget that covers such a call: (budget, shape, project, id) of its balance."""
        return [
            (budget, shape, project, id)
            for (shape, _), rules in self._rules.items()
            for project, id in ids_of(shape.scope, scopes, model)
            if (budget := rules.find(project, id)) is not None
        ]


class Book:
    """Budgets, balances and live holds of one ledger.

    `load(key)` reads what a balance has spent from the store when it is not in memory.
    """

    def __init__(self, budgets: Iterable[Budget] = (), load: Callable[[BalanceKey], int] = lambda key: 0) -> None:
        self._load = load
        self._budgets = Budgets()
        self._balances: dict[BalanceKey, Balance] = {}
        self._current: dict[tuple[Shape, str, str], Balance] = {}
        self._covers: dict[tuple[Scopes, str], Cover] = {}
        self.live: dict[str, Live] = {}
        self._leaving: set[str] = set()
        self.set_budgets(budgets)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes for which balances are kept."""
        return self._budgets.shapes

    def set_budgets(self, budgets: Iterable[Budget]) -> None:
        """Replace the limits. Balances stay, and live holds hold of what covers them now; the store reads the balances again."""
        self._budgets = Budgets(budgets)
        self._covers.clear()
        for live in list(self.live.values()):
            hold = live.hold
            self.release(hold.id)
            pairs = self._cover(hold.scopes, hold.model, hold.at_us).pairs
            self._hold(hold, {balance: asked_of(budget.measure, hold) for budget, balance in pairs})

    # ── reserve ──

    def reserve(self, hold: Hold) -> Grant:
        """Hold the quote against every budget that covers it, or none of them.

        Raises BudgetExceeded or RateLimited with the first budget that cannot pay, and Conflict for an id that lives with
        other contents. The same hold again is answered as the first time.
        """
        live = self.live.get(hold.id)
        if live is not None:
            if live.hold != hold:
                raise Conflict(f"hold {hold.id!r} exists with other contents; use a new id")
            return grant_of(self._cover(hold.scopes, hold.model, hold.at_us).pairs)
        pairs = self._cover(hold.scopes, hold.model, hold.at_us).pairs
        legs = {}
        for budget, balance in pairs:
            legs[balance] = asked = asked_of(budget.measure, hold)
            if not pays(budget, balance.spent + balance.held, asked):
                raise refused(standing_of(budget, balance), asked, hold)
        self._hold(hold, legs)
        return grant_of(pairs)

    def _hold(self, hold: Hold, legs: dict[Balance, int | None]) -> None:
        known = tuple((balance, asked) for balance, asked in legs.items() if asked is not None)
        for balance, asked in known:
            balance.held += asked
        self.live[hold.id] = Live(hold, known)

    def release(self, hold_id: str) -> bool:
        """Let go of a hold; False if it does not live."""
        live = self.live.pop(hold_id, None)
        if live is None:
            return False
        for balance, asked in live.legs:
            balance.held -= asked
        return True

    def leave(self, hold_id: str) -> bool:
        """That a hold is let go of is being written: it stands, and is not due any more; False if it does not live."""
        if hold_id not in self.live:
            return False
        self._leaving.add(hold_id)
        return True

    def left(self, hold_id: str, safe: bool) -> None:
        """That write has ended: let go of the hold if it is safe."""
        self._leaving.discard(hold_id)
        if safe:
            self.release(hold_id)

    def ends(self, entry: Entry) -> bool:
        """Whether an entry ends a live hold: the one of its id, if it is its own project's."""
        live = self.live.get(entry.id)
        return live is not None and live.hold.scopes.project == entry.scopes.project

    # ── book ──

    def touched(self, entry: Entry) -> list[tuple[Balance, int]]:
        """The balances that an entry changes, marked as being written."""
        touched = []
        for measure, balance in self._cover(entry.scopes, entry.model, entry.at_us).balances:
            amount = amount_of(measure, entry)
            if amount:
                balance.unsaved += 1
                touched.append((balance, amount))
        return touched

    def booked(self, touched: Iterable[tuple[Balance, int]], safe: bool = True) -> None:
        """The write of `touched` has ended: count it if it is safe."""
        for balance, amount in touched:
            balance.unsaved -= 1
            if safe:
                balance.spent += amount

    # ── look ──

    def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        """Every budget that covers such a call, as it stands."""
        return [standing_of(budget, balance) for budget, balance in self._cover(scopes, model, at_us).pairs]

    def held(self, key: BalanceKey) -> int:
        """What live holds take of one balance."""
        balance = self._balances.get(key)
        return 0 if balance is None else balance.held

    def due(self, now_us: int) -> list[Hold]:
        """Live holds past their deadline, but for those that are being let go of."""
        holds = (live.hold for id, live in self.live.items() if id not in self._leaving)
        return [hold for hold in holds if hold.deadline_us <= now_us]

    def trim(self, keep: int = BALANCES_MAX) -> None:
        """Forget the oldest balances beyond `keep`; none that is held or being written."""
        excess = len(self._balances) - keep
        if excess <= 0:
            return
        idle = [key for key, balance in self._balances.items() if not balance.held and not balance.unsaved]
        for key in idle[:excess]:
            del self._balances[key]
        self._current.clear()
        self._covers.clear()

    def forget(self) -> None:
        """Read every balance again: at once where a hold lives, the others when they are asked for."""
        self.trim(0)
        for key, balance in self._balances.items():
            balance.spent = self._load(key)

    # ── within ──

    def _cover(self, scopes: Scopes, model: str, at_us: int) -> Cover:
        """The latest one is found without a look at each budget."""
        cover = self._covers.get((scopes, model))
        if cover is not None and cover.from_us <= at_us < cover.until_us:
            return cover
        balances = {
            (shape, project, id): self._at(shape, project, id, at_us)
            for shape in self._budgets.shapes
            for project, id in ids_of(shape.scope, scopes, model)
        }
        found = Cover(
            max((balance.key.start_us for balance in balances.values()), default=0),
            min((balance.end_us for balance in balances.values()), default=FOREVER_US),
            tuple(
                (budget, balances[shape, project, id])
                for budget, shape, project, id in self._budgets.covering(scopes, model)
            ),
            tuple((shape.measure, balance) for (shape, _, _), balance in balances.items()),
        )
        if cover is None or found.from_us > cover.from_us:
            if len(self._covers) >= _COVERS_MAX:
                self._covers.clear()
            self._covers[scopes, model] = found
        return found

    def _at(self, shape: Shape, project: str, id: str, at_us: int) -> Balance:
        """The balance of the window that holds `at_us`; the latest one is found without calendar arithmetic."""
        current = self._current.get((shape, project, id))
        if current is not None and current.key.start_us <= at_us < current.end_us:
            return current
        start_us, end_us = window_of(shape.window, shape.timezone, at_us)
        balance = self._balance(BalanceKey(shape, project, id, start_us), end_us)
        if current is None or start_us > current.key.start_us:
            self._current[shape, project, id] = balance
        return balance

    def _balance(self, key: BalanceKey, end_us: int) -> Balance:
        balance = self._balances.get(key)
        if balance is None:
            balance = self._balances[key] = Balance(key, end_us, self._load(key))
        return balance


def asked_of(measure: Measure, hold: Hold) -> int | None:
    """What a hold takes of a budget in this measure; None: it is not known."""
    if measure == "usd":
        return hold.quote_nanos
    if measure == "requests":
        return 1
    return None if hold.quote_usage is None else hold.quote_usage.tokens


def refusal_of(standing: Standing, hold: Hold) -> BudgetExceeded | RateLimited | None:
    """What a budget that stands so would say to a hold; None: it pays."""
    asked = asked_of(standing.budget.measure, hold)
    if pays(standing.budget, standing.spent + standing.held, asked):
        return None
    return refused(standing, asked, hold)


def pays(budget: Budget, used: int, asked: int | None) -> bool:
    """Only a hard budget refuses. What costs nothing always passes, also on a spent one; what is not known does not."""
    if not budget.hard or budget.limit is None or asked == 0:
        return True
    return asked is not None and used + asked <= budget.limit


def refused(standing: Standing, asked: int | None, hold: Hold) -> BudgetExceeded | RateLimited:
    if asked is None:
        reason: Literal["unbounded", "unpriced"] = "unbounded" if hold.quote_usage is None else "unpriced"
        return BudgetExceeded(Refusal(standing=standing, asked=None, reason=reason))
    refusal = Refusal(standing=standing, asked=asked)
    if standing.budget.measure != "usd" and standing.budget.window == "minute":
        return RateLimited(refusal)
    return BudgetExceeded(refusal)


def standing_of(budget: Budget, balance: Balance) -> Standing:
    key = balance.key
    return Standing(
        budget=budget, id=key.project if budget.scope == "project" else key.id, project=key.project,
        window_start_us=key.start_us, resets_at_us=None if balance.end_us >= FOREVER_US else balance.end_us,
        spent=balance.spent, held=balance.held,
    )  # fmt: skip


def grant_of(covering: Sequence[tuple[Budget, Balance]]) -> Grant:
    limited = [pair for pair in covering if pair[0].limit is not None]
    if not limited:
        return _UNLIMITED
    capped = any(budget.hard and budget.measure != "requests" for budget, _ in limited)
    return Grant(standing_of(*min(limited, key=_left)), capped)


def _left(pair: tuple[Budget, Balance]) -> int:
    """The share of its limit that a budget has left, in millionths."""
    limit, balance = pair[0].limit, pair[1]
    return (limit - balance.spent - balance.held) * 1_000_000 // limit if limit else 0


_UNLIMITED: Final = Grant()
