"""Values as people write them in a configuration: text, numbers and dates, each checked and turned into what is meant.

A value that is wrong is a ValueError saying what would be right; it is not repeated where it may be a secret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field

from tollkeeper.keys import is_id
from tollkeeper.money import parse_usd
from tollkeeper.values import MAX_ID, MAX_MODEL, MAX_TOKENS, DialectName, moment_of

_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    return value


def _usd(value: object) -> int | None:
    if value is None or value == "none":
        return None
    if isinstance(value, float):
        raise ValueError(f'money is never a float; put it in quotes: "{value}"')
    try:
        return parse_usd(value, "")
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


def _limit(value: object) -> str | int | None:
    if value is None or value == "none":
        return None
    if isinstance(value, float):
        raise ValueError(f'a limit is never a float; put dollars in quotes: "{value}"')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("expected dollars as text like '12.50', a whole number of tokens or requests, or 'none'")
    return value


def _when_away(value: object) -> object:
    if value is None or value == "none":
        raise ValueError("expected an amount; 0 denies")
    return _limit(value)


def _lease(value: object) -> object:
    if value is None or value == "none":
        raise ValueError("expected an amount or a part of the limit like '5%'; 0: no lease")
    if isinstance(value, str) and value.endswith("%"):
        if not re.fullmatch(r"[1-9][0-9]?%", value):
            raise ValueError("expected a part of the limit from '1%' to '99%'")
        return value
    return _limit(value)


def _prefix(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise ValueError("expected 1 to 64 letters, digits, '-', '_' and '.'")
    return value


def _or_none(value: object) -> object:
    return _number(None if value == "none" else value)


def _duration(value: object) -> int | None:
    if value == "forever":
        return None
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("expected a time such as '24h' or '30d' (units s, m, h, d), or 'forever'")
    return int(match[1]) * _SECONDS[match[2]]


def _instant(value: object) -> int | None:
    """TOML date-time with an offset, a date (its midnight in UTC), or either as ISO text → UTC microseconds."""
    moment = moment_of(value)
    if moment is None:
        raise ValueError("expected a date such as 2027-01-31, or a time with its zone such as 2027-01-31T12:00:00Z")
    return int(moment.timestamp()) * 1_000_000


def _id(value: object) -> object:
    if isinstance(value, str) and not is_id(value):
        raise ValueError(f"expected 1 to {MAX_ID} printable characters")
    return value


def _model_name(value: object) -> object:
    if isinstance(value, str) and not (0 < len(value) <= MAX_MODEL and value.isprintable()):
        raise ValueError(f"expected a model's name of 1 to {MAX_MODEL} printable characters")
    return value


def _provider_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", value):
        raise ValueError("expected a provider's name of 1 to 64 characters a-z, 0-9, '-', '_' and '.'")
    return value


def _url_path(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"/[!-~]*", value):
        raise ValueError("expected a path that begins with '/'")
    return value


def _hash(value: object) -> str:
    match = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected 'sha256:' and 64 hex digits, the hash of the key and not the key itself")
    return f"sha256:{match[1].lower()}"


def _variables(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError("expected the name of an environment variable, or a list of names")
    if not all(isinstance(name, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in names):
        raise ValueError("expected the name of an environment variable in capitals, not the key itself")
    return names


def _files(value: object) -> object:
    paths = [value] if isinstance(value, str | Path) else value
    if not (isinstance(paths, list | tuple) and paths and all(isinstance(path, str | Path) for path in paths)):
        raise ValueError("expected a path as text, or a list of paths")
    return paths


def _prices(value: object) -> object:
    if value is None or isinstance(value, str | Path):
        return value
    if isinstance(value, list | tuple) and all(isinstance(table, dict) for table in value):
        return value
    raise ValueError("expected the path of a price file, or a list of its tables: [[prices]], model, input, output")


def _target(value: object) -> object:
    """ "provider/model" as the table that it stands for."""
    if isinstance(value, list | tuple):
        raise ValueError('expected a table; several targets stand in its list, such as { to = ["openai/gpt-4o-mini"] }')
    if isinstance(value, str):
        provider, slash, model = value.partition("/")
        if not (provider and slash and model):
            raise ValueError(
                'expected \'provider/model\', or a table like { provider = "openai", model = "gpt-4o-mini" }'
            )
        return {"provider": provider, "model": model}
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=MAX_TOKENS)]
CountOrNone = Annotated[Count | None, BeforeValidator(_or_none)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=86400, allow_inf_nan=False)]
SecondsOrNone = Annotated[Seconds | None, BeforeValidator(_or_none)]
Id = Annotated[str, BeforeValidator(_id)]
Usd = Annotated[int | None, BeforeValidator(_usd)]
Limit = Annotated[str | int | None, BeforeValidator(_limit)]
WhenAway = Annotated[str | int, BeforeValidator(_when_away)]
Lease = Annotated[str | int, BeforeValidator(_lease)]
Duration = Annotated[int | None, BeforeValidator(_duration)]
Instant = Annotated[int | None, BeforeValidator(_instant)]
Hash = Annotated[str, BeforeValidator(_hash)]
Variables = Annotated[tuple[str, ...] | None, BeforeValidator(_variables)]
Files = Annotated[tuple[Path, ...] | None, BeforeValidator(_files)]
RedisPrefix = Annotated[str, BeforeValidator(_prefix)]
Prices = Annotated[Path | tuple[dict[str, Any], ...] | None, BeforeValidator(_prices)]
#: Before a table with a provider and a model: text stands for one.
AS_TARGET: Final = BeforeValidator(_target)
ModelName = Annotated[str, BeforeValidator(_model_name)]
ProviderName = Annotated[str, BeforeValidator(_provider_name)]
UrlPath = Annotated[str, BeforeValidator(_url_path)]
Quirk = Literal["every_search_item", "max_tokens", "no_done", "no_stream_options"]
DIALECTS: Final[tuple[str, ...]] = get_args(DialectName)
QUIRKS: Final[tuple[str, ...]] = get_args(Quirk)
