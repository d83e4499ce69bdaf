"""files: reading piece by piece, off the event loop."""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from pathlib import Path

import pytest

from tollkeeper.errors import BadRequest
from tollkeeper.importing import files
from tollkeeper.importing.files import Source, Unreadable, size_of

DATA = b"".join(b'{"line": %d}\n' % number for number in range(1000))


async def read(source: Source) -> bytes:
    found, stop = b"", asyncio.Event()
    try:
        while piece := await source.read(stop):
            found += piece
    finally:
        source.close()
    return found


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
async def test_reads_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file comes out whole, a compressed one unpacked, and the position ends at its size on disk."""
    monkeypatch.setattr(files, "PIECE", 100)
    path = tmp_path / name
    path.write_bytes(gzip.compress(DATA[:500]) + gzip.compress(DATA[500:]) if name.endswith(".gz") else DATA)
    source = Source(str(path))
    assert source.position == 0
    found, stop = b"", asyncio.Event()
    while piece := await source.read(stop):
        found += piece
    assert (found, source.position) == (DATA, path.stat().st_size)
    assert size_of([str(path), str(path)]) == 2 * path.stat().st_size
    source.close()


@pytest.mark.parametrize("harm", ["cut", "changed", "no gzip"])
async def test_a_damaged_file(tmp_path: Path, harm: str) -> None:
    """B6: a .gz that is cut short, changed, or none at all says so as it is read."""
    packed = gzip.compress(DATA)
    data = {"cut": packed[:-20], "changed": packed[:40] + b"\0\0\0\0" + packed[44:], "no gzip": b"plain text"}[harm]
    path = tmp_path / "log.gz"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match="cannot be read any further"):
        await read(Source(str(path)))


@pytest.mark.parametrize(("name", "says"), [("none.jsonl", "No such file"), (".", "is a folder")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, says: str) -> None:
    """I2: a file that is not there, or a folder, is one line that names it, before anything is read."""
    with pytest.raises(BadRequest, match=f"FILE: .*{says}"):
        size_of([str(tmp_path / name)])
    with pytest.raises(BadRequest, match="cannot be read"):
        Source(str(tmp_path / name))


async def test_a_pipe_that_says_nothing(tmp_path: Path) -> None:
    """A reader that waits for a pipe is stopped at once; what the pipe has is read without waiting for more."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        source, stop = Source(str(path)), asyncio.Event()
        os.write(writer, b"first\n")
        assert await source.read(stop) == b"first\n"
        assert source.position == len(b"first\n")
        waiting = asyncio.create_task(source.read(stop))
        await asyncio.sleep(0)
        stop.set()
        assert await waiting is None
        source.close()
        os.write(writer, b"too late\n")
        for thread in threading.enumerate():  # the one that had it
            if thread.name == "tollkeeper-import":
                await asyncio.to_thread(thread.join)
        assert source._file.closed
    finally:
        os.close(writer)
    assert size_of([str(path)]) is None
