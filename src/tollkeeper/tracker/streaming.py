"""An SDK's stream, handed through chunk by chunk and booked when it ends.

However it ends, what was seen is booked to the end: read to its end, exactly as the gateway would; left early (`break`, an
exception in the loop, a cancellation), or broken off by the provider, exactly if the usage had come, else as an estimate
that is marked so. A loop that is left says nothing to its iterator: `async with` books at once, otherwise it is booked when
Python lets go of the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Generic, Self, TypeVar

from tollkeeper.cancellation import to_its_end
from tollkeeper.errors import TollkeeperError
from tollkeeper.tracker.accounts import Recorded
from tollkeeper.tracker.recording import Recording
from tollkeeper.tracker.replies import pieces
from tollkeeper.values import Entry

log = logging.getLogger("tollkeeper")

T = TypeVar("T")


class RecordedStream(Generic[T]):
    """A stream that is booked when it ends. Made by `CostTracker.record_stream`; read it once."""

    def __init__(self, recording: Recording, chunks: AsyncIterable[T] | Iterable[T]) -> None:
        whole = isinstance(chunks, (str, bytes, Mapping)) or hasattr(chunks, "model_dump_json")
        if whole or not isinstance(chunks, (AsyncIterable, Iterable)):
            raise ValueError(
                f"chunks: expected a stream's chunks to iterate over, got {type(chunks).__name__}; a whole reply goes to "
                "record_response, and of boto3's answers the 'stream' or 'body' in it is the stream"
            )
        self._account = _Account(recording)
        self._chunks = _relay(chunks, self._account)

    @property
    def recorded(self) -> Recorded | None:
        """What was booked; None until the stream has ended."""
        return self._account.recorded

    def __aiter__(self) -> AsyncIterator[T]:
        return self._chunks

    async def __anext__(self) -> T:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._chunks.aclose()
        await self._account.leave(error)

    async def aclose(self) -> None:
        """Read no more, and book what was seen, also of a stream that was never read. Again: nothing happens.

        The SDK's own stream stays the caller's to close. Raises StoreError and Conflict; after a StoreError it may be
        called again.
        """
        await self._chunks.aclose()
        await self._account.leave(None)


class _Account:
    """What a stream said so far, and what it was booked as. Apart from the stream, which Python can then let go of at once."""

    def __init__(self, recording: Recording) -> None:
        self._recording, self._reader = recording, recording.reader()
        self._entry: Entry | None = None
        self._unread = False
        self.recorded: Recorded | None = None

    def hear(self, piece: object) -> None:
        """Read a piece. One that cannot be read is the caller's all the same: it is passed over, and said once."""
        try:
            self._reader.feed(piece)
        except ValueError as error:
            if not self._unread:
                self._unread = True
                log.warning("a chunk of a stream cannot be metered: %s", error)

    async def end(self, *, over: bool, left: bool = False) -> None:
        """Book it, once. Raises TollkeeperError."""
        if self._entry is None:
            self._entry = await self._recording.entry(self._reader.finish(None, over=over), left=left)
        if self.recorded is None:
            self.recorded = await self._recording.accounts.book(self._entry)

    async def leave(self, error: BaseException | None, *, left: bool = True) -> None:
        """Book what was seen, if it is not booked. Where an error is under way it is the one that the caller hears of."""
        try:
            await to_its_end(self.end(over=False, left=left))
        except TollkeeperError as failure:
            if error is None:
                raise
            log.error("a stream is not booked: %s", failure)


async def _relay(chunks: AsyncIterable[T] | Iterable[T], account: _Account) -> AsyncGenerator[T, None]:
    try:
        async for piece in pieces(chunks):
            account.hear(piece)
            yield piece
    except BaseException as error:
        await account.leave(error, left=isinstance(error, (GeneratorExit, asyncio.CancelledError)))
        raise
    await to_its_end(account.end(over=True))
