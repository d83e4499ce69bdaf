"""Providers: a table of the configuration over a preset's data, its URL checked and its secret fetched.

Without any table each preset whose usual key variable is set is a provider at once. A secret comes from a variable or a
file, never from the configuration itself, and stands in `Provider.credentials` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import msgspec

from tollkeeper.config.settings import ProviderTable, Settings
from tollkeeper.config.sources import Loc, Source, unknown
from tollkeeper.routing import check_base_url
from tollkeeper.values import Credential, Provider

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS: Final = frozenset({
    "authorization", "connection", "content-encoding", "content-length", "content-type", "cookie", "expect", "host",
    "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider as shipped data: see presets.toml for what each field means."""

    dialects: frozenset[str]
    base_url: str | None = None
    key_env: tuple[str, ...] = ()
    credential_header: str = "authorization"
    credential_headers: dict[str, str] = {}
    headers: dict[str, str] = {}
    quirks: frozenset[str] = frozenset()
    prices: str | None = None
    counts: Literal["reported", "computed"] = "reported"
    paths: dict[str, str] = {}


def presets() -> dict[str, Preset]:
    """The providers that are shipped as data, by name."""
    text = resources.files("tollkeeper.config").joinpath("presets.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, Preset])


def configured(settings: Settings, source: Source, environ: Mapping[str, str]) -> dict[str, Provider]:
    """Every provider that calls may go to, by name. Raises ConfigError for the first mistake."""
    known = presets()
    tables: Mapping[str, ProviderTable] = settings.providers or {
        name: ProviderTable() for name, preset in known.items() if preset.base_url and _usual_keys(preset, environ)
    }
    return {
        name: _provider(name, table, known, source, environ, settings.allow_hosts) for name, table in tables.items()
    }  # fmt: skip


def _provider(
    name: str,
    table: ProviderTable,
    known: Mapping[str, Preset],
    source: Source,
    environ: Mapping[str, str],
    allow_hosts: tuple[str, ...],
) -> Provider:
    """A provider from its table over its preset's data."""
    loc = ("providers", name)
    if table.preset is not None and table.preset not in known:
        raise source.error((*loc, "preset"), f"{table.preset!r} {unknown(table.preset, known)}")
    preset = known.get(table.preset or name, Preset(dialects=frozenset()))
    dialects = preset.dialects if table.dialects is None else frozenset(table.dialects)
    base_url = preset.base_url if table.base_url is None else table.base_url
    if not dialects:
        raise source.error((*loc, "dialects"), "is required without a preset: the wire formats that it speaks")
    if base_url is None:
        raise source.error(
            (*loc, "base_url"), "is required: where the dialects' paths begin, such as 'https://host/v1'"
        )
    try:
        base_url = check_base_url(base_url, insecure=table.insecure, allow_hosts=allow_hosts)
    except ValueError as error:
        raise source.error((*loc, "base_url"), str(error)) from None
    credential_header = _credential_header(
        table.credential_header or preset.credential_header, (*loc, "credential_header"), source
    )
    # A header that the table names is for every dialect: the preset's others give way to it.
    others = ({} if table.credential_header else preset.credential_headers) | table.credential_headers
    credential_headers = {
        dialect: _credential_header(header, (*loc, "credential_headers", dialect), source)
        for dialect, header in others.items()
    }
    headers = {header.lower(): value for header, value in (preset.headers | table.headers).items()}
    _check_headers(headers, {credential_header, *credential_headers.values()}, (*loc, "headers"), source)
    return Provider(
        name=name,
        base_url=base_url,
        dialects=dialects,
        prices=preset.prices if table.prices is None else table.prices,
        counts=preset.counts if table.counts is None else table.counts,
        credentials=_credentials(table, preset, loc, source, environ),
        credential_header=credential_header,
        credential_headers=tuple(credential_headers.items()),
        headers=tuple(headers.items()),
        quirks=preset.quirks if table.quirks is None else frozenset(table.quirks),
        paths=tuple((preset.paths | table.paths).items()),
    )


def _credentials(
    table: ProviderTable, preset: Preset, loc: tuple[str, str], source: Source, environ: Mapping[str, str]
) -> tuple[Credential, ...]:
    """The provider's keys. None only where neither the table nor the preset says that it needs one."""
    if table.api_key_env is not None and table.api_key_file is not None:
        raise source.error((*loc, "api_key_file"), "is one way too many beside api_key_env; keep one of them")
    place = "api_key_env" if table.api_key_file is None else "api_key_file"
    found: dict[str, Credential] = {}
    for credential in _named(table, preset, (*loc, place), source, environ):
        if not (credential.secret.isascii() and credential.secret.isprintable()):
            raise source.error(
                (*loc, place),
                f"the key in {credential.name} has characters that no header can carry; expected printable ASCII",
            )
        twin = found.setdefault(credential.secret, credential)
        if twin is not credential:
            raise source.error((*loc, place), f"{twin.name} and {credential.name} hold the same key; keep one of them")
    return tuple(found.values())


def _named(
    table: ProviderTable, preset: Preset, loc: Loc, source: Source, environ: Mapping[str, str]
) -> Iterable[Credential]:
    """Each key with the name of where it stands."""
    files = table.api_key_file or ()
    if files:
        several = len(files) > 1
        return [
            Credential(str(file), _secret_file(source.folder / file, (*loc, number) if several else loc, source))
            for number, file in enumerate(files)
        ]
    names = table.api_key_env
    if names is None and preset.key_env:
        names = tuple(_usual_keys(preset, environ))[:1]
        if not names:
            raise source.error(
                loc, f"no key: set {' or '.join(preset.key_env)}, or name a variable or an api_key_file here"
            )
    keys = {name: environ.get(name, "").strip() for name in names or ()}
    unset = next((name for name, key in keys.items() if not key), None)
    if unset is not None:
        raise source.error(loc, f"the variable {unset} is not set; set it to the provider's key")
    return [Credential(name, keys[name]) for name in names or ()]


def _usual_keys(preset: Preset, environ: Mapping[str, str]) -> list[str]:
    """Which of the usual variables are set."""
    return [name for name in preset.key_env if environ.get(name, "").strip()]


def _secret_file(file: Path, loc: Loc, source: Source) -> str:
    try:
        secret = file.read_text("utf-8").strip()
    except OSError as error:
        raise source.error(loc, f"the file cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise source.error(loc, "the file is not text; expected the key alone") from None
    if not secret:
        raise source.error(loc, "the file is empty; expected the key alone")
    return secret


def _credential_header(name: str, loc: Loc, source: Source) -> str:
    header = name.lower()
    if not _HEADER_NAME.fullmatch(header) or header in _OWN_HEADERS - {"authorization"}:
        raise source.error(loc, "expected the name of a header such as 'authorization' or 'x-api-key'")
    return header


def _check_headers(
    headers: Mapping[str, str], credential_headers: set[str], loc: tuple[str, ...], source: Source
) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise source.error(loc, "expected header names of letters, digits and '-'")
        if name in _OWN_HEADERS or name in credential_headers:
            raise source.error((*loc, name), "is set by the gateway itself; remove it")
        if not (value.isascii() and value.isprintable()):
            raise source.error((*loc, name), "expected a value of printable ASCII")
