"""A disk that fails or stops on command, as SQLite sees it: every database opened while it is in place stands on it."""

from __future__ import annotations

from threading import Event
from typing import Literal, Self

import apsw

Failing = Literal["sync", "write", "read"]


class Disk(apsw.VFS):
    """Made the default of the process by `with Disk() as disk`. `failing` holds what fails now; `stop()` lets syncs wait.

    `left`: so many writes and syncs still happen, then none any more, as when the machine loses power.
    """

    def __init__(self) -> None:
        self.failing: set[Failing] = set()
        self.left: int | None = None
        self.reached = Event()  # a sync has come to the closed gate
        self._gate = Event()
        self._gate.set()
        super().__init__("tollkeeper-tests", base="unix", makedefault=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go()
        self.unregister()

    def stop(self) -> None:
        self.reached.clear()
        self._gate.clear()

    def go(self) -> None:
        self._gate.set()

    def dead(self) -> bool:
        """Counts a write or a sync; whether it does not happen any more."""
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0

    def wait(self) -> None:
        if not self._gate.is_set():
            self.reached.set()
            assert self._gate.wait(30)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 SQLite's name
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.wait()
        if "sync" in self._disk.failing or self._disk.dead():
            raise apsw.IOError("fsync failed")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if "write" in self._disk.failing or self._disk.dead():
            raise apsw.FullError("no space left")
        super().xWrite(data, offset)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        if "read" in self._disk.failing:
            raise apsw.IOError("read failed")
        return super().xRead(amount, offset)
