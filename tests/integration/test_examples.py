"""The examples run as they stand: each in its own process, offline, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
#: Words that each example's output must have.
SHOWN = {
    "track_costs": ("req-42: $0.006, priced, repeated", "claude-haiku-4-5", "$0.064053", "unknown", "of $5: within"),
    "record_replies": (
        "$0.064053, booked", "$0.064053, repeated", "Forty-two: $0.00036, priced",
        "left early: $0.000753, estimated", "held $0.00074844, cost $0.000084",
    ),
    "hold": ("turn 4: held $0.00875, cost $0.0029875", "turn 5: refused.", "limit $0.02, spent $0.01195", "4 calls"),
}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    """An example exits with 0, prints what it promises, and leaves nothing behind."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    ran = subprocess.run([sys.executable, str(example)], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [words for words in SHOWN[example.stem] if words not in ran.stdout] == []
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_known() -> None:
    """No example runs unread."""
    assert {path.stem for path in EXAMPLES} == set(SHOWN)
