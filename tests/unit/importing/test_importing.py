"""importing: files into the ledger, each line once, whatever is wrong with the others."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.tracking import PRICES

from tollkeeper import importing
from tollkeeper.errors import BadRequest, ConfigError, StoreUnavailable
from tollkeeper.importing import Rejected, Summary, import_files
from tollkeeper.importing.lines import Piece
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Booked, Retention, Store
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.opening import open_store
from tollkeeper.testing.clock import START_US, ManualClock
from tollkeeper.testing.samples import DAY_US, a_hold, booked, month_of, total
from tollkeeper.values import Entry

#: tenth: 1,000 output tokens cost $0.10.
LINE: dict[str, Any] = {
    "at": "2025-12-31T00:00:00Z",
    "project": "p",
    "agent": "a",
    "model": "tenth",
    "output": 1000,
    "input": 1,
}


class Importer:
    """Imports into one ledger at a time that stands still."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store, self.rejected = folder, store, list[Rejected]()
        (folder / "prices.toml").write_text(PRICES)

    def file(self, *lines: object, name: str = "log.jsonl") -> str:
        path = self.folder / name
        path.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        )
        return str(path)

    async def __call__(self, *files: str, store: Store | str | None = None, **options: Any) -> Summary:
        settings = {"prices": str(self.folder / "prices.toml")} | options.pop("settings", {})
        self.rejected.clear()
        return await import_files(
            files, store=self.store if store is None else store, settings=settings, clock=ManualClock(),
            rejected=self.rejected.append, **options,
        )  # fmt: skip


@pytest.fixture
def bring(tmp_path: Path) -> Importer:
    return Importer(tmp_path, MemoryStore())


def counts(summary: Summary) -> tuple[int, ...]:
    """booked, corrected, repeated, conflicts, bad."""
    assert summary.lines == summary.booked + summary.corrected + summary.repeated + summary.conflicts + summary.bad
    return summary.booked, summary.corrected, summary.repeated, summary.conflicts, summary.bad


# ── each line once ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_summary_is_the_ledger(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B7, G1: what the summary says was booked is what the ledger has, and the ledger agrees with itself."""
    monkeypatch.setattr(importing, "WINDOW", 7)
    store = MemoryStore() if kind == "memory" else open_store(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    bring = Importer(tmp_path, store)
    lines = [LINE | {"request_id": f"r{number}", "output": number, "agent": f"a{number % 3}"} for number in range(50)]
    lines += [LINE | {"model": "who-knows"}, LINE | {"model": "cached", "input_audio": 9, "tier": "flex"}]
    lines += [LINE | {"cost_usd": "0.25", "project": "q"}]
    summary = await bring(bring.file(*lines))
    assert counts(summary) == (53, 0, 0, 0, 0)
    cells = await month_of(store)
    assert total(cells, "calls") == 53
    assert total(cells, "amount_nanos") == summary.amount_nanos > 0
    assert total(cells, "inexact_nanos") == summary.inexact_nanos > 0
    assert total(cells, "unpriced") == summary.unpriced == 1
    assert (summary.from_us, summary.to_us) == (START_US - DAY_US, START_US - DAY_US)
    assert await store.verify() == []
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_again_and_grown(tmp_path: Path, kind: str) -> None:
    """B2: a file imported again adds nothing, one that grew adds what is new; equal lines without an id are several calls."""
    store = MemoryStore() if kind == "memory" else open_store(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    bring = Importer(tmp_path, store)
    first = [LINE, LINE, LINE | {"request_id": "r1"}, LINE | {"request_id": "r1"}]
    assert counts(await bring(bring.file(*first))) == (3, 0, 1, 0, 0)
    assert counts(await bring(bring.file(*first))) == (0, 0, 4, 0, 0)
    grown = bring.file(*first, LINE, LINE | {"request_id": "r2"}, name="grown.jsonl")
    assert counts(await bring(grown)) == (2, 0, 4, 0, 0)
    assert counts(await bring(grown, bring.file(*first))) == (0, 0, 10, 0, 0)
    assert len(await booked(store)) == 5
    assert await store.verify() == []
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_conflicts(tmp_path: Path, kind: str) -> None:
    """B2: an id that was booked with other contents is told by its line and changes nothing; in one file the first one counts."""
    store = MemoryStore() if kind == "memory" else open_store(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    bring = Importer(tmp_path, store)
    file = bring.file(
        LINE | {"request_id": "r1"}, LINE | {"request_id": "r1", "output": 5}, LINE | {"request_id": "r2"}
    )
    assert counts(await bring(file)) == (2, 0, 0, 1, 0)
    told = [(each.line, each.is_conflict, each.reason) for each in bring.rejected]
    assert told == [(2, True, "entry 'r1/1' was booked with other contents")]
    assert counts(await bring(file)) == (0, 0, 2, 1, 0)
    assert counts(await bring(file, dry_run=True)) == (0, 0, 2, 1, 0)
    assert [entry.usage.output for entry in await booked(store)] == [1000, 1000]
    await store.close()


async def test_other_prices_are_no_conflict(bring: Importer) -> None:
    """B2: a file is a repeat also where prices have changed since; it is not priced again."""
    file = bring.file(LINE | {"request_id": "r1"})
    await bring(file)
    (bring.folder / "prices.toml").write_text(PRICES.replace('"100"', '"200"'))
    assert counts(await bring(file, settings={})) == (0, 0, 1, 0, 0)
    assert [entry.charge.amount_nanos for entry in await booked(bring.store)] == [100_000_000]


async def test_what_the_gateway_booked(bring: Importer) -> None:
    """B2: a log of calls that went through the gateway says nothing new; an estimate of a call that died is corrected."""
    known = a_hold("r1/1", 7, provider="fake", model="tenth", at_us=START_US - DAY_US)
    await bring.store.reserve(known)
    assert await bring.store.expire(FOREVER_US) == 1
    line = LINE | {"project": "alpha", "request_id": "r1"}
    file = bring.file(line, {name: value for name, value in line.items() if name != "agent"})
    assert counts(await bring(file, dry_run=True)) == (0, 2, 0, 0, 0)
    assert counts(await bring(file)) == (0, 1, 1, 0, 0)
    assert total(await month_of(bring.store), "amount_nanos") == 100_000_000


async def test_files_of_other_projects(bring: Importer) -> None:
    """C8: an id belongs to its project; what a line does not say is what was given, else the default project."""
    file = bring.file({name: value for name, value in LINE.items() if name not in ("project", "agent")})
    assert counts(await bring(file, project="x", agent="b")) == (1, 0, 0, 0, 0)
    assert counts(await bring(file)) == (1, 0, 0, 0, 0)
    assert [(entry.scopes.project, entry.scopes.agent) for entry in await booked(bring.store)] == [
        ("x", "b"),
        ("default", None),
    ]


# ── bad lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_bad_lines_are_left_out(bring: Importer) -> None:
    """P4: each bad line is told with its number and why; the others are booked."""
    file = bring.file(
        LINE,
        b"\n",
        b"{\n",
        LINE | {"outptu": 5},
        b'{"at": "\xff"}\n',
        LINE | {"at": "2030-01-01T00:00:00Z"},
        LINE | {"input": 2},
    )
    assert counts(await bring(file)) == (2, 0, 0, 0, 4)
    assert [each.line for each in bring.rejected] == [3, 4, 5, 6]
    assert [each.reason.partition(":")[0] for each in bring.rejected] == [
        "the line is not JSON", "'outptu' is not a field; did you mean output?", "the line is not UTF-8; send JSON in UTF-8", "at",
    ]  # fmt: skip
    assert {each.file for each in bring.rejected} == {file}


async def test_a_file_that_breaks_off(bring: Importer) -> None:
    """B6: a .gz that is damaged is imported as far as it goes, and the next file is taken."""
    lines = [LINE | {"request_id": f"{number}"} for number in range(3000)]
    packed = gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    (bring.folder / "broken.gz").write_bytes(packed[: len(packed) // 2])
    summary = await bring(str(bring.folder / "broken.gz"), bring.file(LINE), format="usage")
    assert summary.bad == 1
    assert "cannot be read any further" in bring.rejected[0].reason
    assert summary.booked >= 1


@effort(max_examples=60)
@given(lines=st.lists(st.binary(max_size=60) | st.sampled_from([json.dumps(LINE).encode(), b"[", b"[{}", b"{}", b'"'])))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    """H4: any bytes in any format: sums that add up, never a crash, and the same again is no new entry."""
    bring = Importer(tmp_path_factory.mktemp("any"), MemoryStore())
    file = bring.file(b"\n".join(lines))
    for form in ("usage", "openai", "litellm"):
        once = asyncio.run(bring(file, format=form))
        again = asyncio.run(bring(file, format=form))
        assert counts(again) == (0, 0, once.booked + once.repeated, once.conflicts, once.bad)


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CHAT = {
    "object": "chat.completion", "id": "c1", "created": START_US // 10**6 - 5, "model": "tenth", "choices": [],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1000, "total_tokens": 1001},
}  # fmt: skip
ROW = {
    "request_id": "l1", "startTime": "2025-12-31 00:00:00", "model": "tenth", "prompt_tokens": 1, "completion_tokens": 1000,
    "spend": 0.2, "team_id": "t", "api_key": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (json.dumps(LINE), "usage"),
        (json.dumps([LINE]), "usage"),
        ("\ufeff" + json.dumps(LINE), "usage"),
        ("not json\n" + json.dumps(LINE), "usage"),
        (json.dumps(CHAT), "openai"),
        (json.dumps({"custom_id": "x", "response": {"body": CHAT}}), "openai"),
        (json.dumps(ROW), "litellm"),
        (json.dumps([ROW], indent=2), "litellm"),
        (",".join(ROW) + "\r\n" + ",".join(map(str, ROW.values())) + "\r\n", "litellm"),
    ],
)
async def test_formats_are_recognised(bring: Importer, data: str, form: str) -> None:
    """auto takes a file for what its first lines are, and books what naming the format books."""
    file = bring.file(data.encode())
    summary = await bring(file)
    assert (summary.booked, summary.formats) == (1, {file: form})
    assert summary.amount_nanos == 100_000_000 or summary.inexact_nanos == 100_000_000
    assert counts(await bring(file, format=form)) == (0, 0, 1, 0, summary.bad)


@pytest.mark.parametrize("data", [b"hello\nworld\n", b'{"a": 1}\n', b"[1, 2]", b"a,b\n1,2\n"])
async def test_no_format(bring: Importer, data: bytes) -> None:
    """I2: a file that is nothing known is refused with what there is."""
    with pytest.raises(BadRequest, match="is in none of the formats usage, openai, litellm"):
        await bring(bring.file(data))
    assert await booked(bring.store) == []


async def test_an_empty_file(bring: Importer) -> None:
    """An empty file, and one of blanks, are nothing wrong."""
    assert counts(await bring(bring.file(b""))) == counts(await bring(bring.file(b"\n \n"))) == (0, 0, 0, 0, 0)


async def test_what_another_program_computed(bring: Importer) -> None:
    """P4: LiteLLM's own figures are summed beside ours, for calls that both have an amount for."""
    summary = await bring(bring.file(ROW, ROW | {"request_id": "l2", "model": "who-knows", "spend": 5}))
    assert (summary.compared, summary.compared_nanos, summary.other_nanos) == (1, 100_000_000, 200_000_000)
    assert (summary.amount_nanos, summary.unpriced) == (100_000_000, 1)


# ── dry run, retention, settings ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """A dry run says what an import would do, beside the ledger's owner or without a ledger, and leaves nothing behind."""
    path = tmp_path / "ledger.sqlite"
    bring = Importer(tmp_path, MemoryStore())
    lines = [LINE | {"request_id": "r1"}, LINE | {"request_id": "r2"}, LINE | {"request_id": "r2"}, b"{\n"]
    file, url = bring.file(*lines), f"sqlite:///{path}"
    dry = await bring(file, store=url, dry_run=True)
    assert counts(dry) == (2, 0, 1, 0, 1)
    assert not path.exists()
    owner = open_store(url)
    await import_files([bring.file(lines[0], name="some.jsonl")], store=owner, settings={}, clock=ManualClock())
    dry = await bring(file, store=url, dry_run=True)
    assert counts(dry) == (1, 0, 2, 0, 1)
    assert dry.amount_nanos == 100_000_000
    assert len(await booked(owner)) == 1
    await owner.close()


async def test_retention(bring: Importer) -> None:
    """B2: what pruning would drop is booked and counted; what it has dropped is left out, for it may have been booked before."""
    old = LINE | {"at": "2025-06-01T00:00:00Z", "request_id": "old"}
    file = bring.file(old, LINE)
    summary = await bring(file)
    assert (counts(summary), summary.past_retention) == ((2, 0, 0, 0, 0), 1)
    await bring.store.prune(START_US, Retention())
    assert counts(await bring(file)) == (0, 0, 1, 0, 1)
    assert "are pruned here: whether it was booked before cannot be told" in bring.rejected[0].reason
    assert await bring.store.verify() == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"project": ""}, ValueError, "project: expected"),
        ({"format": "xml"}, ValueError, "format: expected one of usage"),
        ({"at": datetime(2026, 1, 1)}, ValueError, "at: expected"),  # noqa: DTZ001 the mistake
        ({"settings": {"cost_tracking_enabled": False}}, ConfigError, "cost_tracking_enabled: is false"),
    ],
)
async def test_wrong_arguments(bring: Importer, options: dict[str, Any], error: type[Exception], says: str) -> None:
    """I2: a wrong argument or setting is told before anything is read."""
    with pytest.raises(error, match=says):
        await bring(bring.file(LINE), **options)
    with pytest.raises(BadRequest, match="cannot be read"):
        await bring(bring.file(LINE), str(bring.folder / "none"))
    assert await booked(bring.store) == []


async def test_a_time_beside_the_file(bring: Importer) -> None:
    """A response without a time is booked at the one that is given."""
    chat = {name: value for name, value in CHAT.items() if name != "created"}
    await bring(bring.file(chat), at=datetime(2025, 12, 1, tzinfo=UTC))
    assert [entry.at_us for entry in await booked(bring.store)] == [START_US - 31 * DAY_US]


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Failing(MemoryStore):
    """Takes so many entries, then the disk is full."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    async def settle(self, entry: Entry) -> Booked:
        if self.room <= 0:
            raise StoreUnavailable("the disk is full")
        self.room -= 1
        return await super().settle(entry)


async def test_a_ledger_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: a ledger that takes no more ends the import with its error; run again, each line is there once."""
    monkeypatch.setattr(importing, "WINDOW", 10)
    store = Failing(25)
    bring = Importer(tmp_path, store)
    file = bring.file(*(LINE | {"input": number} for number in range(100)))
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        await bring(file)
    store.room = 1000
    assert counts(await bring(file)) == (75, 0, 25, 0, 0)


async def test_stopping(bring: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping finishes what is under way and says where; run again, what is booked counts once."""
    monkeypatch.setattr(importing, "WINDOW", 10)
    stop = asyncio.Event()
    book: Callable[..., Any] = importing._Run._read

    def read(run: Any, piece: Piece, form: Any) -> Any:
        if piece.number == 35:
            stop.set()
        return book(run, piece, form)

    monkeypatch.setattr(importing._Run, "_read", read)
    file = bring.file(*(LINE | {"input": number} for number in range(100)))
    summary = await bring(file, bring.file(LINE, name="next.jsonl"), stop=stop)
    assert (summary.stopped, summary.booked) == ((file, 40), 40)
    monkeypatch.undo()
    assert counts(await bring(file)) == (60, 0, 40, 0, 0)


async def test_progress(bring: Importer) -> None:
    """Progress tells the bytes taken, over all files, up to their sizes."""
    first, second = bring.file(LINE), bring.file(LINE, LINE, name="second.jsonl")
    seen: list[tuple[int, int]] = []
    await bring(first, second, progress=lambda taken, summary: seen.append((taken, summary.lines)))
    size = os.stat(first).st_size
    assert seen[0] == (size, 1)
    assert seen[-1] == (3 * size, 3)
