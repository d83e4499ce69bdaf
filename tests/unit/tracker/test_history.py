"""history and CostTracker.reprice: what history would have cost, and the corrections that make it so."""

from __future__ import annotations

import asyncio
import getpass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.tracking import booked, tracker

from tollkeeper.errors import BadRequest, ConfigError, StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.prices import PriceBook
from tollkeeper.repricing import Repricing
from tollkeeper.stores import Retention
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.corrections import current
from tollkeeper.tracker import CostTracker, history
from tollkeeper.tracker.accounts import named
from tollkeeper.values import Entry, Usage

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def dearer(tmp_path: Path) -> Path:
    """A price file in which a token costs a cent, and a model that had no price has one."""
    path = tmp_path / "dearer.toml"
    path.write_text(
        '[[price]]\nmodel = "cached"\ninput = "10000"\ncache_read = "0"\noutput = "0"\n'
        '[[price]]\nmodel = "new"\ninput = "10000"\noutput = "0"\n'
    )
    return path


async def filled(tmp_path: Path, store: Any = "memory:", **settings: Any) -> CostTracker:
    """A tracker with a call of a known price, one of an unknown one, one that keeps its price, and an expired hold."""
    clock = ManualClock()
    costs = tracker(tmp_path, store, clock, **settings)
    await costs.record_usage("p", "a", "cached", 10, 0, request_id="1")
    await costs.record_usage("p", "b", "new", 20, 0, request_id="2")
    await costs.record_usage("q", "a", "llama3:8b", 30, 0, request_id="3")
    async with costs.hold("p", "a", "cached", prompt_tokens=40, max_completion_tokens=0):
        pass  # left: booked at its estimate
    return costs


def said(found: Repricing) -> tuple[int, int, int, int]:
    total = found.total
    return total.entries, total.changed, total.lost, found.overtaken


@pytest.mark.parametrize("store", ["memory:", "file"])
async def test_what_if_then_booked_then_nothing(tmp_path: Path, dearer: Path, store: str) -> None:
    """A8, A5: what-if writes nothing and says what booking then does; booking again changes nothing; budgets follow."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path}/ledger.sqlite"
    costs = await filled(tmp_path, url, budgets=[{"scope": "project", "limit": "100"}])
    before = await booked(costs)
    asked: dict[str, Any] = {"prices": dearer, "reason": "the invoice", "by": "ann"}
    would = await costs.reprice(START, what_if=True, **asked)
    assert await booked(costs) == before
    assert (said(would), would.what_if) == ((4, 3, 1, 0), True)
    assert would.difference_usd == would.now_usd - would.was_usd
    assert (would.total.unpriced_was, would.total.unpriced_now) == (1, 0)
    done = await costs.reprice(START, **asked)
    assert (done.rows, done.what_if) == (would.rows, False)
    entries = await booked(costs)
    assert entries[:4] == before
    right = [entry for entry in entries if entry.revision == 1]
    assert {(entry.note, entry.by, entry.charge.price_version) for entry in right} == {
        ("the invoice", "ann", PriceBook.load(dearer).version)
    }
    assert [entry.charge.status for entry in right] == ["priced", "priced", "estimated"]
    assert (await costs.get_project_usage("p")).total_cost_usd == Decimal("0.7")
    assert (await costs.get_project_usage("p")).unpriced_requests == 0
    ledger = await costs._accounts.store()
    (standing,) = await ledger.standings(before[0].scopes, "cached", before[0].at_us)
    assert standing.spent == 700_000_000
    again = await costs.reprice(START, **asked)
    assert said(again) == (4, 0, 1, 0)
    assert await booked(costs) == entries
    assert await ledger.verify() == []
    assert (await costs.record_usage("p", "a", "cached", 10, 0, request_id="1")).booked == "repeated"
    await costs.close()


async def test_what_is_asked_for(tmp_path: Path, dearer: Path) -> None:
    """Only the time, the project and the calls without a price that were asked for are looked at."""
    costs = await filled(tmp_path)
    ask = costs.reprice
    assert said(await ask(START, what_if=True, prices=dearer, project_id="q")) == (1, 0, 1, 0)
    assert said(await ask(START, what_if=True, prices=dearer, only_unpriced=True)) == (1, 1, 0, 0)
    assert said(await ask(START - timedelta(1), START, what_if=True, prices=dearer)) == (0, 0, 0, 0)
    assert said(await ask(START, what_if=True)) == (4, 0, 0, 0), "the configured prices: nothing changes"
    done = await ask(START, prices=PriceBook.load(dearer), only_unpriced=True)
    assert said(done) == (1, 1, 0, 0)
    (right,) = [entry for entry in await booked(costs) if entry.revision == 1]
    assert (right.note, right.by) == (history.REASON, getpass.getuser())
    await costs.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"from_": datetime(2026, 1, 1)}, "from_: expected a datetime with its time zone"),  # noqa: DTZ001
        ({"to": START}, "from_: expected an instant before to"),
        ({"project_id": ""}, "project_id: expected 1 to 128"),
        ({"reason": "x" * 201}, "reason: expected 1 to 200"),
        ({"by": "\n"}, "by: expected 1 to 128"),
    ],
)
async def test_wrong_arguments(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """A wrong argument is a ValueError that names it, and nothing is booked."""
    costs = await filled(tmp_path)
    with pytest.raises(ValueError, match=message):
        await costs.reprice(**({"from_": START} | changed))
    with pytest.raises(ConfigError, match=r"no\.toml"):
        await costs.reprice(START, prices=tmp_path / "no.toml")
    assert len(await booked(costs)) == 4
    await costs.close()


async def test_what_is_pruned(tmp_path: Path, dearer: Path) -> None:
    """B7: a time whose entries are pruned is refused with since when they are kept."""
    costs = await filled(tmp_path)
    ledger = await costs._accounts.store()
    await ledger.prune(int(datetime(2026, 6, 10, tzinfo=UTC).timestamp()) * 1_000_000, Retention(entries_s=86400))
    with pytest.raises(BadRequest, match="from: entries are kept since 2026-06-01T00:00:00Z"):
        await costs.reprice(START, prices=dearer, what_if=True)
    await costs.close()


# ── batches, and what goes wrong ─────────────────────────────────────────────────────────────────────────────────────


class Watched(MemoryStore):
    """Counts the corrections under way; fails or hangs at one of them, or lets somebody else be first."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = self.done = 0
        self.fails_at = self.hangs_at = 10**9
        self.rival = ""
        self.hanging = asyncio.Event()

    async def correct(self, entry: Entry) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            if entry.id == self.rival:
                await super().correct(structs.replace(entry, by="somebody else"))
            if self.done >= self.hangs_at:
                self.hanging.set()
                await asyncio.Event().wait()
            if self.done >= self.fails_at:
                raise StoreUnavailable("the disk is full")
            self.done += 1
            return await super().correct(entry)
        finally:
            self.under_way -= 1


async def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int = 25) -> tuple[Watched, CostTracker]:
    monkeypatch.setattr(history, "BATCH", 10)
    store = Watched()
    costs = tracker(tmp_path, store)
    for number in range(count):
        await costs.record_usage("p", "a", "cached", 10, 0, request_id=str(number))
    return store, costs


async def test_many_at_once_and_no_more(tmp_path: Path, dearer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4: the corrections of a batch are under way at once, and never more than a batch; each batch is told."""
    store, costs = await many(tmp_path, monkeypatch)
    told: list[tuple[int, int]] = []
    again = await history.wanted(costs._accounts, START, None, None, dearer, False)
    done = await history.reprice(
        store, again, history.signature("why", "ann"), lambda entries, changed, at_us: told.append((entries, changed))
    )
    assert (store.most, told, done.total.changed) == (10, [(10, 10), (20, 20), (25, 25)], 25)
    await costs.close()


@pytest.mark.parametrize("ends", ["fails", "is cancelled"])
async def test_ended_in_the_middle(tmp_path: Path, dearer: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """B1: a disk that fails, or Ctrl-C, leaves a whole ledger; running it again goes on with what is left."""
    store, costs = await many(tmp_path, monkeypatch)
    store.fails_at = store.hangs_at = 13
    store.hangs_at += 10**9 * (ends == "fails")
    work = asyncio.create_task(costs.reprice(START, prices=dearer))
    if ends == "fails":
        with pytest.raises(StoreUnavailable):
            await work
    else:
        await store.hanging.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert await store.verify() == []
    assert [entry.revision for entry in await current(store)].count(1) == 13
    store.fails_at = store.hangs_at = 10**9
    assert said(await costs.reprice(START, prices=dearer)) == (25, 12, 0, 0)
    assert {entry.revision for entry in await current(store)} == {1}
    assert await store.verify() == []
    await costs.close()


async def test_somebody_else_was_first(tmp_path: Path, dearer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: what somebody else corrects meanwhile is left alone and told; it stands in no figure."""
    store, costs = await many(tmp_path, monkeypatch)
    store.rival = "7/1"
    assert said(await costs.reprice(START, prices=dearer, by="ann")) == (24, 24, 0, 1)
    found = await store.entry("p", "7/1")
    assert found is not None
    assert (found.revision, found.by) == (1, "somebody else")
    await costs.close()


def test_who_asks_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a login name asks by its number."""

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert history.signature().by.startswith("uid ")


async def test_a_provider_that_nobody_knew(tmp_path: Path) -> None:
    """A5: a call of an unknown model gets its late price as the caller named its provider: not at all."""
    assert (named("unknown"), named("openai")) == (None, "openai")
    costs = tracker(tmp_path)
    told = await costs.record_usage("p", "a", "mine", usage=Usage(input=10))
    assert told.entry.provider == "unknown"
    late = tmp_path / "late.toml"
    late.write_text('[[price]]\nprovider = "my-place"\nmodel = "mine"\ninput = "1"\noutput = "1"\n')
    done = await costs.reprice(START, prices=late)
    again = await costs.calculate_cost("mine", usage=Usage(input=10))
    assert (said(done), again) == ((1, 1, 0, 0), None)
    assert done.now_usd == Decimal("0.00001")
    (entry,) = await current(await costs._accounts.store(), 0, FOREVER_US)
    assert entry.provider == "unknown"
    await costs.close()
