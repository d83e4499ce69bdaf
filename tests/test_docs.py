"""The documentation says what the code has. Every name is taken from the code: what is new there fails here until it is told.

Where a page has a table that the code can write, the failing test prints the lines to paste. That a name of a setting, an
error or a command stands in the reference at all, and how long README may be, is checked in test_tidy.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
import typer.main

import tollkeeper
from tollkeeper import api, cli, config, errors, upstream
from tollkeeper.config import providers
from tollkeeper.config.settings import PREFIX, Settings, describe
from tollkeeper.dialects import DIALECTS
from tollkeeper.money import parse_usd
from tollkeeper.prices import file as price_file
from tollkeeper.reports import Sums
from tollkeeper.stores.sqlite.file import MIGRATIONS
from tollkeeper.tracker import CostTracker
from tollkeeper.tracker.holding import CallHold
from tollkeeper.values import Budget, Outcome, Refusal, Standing

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "tollkeeper"
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_HEADER = re.compile(r"(?:x|openai|anthropic)-[a-z0-9-]+[a-z0-9]|authorization|retry-after")


@cache
def text(path: Path) -> str:
    return path.read_text()


def blocks(language: str, *paths: Path) -> Iterator[tuple[str, str]]:
    """Code blocks of one language: (where, code)."""
    for path in paths:
        for found in _FENCE.finditer(text(path)):
            if found[2] == language:
                line = text(path)[: found.start()].count("\n") + 1
                yield f"{path.relative_to(ROOT)}:{line}", found[3]


def missing(names: Iterator[str] | list[str] | set[str], page: str) -> list[str]:
    """Names that a page does not have between backticks."""
    told = set(re.findall(r"`([^`\n]+)`", text(REFERENCE / page)))
    return sorted(set(names) - told)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def variable(setting: str) -> str:
    """The environment's form of a setting: lists are JSON as a whole, tables have a variable for each member."""
    table, *names = setting.split(".")
    if not names:
        return f"`{PREFIX}{setting.upper()}`"
    origin = get_origin(Settings.model_fields[table].annotation)
    if origin is tuple:
        return f"in `{PREFIX}{table.upper()}`"
    item = "__<NAME>" if origin is dict else ""
    return f"{'in ' if names[1:] else ''}`{PREFIX}{table.upper()}{item}__{names[0].upper()}`"


def settings_lines() -> list[str]:
    written = {"True": "true", "False": "false"}
    return [
        f"| `{name}` | {variable(name)} | {written.get(value, value)} | {says} |" for name, value, says in describe()
    ]


def preset_lines() -> list[str]:
    return [
        f"| `{name}` | {', '.join(sorted(preset.dialects))} | {', '.join(preset.key_env) or 'none'} "
        f"| {preset.base_url or 'to be named'} |"
        for name, preset in providers.presets().items()
    ]


def module_lines() -> list[str]:
    modules = {path.stem: ast.get_docstring(ast.parse(text(path))) or "" for path in (SRC / "testing").glob("[!_]*.py")}
    return [f"| `tollkeeper.testing.{name}` | {modules[name].splitlines()[0]} |" for name in sorted(modules)]


@pytest.mark.parametrize(
    ("page", "lines"),
    [("settings.md", settings_lines()), ("settings.md", preset_lines()), ("library.md", module_lines())],
    ids=["settings", "presets", "tollkeeper.testing"],
)
def test_tables_stand_as_the_code_has_them(page: str, lines: list[str]) -> None:
    """Settings with variable, default and meaning, presets, and modules for tests: each has its line in the reference."""
    told = set(text(REFERENCE / page).splitlines())
    assert "\n".join(line for line in lines if line not in told) == ""


def test_no_setting_is_told_that_is_not_there() -> None:
    """The reference's tables of settings have no line that the code does not write."""
    told = {line for line in text(REFERENCE / "settings.md").splitlines() if PREFIX in line and line.startswith("| `")}
    assert sorted(told - set(settings_lines())) == []


def test_price_file_is_told() -> None:
    """Every field of a price entry is in the reference."""
    assert missing({*price_file._FIELDS, "above", "from_tokens", "days", "to", "tz"}, "settings.md") == []


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_stand_as_they_are() -> None:
    """Each error's code, class, status and owed are in one row of the reference, and no other rows are there."""
    lines = text(REFERENCE / "errors.md").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    told = {(code, name, status, owed) for code, names, status, owed, *_ in rows for name in names.split(", ")}
    right = set()
    for error in (value for value in vars(errors).values() if hasattr(value, "http_status")):
        relayed = "status" in inspect.signature(error.__init__).parameters
        status = "the provider's own" if relayed else str(error.http_status)
        right.add((f"`{error.code}`", f"`{error.__name__}`", status, error.owed))
    assert told == right


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bytes_in(module: str) -> set[str]:
    """Header names that a module's source has as bytes."""
    constants = (
        node.value for node in ast.walk(ast.parse(text(SRC / f"{module}.py"))) if isinstance(node, ast.Constant)
    )
    return {name for each in constants if isinstance(each, bytes) and _HEADER.fullmatch(name := each.decode())}


def test_routes_are_told() -> None:
    """Every path, and the dialect of every call, is in the reference."""
    assert missing([*api.CALLS, *api.PAGES, *api.CALLS.values()], "http.md") == []


def test_headers_are_told() -> None:
    """Every header that is read, passed on or sent is in the reference."""
    page = text(REFERENCE / "http.md")
    passed = (*upstream.REQUEST_HEADERS, *upstream.RESPONSE_HEADERS, *upstream.RESPONSE_PREFIXES)
    names = _bytes_in("headers") | _bytes_in("keys") | _bytes_in("flow") | {name.decode() for name in passed}
    assert len(names) > 25
    assert sorted(name for name in names if not re.search(rf"`{name}[`:]", page)) == []


def _refusal(error: dict[str, Any]) -> Refusal:
    """The refusal that an error's numbers tell of: amounts in dollars are text, counts are numbers."""
    amount = {
        name: parse_usd(error[name], name) if isinstance(error[name], str) else error[name]
        for name in ("limit", "spent", "held", "asked")
    }
    resets = error["resets_at"]
    standing = Standing(
        budget=Budget(scope=error["scope"], measure=error["measure"], window=error["window"], limit=amount["limit"]),
        id=error["id"], project=error["project"], window_start_us=0, spent=amount["spent"], held=amount["held"],
        resets_at_us=None if resets is None else int(datetime.fromisoformat(resets).timestamp()) * 1_000_000,
    )  # fmt: skip
    return Refusal(standing=standing, asked=amount["asked"], reason=error["reason"])


REFUSALS = [(where, msgspec.json.decode(code)) for where, code in blocks("json", REFERENCE / "http.md")]


@pytest.mark.parametrize(("where", "shown"), [each for each in REFUSALS if "limit" in each[1].get("error", {})])
def test_refusals_are_as_shown(where: str, shown: dict[str, Any]) -> None:
    """C7: a budget's refusal in the reference is what the dialect makes of its numbers, member by member."""
    error = shown["error"]
    kind = {"budget_exceeded": errors.BudgetExceeded, "rate_limited": errors.RateLimited}[error["code"]]
    dialect = DIALECTS["anthropic-messages" if shown.get("type") == "error" else "openai-chat"]
    assert msgspec.json.decode(dialect.refusal(kind(_refusal(error)), shown["request_id"])) == shown, where


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def _commands(command: Any, words: str = "tollkeeper") -> Iterator[tuple[str, Any]]:
    yield words, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{words} {word}")


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


def _options(words: str) -> set[str]:
    """Every spelling of a command's options but --help."""
    spoken = (each for each in COMMANDS[words].params if each.param_type_name == "option" and each.name != "help")
    return {name for each in spoken for name in (*each.opts, *each.secondary_opts)}


def _section(page: str, title: str) -> str:
    """The part of a page below one heading, until the next."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text(REFERENCE / page), re.MULTILINE | re.DOTALL)
    return "" if found is None else found[1]


@pytest.mark.parametrize("words", [words for words, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_options_stand_as_they_are(words: str) -> None:
    """Each option and argument of a command is in its section of the reference, and no other option is."""
    section = _section("cli.md", f"`{words}`")
    told = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])\b", section))
    assert section != "", "no section of its own"
    assert {name for name in _options(words) if name.startswith("--")} <= told <= _options(words)
    arguments = [each.metavar for each in COMMANDS[words].params if each.param_type_name == "argument"]
    assert [each for each in arguments if f"`{each}`" not in section] == []


def test_commands_in_examples_exist() -> None:
    """Every `tollkeeper …` in the documentation names a command of the code, with options that it has."""
    wrong = []
    for path in PAGES:
        for line in re.findall(r"(?:^ {4}|`)(?:\$ )?(?:\S*/)?(tollkeeper [a-z][^`#|\n→]*)", text(path), re.MULTILINE):
            words = max((each for each in COMMANDS if f"{line} ".startswith(f"{each} ")), key=len)
            named = set(re.findall(r"(?<!\S)(--[a-z][a-z-]*)", line))
            if hasattr(COMMANDS[words], "commands") or named - _options(words) - {"--help"}:
                wrong.append(f"{path.name}: {line.strip()}")
    assert wrong == []


def test_make_targets_exist() -> None:
    """Every `make …` in the documentation is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.MULTILINE))
    named = {found for path in PAGES for found in re.findall(r"(?:^ {4}|`)make ([a-z]+)\b", text(path), re.MULTILINE)}
    assert named - targets == set()
    assert targets - {"help", "clean"} <= named


# ── the library ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_library_is_told() -> None:
    """Every public name of the package, and each method and argument of CostTracker and CallHold, is in the reference."""
    names = set(tollkeeper.__all__) - {"__version__"}
    for owner in (CostTracker, CallHold):
        methods = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
        names |= set(methods)
        for method in filter(inspect.isfunction, methods.values()):
            names |= set(inspect.signature(method).parameters) - {"self"}
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text(REFERENCE / "library.md")))))
    assert sorted(names - told) == []


def test_answers_are_told() -> None:
    """Every field and sum of the values that the library takes and gives is in the reference; Config's are the settings."""
    names = set()
    for value in (getattr(tollkeeper, name) for name in tollkeeper.__all__):
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not config.Config:
            names |= {name for name in dir(value) if not name.startswith("_")}
    told = set(re.findall(r"`(?:\w+\.)*(\w+)[` ]", "\n".join(text(path) for path in REFERENCE.glob("*.md"))))
    assert sorted(names - told) == []


# ── the ledger's file ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ledger() -> Iterator[sqlite3.Connection]:
    """An empty ledger in memory, in the system's SQLite: what a user has at hand."""
    connection = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        connection.executescript(migration)
    yield connection
    connection.close()


def test_tables_and_columns_are_told(ledger: sqlite3.Connection) -> None:
    """Every table and column of the ledger, and every sum of a cell, is in the reference."""
    tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    columns = {row[1] for table in tables for row in ledger.execute(f"PRAGMA table_info({table})")}
    assert missing({*tables, *columns, *Sums._fields}, "ledger.md") == []
    assert f"the schema's version: {len(MIGRATIONS)}." in text(REFERENCE / "ledger.md")


@pytest.mark.parametrize(("where", "query"), list(blocks("sql", *PAGES)))
def test_queries_run(ledger: sqlite3.Connection, where: str, query: str) -> None:
    """Each query in the documentation runs on a ledger."""
    assert ledger.execute(query).fetchall() == [], where


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("where", "code"), list(blocks("python", *PAGES)))
def test_python_compiles(where: str, code: str) -> None:
    """Python in the documentation is Python, and what it imports is there."""
    tree = ast.parse(code, where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for each in node.names:
                with suppress(ModuleNotFoundError):
                    importlib.import_module(f"{node.module}.{each.name}")  # a module in a package
                assert hasattr(importlib.import_module(node.module), each.name), f"{where}: {each.name}"


@pytest.mark.parametrize(("where", "code"), list(blocks("toml", *PAGES)))
def test_toml_loads(where: str, code: str, tmp_path: Path) -> None:
    """TOML in the documentation is a configuration, or a price file, that loads."""
    document = tomllib.loads(code)
    path = tmp_path / "tollkeeper.toml"
    path.write_text(code)
    if "price" in document:
        assert price_file.read(path) != (), where
        return
    environ = {name: "secret" for preset in providers.presets().values() for name in preset.key_env}
    environ |= {name: name for name in re.findall(r'"([A-Z_0-9]+)"', code)}
    for name in re.findall(r'api_key_file = "(.+)"', code):
        (tmp_path / name).write_text("secret")
    loaded = config.load(path, environ)
    assert set(document) <= set(Settings.model_fields), where
    assert len(loaded.budgets) == len(document.get("budgets", [])), where


def _slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    """Every relative link leads to a file of the project, and to a heading in it where it names one."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", text(path))):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        page = path.parent / name if name else path
        anchors = {_slug(heading) for heading in _HEADING.findall(text(page))} if anchor and page.exists() else set()
        if not page.exists() or (anchor and anchor not in anchors):
            broken.append(target)
    assert broken == []


# ── what the other pages count on ────────────────────────────────────────────────────────────────────────────────────


def test_rooms_are_told() -> None:
    """Every module of the package, and every folder, stands in the map of the rooms."""
    lines = next(code for _, code in blocks("", DOCS / "internals.md")).splitlines()
    told = {name for line in lines for name in re.split(r"  +", line)[0].split()}
    there = {path.stem for path in SRC.glob("[!_]*.py")}
    there |= {f"{path.name}/" for path in SRC.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert (sorted(there - told), sorted(told - there)) == ([], [])


def test_places_in_the_code_are_there() -> None:
    """Every file and every `module.name` that the internals point at is there."""
    named = set(re.findall(r"`([\w./]+)`", text(DOCS / "internals.md")))
    files = {name for name in named if name.endswith((".py", ".md", ".sql", ".toml"))}
    assert [name for name in files if not (SRC / name).exists() and not (ROOT / name).exists()] == []
    modules = {path.stem for path in SRC.glob("[!_]*")}
    names = [name for name in named - files if name.split(".")[0] in modules and "/" not in name]
    assert min(len(files), len(names)) > 5
    for name in names:
        pkgutil.resolve_name(f"tollkeeper.{name}")


def test_declared_bounds_are_told() -> None:
    """Every declared bound of a prompt's parts is in the concepts."""
    modules = [importlib.import_module(f"tollkeeper.dialects.{path.stem}") for path in (SRC / "dialects").glob("*.py")]
    found = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_TOKENS") and name != "MAX_TOKENS"
    }
    assert len(found) > 5
    told = set(re.findall(r"\| ([\d,]+) \|", text(DOCS / "concepts.md")))
    assert {name: value for name, value in found.items() if f"{value:,}" not in told} == {}
    assert set(get_args(Outcome)) <= set(re.findall(r"`(\w+)`", text(DOCS / "concepts.md")))


def test_decisions_are_short() -> None:
    """No decision has more than ten lines."""
    parts = re.split(r"^## ", text(DOCS / "decisions.md"), flags=re.MULTILINE)[1:]
    assert [part.splitlines()[0] for part in parts if len(part.split("\n", 1)[1].strip().splitlines()) > 10] == []
    assert [int(part.split(".")[0]) for part in parts] == list(range(1, len(parts) + 1))
