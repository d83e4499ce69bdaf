"""What `tollkeeper` offers by itself, and what it does not import for that."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tollkeeper


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    return set(shown.stdout.split())


def test_every_name_is_there() -> None:
    """Each exported name is what its module defines under that name."""
    assert len(tollkeeper.__all__) > 15
    for name in tollkeeper.__all__:
        value = getattr(tollkeeper, name)
        assert name == "__version__" or value.__name__ == name
        assert name in dir(tollkeeper)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tollkeeper.nothing


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING name the same things from the same modules."""
    tree = ast.parse(Path(str(tollkeeper.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(seen) == sorted(set(tollkeeper.__all__) - {"__version__"})
    assert all(getattr(tollkeeper, name).__module__ == module for name, module in seen.items())


def test_importing_is_cheap() -> None:
    """`import tollkeeper` loads none of its modules; the library loads neither the gateway nor the command line."""
    alone = imported_by("import tollkeeper; tollkeeper.__version__")
    assert not {name for name in alone if name.startswith("tollkeeper.")}
    assert not alone & {"asyncio", "msgspec", "apsw", "pydantic"}
    library = imported_by("from tollkeeper import CostTracker, UsageReport, get_cost_tracker, Usage")
    assert "tollkeeper.tracker" in library
    assert not library & {"aiohttp", "uvicorn", "httptools", "typer", "rich", "genai_prices", "tollkeeper.flow"}
