"""Single steps of a call, without I/O: the least of several repetitions, in microseconds."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from benchmarks.client import request
from benchmarks.figures import Figure
from benchmarks.streams import CHUNKS, events
from tollkeeper.breaker import Bounds
from tollkeeper.dialects import DIALECTS
from tollkeeper.health import Health
from tollkeeper.meter import Meter
from tollkeeper.prices import PriceBook
from tollkeeper.retry import RetryBudget, Tries
from tollkeeper.routing import Candidates, ordered
from tollkeeper.values import Credential, Part, Provider, Reading, Route, Usage

OPENAI: Final = Provider(
    name="openai", base_url="https://api.openai.com/v1", dialects=frozenset({"openai-chat"}), prices="openai"
)
ROUTES: Final = tuple(
    Route(provider, "gpt-4o-mini", Credential(name, name))
    for provider in (OPENAI, structs.replace(OPENAI, name="second"), structs.replace(OPENAI, name="third"))
    for name in ("FIRST_KEY", "SECOND_KEY")
)
AT_US: Final = 1_780_000_000_000_000


def steps(folder: Path) -> Iterator[Figure]:
    """Pricing a call, metering a chunk, and reading and writing a request's body of 1 KB."""
    book, chat, none = PriceBook(), DIALECTS["openai-chat"], frozenset[str]()
    usage = Usage(input=156, cache_read=64, output=40)
    reading = Reading(parts=(Part(usage),), model="gpt-4o-mini-2024-07-18", tier="default", final=True, ended=True)
    charge = lambda: book.charge(reading, provider=OPENAI, model="gpt-4o-mini", at_us=AT_US)  # noqa: E731
    yield Figure("pricing a call, compiled", micros(charge, 5000), "µs", None, 15)

    yield Figure("metering a chunk of a stream", metering("openai-chat", events()), "µs", None, 3)
    yield Figure("metering a chunk, openai-responses", metering("openai-responses", responses()), "µs", None, 3)
    yield Figure("metering a chunk, anthropic-messages", metering("anthropic-messages", anthropic()), "µs", None, 3)
    yield Figure("metering a chunk, google-generate", metering("google-generate", google()), "µs", None, 3)

    reply = whole()

    def charged() -> None:
        meter = Meter(chat, stream=False, hide_usage=True, quirks=none)
        meter.feed(reply)
        book.charge(meter.finish(), provider=OPENAI, model="gpt-4o-mini", at_us=AT_US)

    yield Figure("metering and pricing a reply of 2 KB", micros(charged, 3000), "µs", None, 40)

    body = request(stream=True).partition(b"\r\n\r\n")[2]

    def rewritten() -> None:
        chat.write_body(chat.read_ask(body), model="gpt-4o-mini-2024-07-18", output_cap=None, quirks=none)

    yield Figure("reading and writing a request's body", micros(rewritten, 5000), "µs")

    for title, routes in (("one route", ROUTES[:1]), ("three routes, two keys", ROUTES)):
        yield Figure(f"breakers and routing, {title}", micros(routed(routes), 5000), "µs", None, 15)


def routed(routes: tuple[Route, ...]) -> Callable[[], None]:
    """What a call that goes well adds for them: where it may go, leave to go there, and the report."""
    health = Health(Bounds(), time.monotonic, lambda change: None)
    retries, candidates = RetryBudget(0.2), Candidates(routes)
    turns = count()

    def call() -> None:
        retries.called(time.monotonic())
        order = ordered(
            candidates, draw=lambda: 0.5, turn=next(turns), cost=lambda route: None, latency=lambda route: None
        )
        route = Tries(order, 3, lambda route: health.allows(route.place)).first()
        assert route is not None
        leave_to_go = health.admit(route.place)
        assert leave_to_go is not None
        health.report(leave_to_go, failed=None, first_byte_s=0.5)

    return call


def metering(dialect: str, chunks: list[bytes]) -> float:
    """Microseconds for each chunk of a stream, its first and last ones included."""

    def metered() -> None:
        meter = Meter(DIALECTS[dialect], stream=True, hide_usage=True, quirks=frozenset())
        for chunk in chunks:
            meter.feed(chunk)

    return micros(metered, 50) / len(chunks)


def named(name: str, **members: object) -> bytes:
    """An event whose name and type are the same, with blanks at its end, as Anthropic has them."""
    data = msgspec.json.encode({"type": name} | members)
    return b"event: %b\ndata: %b%b}\n\n" % (name.encode(), data[:-1], b" " * (len(data) % 9))


def anthropic() -> list[bytes]:
    """As many words in Anthropic's events."""
    begin = {"model": "claude-sonnet-4-5", "usage": {"input_tokens": 220, "output_tokens": 1}}
    delta = {"type": "text_delta"}
    return [
        named("message_start", message=begin),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(named("content_block_delta", index=0, delta=delta | {"text": f" word{n}"}) for n in range(CHUNKS - 3)),
        named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": CHUNKS - 3}),
        named("message_stop"),
    ]


def responses() -> list[bytes]:
    """As many words in OpenAI's events."""
    usage = {"input_tokens": 220, "output_tokens": CHUNKS - 3, "total_tokens": 220 + CHUNKS - 3}
    place = {"item_id": "msg_fixed", "output_index": 0, "content_index": 0, "logprobs": [], "obfuscation": "x9Yz"}
    name = "response.output_text.delta"
    return [
        named("response.created", sequence_number=0, response={"status": "in_progress", "model": "gpt-4o-mini"}),
        *(named(name, sequence_number=n, delta=f" word{n}", **place) for n in range(1, CHUNKS - 2)),
        named("response.completed", sequence_number=CHUNKS, response={"status": "completed", "usage": usage}),
    ]


def google() -> list[bytes]:
    """As many words in Google's chunks, each with the usage so far."""
    said = [f" word{n}" for n in range(CHUNKS - 3)]
    counted = {"promptTokenCount": 220, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 220}]}
    chunks = [
        {
            "candidates": [{"content": {"parts": [{"text": word}], "role": "model"}, "index": 0}],
            "usageMetadata": counted | {"candidatesTokenCount": n, "totalTokenCount": 220 + n, "thoughtsTokenCount": 0},
            "modelVersion": "gemini-2.5-flash", "responseId": "fixed",
        }
        for n, word in enumerate(said)
    ]  # fmt: skip
    return [b"data: " + msgspec.json.encode(chunk) + b"\r\n\r\n" for chunk in chunks]


def whole() -> bytes:
    """A chat reply of 2 KB that is not streamed."""
    details = {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    usage = {
        "prompt_tokens": 220, "completion_tokens": 300, "total_tokens": 520,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0}, "completion_tokens_details": details,
    }  # fmt: skip
    message = {"role": "assistant", "content": "toll " * 300, "refusal": None}
    return msgspec.json.encode({
        "id": "chatcmpl-fixed", "object": "chat.completion", "created": 1732240000, "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}], "usage": usage,
        "service_tier": "default", "system_fingerprint": "fp_fixed",
    })  # fmt: skip


def micros(work: Callable[[], object], number: int) -> float:
    """Microseconds of one run of `work`."""
    work()
    return min(timeit.repeat(work, number=number, repeat=7)) / number * 1e6
