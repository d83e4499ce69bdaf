"""What every store must do when an id is written again: late settlements, repeats, corrections, and what stands after them."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest
from msgspec import structs

from tollkeeper.errors import Conflict, UnknownEntry
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Reader, Retention, Store
from tollkeeper.testing.samples import (
    ALPHA,
    AT_US,
    DAY_US,
    DIME,
    USD,
    a_hold,
    an_entry,
    booked,
    month_of,
    standing,
    total,
    usd,
)
from tollkeeper.values import OTHER, Budget, Charge, Entry, Scopes


def corrected(entry: Entry, nanos: int | None = 2 * DIME, by: str = "ann") -> Entry:
    """The entry that somebody puts in the place of another one: it cost something else."""
    charge = Charge(amount_nanos=nanos, status="unpriced" if nanos is None else "priced", price_version="v2")
    return structs.replace(entry, charge=charge, revision=entry.revision + 1, note="late prices", by=by)


async def current(store: Reader, from_us: int = 0, to_us: int = FOREVER_US, project: str | None = None) -> list[Entry]:
    """What stands."""
    return [entry async for entry in store.current(from_us, to_us, project)]


class Corrections:
    """Part of `conformance.StoreContract`."""

    def opened(self, *budgets: Budget, scope_cap: int = 10_000) -> AbstractAsyncContextManager[Store]:
        """A store for one block, that agrees with itself at the end."""
        raise NotImplementedError

    async def test_settling_again(self) -> None:
        """B2, C2: the same contents again count once; other contents under the id are a conflict and change nothing."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1"))
            assert await store.settle(an_entry("a/1")) == "booked"
            assert await store.settle(an_entry("a/1", latency_ms=9)) == "repeated"
            for other in (an_entry("a/1", DIME + 1), an_entry("a/1", tokens=101), an_entry("a/1", served="n")):
                with pytest.raises(Conflict):
                    await store.settle(other)
            assert await booked(store) == [an_entry("a/1")]
            assert (await standing(store)).spent == DIME

    async def test_late_settlement(self) -> None:
        """C2: a settlement after the expiry corrects by the difference, in the hold's windows; again it counts once."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1", 3 * DIME))
            await store.expire(AT_US + DAY_US)
            late = an_entry("a/1", tokens=7, at_us=AT_US + 40 * DAY_US)
            assert [await store.settle(late) for _ in range(2)] == ["late", "repeated"]
            with pytest.raises(Conflict):
                await store.settle(an_entry("a/1", 2 * DIME))
            assert (await standing(store)).spent == DIME
            assert await store.entry("alpha", "a/1") == structs.replace(late, at_us=AT_US, revision=1)
            assert [(each.revision, each.sign) for each in await booked(store)] == [(0, 1), (0, -1), (1, 1)]
            (cell,) = await month_of(store)
            assert [total([cell], what) for what in ("calls", "attempts", "input", "amount_nanos", "inexact_nanos")] == [
                1, 1, 7, DIME, 0,
            ]  # fmt: skip

    # ── corrections ──

    async def test_a_correction_takes_the_place(self) -> None:
        """A8: a correction counts in the old entry's windows and cells, says who asked and why, and the original stays."""
        soft = Budget(scope="project", measure="requests", window="day", limit=None)
        async with self.opened(usd(USD), usd(USD, window="day"), usd(None, measure="tokens"), soft) as store:
            old = an_entry("a/1", None, at_us=AT_US - DAY_US)
            await store.settle(old)
            await store.settle(an_entry("b/1"))
            right = corrected(old)
            assert await store.correct(structs.replace(right, at_us=AT_US, other=("agent",))) == "corrected"
            assert await store.entry("alpha", "a/1") == right
            assert (right.by, right.note) == ("ann", "late prices")
            assert await booked(store) == [old, an_entry("b/1"), structs.replace(old, sign=-1), right]
            for at_us, spent in ((AT_US - DAY_US, (3 * DIME, 2 * DIME, 200, 1)), (AT_US, (3 * DIME, DIME, 200, 1))):
                assert tuple(each.spent for each in await store.standings(ALPHA, "m", at_us)) == spent
            (cell,) = await month_of(store)
            sums = [total([cell], what) for what in ("calls", "attempts", "input", "amount_nanos", "unpriced")]
            assert sums == [2, 2, 200, 3 * DIME, 0]

    async def test_correcting_again(self) -> None:
        """B2: the same correction again changes nothing, also after the next one; from a revision that fell it is a conflict."""
        async with self.opened(usd(USD)) as store:
            old = an_entry("a/1")
            await store.settle(old)
            first = corrected(old)
            second = corrected(first, 3 * DIME, "bob")
            answers = [await store.correct(each) for each in (first, first, second, first, second)]
            assert answers == ["corrected", "repeated", "corrected", "repeated", "repeated"]
            for stale in (corrected(old, 4 * DIME), corrected(first, 5 * DIME), structs.replace(first, by="bob")):
                with pytest.raises(Conflict, match="revision 2 stands"):
                    await store.correct(stale)
            assert await store.entry("alpha", "a/1") == second
            assert (await standing(store)).spent == 3 * DIME
            assert len(await booked(store)) == 5

    async def test_what_cannot_be_corrected(self) -> None:
        """B2: an id that is not there is told; a correction names who asked, and stays with the call that it is of."""
        async with self.opened(usd(USD)) as store:
            old = an_entry("a/1")
            await store.settle(old)
            for unknown in (corrected(an_entry("b/1")), corrected(an_entry("a/1", scopes=Scopes(project="beta")))):
                with pytest.raises(UnknownEntry, match="there is no entry"):
                    await store.correct(unknown)
            for wrong in (
                structs.replace(corrected(old), by=None),
                structs.replace(corrected(old), scopes=Scopes(project="alpha", agent="w")),
                structs.replace(corrected(old), model="n"),
            ):
                with pytest.raises(ValueError, match="correction"):
                    await store.correct(wrong)
            assert await booked(store) == [old]

    async def test_corrections_at_once(self) -> None:
        """B2: of two people who correct one entry at once, one does and the other is told; the same five times counts once."""
        async with self.opened(usd(USD)) as store:
            for id in ("a/1", "b/1"):
                await store.settle(an_entry(id))
            same = await asyncio.gather(*(store.correct(corrected(an_entry("a/1"))) for _ in range(5)))
            assert sorted(same) == ["corrected", *["repeated"] * 4]
            pair = (corrected(an_entry("b/1"), by=name) for name in ("ann", "bob"))
            answers = await asyncio.gather(*map(store.correct, pair), return_exceptions=True)
            assert "corrected" in answers
            assert [type(answer) for answer in answers].count(Conflict) == 1
            assert (await standing(store)).spent == 4 * DIME

    async def test_settling_after_a_correction(self) -> None:
        """B2: a settlement is judged by what was settled: a repeat stays one after a correction, and is never booked twice."""
        async with self.opened(usd(USD)) as store:
            await store.settle(an_entry("a/1"))
            await store.correct(corrected(an_entry("a/1")))
            assert await store.settle(an_entry("a/1", latency_ms=None)) == "repeated"
            with pytest.raises(Conflict):
                await store.settle(an_entry("a/1", 2 * DIME))
            assert (await standing(store)).spent == 2 * DIME

    async def test_a_late_settlement_after_a_correction(self) -> None:
        """C2: an estimate that was corrected is still one: what was really used takes its place, and that of the correction."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1", 3 * DIME))
            await store.expire(AT_US + DAY_US)
            (estimate,) = await current(store)
            right = corrected(estimate)
            assert await store.correct(right) == "corrected"
            assert [await store.settle(an_entry("a/1")) for _ in range(2)] == ["late", "repeated"]
            assert await current(store) == [structs.replace(an_entry("a/1"), revision=2)]
            assert (await standing(store)).spent == DIME
            assert await store.correct(right) == "repeated"
            with pytest.raises(Conflict):
                await store.correct(corrected(estimate, 5 * DIME))

    async def test_a_hold_is_not_touched(self) -> None:
        """D4: a correction ends no hold of its id: only a settlement or its deadline does."""
        async with self.opened(usd(USD)) as store:
            await store.settle(an_entry("a/1"))
            await store.reserve(a_hold("a/1"))
            await store.correct(corrected(an_entry("a/1")))
            assert [hold.id for hold in await store.live()] == ["a/1"]
            assert ((await standing(store)).spent, (await standing(store)).held) == (2 * DIME, DIME)

    async def test_a_correction_stays_past_the_cap(self) -> None:
        """What counts under _other is corrected there, also where its id would fit by now."""
        async with self.opened(scope_cap=1) as store:
            entries = [an_entry(f"{id}/1", scopes=Scopes(project="alpha", session=id)) for id in ("s", "t")]
            for entry in entries:
                await store.settle(entry)
            for entry in entries:
                await store.correct(corrected(entry))
            cells = await store.cells("session", "month", 0, FOREVER_US)
            assert [(key.id, total([(key, sums)], "amount_nanos")) for key, sums in cells] == [
                (OTHER, 2 * DIME), ("s", 2 * DIME),
            ]  # fmt: skip

    async def test_what_is_pruned_is_not_corrected(self) -> None:
        """What retention has dropped is gone with all its revisions: it is told, and nothing is booked."""
        async with self.opened(usd(USD, window="total")) as store:
            old = an_entry("a/1", at_us=AT_US - 60 * DAY_US)
            await store.settle(old)
            await store.correct(corrected(old))
            await store.prune(AT_US, Retention(entries_s=30 * 86400))
            with pytest.raises(UnknownEntry):
                await store.correct(corrected(corrected(old)))
            assert await current(store) == await booked(store) == []
            assert (await standing(store)).spent == 2 * DIME

    async def test_what_stands(self) -> None:
        """A8: `current` has each call once, by its latest revision, in a time and a project; reversals are not in it."""
        async with self.opened() as store:
            ids = ["a/1", "b/1", "c/1", "d/1"]
            for number, id in enumerate(ids):
                scopes = Scopes(project="beta") if id == "d/1" else ALPHA
                await store.settle(an_entry(id, at_us=AT_US + number, scopes=scopes))
            await store.correct(corrected(an_entry("a/1")))
            assert [(each.id, each.revision) for each in await current(store)] == [
                ("b/1", 0), ("c/1", 0), ("d/1", 0), ("a/1", 1),
            ]  # fmt: skip
            assert [each.id for each in await current(store, AT_US + 1, AT_US + 3)] == ["b/1", "c/1"]
            assert [each.id for each in await current(store, project="beta")] == ["d/1"]
            assert await current(store, 0, AT_US) == []

    async def test_what_stood_when_it_began(self) -> None:
        """What is corrected and booked while `current` is read is as it was at its first entry: each call once."""
        async with self.opened() as store:
            for number in range(3):
                await store.settle(an_entry(f"{number}/1"))
            seen = []
            async for entry in store.current(0, FOREVER_US):
                seen.append((entry.id, entry.revision))
                await store.correct(corrected(entry))
                await store.settle(an_entry(f"{entry.call}/2"))
            assert seen == [("0/1", 0), ("1/1", 0), ("2/1", 0)]
            assert [each.revision for each in await current(store)] == [1, 0] * 3
