"""The servers of a run: a fixed upstream, nginx as a proxy of it, and the gateway with budgets and a ledger on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.load import KEY
from benchmarks.processes import Process, free_port, module, started

ENVIRONMENT: Final = {"OPENAI_API_KEY": "sk-upstream"}
HERE: Final = Path(__file__).parent

CONFIG: Final = """
host = "127.0.0.1"
port = {port}
store = "{store}"
journal = "{journal}"

[providers.openai]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key_env = "OPENAI_API_KEY"

[[keys]]
id = "bench"
hash = "sha256:{hash}"
project = "bench"

[[budgets]]
scope = "project"
window = "month"
limit = "1000000"

[[budgets]]
scope = "session"
window = "total"
limit = "1000000"

[[budgets]]
scope = "key"
measure = "requests"
window = "minute"
limit = 1000000000
"""


class Server(msgspec.Struct, frozen=True):
    """A process and the port that it listens on."""

    process: Process
    port: int


@contextmanager
def nginx(folder: Path, kind: str, **ports: int) -> Iterator[Server]:
    """nginx from `<kind>.nginx.conf`, listening on the port of the same name."""
    text = HERE.joinpath(f"{kind}.nginx.conf").read_text()
    for name, port in ports.items():
        text = text.replace(f"@{name.upper()}@", str(port))
    path = folder / f"{kind}.{ports[kind]}.nginx.conf"
    path.write_text(text)
    folder.chmod(0o755)  # nginx's workers give up root
    with started(["nginx", "-p", str(folder), "-c", str(path)], folder, port=ports[kind]) as process:
        yield Server(process, ports[kind])


@contextmanager
def fixed_upstream(folder: Path) -> Iterator[Server]:
    """nginx answering every request with one canned body."""
    with nginx(folder, "upstream", upstream=free_port()) as server:
        yield server


@contextmanager
def proxy(folder: Path, upstream: int) -> Iterator[Server]:
    """nginx before an upstream: the figure beside the gateway's."""
    with nginx(folder, "proxy", proxy=free_port(), upstream=upstream) as server:
        yield server


@contextmanager
def bare(folder: Path) -> Iterator[Server]:
    """The server alone, without a gateway."""
    port = free_port()
    with started(module("benchmarks.bare", port), folder, port=port) as process:
        yield Server(process, port)


def ledger(folder: Path, port: int) -> str:
    """The embedded ledger of the gateway on that port."""
    return f"sqlite:///{folder}/ledger.{port}.sqlite"


def configured(folder: Path, upstream: int, store: str | None = None) -> tuple[Path, int]:
    """A gateway's configuration file and its port: three hard budgets on every call, a new ledger on disk or a shared one."""
    port = free_port()
    path = folder / f"gateway.{port}.toml"
    path.write_text(
        CONFIG.format(
            port=port,
            store=store or ledger(folder, port),
            journal=folder / f"journal.{port}",
            upstream=upstream,
            hash=hashlib.sha256(KEY.encode()).hexdigest(),
        )
    )
    return path, port


@contextmanager
def gateway(folder: Path, upstream: int, profiler: str | None = None, store: str | None = None) -> Iterator[Server]:
    """The gateway as its own process: the command that users run, or the same under a profiler."""
    path, port = configured(folder, upstream, store)
    command = serve(path) if profiler is None else module("benchmarks.profiled", path, profiler)
    with started(command, folder, port=port, env=ENVIRONMENT) as process:
        yield Server(process, port)


def serve(path: Path) -> list[str]:
    """The command that serves a configuration file."""
    return module("tollkeeper", "serve", "--config", path)
