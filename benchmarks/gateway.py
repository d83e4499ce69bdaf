"""Figures of the gateway's process: calls, added latency, streams, memory, start; nginx beside it where nginx does the same."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import booked, servers
from benchmarks.figures import Figure
from benchmarks.load import CONNECTIONS, load
from benchmarks.processes import Process, environment, free_port, module, started
from benchmarks.streams import CHUNKS

RATE: Final = 500
PACE_MS: Final = 2
STARTS: Final = 5
WARM_CALLS: Final = 10_000


def calls(folder: Path) -> Iterator[Figure]:
    """Chat calls of 1 KB as fast as 32 connections send them: three hard budgets, keys, the ledger durable on disk."""
    with (
        servers.fixed_upstream(folder) as upstream,
        servers.proxy(folder, upstream.port) as nginx,
        servers.bare(folder) as bare,
        servers.gateway(folder, upstream.port) as gateway,
    ):
        beside = load(nginx.process, nginx.port, 4)
        alone = load(bare.process, bare.port, 4)
        here = load(gateway.process, gateway.port, 8)
        booked.check(servers.ledger(folder, gateway.port), here.requests)
        yield Figure("uvicorn alone, the same request: CPU", alone.cpu_us, "µs", beside.cpu_us)
        yield Figure("call: CPU", here.cpu_us, "µs", beside.cpu_us, 350)
        yield Figure("call: requests/s per core", 1e6 / here.cpu_us, "/s", 1e6 / beside.cpu_us, 3000, at_most=False)
        yield Figure(f"call: requests/s, {CONNECTIONS} connections", here.rate, "/s", beside.rate)
        yield Figure(f"call: latency p50, {CONNECTIONS} connections", here.p50_ms, "ms", beside.p50_ms)
        yield Figure(f"call: latency p99, {CONNECTIONS} connections", here.p99_ms, "ms", beside.p99_ms)


def latency(folder: Path) -> Iterator[Figure]:
    """What the gateway adds to a call at a steady rate: its latency less that of the upstream asked directly."""
    saw: dict[str, list[dict[str, int]]] = {"direct": [], "nginx": [], "gateway": []}
    with (
        servers.fixed_upstream(folder) as upstream,
        servers.proxy(folder, upstream.port) as nginx,
        servers.gateway(folder, upstream.port) as gateway,
    ):
        for _ in range(3):  # in turns, so that what else the machine does falls on all of them
            for name, server in (("direct", upstream), ("nginx", nginx), ("gateway", gateway)):
                saw[name].append(client(server, "--rate", RATE, "--seconds", 3))

    def added(name: str, field: str) -> float:
        one, direct = (statistics.median(each[field] for each in saw[key]) for key in (name, "direct"))
        return (one - direct) / 1e3

    late_ms = statistics.median(each["late_us"] for each in saw["gateway"]) / 1e3
    yield Figure(f"added latency p50 at {RATE}/s", added("gateway", "p50_us"), "ms", added("nginx", "p50_us"), 1.5)
    yield Figure(f"added latency p99 at {RATE}/s", added("gateway", "p99_us"), "ms", added("nginx", "p99_us"), 8)
    yield Figure("(the client itself was late by, p99)", late_ms, "ms")


def streams(folder: Path) -> Iterator[Figure]:
    """Streamed calls of 200 chunks, each chunk sent alone as a model sends them, and all in one write."""
    shapes = ((f"a chunk every {PACE_MS} ms", PACE_MS, 600, 4000.0), ("all at once", 0, 1200, None))
    for title, pace_ms, number, aim in shapes:
        port = free_port()
        with (
            started(module("benchmarks.streams", port, pace_ms), folder, port=port),
            servers.proxy(folder, port) as nginx,
            servers.gateway(folder, port) as gateway,
        ):
            beside_us, here_us = (_spent_us(each, number) for each in (nginx, gateway))
        yield Figure(f"stream of {CHUNKS} chunks, {title}: CPU", here_us, "µs", beside_us, aim)


def memory(folder: Path, number: int) -> Iterator[Figure]:
    """Resident memory before any call, after the first 10,000, and after all."""
    with servers.fixed_upstream(folder) as upstream, servers.gateway(folder, upstream.port) as gateway:
        time.sleep(1)
        yield Figure("memory, idle", gateway.process.rss_mb(), "MB", None, 120)
        done = _load_calls(gateway, WARM_CALLS)
        warm_mb = gateway.process.rss_mb()
        yield Figure(f"memory after {done:,} calls", warm_mb, "MB")
        done += _load_calls(gateway, number - done)
        last_mb = gateway.process.rss_mb()
        yield Figure(f"memory after {done:,} calls", last_mb, "MB")
        yield Figure("memory: growth between the two", 100 * (last_mb - warm_mb) / warm_mb, "%", None, 5)


def start(folder: Path) -> Iterator[Figure]:
    """Seconds from the start of the process to the first answer of /healthz; nothing beyond the machine is asked."""
    found: list[float] = []
    for _ in range(STARTS):
        path, port = servers.configured(folder, free_port())
        begin_s = time.perf_counter()
        with started(servers.serve(path), folder, port=port, env=servers.ENVIRONMENT) as process:
            _healthy(process, port)
            found.append(time.perf_counter() - begin_s)
    yield Figure(f"start to first answer, median of {STARTS}", statistics.median(found), "s", None, 2)


def client(server: servers.Server, *arguments: object) -> dict[str, int]:
    """One run of the client process against a server. Raises RuntimeError if a request failed or the server ended."""
    command = module("benchmarks.client", server.port, *arguments)
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    server.process.check()
    if ran.returncode != 0:
        raise RuntimeError(f"the client failed:\n{ran.stderr[-800:]}")
    saw: dict[str, int] = json.loads(ran.stdout)
    return saw


def _spent_us(server: servers.Server, number: int) -> float:
    """CPU of a server per streamed call; every call is read to its end, so that none is counted in part."""
    client(server, "--calls", number // 10)
    before_s = server.process.cpu_s()
    client(server, "--calls", number)
    return (server.process.cpu_s() - before_s) * 1e6 / number


def _load_calls(server: servers.Server, number: int) -> int:
    done, seconds = 0, 1
    while done < number:
        saw = load(server.process, server.port, seconds, warm=0)
        done += saw.requests
        seconds = max(1, min(30, int((number - done) / saw.rate) + 1))
    return done


def _healthy(process: Process, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/healthz")
    if connection.getresponse().status != 200:
        raise RuntimeError(f"/healthz does not say 200:\n{process.told()}")
    connection.close()
