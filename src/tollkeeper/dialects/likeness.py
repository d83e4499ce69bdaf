"""Chunks of one stream are alike: the same JSON again, with another text in one place.

Who has read one chunk in full knows the next one by its bytes: where head and tail are the same and a plain text (no quote,
no escape) stands between them, the JSON says the same but for that text, and its length is all that is to be known of it. A
third of the work of decoding it. OpenAI ends its chunks with random letters (`obfuscation`), which may differ too.
"""

from __future__ import annotations

from typing import Final

_MISSES: Final = 8
"""So many chunks in a row that were not like the one before: the provider's differ elsewhere, and are not compared."""
_LETTERS: Final = b'"obfuscation":"'
_QUOTE, _ESCAPE, _BRACE = 34, 92, 125


class Likeness:
    """The last chunk that was read in full, without its text."""

    __slots__ = ("_head", "_letters", "_misses", "_tail")

    def __init__(self) -> None:
        self._head = b""  # empty: nothing is known
        self._tail = b""
        self._letters = False  # random letters follow the tail
        self._misses = 0

    def text_bytes(self, data: bytes) -> int:
        """Bytes of the text in a chunk that is like the one before, as they stand in its JSON; -1: it is not alike."""
        head = self._head
        if not head or not data.startswith(head):
            return -1
        end = data.find(_QUOTE, len(head))
        if _ESCAPE in data[len(head) : end]:
            return -1
        rest = data[end:]
        if rest != self._tail and not (self._letters and self._is_tail(rest)):
            return -1
        self._misses = 0
        return end - len(head)

    def learn(self, data: bytes, text: bytes) -> None:
        """A chunk was read in full; `text` is the JSON string in it that may differ in the next one."""
        at = data.find(text)
        if self._misses >= _MISSES or data.find(text, at + 1) >= 0:
            self._head = b""
            return
        self._misses += 1
        self._head, rest = data[: at + 1], data[at + len(text) - 1 :]
        letters = rest.find(_LETTERS) + len(_LETTERS)
        self._letters = letters >= len(_LETTERS)
        self._tail = rest[:letters] if self._letters else rest
        if self._letters and not self._is_tail(rest):
            self._head = b""

    def forget(self) -> None:
        """Another chunk was read: what comes next is read in full."""
        self._head = b""

    def _is_tail(self, rest: bytes) -> bool:
        """Whether this is the tail, letters, and the end of the object."""
        start, end = len(self._tail), len(rest) - 2
        return (
            rest.startswith(self._tail)
            and rest.find(_QUOTE, start) == end
            and rest[-1] == _BRACE
            and _ESCAPE not in rest[start:end]
        )
