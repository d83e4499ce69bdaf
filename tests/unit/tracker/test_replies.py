"""tollkeeper.tracker.replies: a reply in every form is read alike, and what is none is refused in words."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from tests.aws_messages import converse, event

from tollkeeper import meter
from tollkeeper.dialects import METERED
from tollkeeper.errors import StreamBroken, UpstreamRefused
from tollkeeper.tracker import replies
from tollkeeper.tracker.replies import Heard, ReplyReader, document, read_all
from tollkeeper.values import Part, Usage

CHAT: dict[str, Any] = {
    "id": "chatcmpl-0123456789abcdefghij",
    "model": "m",
    "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8, "cost": 0.00012},
}
CHUNKS: list[dict[str, Any]] = [
    {"id": CHAT["id"], "model": "m", "choices": [{"delta": {"role": "assistant", "content": "Hi"}}]},
    {"id": CHAT["id"], "model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"id": CHAT["id"], "model": "m", "choices": [], "usage": CHAT["usage"]},
]
SSE = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in CHUNKS) + b"data: [DONE]\n\n"


def heard(body: object, dialect: str = "openai-chat", status: int | None = None, *, over: bool = True) -> Heard:
    reader = ReplyReader(METERED[dialect], frozenset())
    asyncio.run(read_all(reader, body))
    return reader.finish(status, over=over)


class Reply(BaseModel):
    """As SDKs make them: extra members kept, names of Python for names of the wire."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    system_fingerprint: str | None = None
    service_tier: str | None = Field(default=None, alias="serviceTier")


async def later(pieces: list[Any]) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


def test_whole_forms_are_alike() -> None:
    """A9: bytes, text, a view, a dict, an SDK's object and pieces of bytes say the same; cost is decimal from its text."""
    body = json.dumps(CHAT).encode()
    told = heard(body)
    assert (told.reading.parts, told.reading.reported_usd) == (
        (Part(Usage(input=7, output=1), "m"),),
        Decimal("0.00012"),
    )
    assert (told.id, told.is_stream, told.complete, told.failure) == (CHAT["id"], False, True, None)
    forms = [body.decode(), b" \n" + body, memoryview(body), CHAT, Reply(**CHAT), [body[:9], body[9:]], later([body])]
    for form in forms:
        again = heard(form)
        assert (again.reading, again.id, again.is_stream) == (told.reading, told.id, False), type(form)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_forms_are_alike(size: int) -> None:
    """A9: bytes however cut, text, events as dicts or objects, sync or async, say the same."""
    told = heard(SSE)
    assert (told.reading.usage, told.id, told.is_stream, told.complete) == (
        Usage(input=7, output=1), CHAT["id"], True, True,
    )  # fmt: skip
    pieces = [SSE[at : at + size] for at in range(0, len(SSE), size)]
    events = [Reply(**chunk) for chunk in CHUNKS]
    for form in (pieces, iter(pieces), later(pieces), SSE.decode(), CHUNKS, iter(events), later(events), [b"\n", SSE]):
        again = heard(form)
        assert (again.reading.parts, again.reading.final, again.id) == (told.reading.parts, True, told.id)
        assert (again.complete, again.failure) == (True, None)


def test_aws_streams() -> None:
    """A stream of AWS messages is known by its first byte, also piece by piece, and as boto3 decodes it."""
    usage: dict[str, Any] = {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4}
    body = converse("Hi", usage)
    boto: list[dict[str, Any]] = [
        {"messageStart": {}}, {"contentBlockDelta": {"delta": {"text": "Hi"}}}, {"metadata": {"usage": usage}},
    ]  # fmt: skip
    for form in (body, [body[at : at + 1] for at in range(len(body))], boto):
        told = heard(form, "bedrock-converse")
        assert (told.reading.usage, told.complete) == (Usage(input=3, output=1), True)
    damaged = body[:-9] + b"x" + body[-8:]
    told = heard(damaged, "bedrock-converse")
    assert (told.complete, type(told.failure), told.content) == (False, StreamBroken, True)


def test_invoke_streams_are_the_vendors() -> None:
    """What InvokeModel streams is the vendor's own dialect in an envelope, as bytes and as boto3 gives it."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "message_delta", "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    inner = [json.dumps(each).encode() for each in events]
    wire = b"".join(event("chunk", {"bytes": base64.b64encode(each).decode()}) for each in inner)
    for form in (wire, [{"chunk": {"bytes": each}} for each in inner]):
        told = heard(form, "anthropic-messages")
        assert (told.reading.usage, told.reading.model, told.complete) == (Usage(input=3, output=5), "claude", True)


@pytest.mark.parametrize(
    ("body", "status", "over", "failure", "complete"),
    [
        (SSE[:-20], None, True, StreamBroken, False),
        (SSE[:90], None, True, StreamBroken, False),
        (CHUNKS[:1], None, True, type(None), True),
        (CHUNKS[:1], None, False, StreamBroken, False),
        (SSE, None, False, type(None), True),
        (b"", None, True, StreamBroken, False),
        (b"<html>Bad gateway</html>", 502, True, UpstreamRefused, True),
        (b"", 500, True, UpstreamRefused, True),
        ({"error": {"type": "overloaded"}}, None, True, UpstreamRefused, True),
        ({"error": {"type": "overloaded"}}, 200, True, type(None), True),
        ({"error": {"type": "overloaded"}, "usage": CHAT["usage"]}, None, True, type(None), True),
        ([{"error": {"type": "overloaded"}}], None, True, UpstreamRefused, True),
        ([CHUNKS[0], {"error": {"type": "overloaded"}}], None, True, type(None), True),
    ],
)
def test_how_it_ended(body: object, status: int | None, over: bool, failure: type, complete: bool) -> None:
    """D2: as the gateway judges: cut without its end marker, refused by its status, or by an error in the reply's place."""
    told = heard(body, status=status, over=over)
    assert (type(told.failure), told.complete) == (failure, complete)


def test_half_an_event_counts_its_bytes() -> None:
    """D3: what came of a last event without its end bounds what was generated."""
    assert heard(SSE[:40]).reading.output_bytes == 40
    assert heard(b'[{"a": 1}, {"b"', "anthropic-messages").reading.output_bytes == 6


def test_a_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: of a body above the bound nothing is kept, and it counts as broken."""
    monkeypatch.setattr(replies, "WHOLE_MAX", 10)
    assert meter.WHOLE_MAX > 10
    told = heard([b'{"a":"', b"x" * 10, b"y"])
    assert (type(told.failure), told.body_bytes) == (StreamBroken, 0)


class Undumped:
    def model_dump_json(self) -> str:
        return "{}"


cyclic: dict[str, Any] = {}
cyclic["self"] = cyclic


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (7, "expected a reply as bytes, text, a dict or an SDK's response object, or its pieces, got int"),
        (None, "expected a reply .* got NoneType"),
        ([7], "expected a reply .* got int"),
        ({"body": io.BytesIO(b"{}")}, "it holds a BytesIO; read it, or pass it to record_stream"),
        ({"stream": iter([])}, "it holds a list_iterator; read it, or pass it to record_stream"),
        ({"x": object()}, "it holds a object$"),
        ({"x": "\ud800"}, "cannot be written as JSON"),
        (cyclic, "cannot be written as JSON"),
        (Undumped(), "cannot be written as JSON"),
    ],
)
def test_what_is_no_reply(body: object, words: str) -> None:
    """Anything else is a ValueError that says what was expected, and what to do with an unread stream."""
    with pytest.raises(ValueError, match=f"^body: .*{words}"):
        heard(body)


def test_documents_are_as_on_the_wire() -> None:
    """Numbers stay numbers, bytes are base64, an SDK's object inside a dict is its JSON; ResponseMetadata is left out."""
    written = document({
        "cost": Decimal("0.1"), "blob": b"\0", "inner": Reply(serviceTier="flex"), "map": {"a": None},
        "ResponseMetadata": {"at": object()},
    })  # fmt: skip
    assert json.loads(written) == {"cost": 0.1, "blob": "AA==", "inner": {"serviceTier": "flex"}, "map": {"a": None}}
