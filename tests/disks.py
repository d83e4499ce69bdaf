"""Disks that are slow, fail, lose what was not synced, or are full: for servers and processes that tests start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("slow_disk.c")


class SlowDisk:
    """Says how long an fsync takes and whether it fails, in each process that is started with `env`; also while it runs.

    Skips the test where there is no gcc. `slow_disk.c` has its limits.
    """

    def __init__(self, folder: Path) -> None:
        if (compiler := shutil.which("gcc")) is None:
            pytest.skip("no gcc to compile tests/slow_disk.c with")
        library = folder / "slow_disk.so"
        subprocess.run(
            [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True
        )
        self._told = folder / "slow_disk.txt"
        self._notes = folder / "slow_disk.txt.d"
        self._notes.mkdir()
        self.env = {"LD_PRELOAD": str(library), "SLOW_DISK": str(self._told)}
        self.syncs()

    def syncs(self, *, ms: int = 0, errno: int = 0) -> None:
        """From now on a sync takes `ms` longer, and fails with `errno` if that is not 0."""
        new = self._told.with_suffix(".new")
        new.write_text(f"{ms} {errno}\n")
        new.replace(self._told)

    def synced(self, path: Path) -> int:
        """How many bytes of a file are safe: as many as it had when its last good sync began."""
        note = self._notes / str(path.stat().st_ino)
        return int(note.read_text()) if note.exists() else 0

    def cut_power(self, *paths: Path) -> int:
        """What is left of files that only grow, after their process was killed: what was synced. Returns the bytes lost."""
        lost = 0
        for path in paths:
            safe = self.synced(path)
            lost += path.stat().st_size - safe
            os.truncate(path, safe)
        return lost


@contextmanager
def small_disk(folder: Path, size_mib: int = 8) -> Iterator[Path]:
    """A file system of its own (tmpfs) with so much room, at `folder`. Skips the test where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        pytest.skip(f"no tmpfs may be mounted here: {told.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No room is left in the file system of `folder`, but for less than a page; all of it is free again at the end."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
        yield
    finally:
        ballast.unlink(missing_ok=True)
