"""What a ledger that many processes share takes from the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper.config import ledger, load
from tollkeeper.errors import ConfigError
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


@pytest.mark.parametrize(
    ("lines", "lease"),
    [
        ('limit = "9"', 0),
        ('limit = "9"\nlease = "0"', 0),
        ('limit = "9"\nlease = "0.5"', 500_000_000),
        ('limit = "9"\nlease = "5%"', 450_000_000),
        ('measure = "tokens"\nlimit = 1000\nlease = 50', 50),
        ('limit = "9"\nlease = "9.01"', "is above the limit"),
        ('limit = "9"\nlease = 0.5', 'in quotes: "0.5"'),
        ('limit = "9"\nlease = "none"', "expected an amount or a part"),
        ('limit = "9"\nlease = "100%"', "from '1%' to '99%'"),
        ('limit = "9"\nlease = "2.5%"', "from '1%' to '99%'"),
        ('limit = "9"\nlease = "5%"\nhard = false', "is for hard budgets with a limit"),
        ('lease = "5%"', "is for hard budgets with a limit"),
        ('measure = "tokens"\nlimit = 9\nlease = "1"', "whole number of tokens"),
    ],
)
def test_leases(tmp_path: Path, lines: str, lease: int | str) -> None:
    """I2: a lease is an amount as its limit is written, or a part of it; a bad one is one line that names the setting."""
    file = tmp_path / "tollkeeper.toml"
    file.write_text(f'[[budgets]]\nscope = "all"\n{lines}\n')
    if isinstance(lease, int):
        assert [budget.lease for budget in load(file, {}).budgets] == [lease]
    else:
        with pytest.raises(ConfigError, match=lease) as caught:
            load(file, {})
        assert "budgets #1.lease" in str(caught.value)
