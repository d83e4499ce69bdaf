"""The house rules, run as tests. Each names the places that break it."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import typer.main

import tollkeeper
from tollkeeper import errors
from tollkeeper.config import settings

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "tollkeeper"
TESTS = ROOT / "tests"
IGNORED = {".git", ".venv", "__pycache__", "dist", ".hypothesis"}

MODULE_LINES = 400
FUNCTION_LINES = 70
README_LINES = 100
VAGUE = {"util", "utils", "helper", "helpers", "common", "base", "manager", "service", "misc", "core"}

#: Modules in which an amount of money may stand: no float gets near it.
MONEY = (
    "money",
    "values",
    "prices/*",
    "estimate",
    "settlement",
    "ledger",
    "book",
    "dialects/*",
    "stores/*",
    "stores/*/*",
)
MONEY += ("reports", "tracker/*", "importing/*")

#: Modules without a test file of their own name, and the test file that covers them.
OWNERS = {
    "attempt": "unit/test_flow.py",
    "call": "unit/test_flow.py",
    "cli/configured": "unit/cli/test_cli.py",
    "cli/reprice_tables": "unit/cli/test_reprice.py",
    "cli/store_tables": "unit/cli/test_store.py",
    "stores/redis/leases": "integration/test_redis_leases.py",
    "testing/clock": "unit/test_clock.py",
    "testing/conformance": "conformance/test_stores.py",
    "testing/corrections": "conformance/test_stores.py",
    "testing/faults": "integration/test_fake_provider.py",
    "testing/paths": "integration/test_fake_provider.py",
    "testing/provider": "integration/test_fake_provider.py",
    "testing/replies": "integration/test_fake_provider.py",
    "testing/samples": "conformance/test_stores.py",
}

#: Paths of one machine and package hosts, written so that this line does not match itself.
FORBIDDEN = re.compile(r"/(?:work|root|tmp/w)/|(?:pypi|files\.pythonhosted)\.org|registry\.npmjs\.(?:org)")


@cache
def files() -> list[Path]:
    """Every file of the project, without what tools leave beside them."""
    found: list[Path] = []
    for folder, below, names in os.walk(ROOT):
        below[:] = sorted(each for each in below if each not in IGNORED and not each.endswith(("_cache", ".egg-info")))
        found += (Path(folder, each) for each in sorted(names))
    return found


def sources(folder: Path = ROOT) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.is_relative_to(folder)]


def name(path: Path) -> str:
    """A module below the package: "stores/sqlite/store"."""
    return path.relative_to(SRC).with_suffix("").as_posix()


def at(path: Path, node: ast.AST | None = None) -> str:
    """Where something is: "src/tollkeeper/flow.py:12"."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@cache
def reference() -> str:
    return "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))


def undocumented(names: Iterator[str] | list[str]) -> list[str]:
    """Names that no reference page has between backticks."""
    return sorted({each for each in names if f"`{each}`" not in reference()})


def test_modules_are_short() -> None:
    """No module, test or benchmark has more than 400 lines."""
    lines = {path: path.read_text().count("\n") for path in sources()}
    assert [f"{at(path)} {count}" for path, count in lines.items() if count > MODULE_LINES] == []


def test_functions_are_short() -> None:
    """No function has more than 70 lines."""
    found = ((path, node, (node.end_lineno or 0) - node.lineno + 1) for path in sources() for node in functions(path))
    assert [f"{at(path, node)} {node.name}: {lines}" for path, node, lines in found if lines > FUNCTION_LINES] == []


def test_no_global() -> None:
    """State is passed or owned by an object, never rebound in a module."""
    nodes = ((path, node) for path in sources() for node in ast.walk(tree(path)))
    assert [at(path, node) for path, node in nodes if isinstance(node, ast.Global)] == []


def test_names_say_what_is_inside() -> None:
    """No file or folder is named utils, helpers, common, base, manager or service."""
    parts = {part for path in sources() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert [part for part in parts if VAGUE & set(part.split("_"))] == []


def test_packages_do_not_hide_their_modules() -> None:
    """No function or class of a package's __init__ has the name of a module beside it: importing that would give the wrong one."""
    packages = {
        path: {beside.stem for beside in path.parent.glob("*.py")} for path in sources(SRC) if path.stem == "__init__"
    }
    defined = ((path, node) for path in packages for node in tree(path).body)
    assert [at(path, node) for path, node in defined if getattr(node, "name", None) in packages[path]] == []


def test_no_float_holds_money() -> None:
    """Money code has no float literal, annotation or conversion; refusing one by isinstance is what it may do."""
    modules = {pattern: list(SRC.glob(f"{pattern}.py")) for pattern in MONEY}
    assert [pattern for pattern, paths in modules.items() if not paths] == [], "a pattern of MONEY names no module"
    found = []
    for path in {path for paths in modules.values() for path in paths}:
        calls = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
        checks = (call for call in calls if ast.unparse(call.func) == "isinstance")
        allowed = {id(node) for check in checks for node in ast.walk(check)}
        for node in ast.walk(tree(path)):
            match node:
                case ast.Constant(value=float()):
                    found.append(at(path, node))
                case ast.Name(id="float") if id(node) not in allowed:
                    found.append(at(path, node))
    assert sorted(found) == []


def test_every_setting_is_documented() -> None:
    """docs/reference names each setting."""
    assert undocumented([setting for setting, _, _ in settings.describe()]) == []


def test_every_error_code_is_documented() -> None:
    """docs/reference names the code of each error."""
    assert undocumented([value.code for value in vars(errors).values() if hasattr(value, "http_status")]) == []


def test_every_command_is_documented() -> None:
    """docs/reference names each command of the command line."""
    from tollkeeper import cli

    def commands(command: click.Command, words: str) -> Iterator[str]:
        below = getattr(command, "commands", {})
        for word, inner in below.items():
            yield from commands(inner, f"{words} {word}")
        if not below:
            yield words

    assert undocumented(commands(typer.main.get_command(cli.app), "tollkeeper")) == []


def test_changelog_has_this_version() -> None:
    """The newest heading of the changelog is the version of the package."""
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == tollkeeper.__version__


def test_readme_is_short() -> None:
    """README has at most 100 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_module_has_its_tests() -> None:
    """A module, or the code in a package's __init__, is tested by test_<module>.py or its owner in OWNERS, which names it."""
    tests = {path.relative_to(TESTS).as_posix(): path.read_text() for path in sources(TESTS)}
    code = (path for path in sources(SRC) if len(tree(path).body) > 1)  # more than a docstring
    modules = {name(path).removesuffix("/__init__") for path in code} - {"__init__", "__main__"}
    stems = Counter(module.rsplit("/", 1)[-1] for module in modules)  # what several have is told apart by its folder
    untested = []
    for module in sorted(modules):
        stem = module.rsplit("/", 1)[-1]
        named = f"/test_{stem}.py" if stems[stem] == 1 else f"{module.removesuffix(stem)}test_{stem}.py"
        owned = [OWNERS[module]] if module in OWNERS else [path for path in tests if path.endswith(named)]
        if not any(re.search(rf"\b{stem}\b", tests.get(path, "")) for path in owned):
            untested.append(module)
    assert untested == []
    assert [module for module in OWNERS if not (SRC / f"{module}.py").exists()] == []


def test_every_test_says_what_is_true() -> None:
    """Each test function has a docstring."""
    tests = ((path, node) for path in sources(TESTS) for node in functions(path) if node.name.startswith("test_"))
    assert [f"{at(path, node)} {node.name}" for path, node in tests if ast.get_docstring(node) is None] == []


def test_nothing_belongs_to_one_machine() -> None:
    """No path of one machine and no package host stands in the tree; locks hold names, versions and hashes only."""
    texts = ((path, path.read_bytes().decode(errors="replace")) for path in files())
    assert [f"{at(path)} {found[0]}" for path, text in texts if (found := FORBIDDEN.search(text))] == []
    assert [path.name for path in (ROOT / "requirements").glob("*.txt") if "://" in path.read_text()] == []


def test_locks_hold_what_is_asked_for() -> None:
    """Every dependency of pyproject.toml stands in the development lock: make lock was run after the last change."""
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE))
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sets = document["project"]["optional-dependencies"] | document["dependency-groups"]
    asked = re.findall(r"'([A-Za-z0-9-]+)[<>=]", str([document["project"]["dependencies"], sets]))
    assert len(asked) > 10
    assert {each.lower() for each in asked} - locked == set()
