"""What a Redis server is like, and what of that would lose money: told at start, before anything is admitted.

INFO and CONFIG GET may be forbidden, or be missing where somebody else runs the server. What cannot be asked is unknown, and
said to be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

import msgspec
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import Kind

log = logging.getLogger("tollkeeper")

#: Names of CONFIG GET that `check` asks for.
ASKED: Final = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "save")
OLDEST: Final = {"Redis": (7, 0), "Valkey": (8, 0)}


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """A server as it says that it is; None is unknown. Each error and warning is one line with what would be right."""

    server: str | None = None  #: "Redis" or "Valkey"
    version: str | None = None
    run_id: str | None = None  #: another one after each start
    role: str | None = None  #: "master" or "slave"
    cluster: bool | None = None  #: it is one of a cluster
    maxmemory: int | None = None  #: bytes; 0: no bound
    policy: str | None = None  #: maxmemory-policy
    aof: bool | None = None  #: an append-only file is written
    fsync: str | None = None  #: appendfsync
    fsync_on_rewrite: bool | None = None  #: also while that file is written anew
    snapshots: str | None = None  #: when a snapshot is saved; "": never
    errors: tuple[str, ...] = ()  #: with any of these a hard budget does not hold
    warnings: tuple[str, ...] = ()


def check(client: Redis, kind: Kind | None = None) -> Findings:
    """Ask a server what it is like, and whether that fits a URL of this kind. Raises redis.RedisError if it is away."""
    info: Mapping[str, object] = {}
    config: Mapping[str, str] = {}
    forbidden = []
    try:
        info = client.info()
    except ResponseError:  # NOPERM is one, as is an unknown command
        forbidden.append("INFO")
    try:
        config = {_text(name): _text(value) for name, value in client.config_get(*ASKED).items()}
    except ResponseError:
        forbidden.append("CONFIG GET")
    return judge(info, config, kind, forbidden)


def check_all(servers: Servers) -> dict[str, Findings]:
    """The same of every server that takes writes, by its name. Raises redis.RedisError if one is away."""
    found = {}
    for node in servers.nodes():
        with node.connect() as client:
            found[node.name] = check(client, servers.place.kind)
    return found


class Watch:
    """Looks at each server process once, and tells what is new."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._seen: Mapping[str, str] = {}
        self._told: set[str] = set()

    def look(self, runs: Mapping[str, str], *, hard: bool) -> None:
        """`runs`: server → its run id. Raises StoreUnavailable where `hard` budgets would not hold, until that is put right."""
        if runs and runs == self._seen:
            return
        try:
            found = check_all(self._servers).values()
        except RedisError as error:
            raise StoreUnavailable(f"store: Redis cannot be looked at ({error})") from None
        errors = [error for each in found for error in each.errors]
        lines = dict.fromkeys([*errors, *(warning for each in found for warning in each.warnings)])
        for line in lines:
            if line not in self._told:
                log.log(logging.ERROR if line in errors else logging.WARNING, "store: %s", line)
        self._told = set(lines)
        if errors and hard:
            raise StoreUnavailable(f"store: {errors[0]}")
        self._seen = dict(runs)


def judge(
    info: Mapping[str, object], config: Mapping[str, str], kind: Kind | None = None, forbidden: list[str] | None = None
) -> Findings:
    """Findings of what INFO and CONFIG GET answered."""
    server, version = _version(info)
    found = Findings(
        server=server,
        version=version,
        run_id=_word(info, "run_id"),
        role=_word(info, "role"),
        cluster=_switch(_word(info, "cluster_enabled"), "1"),
        maxmemory=_count(config.get("maxmemory") or _word(info, "maxmemory")),
        policy=config.get("maxmemory-policy") or _word(info, "maxmemory_policy"),
        aof=_switch(config.get("appendonly"), "yes", _switch(_word(info, "aof_enabled"), "1")),
        fsync=config.get("appendfsync"),
        fsync_on_rewrite=_switch(config.get("no-appendfsync-on-rewrite"), "no"),
        snapshots=config.get("save"),
    )
    warnings = [_unasked(found, forbidden)] if forbidden else []
    return msgspec.structs.replace(found, errors=tuple(_errors(found, kind)), warnings=(*warnings, *_warnings(found)))


def _errors(found: Findings, kind: Kind | None) -> list[str]:
    errors = []
    if found.server and found.version and _numbers(found.version) < OLDEST[found.server]:
        errors.append(f"{found.server} {found.version} is too old; use Redis 7.0, Valkey 8.0 or newer")
    if found.role == "slave":
        errors.append("the server is a replica and takes no writes of ours; name its master, or its sentinels")
    if found.maxmemory and found.policy not in (None, "noeviction"):
        errors.append(f"maxmemory-policy {found.policy} throws balances away when memory is full; set it to noeviction")
    if found.cluster is True and kind in ("server", "sentinel"):
        errors.append("the server is one of a cluster; write redis+cluster://")
    if found.cluster is False and kind == "cluster":
        errors.append("the server is not one of a cluster; write redis://")
    return errors


def _warnings(found: Findings) -> list[str]:
    """What the journals make good, at the price of refilling Redis from them."""
    warnings = []
    if found.aof is False:
        keeps = {None: "may keep", "": "keeps"}.get(found.snapshots)
        lost = f"{keeps} nothing over a restart" if keeps else "goes back to its last snapshot at a restart"
        warnings.append(f"the server {lost}, and is refilled from the journals; set appendonly to yes")
    elif found.fsync in ("everysec", "no"):
        lost = "its last second" if found.fsync == "everysec" else "what the system had not yet written"
        warnings.append(
            f"appendfsync {found.fsync}: after a power cut the server lacks {lost} until the journals have refilled it; "
            "set it to always, or know that"
        )
    if found.aof and found.fsync != "no" and found.fsync_on_rewrite is False:
        warnings.append("no-appendfsync-on-rewrite yes: nothing is synced during a rewrite; set it to no")
    return warnings


def _unasked(found: Findings, forbidden: list[str]) -> str:
    unknown = {
        "its version": found.version,
        "its run id": found.run_id,
        "eviction": found.policy if found.maxmemory is not None else None,
        "persistence": found.snapshots if found.aof is False else found.fsync,
    }
    what = ", ".join(name for name, value in unknown.items() if value is None) or "nothing that counts"
    allow = " ".join({"INFO": "+info", "CONFIG GET": "+config|get"}[each] for each in forbidden)
    return (
        f"{' and '.join(forbidden)} cannot be asked; unknown: {what}; allow {allow} to this user, or see to it yourself"
    )


def _version(info: Mapping[str, object]) -> tuple[str | None, str | None]:
    valkey = _word(info, "valkey_version")
    if valkey is not None:
        return "Valkey", valkey
    version = _word(info, "redis_version")
    return (None, None) if version is None else ("Redis", version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])


def _word(info: Mapping[str, object], name: str) -> str | None:
    return None if info.get(name) is None else str(info[name])


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _switch(text: str | None, on: str, otherwise: bool | None = None) -> bool | None:
    return otherwise if text is None else text == on


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
