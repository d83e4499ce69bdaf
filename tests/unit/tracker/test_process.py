"""tollkeeper.tracker.process: one tracker for all threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tollkeeper.tracker import CostTracker
from tollkeeper.tracker.process import close_cost_tracker, get_cost_tracker, reset_cost_tracker


async def test_one_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread gets the same tracker; closed or reset, the next one is new; `await` opens it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOLLKEEPER_CONFIG", raising=False)
    (tmp_path / "tollkeeper.toml").write_text('store = "memory:"\n')
    found: list[CostTracker] = []
    threads = [threading.Thread(target=lambda: found.append(get_cost_tracker())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1
    first = await get_cost_tracker()
    assert first is found[0]
    await close_cost_tracker()
    await close_cost_tracker()
    assert first.closed
    second = get_cost_tracker()
    assert second is not first
    mine = CostTracker("memory:", {})
    await reset_cost_tracker(mine)
    assert (get_cost_tracker() is mine, second.closed) == (True, True)
    await mine.close()
    assert get_cost_tracker() is not mine, "one that its user closed is replaced"
    await reset_cost_tracker()
