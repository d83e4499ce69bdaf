"""Where Redis is, read from a URL.

    redis://user:password@host:6379/0          rediss:// the same over TLS
    unix:///path/of/the/socket?db=0
    redis+sentinel://user:password@host:26379,host2:26379/service/0
    redis+cluster://user:password@host:6379,host2:6379

The last two have TLS as rediss+sentinel:// and rediss+cluster://. What stands between the marks is percent-encoded, and a
`+` is a plus. No message and no repr repeats a part of the URL: a mistake can make any part of it the password.
"""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

import msgspec

from tollkeeper.errors import ConfigError

Kind = Literal["server", "sentinel", "cluster"]

SCHEMES: Final[dict[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
FORMS: Final = (
    "'redis://host:6379/0', 'rediss://…', 'unix:///path?db=0', 'redis+sentinel://host:26379/service/0' "
    "or 'redis+cluster://host:6379'"
)
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[A-Za-z0-9._-]+))(?P<port>:.*)?")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TLS_OPTIONS: Final = ("ca_file", "cert_file", "key_file")
_SENTINEL_OPTIONS: Final = ("sentinel_user", "sentinel_password")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is and how to be let in. Its repr has no secrets."""

    kind: Kind = "server"
    addresses: tuple[Address, ...] = ()  #: the server's, the sentinels' or some of a cluster's; empty for a socket
    socket: str | None = None  #: path of a Unix socket
    service: str | None = None  #: the name under which sentinels know the master
    db: int = 0
    user: str | None = None  #: None: Redis' own "default"
    password: str | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    tls: bool = False
    ca_file: str | None = None  #: whom to trust; None: whom the system trusts
    cert_file: str | None = None  #: our certificate, for servers that ask for one
    key_file: str | None = None
    timeout_ms: int = 1000  #: for connecting, and for each answer

    @property
    def shown(self) -> str:
        """The URL for logs: no user, no password, no options."""
        scheme = "rediss" if self.tls else "redis"
        hosts = ",".join(map(str, self.addresses))
        if self.socket is not None:
            return f"unix://{self.socket}?db={self.db}"
        if self.kind == "sentinel":
            return f"{scheme}+sentinel://{hosts}/{self.service}/{self.db}"
        return f"{scheme}+cluster://{hosts}" if self.kind == "cluster" else f"{scheme}://{hosts}/{self.db}"

    def __repr__(self) -> str:
        return f"Place({self.shown!r})"


def is_redis(url: str) -> bool:
    """Whether a store's URL means Redis, right or not."""
    return url.partition(":")[0] in SCHEMES


def shown(url: str) -> str:
    """Any store's URL as it may be printed."""
    return parse(url).shown if is_redis(url) else url


def parse(url: str) -> Place:
    """The place that a URL names. Raises ConfigError: one line on `store` that says what would be right."""
    scheme, there, rest = url.partition("://")
    if scheme not in SCHEMES or not there:
        raise _wrong(f"expected {FORMS}")
    _check_signs(rest)
    kind, tls = SCHEMES[scheme], scheme.startswith("rediss")
    body, _, query = rest.partition("?")
    authority, _, path = body.partition("/")
    for part, where in ((query, "?"), (path, "/"), (authority.rpartition("@")[0], "@")):
        if "@" in part:
            raise _wrong(f"has an '@' behind a '{where}'; in names and passwords write @ as %40, / as %2F and ? as %3F")
    userinfo, at, hosts = authority.rpartition("@")
    user, password = _credentials(userinfo) if at else (None, None)
    socket, service, db = None, None, "0"
    options = _options(query)
    if scheme == "unix":
        socket, db = _socket(hosts, path), options.pop("db", "0")
    elif kind == "sentinel":
        name, _, db = path.partition("/")
        service = _decoded(name)
        if not service or not service.isprintable():
            raise _wrong("names no service; expected 'redis+sentinel://host:26379/service/0'")
    else:
        db = path
    return Place(
        kind=kind,
        addresses=() if scheme == "unix" else _addresses(hosts, kind),
        socket=socket,
        service=service,
        db=_db(db, kind),
        user=user,
        password=password,
        tls=tls,
        timeout_ms=_milliseconds(options.pop("timeout", "1")),
        **_checked(options, kind, tls),
    )


def _wrong(text: str) -> ConfigError:
    return ConfigError(f"store: {text}")


def _check_signs(rest: str) -> None:
    if " " in rest or not rest.isprintable():
        raise _wrong("has a blank or a control character; write a blank as %20")
    if "#" in rest:
        raise _wrong("has a '#'; write it as %23")
    if _BAD_PERCENT.search(rest):
        raise _wrong("has a '%' without two hex digits; write % as %25")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _wrong("has %-codes that are not UTF-8; write ü as %C3%BC") from None


def _credentials(userinfo: str) -> tuple[str | None, str | None]:
    user, colon, password = userinfo.partition(":")
    if not colon:
        raise _wrong("has one word before the '@'; write ':password@', or 'user:password@'")
    return _decoded(user) or None, _decoded(password) or ("" if user else None)


def _addresses(hosts: str, kind: Kind) -> tuple[Address, ...]:
    if kind == "server" and "," in hosts:
        raise _wrong("names several hosts; expected one, or redis+sentinel:// or redis+cluster://")
    port = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    return tuple(dict.fromkeys(_address(each, port) for each in hosts.split(",")))


def _address(text: str, port: int) -> Address:
    found = _HOST.fullmatch(text)
    host = None if found is None else found["name"] or _v6(found["v6"])
    if found is None or host is None:
        raise _wrong("expected 'host' or 'host:port', an IPv6 address in brackets: '[::1]:6379'")
    if found["port"] is not None:
        digits = found["port"][1:]
        port = int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else 0
        if not 0 < port < 65536:
            raise _wrong("expected a port from 1 to 65535; in a password write @ as %40 and / as %2F")
    return Address(host, port)


def _v6(text: str) -> str | None:
    try:
        return str(IPv6Address(_decoded(text)))
    except ValueError:
        return None


def _socket(hosts: str, path: str) -> str:
    path = "/" + _decoded(path)
    if hosts or path.endswith("/") or not path.isprintable():
        raise _wrong("expected 'unix:///path/of/the/socket', with three slashes")
    return path


def _db(text: str, kind: Kind) -> int:
    if not re.fullmatch(r"[0-9]{0,6}", text):
        raise _wrong("expected a database's number, as in 'redis://host:6379/0' or 'unix:///path?db=0'")
    db = int(text or "0")
    if kind == "cluster" and db:
        raise _wrong("a cluster has no databases; remove what follows the hosts")
    return db


def _milliseconds(text: str) -> int:
    ms = int(Decimal(text) * 1000) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text) else 0
    if not 10 <= ms <= 60_000:
        raise _wrong("expected a timeout from 0.01 to 60 seconds, as in '?timeout=0.5'")
    return ms


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for number, option in enumerate(query.split("&") if query else (), start=1):
        name, _, value = option.partition("=")
        if name not in ("db", "timeout", *_TLS_OPTIONS, *_SENTINEL_OPTIONS):
            known = ", ".join(("timeout", *_TLS_OPTIONS, *_SENTINEL_OPTIONS))
            raise _wrong(f"option #{number} is not known; expected one of {known}, and db with unix:; write & as %26")
        if not value or name in options:
            raise _wrong(
                f"option {name} {'stands twice' if name in options else 'has no value'}; write it once: {name}=…"
            )
        options[name] = _decoded(value)
    return options


def _checked(options: dict[str, str], kind: Kind, tls: bool) -> dict[str, str]:
    """The options that stand in a Place by their own names."""
    for name in options:
        if name == "db":
            raise _wrong("option db is for unix:; write the database behind the host: 'redis://host:6379/0'")
        if name in _TLS_OPTIONS and not tls:
            raise _wrong(f"option {name} is for TLS; write rediss://")
        if name in _SENTINEL_OPTIONS and kind != "sentinel":
            raise _wrong(
                f"option {name} is for redis+sentinel://; the server's user and password stand before the host"
            )
    if ("cert_file" in options) != ("key_file" in options):
        raise _wrong("options cert_file and key_file go together; name both or neither")
    if "sentinel_user" in options and "sentinel_password" not in options:
        raise _wrong("option sentinel_user needs sentinel_password too")
    return options
