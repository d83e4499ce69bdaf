"""Wire formats. A dialect reads a client's ask, writes the few permitted changes into its body, reduces reply bytes to
usage, recognises the end and in-band errors, and shapes refusals. Each is a module; none knows another.

The gateway speaks what is in DIALECTS. Whoever has a reply already, as the library, needs less of a dialect: METERED has those
too that are only read.
"""

from __future__ import annotations

from typing import Final, Protocol

from tollkeeper.dialects import (
    anthropic_messages,
    bedrock_converse,
    cohere_chat,
    google_generate,
    ollama_chat,
    openai_chat,
    openai_embeddings,
    openai_responses,
)
from tollkeeper.errors import TollkeeperError
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Reading


class Reducer(Protocol):
    """Reads one reply. Bytes of any kind raise nothing."""

    ended: bool  #: the dialect's end marker was seen
    content: bool  #: something was generated; pings and chunks with a role alone are not content
    error: str | None  #: an error inside the reply

    def event(self, event: Event) -> bytes | None:
        """Read one event of a stream: the bytes to relay for it, None to hide it."""
        ...

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        ...

    def reading(self) -> Reading:
        """What was read so far."""
        ...


class Relaying(Reducer, Protocol):
    """Reads one reply while it is relayed, chunk by chunk."""

    def alike(self, raw: bytes) -> bytes | None:
        """The same by its bytes alone, for an event that is like the one before; None: it is not, or it cannot be known."""
        ...


class Metered(Protocol):
    """One wire format, as far as its replies are read."""

    @property
    def name(self) -> str:
        """As in Provider.dialects, Ask.dialect and Entry.dialect."""
        ...

    def reducer(self, *, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
        """What reads one reply."""
        ...


class Dialect(Metered, Protocol):
    """One wire format that the gateway speaks."""

    @property
    def path(self) -> str:
        """How the paths of its asks begin: what a provider's own path (`Provider.paths`) stands in for."""
        ...

    def read_ask(self, body: bytes, target: str = "") -> Ask:
        """A request as an Ask: its body, and the path and query that it came to.

        Raises BadRequest naming the field, or RequestTooLarge.
        """
        ...

    def write_body(self, ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
        """The body for a provider, with the permitted changes alone."""
        ...

    def reducer(self, *, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Relaying:
        """What reads one reply."""
        ...

    def refusal(self, error: TollkeeperError, request_id: str) -> bytes:
        """A JSON body in the dialect's own error shape, with a budget's numbers beside."""
        ...

    def broken(self, error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
        """What ends a stream that broke after content, in the form that the ask's stream has."""
        ...


_ALL: Final[tuple[Dialect, ...]] = (
    openai_chat, openai_embeddings, openai_responses, anthropic_messages, google_generate,
)  # fmt: skip
DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in _ALL}
_READ: Final[tuple[Metered, ...]] = (bedrock_converse, cohere_chat, ollama_chat)
METERED: Final[dict[str, Metered]] = DIALECTS | {dialect.name: dialect for dialect in _READ}
HOMES: Final[dict[str, str]] = {dialect.name: dialect.provider for dialect in (bedrock_converse, cohere_chat)}
"""The provider of a dialect that one provider alone speaks."""
