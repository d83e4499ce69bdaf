"""What Redis is asked: one command, or a script by its hash, and who waits for the answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from importlib.resources import files
from typing import Any, Final

Command = tuple[Any, ...]
NONE_YET: Final = object()  #: before an answer has come


def _text(name: str) -> str:
    folder = files("tollkeeper.stores.redis") / "lua"
    first, _, text = (folder / f"{name}.lua").read_text("utf-8").partition("\n")  # the first line is `#!lua`
    return f"{first}\n{(folder / 'amount.lua').read_text('utf-8')}{text}" if " amount(" in text else f"{first}\n{text}"


class Script:
    """A Lua script, called by its hash: ours of that name, or a test's own text."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.name = name
        self.text = text or _text(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Iterable[Any]) -> Ask:
        return Ask(("EVALSHA", self.sha, len(keys), *keys, *args), keys[0], self)


class Ask:
    """One command, and who waits for its answer: a task or a thread."""

    __slots__ = ("answer", "command", "key", "node", "packed", "script", "tries", "waiter")

    def __init__(self, command: Command, key: str | None = None, script: Script | None = None) -> None:
        self.command = command
        self.key = command[1] if key is None else key  #: decides which server of a cluster it goes to
        self.script = script
        self.packed = b""  #: the command as it is sent
        self.tries = 0
        self.node: Any = None  #: where it was redirected to
        self.waiter: asyncio.Future[Any] | Future[Any]
        self.answer: Any = NONE_YET  #: what came, or the exception to raise
