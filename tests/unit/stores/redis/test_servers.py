"""Servers before any is asked. Real ones are in tests/integration/test_redis_places.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper.errors import ConfigError
from tollkeeper.stores.redis.servers import Node, Servers
from tollkeeper.stores.redis.url import parse


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:canary@h/3", "h:6379"),
        ("rediss://[::1]:1", "[::1]:1"),
        ("unix://:canary@/run/r.sock", "/run/r.sock"),
        ("redis+sentinel://:canary@h,i/main", "main"),
    ],
)
def test_one_server_has_every_key(url: str, name: str) -> None:
    """F1: without a cluster there is one node, known without asking, and its name has no secrets."""
    servers = Servers(parse(url))
    servers.refresh()
    assert servers.nodes() == [servers.node_of("{a}")] == [servers.node_of("{b}")]
    assert servers.nodes()[0].name == name
    assert repr(servers.nodes()) == f"[Node(name={name!r})]"


def test_nodes_are_their_names() -> None:
    """A node that is read again is the one that it was: what is kept by node stays."""
    one, other = (Servers(parse("redis://h")).node_of("a") for _ in range(2))
    assert one == other
    assert {one: 1}[other] == 1
    assert one != Node("i:6379", one.connect)


@pytest.mark.parametrize("option", ["ca_file", "cert_file", "key_file"])
def test_files_are_looked_for_at_once(tmp_path: Path, option: str) -> None:
    """I2: a file that cannot be read is one line before anything connects."""
    files = {name: tmp_path / name for name in ("ca_file", "cert_file", "key_file")}
    for name, path in files.items():
        path.touch() if name != option else path.mkdir()
    options = "&".join(f"{name}={path}" for name, path in files.items())
    with pytest.raises(ConfigError, match=rf"^store: {option} cannot be read \(Is a directory\); name a PEM file$"):
        Servers(parse(f"rediss://:canary@h?{options}"))
