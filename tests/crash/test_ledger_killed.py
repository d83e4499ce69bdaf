"""kill -9 a process that books, at any moment: what it had acknowledged is in the ledger, once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from threading import Barrier

from tests.crash.worker import BUDGETS, amount

import tollkeeper
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import ALPHA, AT_US, booked
from tollkeeper.values import Entry

ROOT = Path(__file__).parents[2]
Acknowledged = dict[str, set[str]]
#: Kills in a round.
KILLS = 2


def killed(path: Path, seed: int, *options: str, together: Barrier | None = None) -> Acknowledged:
    """Let a worker run until it has acknowledged so many things, kill it, and return all that it had acknowledged by then.

    `together` is for workers that have to run at the same time: none is killed before each has its ledger.
    """
    source = Path(tollkeeper.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.worker", str(path), str(seed), *options],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{source}"},
    ) as worker:  # fmt: skip
        assert worker.stdout is not None
        lines = [worker.stdout.readline()]
        if together is not None:
            together.wait()
        lines += [worker.stdout.readline() for _ in range(Random(seed).randint(0, 600))]
        worker.kill()
        lines += worker.stdout.readlines()
    assert worker.returncode == -9
    told: Acknowledged = {"held": set(), "settled": set(), "voided": set(), "left": set()}
    for line in lines:
        if line.endswith(b"\n"):
            what, id = line.decode().split()
            told[what].add(id)
    return told


async def found(path: Path) -> tuple[list[Entry], list[str]]:
    """The next owner opens the ledger: its entries, and what is wrong with it in itself."""
    store = SqliteStore(path, BUDGETS)
    entries = await booked(store)
    wrong = [str(difference) for difference in await store.verify()]
    wrong += [f"live: {hold.id}" for hold in await store.live()]
    spent = sum(entry.charge.amount_nanos or 0 for entry in entries)
    for standing in await store.standings(ALPHA, "m", AT_US):
        if (standing.spent, standing.held) != (spent, 0):
            wrong.append(f"{standing} instead of {spent}")
    await store.close()
    return entries, wrong


def judge(told: Acknowledged, entries: list[Entry]) -> dict[str, set[str]]:
    """Acknowledged and not there, or there in another way: by what went wrong."""
    by_id = {entry.id: entry for entry in entries}
    outcomes = {id: entry.outcome for id, entry in by_id.items()}
    silent = told["held"] - told["settled"] - told["voided"]  # killed before the answer, or left
    return {
        "lost": {id for id in told["settled"] if outcomes.get(id) != "ok"},
        "doubled": {id for id, times in Counter(entry.id for entry in entries).items() if times > 1},
        "wrong amount": {id for id, entry in by_id.items() if entry.charge.amount_nanos != (
            amount(id) if entry.outcome == "ok" else 2_000_000)},
        "voided and booked": told["voided"] & by_id.keys(),
        "left and not estimated": {id for id in told["left"] & told["held"] if outcomes.get(id) != "expired"},
        "estimated and not marked": {id for id in silent & by_id.keys() if by_id[id].outcome == "expired"
                                     and by_id[id].charge.status != "estimated"},
    }  # fmt: skip


def test_nothing_acknowledged_is_lost(tmp_path: Path, rounds: int) -> None:
    """B1, C2: after each kill -9 nothing acknowledged is lost or doubled, sums agree, holds are booked as estimated once."""
    path = tmp_path / "ledger.sqlite"
    every: Acknowledged = {"held": set(), "settled": set(), "voided": set(), "left": set()}
    for seed in range(rounds * KILLS):
        for what, ids in killed(path, seed).items():
            every[what] |= ids
        entries, wrong = asyncio.run(found(path))
        assert (seed, wrong) == (seed, [])
        assert {what: ids for what, ids in judge(every, entries).items() if ids} == {}, f"seed {seed}"
    assert min(len(ids) for ids in every.values()) > rounds
    assert any(entry.outcome == "expired" for entry in entries)


def test_the_harness_sees_a_loss(tmp_path: Path) -> None:
    """B1: a worker that acknowledges before it writes is caught: the test above could fail."""
    for seed in range(20):
        path = tmp_path / f"{seed}.sqlite"
        told = killed(path, seed, "--lossy")
        entries, wrong = asyncio.run(found(path))
        assert wrong == []
        if judge(told, entries)["lost"]:
            return
    raise AssertionError("20 kills of a worker that lies, and no loss was seen")
