"""Durable records without the gateway: `python -m benchmarks.record tracker|store|shared FOLDER SECONDS [samples|calls|-]`.

64 tasks, each booking one call after the other; a call counts once the ledger says that it is synced. `tracker` is
`CostTracker.record_usage`, priced; `store` hands the ledger entries that are made beforehand but for their id; `shared` is the
same with the Redis of a URL, which follows as one more argument. No budgets.
The process prints one JSON line: records, seconds, CPU seconds (its writer's thread included).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from msgspec import structs

from benchmarks import booked
from benchmarks.figures import Figure
from benchmarks.processes import environment, module
from benchmarks.profilers import PROFILERS
from tollkeeper.clock import SystemClock
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.tracker import CostTracker
from tollkeeper.values import Charge, Entry, Scopes, Term, Usage

TASKS: Final = 64
WARM_S: Final = 0.5
MEASURED_S: Final = 4
TITLES: Final = {"tracker": "record_usage", "store": "the store alone"}
Book = Callable[[int, int], Awaitable[object]]
"""Book one call: the task's number and a number that no other call has."""


def records(folder: Path) -> Iterator[Figure]:
    """Records per second and CPU per record, through the library and through the store alone."""
    for how, title in TITLES.items():
        saw = json.loads(child(how, folder).splitlines()[-1])
        booked.check(f"sqlite:///{folder}/{how}.sqlite", saw["records"])
        number, aim = saw["records"], 15_000 if how == "tracker" else None
        yield Figure(
            f"{title}: durable records/s, {TASKS} tasks", number / saw["seconds"], "/s", None, aim, at_most=False
        )
        yield Figure(f"{title}: CPU per record", saw["cpu_s"] * 1e6 / number, "µs")


def child(how: str, folder: Path, profiler: str = "-", url: str = "") -> str:
    """What a process of its own printed. Raises RuntimeError if it failed."""
    command = module("benchmarks.record", how, folder, MEASURED_S, profiler, url)
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"recording through the {how} failed:\n{ran.stderr[-800:]}")
    return ran.stdout


def entry(task: int) -> Entry:
    """A call of one of four projects and sixteen agents, priced as gpt-4o-mini."""
    terms = tuple(
        Term("gpt-4o-mini", kind, count, usd) for kind, count, usd in (("input", 156, "0.15"), ("output", 40, "0.6"))
    )
    charge = Charge(amount_nanos=47_400, computed_nanos=47_400, status="priced", price_version="benchmark", terms=terms)
    return Entry(
        id="", call="", at_us=time.time_ns() // 1000,
        scopes=Scopes(project=f"p{task % 4}", agent=f"a{task % 16}", session=f"s{task}"),
        dialect="openai-chat", provider="openai", model="gpt-4o-mini", served="gpt-4o-mini-2024-07-18",
        usage=Usage(input=156, output=40), charge=charge, http_status=200, latency_ms=1,
    )  # fmt: skip


async def through_store(folder: Path, run: Callable[[Book], Awaitable[None]], url: str = "") -> None:
    shared = SharedOptions(clock=SystemClock(), journal=folder / "journal")
    store = open_store(url or f"sqlite:///{folder / 'store.sqlite'}", shared=shared)
    entries = [entry(task) for task in range(TASKS)]

    async def book(task: int, number: int) -> None:
        await store.settle(structs.replace(entries[task], id=f"call-{number}/1", call=f"call-{number}"))

    await run(book)
    await store.close()


async def through_tracker(folder: Path, run: Callable[[Book], Awaitable[None]]) -> None:
    async with CostTracker(store=f"sqlite:///{folder / 'tracker.sqlite'}") as tracker:

        async def book(task: int, number: int) -> None:
            await tracker.record_usage(
                f"p{task % 4}", f"a{task % 16}", "gpt-4o-mini", 156, 40, session_id=f"s{task}", request_id=f"call-{number}"
            )  # fmt: skip

        await run(book)


async def measure(book: Book, seconds: float, kind: str | None) -> dict[str, float]:
    """Drive `book` from all tasks for so long."""
    numbers = count()
    done = 0
    stop = False

    async def worker(task: int) -> None:
        nonlocal done
        while not stop:
            await book(task, next(numbers))
            done += 1

    workers = [asyncio.create_task(worker(task)) for task in range(TASKS)]
    await asyncio.sleep(WARM_S)
    profiler = None if kind is None else PROFILERS[kind]()
    if profiler is not None:
        profiler.begin()
    before = done, time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    after = done, time.perf_counter(), time.process_time()
    if profiler is not None:
        profiler.end()
    stop = True
    await asyncio.gather(*workers)
    return dict(
        zip(("records", "seconds", "cpu_s"), (now - then for now, then in zip(after, before, strict=True)), strict=True)
    )


async def _main(how: str, folder: Path, seconds: float, kind: str, url: str) -> None:
    ways: dict[str, Callable[[Path, Callable[[Book], Awaitable[None]]], Awaitable[None]]] = {
        "store": through_store, "tracker": through_tracker, "shared": partial(through_store, url=url),
    }  # fmt: skip

    async def run(book: Book) -> None:
        saw = await measure(book, seconds, None if kind == "-" else kind)
        sys.stdout.write(msgspec.json.encode(saw).decode() + "\n")

    await ways[how](folder, run)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
