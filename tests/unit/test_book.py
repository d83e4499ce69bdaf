"""Live holds and balances in memory."""

from __future__ import annotations

import pytest

from tollkeeper.book import Book, refusal_of
from tollkeeper.errors import BudgetExceeded, Conflict
from tollkeeper.ledger import BalanceKey, Shape, window_of
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, USD, a_hold, an_entry, usd
from tollkeeper.values import Budget, ScopeKind, Scopes

FULL = Scopes(project="p", agent="a", session="s", user="u", key="k", tags=("t",))


def limits(*budgets: Budget, scopes: Scopes = FULL) -> list[int | None]:
    return [each.budget.limit for each in Book(budgets).standings(scopes, "m", AT_US)]


@pytest.mark.parametrize("scope", ["agent", "session", "user", "tag"])
def test_the_most_specific_budget_counts(scope: ScopeKind) -> None:
    """Project and id beat the project alone, that beats the id alone, that beats "*"; the order of the list is no matter."""
    id = scope[0]
    ranked = [
        Budget(scope=scope, limit=4),
        Budget(scope=scope, limit=3, id=id),
        Budget(scope=scope, limit=2, project="p"),
        Budget(scope=scope, limit=1, project="p", id=id),
    ]
    for count in range(1, 5):
        assert limits(*ranked[:count]) == limits(*reversed(ranked[:count])) == [5 - count]
    assert limits(*ranked, scopes=Scopes(project="q")) == []


@pytest.mark.parametrize(
    ("scope", "id"), [("project", "p"), ("key", "k"), ("model", "m"), ("all", "*")]
)  # fmt: skip
def test_scopes_without_a_project(scope: ScopeKind, id: str) -> None:
    """Projects, keys and models are named by id; a project may be named in either field."""
    assert limits(Budget(scope=scope, id=id, limit=1)) == [1]
    assert limits(Budget(scope=scope, limit=2), Budget(scope=scope, id=id, limit=1)) == [1]
    if scope == "project":
        assert limits(Budget(scope=scope, project="p", limit=3), Budget(scope=scope, limit=2)) == [3]
    if scope != "all":
        assert limits(Budget(scope=scope, id="other", limit=1)) == []


def test_shapes_do_not_stand_in_for_each_other() -> None:
    """Budgets of other windows, measures, zones or hardness count beside each other; hard and soft share one balance."""
    book = Book(
        [
            usd(USD),
            usd(DIME, hard=False),
            usd(USD, window="day"),
            usd(9, measure="tokens"),
            usd(USD, timezone="Asia/Kolkata"),
        ]
    )
    assert len(book.shapes) == 4
    book.reserve(a_hold("a/1", tokens=1))
    held = [each.held for each in book.standings(ALPHA, "m", AT_US)]
    assert sorted(held) == [1, DIME, DIME, DIME, DIME]


def test_the_tightest_budget_is_told() -> None:
    """The grant tells the budget with the least share left, this hold included, and whether a cap carries the bound."""
    book = Book([usd(100), usd(50, window="day", hard=False), usd(None, window="week")])
    grant = book.reserve(a_hold("a/1", 20))
    assert grant.tightest is not None
    assert (grant.tightest.budget.limit, grant.tightest.remaining, grant.capped) == (50, 30, True)
    assert book.reserve(a_hold("b/1", 20, scopes=FULL)).tightest is None
    for budget, capped in (
        (usd(9, measure="requests"), False),
        (usd(9, hard=False), False),
        (usd(99, measure="tokens"), True),
    ):
        assert Book([budget]).reserve(a_hold("a/1", 1, tokens=1)).capped is capped
    zero = Book([usd(0), usd(5, window="day")]).reserve(a_hold("a/1", 0))
    assert zero.tightest is not None
    assert zero.tightest.budget.limit == 0


def test_a_release_gives_back_exactly_what_was_held() -> None:
    """A hold is let go once, also after the limits have changed under it."""
    book = Book([usd(USD)])
    book.reserve(a_hold("a/1"))
    with pytest.raises(Conflict):
        book.reserve(a_hold("a/1", at_us=AT_US + 1))
    book.set_budgets([usd(DIME, window="day"), usd(2 * DIME)])
    assert [each.held for each in book.standings(ALPHA, "m", AT_US)] == [DIME, DIME]
    assert book.release("a/1")
    assert not book.release("a/1")
    assert [each.held for each in book.standings(ALPHA, "m", AT_US)] == [0, 0]


def test_what_is_booked_counts_when_it_is_safe() -> None:
    """An entry counts once its write is safe, and not at all if that failed."""
    book = Book([usd(USD)])
    for safe, spent in ((False, 0), (True, DIME)):
        touched = book.touched(an_entry("a/1"))
        assert [each.spent for each in book.standings(ALPHA, "m", AT_US)] == [0]
        book.booked(touched, safe)
        assert [each.spent for each in book.standings(ALPHA, "m", AT_US)] == [spent]
    assert book.touched(an_entry("b/1", None)) == []


def test_balances_are_read_when_needed() -> None:
    """What is not in memory is read from the store; what is held or being written is never forgotten."""
    asked: list[BalanceKey] = []

    def load(key: BalanceKey) -> int:
        asked.append(key)
        return 7

    book = Book([Budget(scope="session", limit=USD)], load)
    for number in range(4):
        scopes = Scopes(project="p", session=f"s{number}")
        assert [each.spent for each in book.standings(scopes, "m", AT_US)] == [7]
    book.reserve(a_hold("a/1", scopes=Scopes(project="p", session="s0")))
    writing = book.touched(an_entry("b/1", scopes=Scopes(project="p", session="s1")))
    assert len(asked) == 4
    book.trim(keep=1)
    for number in range(4):
        book.standings(Scopes(project="p", session=f"s{number}"), "m", AT_US)
    assert [key.id for key in asked[4:]] == ["s2", "s3"]
    book.booked(writing)
    assert [each.spent for each in book.standings(Scopes(project="p", session="s1"), "m", AT_US)] == [7 + DIME]
    book.forget()
    assert [each.spent for each in book.standings(Scopes(project="p", session="s1"), "m", AT_US)] == [7]
    assert book.held(asked[0]) == DIME
    assert book.held(asked[0]._replace(id="unknown")) == 0


def test_windows_change_under_a_balance() -> None:
    """C4: each instant finds its own window's balance, in whatever order they are asked for."""
    book = Book([usd(DIME, window="day")])
    for day in (0, 1, 0, 2, 1):
        (standing,) = book.standings(ALPHA, "m", AT_US + day * DAY_US)
        assert (standing.window_start_us, standing.resets_at_us) == window_of("day", "UTC", AT_US + day * DAY_US)
    book.reserve(a_hold("a/1"))
    book.reserve(a_hold("b/1", at_us=AT_US + DAY_US))
    with pytest.raises(BudgetExceeded):
        book.reserve(a_hold("c/1", 1))
    shape = Shape("project", "usd", "day", "UTC")
    assert book.held(BalanceKey(shape, "alpha", "", window_of("day", "UTC", AT_US)[0])) == DIME


def test_due() -> None:
    """A hold is due at its deadline, not before."""
    book = Book()
    hold = a_hold("a/1")
    book.reserve(hold)
    assert book.due(hold.deadline_us - 1) == []
    assert book.due(hold.deadline_us) == [hold]


@pytest.mark.parametrize(
    "budget",
    [
        usd(USD),
        usd(DIME, hard=False),
        usd(3, measure="requests", window="minute"),
        usd(100, measure="tokens"),
        usd(None),
    ],
    ids=lambda budget: f"{budget.limit} {budget.measure}",
)
@pytest.mark.parametrize(("nanos", "tokens"), [(DIME, 97), (2 * USD, 98), (None, 5), (None, None), (0, 0)])
def test_what_a_budget_would_say(budget: Budget, nanos: int | None, tokens: int | None) -> None:
    """C7: a budget as it stands says to a hold what its reservation would say, in the same words, and holds nothing."""
    book, hold = Book([budget]), a_hold("a/1", nanos, tokens=tokens)
    for number in range(3):
        book.reserve(a_hold(f"{number}/1", nanos=1, tokens=1))
    (standing,) = book.standings(hold.scopes, hold.model, hold.at_us)
    told = refusal_of(standing, hold)
    assert book.standings(hold.scopes, hold.model, hold.at_us) == [standing]
    if told is None:
        book.reserve(hold)
        return
    with pytest.raises(type(told)) as refused:
        book.reserve(hold)
    assert str(refused.value) == str(told)
