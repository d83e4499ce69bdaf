"""Reading a file of any size piece by piece, off the event loop: a plain one, a `.gz`, or stdin as `-`.

Each piece is read in a thread of its own that dies with the process: a pipe that says nothing keeps nobody from stopping.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Final, Protocol

from tollkeeper.errors import BadRequest

STDIN: Final = "-"
PIECE: Final = 1 << 20
"""Bytes that are read at once."""
_UNREADABLE: Final = (OSError, EOFError, zlib.error)  # a damaged .gz is each of them


class Unreadable(Exception):
    """A file broke off in the middle. `str()` says why."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


class Source:
    """One file, open. Raises BadRequest where it cannot be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reading = self._closed = False
        try:
            # Unbuffered: a thread that waits for stdin holds no lock that the end of the process waits for.
            self._file = open(0 if name == STDIN else name, "rb", buffering=0, closefd=name != STDIN)  # noqa: SIM115 closed by close
        except OSError as error:
            raise _cannot(name, error) from None
        self._stream: _Stream = gzip.GzipFile(fileobj=self._file, mode="rb") if name.endswith(".gz") else self._file
        self._is_seekable = self._file.seekable()
        self._taken = 0

    @property
    def position(self) -> int:
        """Bytes taken from the file itself, compressed ones where it is."""
        return self._file.tell() if self._is_seekable else self._taken

    async def read(self, stop: asyncio.Event) -> bytes | None:
        """The next piece, b"" at the end; None: `stop` was set first. Raises Unreadable."""
        self._reading = True
        piece = asyncio.ensure_future(_in_thread(self._next))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((piece, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                piece.cancel()
                return None
            found = piece.result()
        except _UNREADABLE as error:
            raise Unreadable(f"cannot be read any further: {error}") from None
        finally:
            stopped.cancel()
        self._taken += len(found)
        return found

    def close(self) -> None:
        """Let go of it; where a thread still waits for a piece, that is its work."""
        self._closed = True
        if not self._reading:
            self._let_go()

    def _next(self) -> bytes:
        try:
            return self._stream.read(PIECE) or b""
        finally:
            self._reading = False
            if self._closed:
                self._let_go()

    def _let_go(self) -> None:
        self._stream.close()
        self._file.close()


def size_of(names: Sequence[str]) -> int | None:
    """Bytes of all files; None where one of them cannot know, such as a pipe. Raises BadRequest where one cannot be read."""
    total: int | None = 0
    for name in names:
        if name == STDIN:
            found = os.fstat(0)
        else:
            try:
                found = os.stat(name)
                if stat.S_ISREG(found.st_mode):
                    os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise _cannot(name, error) from None
            if stat.S_ISDIR(found.st_mode):
                raise BadRequest(f"FILE: {name} is a folder; name the files in it")
        total = total + found.st_size if total is not None and stat.S_ISREG(found.st_mode) else None
    return total


def _cannot(name: str, error: OSError) -> BadRequest:
    return BadRequest(f"FILE: {name} cannot be read: {error.strerror}; name a log, or - for stdin")


async def _in_thread(work: Callable[[], bytes]) -> bytes:
    """What `work` answers, from a thread that nobody waits for."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[bytes] = loop.create_future()

    def tell(answer: bytes, error: BaseException | None) -> None:
        if told.done():
            return
        if error is None:
            told.set_result(answer)
        else:
            told.set_exception(error)

    def run() -> None:
        answer, failure = b"", None
        try:
            answer = work()
        except BaseException as error:  # it is told to whoever waits
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, answer, failure)

    Thread(target=run, name="tollkeeper-import", daemon=True).start()
    return await told
