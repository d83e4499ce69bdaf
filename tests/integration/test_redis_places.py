"""Every form of a Redis' URL connects to a real one, and what it is like is found out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import RedisError, ResponseError

from tollkeeper.stores.redis.check import check
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.redis_server import RedisServer, free_port, until

USER, PASSWORD = "us@er:/#%+?&", 'p@:/#%+ ?&=[]é"\\'
LOGIN = f"{quote(USER, '')}:{quote(PASSWORD, '')}@"
CANARY = ":canary@"


def openssl(folder: Path, *command: str) -> None:
    subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, another ca (other.pem), and cert.pem with key.pem for 127.0.0.1 and ::1, but no name."""
    folder = tmp_path_factory.mktemp("tls")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl(folder, *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1")
    openssl(folder, *new, *signed, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=redis")
    return folder


def tls(certificates: Path, clients: str = "no") -> dict[str, str]:
    """Directives of a server that listens with TLS as well."""
    return {
        "tls-port": str(free_port()),
        "tls-cert-file": f"{certificates}/cert.pem",
        "tls-key-file": f"{certificates}/key.pem",
        "tls-ca-cert-file": f"{certificates}/ca.pem",
        "tls-auth-clients": clients,
    }


@pytest.fixture(scope="module")
def server(
    redis_executable: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One server that can be reached in every way, with a user whose name and password are all signs."""
    folder = tmp_path_factory.mktemp("place")
    config = {
        "bind": "127.0.0.1 ::1",
        "unixsocket": f'"{folder}/a socket@#"',
        "appendfsync": "always",
        **tls(certificates),
    }
    with RedisServer(folder, executable=redis_executable, config=config) as running:
        with running.client() as client:
            client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all")
            client.execute_command("ACL", "SETUSER", "quiet", "on", ">canary", "~*", "&*", "+@all", "-info", "-config")
        yield running


@pytest.fixture(scope="module")
def sentinel(
    server: RedisServer, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A sentinel that knows the server as "main" and, by its port with TLS, as "secure"."""
    folder = tmp_path_factory.mktemp("sentinel")
    executable = folder / "redis-sentinel"  # a server by this name is one
    executable.symlink_to(str(server.executable))
    secure = tls(certificates) | {"tls-replication": "yes"}
    config = {"sentinel monitor": f"main 127.0.0.1 {server.port} 1", "requirepass": PASSWORD, **secure}
    with RedisServer(folder / "data", executable=str(executable), config=config) as running:
        with running.client() as client:
            client.execute_command("SENTINEL", "MONITOR", "secure", "127.0.0.1", server.config["tls-port"], 1)
        yield running


@pytest.fixture(scope="module")
def cluster(
    redis_executable: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RedisServer]]:
    """Three servers with a third of the slots each."""
    slots = ((0, 5460), (5461, 10922), (10923, 16383))
    with ExitStack() as stack:
        servers = []
        for first, last in slots:
            ports = {"cluster-port": str(free_port()), **tls(certificates)}
            config = {"cluster-enabled": "yes", "tls-cluster": "yes", **ports}
            each = RedisServer(tmp_path_factory.mktemp("shard"), executable=redis_executable, config=config)
            servers.append(stack.enter_context(each))
            with each.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", len(servers))
                if each is not servers[0]:
                    known = servers[0].config
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", known["tls-port"], known["cluster-port"])
        for each in servers:
            until(lambda each=each: whole(each), "a cluster")  # type: ignore[misc]
        yield servers


def whole(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


# ── a server ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("form", "user", "db"),
    [
        ("redis://127.0.0.1:{port}", "default", 0),
        ("redis://localhost:{port}/3", "default", 3),
        ("redis://{login}127.0.0.1:{port}/4?timeout=5", USER, 4),
        ("redis://[::1]:{port}/15", "default", 15),
        ("unix://{socket}", "default", 0),
        ("unix://{login}{socket}?db=2", USER, 2),
        ("rediss://127.0.0.1:{tls}?ca_file={pem}/ca.pem", "default", 0),
        ("rediss://{login}[::1]:{tls}/1?ca_file={pem}/ca.pem", USER, 1),
        ("rediss://127.0.0.1:{tls}?ca_file={pem}/ca.pem&cert_file={pem}/cert.pem&key_file={pem}/key.pem", "default", 0),
    ],
)
def test_a_server_is_reached(server: RedisServer, certificates: Path, form: str, user: str, db: int) -> None:
    """F1: each form connects, as its user, to its database, by one connection that is named."""
    socket = quote(server.config["unixsocket"].strip('"'))
    url = form.format(login=LOGIN, port=server.port, socket=socket, tls=server.config["tls-port"], pem=certificates)
    servers = Servers(parse(url))
    with servers.node_of("any").connect() as client:
        assert client.acl_whoami() == user
        client.pipeline(transaction=False).ping().ping().execute()
        mine = [each for each in client.client_list() if each["name"] == "tollkeeper"]
        assert [each["db"] for each in mine] == [str(db)]
        assert [node.name for node in servers.nodes()] == [servers.node_of("other").name]
        found = check(client, "server")
        assert found.server == ("Valkey" if "valkey_version" in client.info("server") else "Redis")
        assert (found.role, found.errors, found.warnings) == ("master", (), ())
        assert found.run_id == client.info("server")["run_id"]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("redis://{canary}127.0.0.1:{nobody}", "Connection refused"),
        ("redis://nobody{canary}127.0.0.1:{port}", "invalid username-password pair"),
        ("redis://quiet{canary}127.0.0.1:{port}/99", "DB index is out of range"),
        ("unix://{canary}/nowhere", "No such file"),
        ("redis://{canary}no-such-host.invalid", "no-such-host.invalid:6379"),
        ("rediss://{canary}127.0.0.1:{port}?ca_file={pem}/ca.pem&timeout=0.2", "Timeout connecting to server"),
        ("rediss://{canary}127.0.0.1:{tls}?ca_file={pem}/other.pem", "certificate verify failed"),
        ("rediss://{canary}127.0.0.1:{tls}", "certificate verify failed"),
        ("rediss://{canary}localhost:{tls}?ca_file={pem}/ca.pem", "Hostname mismatch"),
        ("redis+sentinel://{canary}127.0.0.1:{port}/main", "no sentinel of redis+sentinel://127.0.0.1:"),
        ("redis+cluster://quiet{canary}127.0.0.1:{port}", "cluster support disabled"),
    ],
)
def test_a_server_that_does_not_let_us_in(server: RedisServer, certificates: Path, form: str, says: str) -> None:
    """F1: whatever is wrong at the other end is one line, without the password."""
    url = form.format(
        canary=CANARY, port=server.port, nobody=free_port(), tls=server.config["tls-port"], pem=certificates
    )
    with pytest.raises(RedisError) as caught:
        Servers(parse(url)).node_of("any").connect()
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert "canary" not in str(caught.value)


def test_a_lost_connection_stays_lost(own_redis: RedisServer) -> None:
    """A client never connects a second time, so that no other server answers in the place of the first one."""
    node = Servers(parse(own_redis.url)).node_of("any")
    client = node.connect()
    client.set("a", 1)
    own_redis.restart()
    for _ in range(3):
        with pytest.raises(Lost):
            client.get("a")
        with pytest.raises(Lost):
            client.pipeline(transaction=False).get("a").execute()
    with node.connect() as another:
        assert another.get("a") == b"1"
    assert "canary" not in repr(Servers(parse(f"redis://{CANARY}h")).nodes())


def test_a_silent_server_is_noticed(own_redis: RedisServer) -> None:
    """F2: a server that hangs costs its time-out once, also where it is connected to anew."""
    node = Servers(parse(own_redis.url + "?timeout=0.25")).node_of("any")
    client = node.connect()
    own_redis.pause()
    with pytest.raises(RedisError):
        client.ping()
    with pytest.raises(RedisError):
        node.connect()
    own_redis.resume()
    with node.connect() as another:
        assert another.ping()


# ── what it is like ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_may_not_be_asked(server: RedisServer) -> None:
    """A user who may not ask gets one warning, and no error."""
    with Servers(parse(f"redis://quiet{CANARY}127.0.0.1:{server.port}")).node_of("any").connect() as client:
        found = check(client, "server")
    assert (found.server, found.run_id, found.errors, len(found.warnings)) == (None, None, (), 1)
    assert found.warnings[0].startswith("INFO and CONFIG GET cannot be asked; unknown: its version")


def test_a_careless_server(own_redis: RedisServer, redis_executable: str, tmp_path: Path) -> None:
    """Eviction, a replica and missing persistence are found out as they are configured."""
    with Servers(parse(own_redis.url)).node_of("any").connect() as client:
        assert [each.split(":")[0] for each in check(client).warnings] == ["appendfsync everysec"]
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        found = check(client)
        assert found.errors[0].startswith("maxmemory-policy allkeys-lru throws balances away")
        assert found.warnings[0].startswith("the server keeps nothing over a restart")
    with RedisServer(tmp_path / "replica", executable=redis_executable) as replica:
        replica.replica_of(own_redis)
        with Servers(parse(replica.url)).node_of("any").connect() as client:
            assert "is a replica" in check(client).errors[0]


# ── sentinels ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "form",
    [
        "redis+sentinel://{login}127.0.0.1:{port}/main/5?sentinel_password={password}",
        "redis+sentinel://{login}127.0.0.1:{nobody},127.0.0.1:{port}/main/5?sentinel_password={password}",
        "rediss+sentinel://{login}127.0.0.1:{tls}/secure/5?sentinel_password={password}&ca_file={pem}/ca.pem",
    ],
)
def test_sentinels_name_the_master(sentinel: RedisServer, certificates: Path, form: str) -> None:
    """F1: the first sentinel that answers leads to the master; sentinels have a password of their own."""
    url = form.format(
        login=LOGIN, port=sentinel.port, tls=sentinel.config["tls-port"], nobody=free_port(), pem=certificates,
        password=quote(PASSWORD, ""),
    )  # fmt: skip
    place = parse(url)
    with Servers(place).node_of("any").connect() as client:
        assert (client.acl_whoami(), client.role()[0]) == (USER, b"master")
        assert check(client, place.kind).errors == ()


def test_the_master_changes(
    sentinel: RedisServer, own_redis: RedisServer, redis_executable: str, tmp_path: Path
) -> None:
    """B4: a new connection goes to the master that sentinels name by then; one that is a replica after all is refused."""
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/moving?sentinel_password={quote(PASSWORD, '')}"
    node = Servers(parse(url)).node_of("any")
    with pytest.raises(Lost, match="does not know 'moving'"):
        node.connect()
    with sentinel.client() as told, RedisServer(tmp_path / "new", executable=redis_executable) as new:
        told.execute_command("SENTINEL", "MONITOR", "moving", "127.0.0.1", own_redis.port, 1)
        with node.connect() as client:
            assert client.info("server")["tcp_port"] == own_redis.port
        own_redis.replica_of(new)
        with pytest.raises(Lost, match=rf"names 127\.0\.0\.1:{own_redis.port}, which is no master"):
            node.connect()
        told.execute_command("SENTINEL", "REMOVE", "moving")
        told.execute_command("SENTINEL", "MONITOR", "moving", "127.0.0.1", new.port, 1)
        with node.connect() as client:
            assert client.info("server")["tcp_port"] == new.port
        told.execute_command("SENTINEL", "REMOVE", "moving")


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_cluster_is_found_by_one_of_it(cluster: list[RedisServer], certificates: Path, scheme: str) -> None:
    """F1: one server that answers leads to all; each key is asked of the server that has its slot, with TLS or without."""
    ports = [str(each.port) if scheme == "redis" else each.config["tls-port"] for each in cluster]
    options = f"?ca_file={certificates}/ca.pem" if scheme == "rediss" else ""
    servers = Servers(parse(f"{scheme}+cluster://127.0.0.1:{free_port()},127.0.0.1:{ports[1]}{options}"))
    assert sorted(node.name for node in servers.nodes()) == sorted(f"127.0.0.1:{port}" for port in ports)
    clients = {node: node.connect() for node in servers.nodes()}
    for number in range(30):
        assert clients[servers.node_of(f"{{p{number}}}:a")].set(f"{{p{number}}}:b", number)
    for client in clients.values():
        assert check(client, "cluster").errors == ()
        assert "write redis+cluster://" in check(client, "server").errors[0]
        client.close()


def test_a_slot_moves(cluster: list[RedisServer]) -> None:
    """A server that no longer has a slot says MOVED; after `refresh` its new server is asked, also where the URL's is away."""
    servers = Servers(parse(f"redis+cluster://127.0.0.1:{cluster[0].port}"))
    before = servers.node_of("{moving}")
    after = next(node for node in servers.nodes() if node != before)
    with before.connect() as giver, after.connect() as taker:
        slot = taker.execute_command("CLUSTER", "KEYSLOT", "moving")
        name = taker.execute_command("CLUSTER", "MYID")
        for client in (taker, giver):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)
        with pytest.raises(ResponseError, match=r"^(MOVED )?[0-9]+ 127"):
            giver.get("{moving}")
        assert servers.node_of("{moving}") == before
        lost = cluster[0]
        if str(lost.port) not in after.name:
            lost.pause()
        try:
            until(lambda: moved(servers, before), "news of the slot")
        finally:
            lost.resume()
        assert servers.node_of("{moving}") == after


def moved(servers: Servers, before: object) -> bool:
    servers.refresh()
    return servers.node_of("{moving}") != before


def test_a_slot_that_nobody_has(redis_executable: str, tmp_path: Path) -> None:
    """Keys without a server are an error that says so; other keys have theirs."""
    config = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with RedisServer(tmp_path / "half", executable=redis_executable, config=config) as half:
        with half.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 12000)
        servers = Servers(parse(f"redis+cluster://127.0.0.1:{half.port}"))
        assert (
            servers.node_of("b").name == f"127.0.0.1:{half.port}"
        )  # slot 3300, of a server that does not know its address
        with pytest.raises(
            Lost, match=rf"no server of the cluster redis\+cluster://127\.0\.0\.1:{half.port} has slot 15495"
        ):
            servers.node_of("a")
