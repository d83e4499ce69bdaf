"""What a ledger that many processes share takes from the configuration."""

from __future__ import annotations

from pathlib import Path

from tollkeeper.config import ledger, load
from tollkeeper.testing.clock import ManualClock


def test_what_a_shared_ledger_needs(tmp_path: Path) -> None:
    """The settings of a Redis store reach it, with or without the rest of the configuration."""
    file = tmp_path / "tollkeeper.toml"
    file.write_text(
        'store = "redis://h/0"\nredis_prefix = "mine"\nredis_dedupe_s = 7\njournal = "here"\ndata_dir = "there"\n'
        'scope_cap = 9\n[retention]\nentries = "30d"\n'
    )
    clock = ManualClock()
    shared = load(file, {}).shared(clock)
    assert ledger(file, {}, clock) == ("redis://h/0", shared, 9)
    assert (shared.prefix, shared.dedupe_s, shared.journal) == ("mine", 7, Path("there/here"))
    assert (shared.retention.entries_s, shared.clock) == (30 * 86400, clock)
