"""Where settings come from, and whom a mistake is blamed on.

The environment wins over the TOML file, table by table. `read` checks names, types and ranges; what only the settings
together can show (`config/__init__.py`) is blamed by the same `Source.error`: one line with the file or variable, the setting
and what would be right. A value that may hold a secret is never repeated.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from tollkeeper.config.settings import PREFIX, TABLES, Settings
from tollkeeper.errors import ConfigError

FILE: Final = "tollkeeper.toml"
#: NAME=value with the prefix that is no setting; Kubernetes adds the last ones for a service that is named tollkeeper.
_NO_SETTING: Final = re.compile(r"TOLLKEEPER_(CONFIG=.*|FIXTURES=.*|SERVICE_.*|PORT_.*|PORT=tcp://.*)", re.DOTALL)
_LATER: Final = ("alerts",)
#: Settings where a secret may stand by mistake: what is written there is never repeated.
_UNSHOWN: Final = ("keys", "providers", "store", "redis_url")

Loc = tuple[int | str, ...]


class _Environment(EnvSettingsSource):
    """pydantic-settings' reading of variables, over the mapping that it is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): self._environ[name] for name in _ours(self._environ)}


@dataclass(frozen=True)
class Source:
    """Where the settings came from, so that a mistake is blamed on the right file or variable."""

    file: Path | None
    from_environ: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """What paths in the configuration are relative to."""
        return Path() if self.file is None else self.file.parent

    def error(self, loc: Loc, text: str) -> ConfigError:
        """One line: file or variable, setting, and what would be right."""
        if self._in_environ(loc):
            names = [str(part) for part in loc]
            depth = self._depth(loc)
            place = PREFIX + "__".join(names[:depth]).upper() + _dotted(loc[depth:])
        else:
            place = (f"{self.file}: " if self.file else "settings: ") + _dotted(loc).removeprefix(".")
        return ConfigError(" ".join(f"{place}: {text}".splitlines()))

    def _in_environ(self, loc: Loc) -> bool:
        here: Any = self.from_environ
        for part in loc:
            if not isinstance(here, dict):
                return True
            if part not in here:
                return self.file is None and here is not self.from_environ
            here = here[part]
        return bool(loc)

    def _depth(self, loc: Loc) -> int:
        """How many steps of `loc` a variable's name can spell: the tables, not the items of lists."""
        return next((index for index, part in enumerate(loc) if isinstance(part, int)), len(loc))


def read(path: Path | Mapping[str, Any] | None, environ: Mapping[str, str]) -> tuple[Settings, Source]:
    """The settings as written, and where they came from; a mapping stands for a file's contents.

    Raises ConfigError with one line for the first mistake.
    """
    file = None if isinstance(path, Mapping) else find(path, environ)
    from_file = path if isinstance(path, Mapping) else {} if file is None else _load(file)
    _refuse_unknown_variables(environ)
    try:
        from_environ = _Environment(environ)()
    except SettingsError as error:
        name = (re.findall(r'"(\w+)"', str(error)) or ["?"])[0]
        raise ConfigError(f"{PREFIX}{name.upper()}: is not JSON; write lists as [...] and tables as {{...}}") from None
    source = Source(file, from_environ)
    try:
        return Settings(**_merged(from_file, from_environ)), source
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
        raise _blame(first, source) from None


def find(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that is meant: `path`, else $TOLLKEEPER_CONFIG, else ./tollkeeper.toml if there is one."""
    if path is None and environ.get(PREFIX + "CONFIG"):
        path = Path(environ[PREFIX + "CONFIG"])
    if path is not None:
        return path
    return Path(FILE) if Path(FILE).exists() else None


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); name a TOML file by --config or TOLLKEEPER_CONFIG"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text; expected a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(" ".join(f"{file}: is not TOML: {error}".split())) from None


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, tables joined."""
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _ours(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that are meant as settings."""
    return sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and not _NO_SETTING.fullmatch(f"{name.upper()}={value}")
    )


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in _ours(environ):
        top = name.upper().partition("__")[0]
        if top not in known:
            raise ConfigError(f"{name}: {unknown(top, known, later=[PREFIX + later.upper() for later in _LATER])}")


def unknown(name: str, known: Iterable[str], *, later: Iterable[str] = ()) -> str:
    """What to say of a name that nothing has: the nearest one, or all there are."""
    if name in later:
        return "comes with a later version; remove it"
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"is not known; did you mean {near[0]}?"
    return f"is not known; expected one of {', '.join(names) or '(none)'}"


#: pydantic's kind of error → what would be right, filled from its context.
_RIGHT: Final = {
    "int": "expected a whole number",
    "float": "expected a number",
    "finite": "expected a finite number",
    "bool": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected at least {min_length} character",
    "string_too_long": "expected at most {max_length} characters",
    "path": "expected a path as text",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "too_short": "expected at least {min_length} item",
    "dict": "expected a table",
    "model": "expected a table",
    "literal_error": "expected one of {expected}",
    "greater_than_equal": "expected {ge} or more",
    "greater_than": "expected more than {gt}",
    "less_than_equal": "expected at most {le}",
}


def checked(table: str, fields: Mapping[str, Any]) -> None:
    """Whether one table of a list, such as [[keys]], could be written so. Raises ConfigError naming the field."""
    try:
        TABLES[table].model_validate(fields)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        raise _blame({**mistake, "loc": (table, 0, *mistake["loc"])}, Source(None, {})) from None


def _blame(mistake: ErrorDetails, source: Source) -> ConfigError:
    loc = tuple(part for part in mistake["loc"] if part != "[key]")
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        return source.error(loc, _unknown_setting(loc))
    if kind == "missing":
        return source.error(loc, f"is required: {meaning(loc)}")
    if kind == "value_error":
        return source.error(loc, str(context["error"]))
    right = next((text for prefix, text in _RIGHT.items() if kind.startswith(prefix)), mistake["msg"]).format(**context)
    got = "" if loc[0] in _UNSHOWN else f", got {_shown(mistake['input'])}"
    return source.error(loc, right + got)


def _table_of(loc: Loc) -> type[BaseModel]:
    if loc[0] == "routes" and loc[2:3] == ("to",) and len(loc) > 3:
        return TABLES["routes.to"]
    return TABLES.get(str(loc[0]), Settings) if len(loc) > 1 else Settings


def _unknown_setting(loc: Loc) -> str:
    name = str(loc[-1])
    if name in ("api_key", "secret", "token", "key") and loc[0] in ("providers", "keys"):
        right = "api_key_env or api_key_file" if loc[0] == "providers" else "hash"
        return f"secrets do not stand in the configuration; use {right}"
    if len(loc) > 1 and name in Settings.model_fields:
        return "is not known in a table; it is a setting of its own: write it above the first [table] of the file"
    return unknown(name, _table_of(loc).model_fields, later=_LATER if len(loc) == 1 else ())


def meaning(loc: Loc) -> str:
    """The description of the setting at a place in a table."""
    return _table_of(loc).model_fields[str(loc[-1])].description or ""


def _dotted(loc: Loc) -> str:
    """("keys", 1, "id") as ".keys #2.id"."""
    return "".join(f" #{part + 1}" if isinstance(part, int) else f".{part}" for part in loc)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
