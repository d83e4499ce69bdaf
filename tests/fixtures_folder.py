"""Where the recorded provider traffic stands: third parties' data, read in place and never copied into the project."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def folder() -> Path:
    """The fixtures' folder: TOLLKEEPER_FIXTURES, else ../shared/fixtures beside the repository.

    Where it is absent the calling module is skipped with the reason; with CI=true it fails.
    """
    path = Path(os.environ.get("TOLLKEEPER_FIXTURES") or ROOT.parent / "shared" / "fixtures")
    if not path.is_dir():
        reason = f"no fixtures at {path}; set TOLLKEEPER_FIXTURES to their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    return path


@cache
def reader() -> ModuleType:
    """The fixtures' own reader, `recorded.py`."""
    spec = importlib.util.spec_from_file_location("recorded", folder() / "recorded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recorded"] = module
    spec.loader.exec_module(module)
    return module
