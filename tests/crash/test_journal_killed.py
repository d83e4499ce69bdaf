"""kill -9 of processes that own journals: the next owners have all that was acknowledged, in its place."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from tests.crash.test_ledger_killed import Acknowledged, judge, killed

from tollkeeper.stores.sqlite.journal import Journal, orphans, read_journals
from tollkeeper.values import Entry

#: Processes that have a journal at the same time.
PROCESSES = 2


async def adopted(folder: Path) -> tuple[dict[str, dict[int, Entry]], list[str]]:
    """Every journal of the folder, opened by a next owner: its rows by place, and what is wrong with it."""
    rows, wrong = {}, []
    for path in orphans(folder, folder):
        journal = Journal.open(path)
        rows[journal.id] = dict(journal.rows(0, journal.last, 1_000_000))
        wrong += [f"live: {hold.id}" for hold in await journal.live()]
        if sorted(rows[journal.id]) != list(range(1, journal.last + 1)):
            wrong.append(f"{journal.id}: {journal.last} places, {len(rows[journal.id])} entries")
        await journal.close()
    for reader in read_journals(folder):
        wrong += [str(difference) for difference in await reader.verify()]
        await reader.close()
    return rows, wrong


def test_adoption_after_kill(tmp_path: Path, rounds: int) -> None:
    """B1, C2: after kill -9 of two owners each acknowledged row is there once, in the place that it had; holds are estimated."""
    every: Acknowledged = {"held": set(), "settled": set(), "voided": set(), "left": set()}
    before: dict[str, dict[int, Entry]] = {}
    together = Barrier(PROCESSES)
    for round_ in range(rounds):
        with ThreadPoolExecutor(PROCESSES) as pool:
            seeds = range(round_ * PROCESSES, (round_ + 1) * PROCESSES)
            for told in pool.map(lambda seed: killed(tmp_path, seed, "--journal", together=together), seeds):
                for what, ids in told.items():
                    every[what] |= ids
        rows, wrong = asyncio.run(adopted(tmp_path))
        assert (round_, wrong) == (round_, [])
        entries = [entry for journal in rows.values() for entry in journal.values()]
        assert {what: ids for what, ids in judge(every, entries).items() if ids} == {}, f"round {round_}"
        assert all(before[id].items() <= rows[id].items() for id in before), "a place had another entry before"
        before = rows
    assert len(before) == PROCESSES, "journals of the dead are used again"
