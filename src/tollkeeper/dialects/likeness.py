"""Events of one stream are alike: the same JSON again, with another text in one place.

Who has read one event in full knows the next one by its bytes, before it is even cut out of the stream: where head and tail
are the same and a text stands between them, it says the same but for that text, and its length is all that is to be known of
it. A third of the work of cutting and decoding it. In one place behind the text something else may differ too: OpenAI ends
its chunks with random letters (`obfuscation`), Anthropic with some blanks, and Google tells the usage so far in each.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from tollkeeper.sse import MAX_EVENT, Event

_MISSES: Final = 8
"""So many events in a row that were not like the one before: the provider's differ elsewhere, and are not compared."""
_LETTERS: Final = b'"obfuscation":"'
_QUOTE, _ESCAPE, _LF, _CR = 34, 92, 10, 13
_TEXT: Final = re.compile(
    rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
)
"""A text with escapes, to its quote; one with halves of a pair is left to the decoder."""


class Likeness:
    """The last event that was read in full, without its text."""

    __slots__ = ("_at", "_differs", "_end", "_head", "_misses", "_rest", "_stop", "_tail", "value")

    def __init__(self) -> None:
        self.value: bytes | None = None  #: after text_bytes: what stands where a value was learned; it is not read yet
        self._head = b""  # empty: nothing is known
        self._rest = b""  # all behind the text: the tail, what may differ, and the end
        self._tail, self._at = b"", 0
        self._differs: Literal["letters", "blanks", "value"] = "blanks"
        self._end, self._stop = b"", 0
        self._misses = 0

    def text_bytes(self, raw: bytes) -> int:
        """Bytes of the text as they stand in its JSON, if this is one whole event like the one before; -1: it is not.

        Where a value was learned it is one if `value` is JSON: that is the caller's to find out.
        """
        head = self._head
        begin = len(head)
        if not head or raw[:begin] != head:
            return -1
        end = raw.find(_QUOTE, begin)
        text = raw[begin:end]
        if _ESCAPE in text:
            found = _TEXT.match(raw, begin)
            if found is None:
                return -1
            end = found.end() - 1
        elif _LF in text or _CR in text:  # where the event would end
            return -1
        rest = raw[end:]
        if (rest != self._rest and not self._is_rest(rest)) or len(raw) > MAX_EVENT:
            return -1
        self._misses = 0
        return end - begin

    def learn(self, event: Event, text: bytes, value: bytes | None = None) -> None:
        """An event was read in full; in the next one `text`, a JSON string, may differ, and a JSON value behind it, too."""
        raw, self._head, self.value = event.raw, b"", value
        at = raw.find(text)
        if self._misses >= _MISSES or raw.find(text, at + 1) >= 0 or event.data not in raw or raw[-1] == _CR:
            return
        self._misses += 1
        self._rest = rest = raw[at + len(text) - 1 :]
        close = rest.rfind(b"}")
        if value is not None:
            self._rest, self._differs, split = b"", "value", rest.find(value)
            if split < 0 or rest.find(value, split + 1) >= 0:
                return
            self._tail, self._end = rest[:split], rest[split + len(value) :]
        elif (letters := rest.find(_LETTERS)) >= 0:
            self._differs, split = "letters", letters + len(_LETTERS)
            self._tail, self._end = rest[:split], rest[close - 1 :]
        else:
            self._differs = "blanks"
            self._tail, self._end = rest[:close].rstrip(b" "), rest[close:]
        self._at, self._stop = len(self._tail), -len(self._end)
        if self._is_rest(rest):
            self._head = raw[: at + 1]

    def forget(self) -> None:
        """Another event was read: what comes next is read in full."""
        self._head = b""

    def _is_rest(self, rest: bytes) -> bool:
        """Whether this is the tail, what may differ, and the end."""
        at, stop = self._at, self._stop
        if rest[:at] != self._tail or rest[stop:] != self._end:
            return False
        found = rest[at:stop]
        if _LF in found or _CR in found:
            return False
        if self._differs == "value":
            self.value = found
            return True
        if len(rest) < at - stop:  # they overlap
            return False
        return not (found.strip(b" ") if self._differs == "blanks" else _QUOTE in found or _ESCAPE in found)
