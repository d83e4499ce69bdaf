"""What every store must do, as tests: subclass StoreContract, say how to open one, and let pytest collect it.

    class TestMine(StoreContract):
        async def open(self, budgets=(), *, scope_cap=10_000):
            return MyStore(budgets, scope_cap=scope_cap)

Needs pytest and pytest-asyncio with `asyncio_mode = "auto"`. Every test opens one empty store and closes it. Time is passed
in: nothing here waits.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from msgspec import structs

from tollkeeper.errors import BudgetExceeded, Conflict, RateLimited
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Retention, Store
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.corrections import Corrections
from tollkeeper.testing.samples import (
    ALPHA,
    AT_US,
    DAY_US,
    DIME,
    HOUR_US,
    KEEP_ALL,
    USD,
    a_hold,
    an_entry,
    booked,
    month_of,
    standing,
    total,
    usd,
)
from tollkeeper.values import OTHER, Budget, Scopes


class StoreContract(Corrections, ABC):
    """The suite. `open` gives an empty store; `corrupt` is optional."""

    @abstractmethod
    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        """A new, empty store that this test owns."""

    def corrupt(self, store: Store, what: Literal["cell", "balance"]) -> None:
        """Change one stored sum behind the ledger's back."""
        pytest.skip(f"no way to change a {what} of a {type(store).__name__}")

    @asynccontextmanager
    async def opened(self, *budgets: Budget, scope_cap: int = 10_000) -> AsyncIterator[Store]:
        """A store for one block, that agrees with itself at the end."""
        store = await self.open(budgets, scope_cap=scope_cap)
        try:
            yield store
            assert await store.verify() == []
        finally:
            await store.close()

    # ── what is done once ──

    async def test_once(self) -> None:
        """G2: of many who ask at once one has the turn; what is done is done, and another thing is another's."""
        minute_us = 60_000_000
        async with self.opened() as store:
            told = await asyncio.gather(*(store.claim("alert:a", AT_US, minute_us) for _ in range(20)))
            assert sorted(told) == [False] * 19 + [True]
            assert await store.claim("alert:b", AT_US, minute_us)
            await store.done("alert:a", AT_US + DAY_US)
            assert not await store.claim("alert:a", AT_US + 2 * minute_us, minute_us)

    # ── reserve ──

    @pytest.mark.parametrize(
        ("tight", "error"),
        [
            (usd(DIME - 1), BudgetExceeded),
            (usd(DIME - 1, window="day"), BudgetExceeded),
            (usd(99, measure="tokens"), BudgetExceeded),
            (usd(99, measure="tokens", window="minute"), RateLimited),
            (usd(0, measure="requests", window="minute"), RateLimited),
            (usd(0, measure="requests", window="hour"), BudgetExceeded),
            (Budget(scope="all", limit=DIME - 1, window="total"), BudgetExceeded),
            (Budget(scope="tag", id="t2", limit=DIME - 1), BudgetExceeded),
            (Budget(scope="model", id="m", limit=DIME - 1, window="week"), BudgetExceeded),
        ],
    )
    async def test_reserve_is_all_or_none(self, tight: Budget, error: Any) -> None:
        """C7: the one budget that cannot pay is named in numbers, and no other budget holds anything afterwards."""
        scopes = Scopes(project="alpha", agent="w", session="s", user="u", key="k", tags=("t1", "t2"))
        wide = [Budget(scope=scope, limit=USD) for scope in ("agent", "session", "user", "key", "tag")]
        async with self.opened(*wide, tight) as store:
            with pytest.raises(error) as caught:
                await store.reserve(a_hold("a/1", scopes=scopes))
            refusal = caught.value.refusal
            named = refusal.standing
            asked = {"usd": DIME, "tokens": 100, "requests": 1}[tight.measure]
            assert (named.budget, named.spent, named.held, refusal.asked) == (tight, 0, 0, asked)
            assert (named.resets_at_us is None) == (tight.window == "total")
            standings = await store.standings(scopes, "m", AT_US)
            assert tight in [each.budget for each in standings]
            assert {(each.spent, each.held) for each in standings} == {(0, 0)}
            assert await store.live() == []

    async def test_the_limit_itself_is_admitted(self) -> None:
        """A call that fills the budget exactly passes; one nano more does not."""
        async with self.opened(usd(3 * DIME)) as store:
            await store.reserve(a_hold("a/1"))
            await store.settle(an_entry("b/1"))
            with pytest.raises(BudgetExceeded) as caught:
                await store.reserve(a_hold("c/1", DIME + 1))
            told = caught.value.refusal
            assert (told.standing.spent, told.standing.held, told.asked) == (DIME, DIME, DIME + 1)
            tightest = (await store.reserve(a_hold("d/1"))).tightest
            assert (tightest is not None, tightest and tightest.remaining) == (True, 0)

    async def test_none_zero_and_free(self) -> None:
        """C5: None is no limit, 0 blocks, and what costs nothing passes a budget that is used up."""
        async with self.opened(usd(None)) as store:
            await store.reserve(a_hold("a/1", 10**6 * USD))
            await store.reserve(a_hold("b/1", None, tokens=None))
            await store.set_budgets([usd(0)])
            with pytest.raises(BudgetExceeded):
                await store.reserve(a_hold("c/1", 1))
            await store.reserve(a_hold("d/1", 0))

    async def test_specific_beats_every(self) -> None:
        """A budget that names its id counts instead of the one for "*", in both directions."""
        budgets = [usd(DIME, id="*"), usd(5 * DIME, id="rich"), usd(0, id="poor")]
        async with self.opened(*budgets) as store:
            for project, most in (("rich", 5), ("poor", 0), ("other", 1)):
                scopes = Scopes(project=project)
                for number in range(most):
                    await store.reserve(a_hold(f"{project}{number}/1", scopes=scopes))
                with pytest.raises(BudgetExceeded):
                    await store.reserve(a_hold(f"{project}/1", scopes=scopes))

    async def test_soft_budgets_never_refuse(self) -> None:
        """A soft budget counts and shows what passes it, also what cannot be priced."""
        async with self.opened(usd(DIME, hard=False)) as store:
            await store.reserve(a_hold("a/1", USD))
            await store.reserve(a_hold("b/1", None, tokens=None))
            seen = await standing(store)
            assert (seen.held, seen.remaining) == (USD, 0)

    async def test_what_cannot_be_bounded_is_refused(self) -> None:
        """A5, C3: a hard usd budget refuses a call without a price or without a bound, one in requests does not."""
        async with self.opened(usd(USD)) as store:
            for hold, reason in ((a_hold("a/1", None), "unpriced"), (a_hold("b/1", None, tokens=None), "unbounded")):
                with pytest.raises(BudgetExceeded) as caught:
                    await store.reserve(hold)
                assert (caught.value.refusal.reason, caught.value.refusal.asked) == (reason, None)
            await store.set_budgets([usd(5, measure="requests")])
            await store.reserve(a_hold("c/1", None, tokens=None))

    async def test_reserving_again(self) -> None:
        """The same hold again is held once; the same id with another quote is a conflict."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1"))
            await store.reserve(a_hold("a/1"))
            with pytest.raises(Conflict):
                await store.reserve(a_hold("a/1", DIME + 1))
            assert (await standing(store)).held == DIME

    async def test_two_hundred_at_once(self) -> None:
        """C1: 200 tasks of $0.10 on $1, in one process: exactly 10 are admitted, in 20 runs of 20."""
        async with self.opened(usd(USD, id="*", window="total")) as store:
            for run in range(20):
                scopes = Scopes(project=f"run{run}")
                holds = [a_hold(f"{run}-{number}/1", scopes=scopes) for number in range(200)]
                answers = await asyncio.gather(*map(store.reserve, holds), return_exceptions=True)
                assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 190
                assert (await standing(store, scopes)).held == USD
            assert len(await store.live()) == 200

    async def test_names_do_not_meet(self) -> None:
        """C8: agents, sessions and users of one name in two projects share nothing; a key's id keeps its spend."""
        budgets = [Budget(scope=scope, limit=DIME) for scope in ("agent", "session", "user", "tag")]
        async with self.opened(*budgets, Budget(scope="key", limit=3 * DIME)) as store:
            for project in ("alpha", "beta"):
                scopes = Scopes(project=project, agent="w", session="w", user="w", key="k", tags=("w",))
                await store.settle(an_entry(f"{project}/1", scopes=scopes))
                spent = {each.budget.scope: each.spent for each in await store.standings(scopes, "m", AT_US)}
                assert spent.pop("key") == (DIME if project == "alpha" else 2 * DIME)
                assert set(spent.values()) == {DIME}

    # ── settle, void, expire ──

    async def test_settle_above_the_hold_is_recorded(self) -> None:
        """What was used is booked, also above the hold and above the limit; the hold is gone."""
        async with self.opened(usd(DIME)) as store:
            await store.reserve(a_hold("a/1"))
            assert await store.settle(an_entry("a/1", USD)) == "booked"
            seen = await standing(store)
            assert (seen.spent, seen.held, seen.remaining) == (USD, 0, 0)

    async def test_settle_without_a_hold(self) -> None:
        """An entry that nobody reserved for is booked."""
        async with self.opened(usd(USD)) as store:
            assert await store.settle(an_entry("a/1")) == "booked"
            assert await store.entry("alpha", "a/1") == an_entry("a/1")
            assert await store.entry("beta", "a/1") is None

    async def test_five_times_at_once(self) -> None:
        """B2: the same event five times at once counts once."""
        async with self.opened(usd(USD)) as store:
            answers = await asyncio.gather(*(store.settle(an_entry("a/1")) for _ in range(5)))
            assert sorted(answers) == ["booked", *["repeated"] * 4]
            assert (await standing(store)).spent == DIME

    async def test_a_booked_id_reserved_again(self) -> None:
        """B2: a hold under an id that was booked ends with a repeated settlement or its deadline, and counts nothing."""
        async with self.opened(usd(USD)) as store:
            for end in ("settle", "expire"):
                await store.settle(an_entry(f"{end}/1"))
                await store.reserve(a_hold(f"{end}/1"))
            assert await store.settle(an_entry("settle/1")) == "repeated"
            await store.expire(AT_US + DAY_US)
            assert await store.live() == []
            assert ((await standing(store)).spent, (await standing(store)).held) == (2 * DIME, 0)

    async def test_void(self) -> None:
        """A voided hold leaves nothing; voiding it again, or an unknown id, is harmless."""
        async with self.opened(usd(DIME)) as store:
            await store.reserve(a_hold("a/1"))
            for id in ("a/1", "a/1", "never/1"):
                await store.void(id)
            assert (await standing(store)).held == 0
            assert await booked(store) == []
            await store.reserve(a_hold("b/1"))

    async def test_expired_holds_are_booked(self) -> None:
        """C2: past its deadline a hold is booked at its estimate, marked so, once; no live hold stays."""
        async with self.opened(usd(USD)) as store:
            hold = a_hold("a/1")
            await store.reserve(hold)
            await store.reserve(a_hold("b/1", 0, at_us=AT_US + DAY_US))
            assert await store.expire(hold.deadline_us - 1) == 0
            assert await store.expire(hold.deadline_us) == 1
            assert await store.expire(hold.deadline_us) == 0
            (entry,) = await booked(store)
            assert (entry.outcome, entry.charge.status, entry.charge.amount_nanos) == ("expired", "estimated", DIME)
            assert [live.id for live in await store.live()] == ["b/1"]
            assert total(await month_of(store), "inexact_nanos") == DIME

    async def test_before_midnight_settled_after(self) -> None:
        """C4: a reservation counts in the window in which it was made, whenever it is settled; the next one is fresh."""
        midnight_us = START_US + 31 * DAY_US
        async with self.opened(usd(DIME, window="day"), usd(DIME)) as store:
            await store.reserve(a_hold("a/1", at_us=midnight_us - 1))
            await store.reserve(a_hold("b/1", at_us=midnight_us))
            await store.settle(an_entry("a/1", at_us=midnight_us - 1))
            for at_us, spent, held in ((midnight_us - 1, DIME, 0), (midnight_us, 0, DIME)):
                seen = await store.standings(ALPHA, "m", at_us)
                assert [(each.spent, each.held) for each in seen] == [(spent, held)] * 2

    # ── sums ──

    async def test_attempts_of_one_call(self) -> None:
        """B5: three billed attempts of one call are three entries and one call."""
        async with self.opened() as store:
            for number in (1, 2, 3):
                await store.settle(an_entry(f"a/{number}"))
            assert [total(await month_of(store), what) for what in ("calls", "attempts")] == [1, 3]

    @pytest.mark.parametrize("count", [99, 100, 101, 10_000])
    async def test_many_scopes_in_one_flush(self, count: int) -> None:
        """B3: 99, 100, 101 and 10,000 distinct scopes at once all land."""
        async with self.opened(Budget(scope="agent", limit=USD)) as store:
            every = [Scopes(project="alpha", agent=f"a{number}") for number in range(count)]
            await asyncio.gather(*(store.settle(an_entry(f"{s.agent}/1", scopes=s)) for s in every))
            cells = await store.cells("agent", "day", 0, FOREVER_US)
            assert {key.id for key, _ in cells} == {scopes.agent for scopes in every}
            assert total(cells, "amount_nanos") == total(await month_of(store), "amount_nanos") == count * DIME
            assert (await standing(store, every[-1])).spent == DIME

    async def test_past_the_scope_cap(self) -> None:
        """Ids past the cap have their cells under _other; entries keep their ids, and nothing is dropped."""
        async with self.opened(Budget(scope="session", limit=USD), scope_cap=3) as store:
            for number in range(5):
                scopes = Scopes(project="alpha", session=f"s{number}", agent="w")
                await store.settle(an_entry(f"{number}/1", scopes=scopes))
            calls = {
                key.id: total([(key, sums)], "calls") for key, sums in await store.cells("session", "day", 0, 2**62)
            }
            assert calls == {"s0": 1, "s1": 1, "s2": 1, OTHER: 2}
            assert [entry.scopes.session for entry in await booked(store)] == [f"s{number}" for number in range(5)]
            assert total(await store.cells("agent", "day", 0, FOREVER_US), "calls") == 5
            assert (await standing(store, Scopes(project="alpha", session="s4"))).spent == DIME

    async def test_tags_do_not_multiply(self) -> None:
        """A call with three tags counts once in each tag, and once in its project."""
        async with self.opened(usd(USD)) as store:
            await store.settle(an_entry("a/1", scopes=Scopes(project="alpha", tags=("x", "y", "z"))))
            tags = await store.cells("tag", "hour", 0, FOREVER_US)
            assert [(key.id, total([(key, sums)], "calls")) for key, sums in tags] == [("x", 1), ("y", 1), ("z", 1)]
            assert total(await month_of(store), "amount_nanos") == (await standing(store)).spent == DIME

    async def test_sums_agree(self) -> None:
        """B7: the cells of each period, the tally and the entries have the same sums; unpriced is counted, never 0."""
        async with self.opened() as store:
            amounts = (DIME, None, 0, USD)
            for number, nanos in enumerate(amounts):
                outcome = "cut" if number == 2 else "ok"
                scopes = Scopes(project="alpha", agent=f"a{number % 2}")
                entry = an_entry(f"{number}/1", nanos, at_us=AT_US + number * 18 * HOUR_US, scopes=scopes)
                await store.settle(structs.replace(entry, outcome=outcome))
            right = {"calls": 4, "errors": 1, "input": 400, "amount_nanos": DIME + USD, "unpriced": 1}
            for scope in ("project", "agent"):
                found = [await store.cells(scope, period, 0, FOREVER_US) for period in ("hour", "day", "month")]
                assert [len(cells) for cells in found] == ([4, 3, 1] if scope == "project" else [4, 4, 2])
                for cells in (*found, await store.tally(scope, 0, FOREVER_US)):
                    assert {what: total(cells, what) for what in right} == right
            part = await store.tally("agent", AT_US, AT_US + 40 * HOUR_US, project="alpha", id="a1")
            assert [total(part, what) for what in ("calls", "unpriced", "amount_nanos")] == [1, 1, 0]

    @pytest.mark.parametrize("what", ["cell", "balance"])
    async def test_verify_finds_a_difference(self, what: Literal["cell", "balance"]) -> None:
        """B7: verify finds nothing in a sound ledger, and a seeded difference in a cell or a balance."""
        store = await self.open([usd(USD)])
        try:
            await store.settle(an_entry("a/1"))
            assert await store.prune(AT_US, KEEP_ALL) == 0  # nothing is on its way to the cells any more
            assert await store.verify() == []
            self.corrupt(store, what)
            found = await store.verify()
            assert {difference.what for difference in found} == {what}
            assert all("alpha" in difference.key and difference.stored != difference.entries for difference in found)
        finally:
            await store.close()

    # ── time and settings ──

    async def test_prune(self) -> None:
        """Entries go by whole months, cells after their own period; what is kept still agrees, and spend is not given back."""
        async with self.opened(usd(USD, window="total")) as store:
            old_us = AT_US - 60 * DAY_US
            for id, at_us in (("old/1", old_us), ("new/1", AT_US)):
                await store.settle(an_entry(id, at_us=at_us))
            assert await store.prune(AT_US, Retention(hour_s=3600, day_s=10**8, month_s=None, entries_s=30 * 86400)) > 0
            assert [entry.id for entry in await booked(store)] == ["new/1"]
            counts = [len(await store.cells("project", period, 0, FOREVER_US)) for period in ("hour", "day", "month")]
            assert counts == [1, 2, 2]
            assert old_us < await store.kept_since() <= AT_US
            assert (await standing(store)).spent == 2 * DIME
            assert await store.prune(AT_US + 9 * DAY_US, KEEP_ALL) == 0

    async def test_a_raised_limit_counts_at_once(self) -> None:
        """C5: after set_budgets the next reservation is judged by the new limit, with what was spent and held before."""
        async with self.opened(usd(2 * DIME)) as store:
            await store.settle(an_entry("a/1"))
            await store.reserve(a_hold("b/1"))
            with pytest.raises(BudgetExceeded):
                await store.reserve(a_hold("c/1"))
            await store.set_budgets([usd(3 * DIME)])
            await store.reserve(a_hold("c/1"))
            with pytest.raises(BudgetExceeded):
                await store.reserve(a_hold("d/1", 1))

    async def test_a_new_budget_counts_what_is_in_flight(self) -> None:
        """P3: a hold that was made before a budget counts on it, once, until it is let go of or settled."""
        new = [usd(3 * DIME), usd(3 * DIME, window="day"), Budget(scope="all", measure="requests", limit=3)]
        async with self.opened(usd(USD, window="day")) as store:
            await store.reserve(a_hold("a/1"))
            await store.reserve(a_hold("b/1"))
            for budgets in (new, [], [usd(USD, window="day")], new, new):
                await store.set_budgets(budgets)
            await store.reserve(a_hold("c/1"))
            with pytest.raises(BudgetExceeded):
                await store.reserve(a_hold("d/1", 1))
            await store.void("a/1")
            await store.settle(an_entry("b/1", 1))
            stand = [(each.spent, each.held) for each in await store.standings(ALPHA, "m", AT_US)]
            assert stand == [(1, DIME), (1, DIME), (1, 1)]

    async def test_a_new_budget_counts_what_was_spent(self) -> None:
        """A budget added, or taken away and added again, in mid-window starts with what the entries of its windows say."""
        shapes = [usd(USD), usd(USD, window="day"), usd(USD, window="total", timezone="Asia/Kolkata")]
        async with self.opened() as store:
            for id, at_us in (("a/1", AT_US - DAY_US), ("b/1", AT_US)):
                await store.settle(an_entry(id, at_us=at_us))
            for _ in range(2):
                await store.set_budgets(shapes)
                await store.reserve(a_hold("live/1"))
                spent = {each.budget.window: each.spent for each in await store.standings(ALPHA, "m", AT_US)}
                assert spent == {"month": 2 * DIME, "day": DIME, "total": 2 * DIME}
                assert await store.verify() == []
                await store.set_budgets([])
            await store.settle(an_entry("c/1", at_us=AT_US - DAY_US))
            await store.set_budgets(shapes)
            seen = await store.standings(ALPHA, "m", AT_US - DAY_US)
            assert [each.spent for each in seen] == [3 * DIME, 2 * DIME, 3 * DIME]
