"""Prints what a lock must hold, read from pyproject.toml: python requirements/wanted.py [EXTRA-OR-GROUP ...]

The build backend stands in every lock, so that the project itself is installed with --no-build-isolation.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def wanted(names: list[str]) -> list[str]:
    """Requirements of the build, of the project, and of the extras and dependency groups named."""
    document = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    project = document["project"]
    sets = project.get("optional-dependencies", {}) | document.get("dependency-groups", {})
    return [
        *document["build-system"]["requires"],
        "async-timeout",  # redis asks for it before Python 3.11.3; the Python that locks may be a later one
        "editables",  # hatchling asks for it when it builds an editable install
        *project["dependencies"],
        *(requirement for name in names for requirement in sets[name]),
    ]


if __name__ == "__main__":
    sys.stdout.write("\n".join(wanted(sys.argv[1:])) + "\n")
