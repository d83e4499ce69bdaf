"""The servers behind a Place: one, the master that sentinels name, or those of a cluster, each for its slots.

A client from `Node.connect` has one connection and repeats nothing. Once that connection is lost the client stays dead: a new
one may reach a server that has forgotten something, and whoever asks must know. Everything here blocks: it is for threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from tollkeeper.errors import ConfigError
from tollkeeper.stores.redis.url import Address, Place

CLIENT_NAME: Final = "tollkeeper"


@dataclass(frozen=True)
class Node:
    """One server that takes writes. Nodes of the same name are equal."""

    name: str  #: "host:port", a socket's path, or the service that sentinels know
    connect: Callable[[], Redis] = field(compare=False, repr=False)  #: a new client; raises redis.RedisError


class Servers:
    """Which server has which key. Nothing is asked before it is needed."""

    def __init__(self, place: Place) -> None:
        """Raises ConfigError where a file that the URL names cannot be read."""
        self.place = place
        for name in ("ca_file", "cert_file", "key_file"):
            _readable(name, getattr(place, name))
        self._slots: list[Node | None] = []  # of a cluster: replaced as a whole, so that any thread may look
        self._one: Node | None = None
        if place.kind == "sentinel":
            self._one = Node(str(place.service), partial(_connect_to_master, place))
        elif place.kind == "server":
            address = place.addresses[0] if place.addresses else None
            self._one = Node(str(address or place.socket), partial(_client, place, address))

    def node_of(self, key: str) -> Node:
        """The server of a key. Raises redis.RedisError: no server of the cluster answers, or none has the key's slot."""
        if self._one is not None:
            return self._one
        if not self._slots:
            self.refresh()
        slot = key_slot(key.encode())
        node = self._slots[slot]
        if node is None:
            raise Lost(f"no server of the cluster {self.place.shown} has slot {slot}")
        return node

    def at(self, host: str, port: int) -> Node:
        """The server of a cluster at an address that another one has told: it may have no slots yet."""
        address = Address(host, port)
        return Node(str(address), partial(_client, self.place, address))

    def nodes(self) -> list[Node]:
        """Every server that takes writes. Raises as `node_of`."""
        if self._one is not None:
            return [self._one]
        if not self._slots:
            self.refresh()
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    def refresh(self) -> None:
        """Ask a cluster again which server has which slots: after MOVED or a lost connection. Raises redis.RedisError.

        Sentinels are asked at each `connect`.
        """
        if self._one is not None:
            return
        ways = [node.connect for node in dict.fromkeys(self._slots) if node is not None]
        ways += [partial(_client, self.place, address) for address in self.place.addresses]
        failures: list[str] = []
        for connect in ways:
            try:
                with connect() as client:
                    self._slots = self._read_slots(client)
                return
            except RedisError as error:
                failures.append(str(error))
        raise Lost(f"no server of the cluster {self.place.shown} says who has which slots: {'; '.join(failures)}")

    def _read_slots(self, client: Redis) -> list[Node | None]:
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_replicas in _ask(client, "CLUSTER", "SLOTS"):
            here = str(
                client.get_connection_kwargs()["host"]
            )  # a server may leave out what it does not know: its own name
            address = Address(_text(host) or here, int(port))
            node = self.at(address.host, address.port)
            slots[first : last + 1] = [node] * (last + 1 - first)
        return slots


def _connect_to_master(place: Place) -> Redis:
    """A client of the server that the first sentinel to be right names: one cut off may name an old master."""
    failures: list[str] = []
    for sentinel in place.addresses:
        try:
            with _client(place, sentinel, sentinel=True) as client:
                found = _ask(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", str(place.service))
            if found is None:
                failures.append(f"{sentinel} does not know {place.service!r}")
                continue
            master = Address(_text(found[0]), int(found[1]))
            client = _client(place, master)
        except RedisError as error:
            failures.append(f"{sentinel}: {error}")
            continue
        if _is_master(client):
            return client
        client.close()
        failures.append(f"{sentinel} names {master}, which is no master")
    raise Lost(f"no sentinel of {place.shown} names a master that answers: {'; '.join(failures)}")


def _is_master(client: Redis) -> bool:
    try:
        return bool(_text(_ask(client, "ROLE")[0]) == "master")
    except NoPermissionError:
        return True  # as the sentinel says; a replica would refuse the first write
    except RedisError:
        return False


def _client(place: Place, address: Address | None, *, sentinel: bool = False) -> Redis:
    """A connected client. Raises redis.RedisError."""
    seconds = place.timeout_ms / 1000
    how: dict[str, Any] = {"unix_socket_path": place.socket, "redis_connect_func": _once()}
    if address is not None:
        how |= {"host": address.host, "port": address.port, "socket_connect_timeout": seconds}
    if place.tls:
        how |= {"ssl": True, "ssl_ca_certs": place.ca_file}
        how |= {"ssl_certfile": place.cert_file, "ssl_keyfile": place.key_file}
    client = Redis(
        **how,
        db=0 if sentinel else place.db,
        username=place.sentinel_user if sentinel else place.user,
        password=place.sentinel_password if sentinel else place.password,
        socket_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        max_connections=1,
        client_name=CLIENT_NAME,
        driver_info=None,
        protocol=2,  # what RESP3 adds, messages that nobody asked for, would only be in the way
    )
    try:
        client.connection_pool.release(client.connection_pool.get_connection())
    except BaseException:
        client.close()
        raise
    return client


def _once() -> Callable[[AbstractConnection], None]:
    """The handshake of a connection, the first time; redis-py would connect again without a word."""
    connections: Iterator[None] = iter((None,))

    def connected(connection: AbstractConnection) -> None:
        for _ in connections:
            connection.on_connect()  # type: ignore[no-untyped-call]
            return
        raise Lost("the connection was lost")

    return connected


def _ask(client: Redis, *command: str) -> Any:
    """A command's answer as the server gave it."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _text(answer: object) -> str:
    return answer.decode() if isinstance(answer, bytes) else "" if answer is None else str(answer)


def _readable(name: str, path: str | None) -> None:
    if path is None:
        return
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise ConfigError(f"store: {name} cannot be read ({error.strerror}); name a PEM file") from None
