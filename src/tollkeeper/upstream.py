"""The only sockets to providers.

A request goes to a configured base URL with the credential of its route; headers pass by allow-list both ways; redirects
are not followed; names that resolve to link-local or metadata addresses are refused. Bytes come as the socket gives them:
who does not read slows its provider and nobody else.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import urlsplit

from tollkeeper.connections import Broken, Connection, Origin, Pool
from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.routing import is_metadata
from tollkeeper.values import Credential, Provider, Route

#: Request headers of a client that a provider may see. Credentials, cookies and hop-by-hop headers never pass.
REQUEST_HEADERS: Final = frozenset({
    b"accept", b"anthropic-beta", b"anthropic-version", b"openai-beta", b"idempotency-key", b"x-client-request-id",
})  # fmt: skip
#: Response headers of a provider that a client may see.
RESPONSE_HEADERS: Final = frozenset({
    b"content-type", b"retry-after", b"retry-after-ms", b"x-request-id", b"request-id", b"openai-processing-ms",
    b"openai-version", b"openai-model", b"x-should-retry", b"x-gemini-service-tier",
})  # fmt: skip
RESPONSE_PREFIXES: Final = (b"x-ratelimit-", b"anthropic-ratelimit-")
_UNSENDABLE: Final = re.compile(rb"[\x00-\x1f\x7f]")

#: Why there is no connection, for people.
_REASONS: Final[dict[type[OSError], str]] = {
    socket.gaierror: "its host name cannot be resolved",
    ConnectionRefusedError: "the connection is refused",
    TimeoutError: "no connection in time (connect_timeout_s)",
}


class Answer(Protocol):
    """A provider's reply after its headers."""

    status: int
    headers: list[tuple[bytes, bytes]]  #: what the client may see of them
    is_stream: bool  #: an event stream, whatever was asked for

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises StreamBroken where the connection breaks before the end."""
        ...


class Opening(AbstractAsyncContextManager[Answer], Protocol):
    """A call to a provider: entering it sends the request and waits for the answer's headers."""

    @property
    def sent(self) -> bool:
        """The provider may have some of the request."""
        ...


class Upstream(Protocol):
    """Opens calls to providers."""

    def open(self, route: Route, dialect: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Opening:
        """Send a request to `path` below the provider's base URL; the answer after its headers.

        Raises UpstreamUnreachable if it was not sent, else StreamBroken.
        """
        ...


class HttpUpstream:
    """Providers over HTTP/1.1, on one pool of connections."""

    def __init__(
        self, *, connect_timeout_s: float, allow_hosts: Iterable[str] = (), user_agent: str = "tollkeeper"
    ) -> None:
        self._allow_hosts = frozenset(allow_hosts)
        self._pool = Pool(connect_timeout_s, self._addresses)
        self._user_agent = user_agent
        self._targets: dict[tuple[str, str, str | None], Target] = {}  # by provider, dialect and credential

    def open(self, route: Route, dialect: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> _Opening:
        provider, credential = route.provider, route.credential
        name = (provider.name, dialect, None if credential is None else credential.name)
        target = self._targets.get(name)
        if target is None or target.provider is not provider or target.credential is not credential:
            target = self._targets[name] = Target(provider, credential, dialect, self._user_agent)
        return _Opening(self._pool, target, target.head(path, headers, len(body)) + body)

    async def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Where a host lives; never a link-local or metadata address that the configuration does not allow."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if host not in self._allow_hosts:
            addresses = [address for address in addresses if not is_metadata(address)]
            if not addresses:
                raise OSError(
                    f"{host} leads to a link-local or metadata address; list it in allow_hosts if it is meant"
                )
        return addresses


class Target:
    """One provider in one dialect with one credential: where to connect, and what every request's head has in common."""

    def __init__(self, provider: Provider, credential: Credential | None, dialect: str, user_agent: str) -> None:
        self.provider, self.credential = provider, credential
        url = urlsplit(provider.base_url)
        tls = url.scheme == "https"
        assert url.hostname is not None
        self.origin = Origin(url.hostname, url.port if url.port is not None else 443 if tls else 80, tls)
        self._path = url.path
        self._host = f"host: {url.netloc}\r\n".encode()
        self._defaults = {name.lower().encode(): value.encode() for name, value in provider.headers}
        self._fixed = {
            b"content-type": b"application/json",
            b"accept-encoding": b"identity",
            b"user-agent": user_agent.encode(),
        }
        if credential is not None:
            name = dict(provider.credential_headers).get(dialect, provider.credential_header).lower()
            secret = f"Bearer {credential.secret}" if name == "authorization" else credential.secret
            self._fixed[name.encode()] = secret.encode()
        self._usual = self._lines({})

    def head(self, path: str, client: Mapping[bytes, bytes], length: int) -> bytes:
        """A request's head: its path, the provider's default headers, the client's that may pass, and ours, which win."""
        passed = REQUEST_HEADERS & client.keys()
        lines = self._lines({name: client[name] for name in passed}) if passed else self._usual
        line = f"POST {self._path}{path} HTTP/1.1\r\n".encode()
        return b"%b%bcontent-length: %d\r\n\r\n" % (line, lines, length)

    def _lines(self, client: Mapping[bytes, bytes]) -> bytes:
        fields = self._defaults | dict(client) | self._fixed
        return self._host + b"".join([b"%b: %b\r\n" % field for field in fields.items()])


class _Opening(AbstractAsyncContextManager[Answer]):
    """The open call as a context: its connection goes back to the pool if the reply was read to its end."""

    def __init__(self, pool: Pool, target: Target, request: bytes) -> None:
        self._pool, self._target, self._request = pool, target, request
        self._connection: Connection | None = None
        self.sent = False

    async def __aenter__(self) -> Answer:
        target, name = self._target, self._target.provider.name
        try:
            self._connection = connection = await self._pool.take(target.origin)
        except OSError as error:  # TimeoutError is one
            reason = _REASONS.get(type(error), type(error).__name__)
            raise UpstreamUnreachable(f"provider {name} cannot be reached: {reason}") from error
        self.sent = True
        try:
            connection.send(self._request)
            await connection.head()
        except Broken as error:
            self._pool.give(target.origin, connection)
            broken = StreamBroken(f"provider {name} broke off before it answered: {error}")
            broken.owed = "unknown"
            raise broken from error
        except BaseException:
            self._pool.give(target.origin, connection)
            raise
        answer = _HttpAnswer(connection)
        if answer.is_packed:  # though we asked for it plain: nobody here could read it
            self._pool.give(target.origin, connection)
            raise StreamBroken(f"provider {name} answered in a compression that was not asked for")
        return answer

    async def __aexit__(self, *why: object) -> None:
        assert self._connection is not None
        self._pool.give(self._target.origin, self._connection)


class _HttpAnswer:
    __slots__ = ("_connection", "headers", "is_packed", "is_stream", "status")

    def __init__(self, connection: Connection) -> None:
        self.status = connection.status
        self._connection = connection
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_packed = self.is_stream = False
        for field in connection.headers:
            name, value = field
            if name in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIXES):
                if _UNSENDABLE.search(value):
                    continue
                self.headers.append(field)
                if name == b"content-type" and value.lower().startswith(b"text/event-stream"):
                    self.is_stream = True
            elif name == b"content-encoding" and value.lower() != b"identity":
                self.is_packed = True

    async def read(self) -> bytes:
        try:
            return await self._connection.read()
        except Broken as error:
            raise StreamBroken(f"the provider's reply broke off: {error}") from error
