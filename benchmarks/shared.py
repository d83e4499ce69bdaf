"""Figures of a ledger that many processes share: what Redis, a process and a gateway spend on it.

`python -m benchmarks.shared URL FOLDER RATE SECONDS` reserves and settles at a steady rate in a process of its own, and prints
one JSON line: latencies of reservations in microseconds, and how late they began.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvloop
from msgspec import structs

from benchmarks import booked, record, servers
from benchmarks.client import WARM, part
from benchmarks.figures import Figure
from benchmarks.load import load
from benchmarks.processes import environment, module
from tollkeeper.clock import SystemClock
from tollkeeper.ledger import BalanceKey, Shape, sums_of
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.apply import Applier, Shared
from tollkeeper.stores.redis.batch import Place, window_at
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.stores.redis.reader import shared_of
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.stores.redis.url import parse
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.values import Budget, Entry, Hold, Scopes, Usage

RATE: Final = 500
RECORDS: Final = 10_000
NAIVE_RECORDS: Final = 2_000
SIZES: Final = (20, 100, 500)
SESSIONS: Final = {"few sessions": 10, "many sessions": 5_000}
PROJECT: Final = "p"
SHAPES: Final = (Shape("project", "usd", "month", "UTC"), Shape("session", "usd", "total", "UTC"))


def redis(folder: Path) -> Iterator[Figure]:
    """All of them, on one Redis that appends to its file as by default, a sync a second."""
    with RedisServer(folder / "redis") as server:
        yield from _batches(server)
        yield from _reservations(server, folder)
        yield from _records(server, folder)
        server.client().flushall()
        yield from _calls(server, folder)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _batches(server: RedisServer) -> Iterator[Figure]:
    """Rows of a journal applied in batches of one size; and the same counted up record by record, without a journal."""
    for title, sessions in SESSIONS.items():
        for size in SIZES:
            with _slot(server) as shared:
                applier = Applier(shared, cast("Journal", _Rows()))
                rows = list(enumerate(_entries(RECORDS + size, sessions), 1))
                applier.apply(rows[:size])

                def apply(rows: list[Any] = rows, size: int = size, applier: Applier = applier) -> None:
                    for at in range(size, len(rows), size):
                        applier.apply(rows[at : at + size])

                redis_us, client_us = _spent_us(server, apply, RECORDS)
            aim = 12 if (size, title) == (100, "few sessions") else None
            yield Figure(f"record, batches of {size}, {title}: Redis CPU", redis_us, "µs", None, aim)
            yield Figure(f"record, batches of {size}, {title}: our CPU", client_us, "µs")
        with _slot(server) as shared:
            entries = _entries(NAIVE_RECORDS, sessions)
            redis_us, client_us = _spent_us(server, lambda: _naive(server, shared, entries), NAIVE_RECORDS)  # noqa: B023
        yield Figure(f"record, increments, {title}: Redis CPU", redis_us, "µs")
        yield Figure(f"record, increments, {title}: our CPU", client_us, "µs")


class _Rows:
    """As much of a journal as batches need."""

    id = "0" * 16


@contextmanager
def _slot(server: RedisServer) -> Iterator[Shared]:
    """An empty Redis with a project whose budgets are a month's for all of it and one for each session."""
    server.client().flushall()
    options = SharedOptions(clock=SystemClock(), journal=Path())
    shared = shared_of(Servers(parse(server.url)), options, lambda state, reason: None, 10_000)
    shared.link.start()
    if not shared.link.wait(lambda state: state != "away", 5000):
        raise RuntimeError("Redis does not answer")
    epoch = shared.beat("epoch", "", "", 0)[0]
    shared.register([PROJECT])
    open_slot(shared, tag_of(PROJECT), epoch, SHAPES)
    yield shared
    shared.link.close()


def _entries(number: int, sessions: int) -> list[Entry]:
    """Calls with five cells in each period: of a project, an agent of five, a session, a user of five and a key."""
    choose, like = random.Random(1), record.entry(0)

    def scopes(at: int) -> Scopes:
        session = f"s{choose.randrange(sessions)}"
        return Scopes(project=PROJECT, agent=f"a{at % 5}", session=session, user=f"u{at % 5}", key="k")

    return [
        structs.replace(like, id=f"{at:032x}/1", call=f"{at:032x}", scopes=scopes(at)) for at in range(number)
    ]  # fmt: skip


def _naive(server: RedisServer, shared: Shared, entries: list[Entry]) -> None:
    """What a tracker without a journal does: an increment for each field of each cell and balance, a pipeline a record."""
    client = server.client()
    for entry in entries:
        pipeline = client.pipeline(transaction=False)
        places: list[tuple[Place, list[int]]] = [(place, sums_of(entry)) for place in shared.places.cells(entry)]
        for shape, id in zip(SHAPES, ("", entry.scopes.session or ""), strict=True):
            start_us, end_us = window_at(shape.window, shape.timezone, entry.at_us)
            place = shared.places.balance(BalanceKey(shape, PROJECT, id, start_us), end_us)
            places.append((place, [entry.charge.amount_nanos or 0]))
        for place, amounts in places:
            for key in place.keys:
                for field, amount in zip(place.fields, amounts, strict=True):
                    if amount:
                        pipeline.hincrby(key, field, amount)
        pipeline.execute()


def _spent_us(server: RedisServer, work: Callable[[], object], number: int) -> tuple[float, float]:
    """CPU of Redis and of this process on each of so many records."""
    before = _redis_s(server), time.process_time()
    work()
    after = _redis_s(server), time.process_time()
    redis_us, client_us = ((now - then) * 1e6 / number for now, then in zip(after, before, strict=True))
    return redis_us, client_us


def _redis_s(server: RedisServer) -> float:
    with server.client() as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


# ── reservations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _reservations(server: RedisServer, folder: Path) -> Iterator[Figure]:
    """Reservations against a project's and a session's budget at a steady rate, each settled after."""
    server.client().flushall()
    command = module("benchmarks.shared", server.url, folder / "reserve", RATE, 4)
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"reserving failed:\n{ran.stderr[-800:]}")
    saw = json.loads(ran.stdout)
    yield Figure(f"a reservation in Redis, p50 at {RATE}/s", saw["p50_us"] / 1e3, "ms", None, 0.5)
    yield Figure(f"a reservation in Redis, p99 at {RATE}/s", saw["p99_us"] / 1e3, "ms")
    yield Figure("(it began late by, p99)", saw["late_us"] / 1e3, "ms")


async def steady(url: str, folder: Path, rate: float, seconds: float) -> dict[str, int]:
    """An open loop: calls reserve by the clock, whatever is still under way."""
    budgets = (
        Budget(scope="project", limit=10**15, window="month"),
        Budget(scope="session", limit=10**15, window="total"),
    )
    clock = SystemClock()
    store = open_store(url, budgets=budgets, shared=SharedOptions(clock=clock, journal=folder))
    latencies, late = list[float](), list[float]()

    async def one(number: int, due_s: float) -> None:
        now_us, id = clock.now_us(), f"{number:032x}"
        scopes = Scopes(project=PROJECT, session=f"s{number % 16}")
        hold = Hold(
            id=f"{id}/1", call=id, attempt=1, at_us=now_us, deadline_us=now_us + 60 * 10**6, scopes=scopes, dialect="openai-chat",
            provider="openai", model="gpt-4o-mini", quote_nanos=100_000, quote_usage=Usage(input=300, output=300),
        )  # fmt: skip
        begin_s = time.perf_counter()
        late.append(begin_s - due_s)
        await store.reserve(hold)
        latencies.append(time.perf_counter() - begin_s)
        await store.settle(structs.replace(record.entry(0), id=hold.id, call=id, scopes=scopes))

    begin_s = time.perf_counter() + 0.1
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due_s = begin_s + number / rate
            await asyncio.sleep(max(0, due_s - time.perf_counter()))
            group.create_task(one(number, due_s))
    await store.close()
    warm = int(len(latencies) * WARM)
    return {
        "p50_us": part(latencies[warm:], 0.5),
        "p99_us": part(latencies[warm:], 0.99),
        "late_us": part(late[warm:], 0.99),
    }


# ── whole calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _records(server: RedisServer, folder: Path) -> Iterator[Figure]:
    """As `record` measures the store alone: 64 tasks that book, each entry synced in the journal and brought to Redis."""
    server.client().flushall()
    before_s = _redis_s(server)
    saw = json.loads(record.child("shared", folder, url=server.url).splitlines()[-1])
    booked.check(server.url, saw["records"])
    yield Figure(f"settling: durable records/s, {record.TASKS} tasks", saw["records"] / saw["seconds"], "/s")
    yield Figure("settling: our CPU per record", saw["cpu_s"] * 1e6 / saw["records"], "µs")
    number = booked.calls(server.url)
    yield Figure("settling: Redis CPU per record", (_redis_s(server) - before_s) * 1e6 / number, "µs")


def _calls(server: RedisServer, folder: Path) -> Iterator[Figure]:
    """A gateway with Redis and one with the embedded ledger, in turns; nginx beside them."""
    spent: dict[str, list[float]] = {"here": [], "embedded": []}
    with (
        servers.fixed_upstream(folder) as upstream,
        servers.proxy(folder, upstream.port) as nginx,
        servers.bare(folder) as bare,
        servers.gateway(folder, upstream.port) as embedded,
        servers.gateway(folder, upstream.port, store=server.url) as here,
    ):
        beside = load(nginx.process, nginx.port, 3)
        alone = load(bare.process, bare.port, 3)
        before_s, requests = _redis_s(server), 0
        for _ in range(2):
            for name, gateway in (("embedded", embedded), ("here", here)):
                saw = load(gateway.process, gateway.port, 4)
                spent[name].append(saw.cpu_us)
                requests += saw.requests if name == "here" else 0
        booked.check(server.url, requests)
        redis_us = (_redis_s(server) - before_s) * 1e6 / booked.calls(server.url)
    cpu_us, embedded_us = (sum(each) / len(each) for each in (spent["here"], spent["embedded"]))
    yield Figure("uvicorn alone, the same request: CPU", alone.cpu_us, "µs", beside.cpu_us)
    yield Figure("call with Redis: the gateway's CPU", cpu_us, "µs", beside.cpu_us, 450)
    yield Figure("call with the embedded ledger: the gateway's CPU", embedded_us, "µs", beside.cpu_us)
    yield Figure("call with Redis: Redis CPU", redis_us, "µs")


if __name__ == "__main__":
    told = uvloop.run(steady(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
