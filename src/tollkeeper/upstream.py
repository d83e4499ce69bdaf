"""The only sockets to providers.

A request goes to a configured base URL with the provider's own credential; headers pass by allow-list both ways; redirects
are not followed; names that resolve to link-local or metadata addresses are refused. Bytes come as the socket gives them:
who does not read slows its provider and nobody else.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict

from tollkeeper.errors import StreamBroken, UpstreamUnreachable
from tollkeeper.routing import is_metadata
from tollkeeper.values import Route

#: Request headers of a client that a provider may see. Credentials, cookies and hop-by-hop headers never pass.
REQUEST_HEADERS: Final = frozenset({
    b"accept", b"anthropic-beta", b"anthropic-version", b"openai-beta", b"idempotency-key", b"x-client-request-id",
})  # fmt: skip
#: Response headers of a provider that a client may see.
RESPONSE_HEADERS: Final = frozenset({
    "content-type", "retry-after", "retry-after-ms", "x-request-id", "request-id", "openai-processing-ms", "openai-version",
    "openai-model", "x-should-retry",
})  # fmt: skip
RESPONSE_PREFIXES: Final = ("x-ratelimit-", "anthropic-ratelimit-")


class Answer(Protocol):
    """A provider's reply after its headers."""

    status: int
    headers: list[tuple[bytes, bytes]]  #: what the client may see of them
    is_stream: bool  #: an event stream, whatever was asked for

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises StreamBroken where the connection breaks before the end."""
        ...


class Upstream(Protocol):
    """Opens calls to providers."""

    def open(
        self, route: Route, path: str, body: bytes, headers: Mapping[bytes, bytes]
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request; the answer after its headers. Raises UpstreamUnreachable if it was not sent, else StreamBroken."""
        ...


class HttpUpstream:
    """Providers over HTTP, on one pool of connections."""

    def __init__(
        self, *, connect_timeout_s: float, allow_hosts: Iterable[str] = (), user_agent: str = "tollkeeper"
    ) -> None:
        self._allow_hosts = frozenset(allow_hosts)
        # Time limits between bytes are the line's: one timer there, none here but for connecting.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._fixed: dict[Route, tuple[str, dict[str, str]]] = {}

    async def start(self) -> None:
        """Open the pool, in the running event loop."""
        connector = aiohttp.TCPConnector(
            limit=0, resolver=_GuardedResolver(self._allow_hosts), ttl_dns_cache=30, keepalive_timeout=15
        )
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
        )  # fmt: skip

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    def open(self, route: Route, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> _HttpOpening:
        assert self._session is not None, "start() first"
        return _HttpOpening(self._session, route, path, body, headers)


class _HttpOpening(AbstractAsyncContextManager[Answer]):
    """The open call as a context: the connection goes back to the pool if the reply was read to its end."""

    def __init__(
        self, session: aiohttp.ClientSession, route: Route, path: str, body: bytes, headers: Mapping[bytes, bytes]
    ) -> None:
        self._session, self._route, self._path = session, route, path
        self._request = body, headers
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Answer:
        provider, (body, headers) = self._route.provider, self._request
        try:
            self._response = await self._session.post(
                provider.base_url + self._path, data=body, headers=_request_headers(self._route, headers),
                allow_redirects=False,
            )  # fmt: skip
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UpstreamUnreachable(f"provider {provider.name} cannot be reached: {type(error).__name__}") from error
        except (aiohttp.ClientError, OSError) as error:
            broken = StreamBroken(f"provider {provider.name} broke off before it answered: {type(error).__name__}")
            broken.owed = "unknown"
            raise broken from error
        return _HttpAnswer(self._response)

    async def __aexit__(self, *why: object) -> None:
        assert self._response is not None
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class _HttpAnswer:
    __slots__ = ("_content", "headers", "is_stream", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._content = response.content
        self.headers = [
            (name.encode(), value.encode("latin-1", "replace"))
            for key, value in response.headers.items()
            if (name := key.lower()) in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIXES)
        ]
        self.is_stream = response.headers.get("Content-Type", "").startswith("text/event-stream")

    async def read(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise StreamBroken(f"the provider's reply broke off: {type(error).__name__}") from error


def _request_headers(route: Route, client: Mapping[bytes, bytes]) -> CIMultiDict[str]:
    provider = route.provider
    headers = CIMultiDict({"Content-Type": "application/json"})
    headers.update(provider.headers)
    for name in REQUEST_HEADERS & client.keys():
        headers[name.decode()] = client[name].decode("latin-1")
    if provider.credential is not None:
        bearer = provider.credential_header.lower() == "authorization"
        headers[provider.credential_header] = f"Bearer {provider.credential}" if bearer else provider.credential
    return headers


class _GuardedResolver(AbstractResolver):
    """Refuses names that lead to link-local or metadata addresses, whatever the configuration's text looked like."""

    def __init__(self, allow_hosts: frozenset[str]) -> None:
        self._allow_hosts = allow_hosts
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if host not in self._allow_hosts:
            found = [result for result in found if not is_metadata(result["host"])]
            if not found:
                raise OSError(
                    f"{host} leads to a link-local or metadata address only; list it in allow_hosts if it is meant"
                )
        return found

    async def close(self) -> None:
        await self._resolver.close()
