"""A provider's reply, in any form in which a caller has it, read by the very reducers of the gateway.

    bytes, text ──── whole JSON │ server-sent events │ JSON array │ AWS event stream: the first byte says ─┐
    SDK's object, dict ─────────────────────────────────────────────────────────────── whole, as JSON ─────┼─ reducer ─ Heard
    list or iterator of either ─────────────────────────────────────── pieces of bytes, or one event each ─┘

An SDK's object is asked for its JSON as it stood on the wire (`model_dump_json`); no SDK is imported. The same reply gives the
same reading in each of these forms.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import structs

from tollkeeper.aws_events import MessageSplitter
from tollkeeper.dialects import Metered
from tollkeeper.dialects.json_reply import reply_id
from tollkeeper.errors import StreamBroken, TollkeeperError, UpstreamRefused
from tollkeeper.json_array import ArraySplitter
from tollkeeper.meter import WHOLE_MAX, last_event
from tollkeeper.sse import Event, Splitter
from tollkeeper.values import Reading

STOPPED: Final = "the reply was not read to its end"


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply said, and how it came to its end."""

    reading: Reading
    id: str | None  #: the provider's own
    is_stream: bool
    content: bool
    body_bytes: int  #: of a reply that is not streamed
    complete: bool
    failure: TollkeeperError | None


class _Splits(Protocol):
    def feed(self, chunk: bytes) -> list[Event]: ...

    def rest(self) -> bytes: ...


class ReplyReader:
    """Reads one reply, piece by piece or whole."""

    def __init__(self, dialect: Metered, quirks: frozenset[str]) -> None:
        self._reducer = dialect.reducer(stream=True, hide_usage=False, quirks=quirks)
        self._splitter: _Splits | None = None
        self._body: bytearray | None = None
        self._is_cut = False  # it came as bytes, whose end marker tells whether it is all there
        self._lost = 0
        self._id: str | None = None
        self._broken: StreamBroken | None = None

    def whole(self, body: object) -> None:
        """Read all of a reply at once, given as an object. Raises ValueError where it is none."""
        self._body = bytearray(document(body))

    def feed(self, piece: object) -> None:
        """Read a piece of bytes, or one event. Raises ValueError where it is neither."""
        if isinstance(piece, str):
            piece = piece.encode()
        if isinstance(piece, (bytes, bytearray, memoryview)):
            self._feed_bytes(bytes(piece))
        else:
            self._event(Event(b"", b"", _unwrapped(piece)))

    def finish(self, http_status: int | None, *, over: bool) -> Heard:
        """What was read. `over`: there was no more to read."""
        self._read_rest()
        reducer, body = self._reducer, None if self._body is None else bytes(self._body)
        if body is not None:
            reducer.whole(body)
            self._id = reply_id(body)
        reading = reducer.reading()
        if self._lost:
            reading = structs.replace(reading, output_bytes=reading.output_bytes + self._lost)
        failure = self._failure(reading, http_status, over)
        return Heard(
            reading=reading, id=self._id, is_stream=body is None, content=reducer.content,
            body_bytes=0 if body is None else len(body), complete=not isinstance(failure, StreamBroken), failure=failure,
        )  # fmt: skip

    def _failure(self, reading: Reading, http_status: int | None, over: bool) -> TollkeeperError | None:
        """As the gateway judges a reply. Without its status, an error in the place of a reply is a refusal."""
        if self._broken is not None:
            return self._broken
        if http_status is not None and http_status >= 300:
            return UpstreamRefused(http_status)
        if self._body is not None:
            refused = http_status is None and reading.error is not None and not reading.parts
            return UpstreamRefused(502) if refused else None if over else StreamBroken(STOPPED)
        if reading.error is not None:
            return None if self._reducer.content else UpstreamRefused(502)
        if not reading.ended and (self._is_cut or not over):
            return StreamBroken(STOPPED)
        return None

    def _feed_bytes(self, data: bytes) -> None:
        if self._broken is not None:
            return
        if self._splitter is None and self._body is None:
            self._is_cut = True
            data = data.lstrip()
            if not data:
                return
            if data.startswith(b"{"):
                self._body = bytearray()
            else:
                self._splitter = _splitter(data)
        if self._body is not None:
            self._body += data
            if len(self._body) > WHOLE_MAX:
                self._body.clear()
                self._broken = StreamBroken(f"The provider sent a body of more than {WHOLE_MAX} bytes.")
        elif self._splitter is not None:
            try:
                for event in self._splitter.feed(data):
                    self._event(event)
            except StreamBroken as error:
                self._broken = error

    def _read_rest(self) -> None:
        splitter, self._splitter = self._splitter, None
        if splitter is None:
            return
        if self._broken is None:
            try:
                splitter.feed(b"")  # what broke it may stand behind its last whole event
            except StreamBroken as error:
                self._broken = error
        rest = splitter.rest()
        event, self._lost = last_event(rest) if isinstance(splitter, Splitter) else (None, len(rest.strip()))
        if event is not None:
            self._event(event)

    def _event(self, event: Event) -> None:
        if self._id is None:
            self._id = reply_id(event.data)
        self._reducer.event(event)


def _splitter(start: bytes) -> _Splits:
    """How a stream is cut, by its first byte: an AWS message begins with its length, which is below 16 MiB."""
    if start.startswith(b"\0"):
        return MessageSplitter()
    return ArraySplitter() if start.startswith(b"[") else Splitter()


async def read_all(reader: ReplyReader, body: object) -> None:
    """Read a reply that is there, in whatever form. Raises ValueError where it is none."""
    if isinstance(body, (str, bytes, bytearray, memoryview)):
        reader.feed(body)
    elif isinstance(body, Mapping) or hasattr(body, "model_dump_json"):  # before its fields are taken for pieces
        reader.whole(body)
    else:
        async for piece in pieces(body):
            reader.feed(piece)


def document(body: object) -> bytes:
    """An object as JSON, as it stood on the wire. Raises ValueError where it has no such form."""
    dump = getattr(body, "model_dump_json", None)
    try:
        if dump is not None:
            return str(dump(by_alias=True, exclude_none=True, warnings=False)).encode()
        if isinstance(body, Mapping):
            return _ENCODER.encode({key: value for key, value in body.items() if key != "ResponseMetadata"})
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"body: it cannot be written as JSON: {error}") from None
    raise ValueError(
        f"body: expected a reply as bytes, text, a dict or an SDK's response object, or its pieces, got {type(body).__name__}"
    )


async def pieces(body: object) -> AsyncIterator[Any]:
    """The pieces of a reply, whatever kind of iterable it is. Raises ValueError where it is none."""
    if isinstance(body, AsyncIterable):
        async for piece in body:
            yield piece
    elif isinstance(body, Iterable):
        for piece in body:
            yield piece
    else:
        document(body)  # which says what is expected


def _unwrapped(event: object) -> bytes:
    """An event as JSON. What InvokeModelWithResponseStream gives is a vendor's own event in an envelope."""
    if isinstance(event, Mapping) and isinstance(chunk := event.get("chunk"), Mapping):
        inner = chunk.get("bytes")
        if isinstance(inner, bytes):
            return inner
    return document(event)


def _foreign(value: object) -> object:
    """What JSON has no form for, inside a dict."""
    if hasattr(value, "model_dump_json"):
        return msgspec.Raw(document(value))
    if isinstance(value, Mapping):
        return dict(value)
    hint = "; read it, or pass it to record_stream" if hasattr(value, "read") or hasattr(value, "__iter__") else ""
    raise TypeError(f"it holds a {type(value).__name__}{hint}")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_foreign, decimal_format="number")
