"""What must hold of a simulated run: the stories that clients and providers tell against the ledger.

The amounts are worked out here once more, in whole numbers, so that a fault in the gateway's own arithmetic shows too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import structs

from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.testing.faults import Piece
from tollkeeper.testing.script import PRICED, Script
from tollkeeper.testing.scripted_provider import PING, answer_to, stated
from tollkeeper.testing.stage import END_MARKERS, Story
from tollkeeper.values import Budget, Entry, Hold, Usage

#: Nanos for one token.
NANOS: Final = {"input": 1000, "cache_read": 100, "cache_write_5m": 1250, "cache_write_1h": 2000, "output": 2000}
PRICES: Final = f'[[price]]\nmodel = "{PRICED}"\n' + "\n".join(
    f'{kind} = "{nanos / 1000}"' for kind, nanos in NANOS.items()
)
_COST: Final = re.compile(rb"(: x-tollkeeper-cost[^\n]*\n)+\n")


def prices() -> PriceBook:
    """The prices of a run."""
    return PriceBook(parse(PRICES))


def price(usage: Usage) -> int:
    """What a usage costs, in nanos."""
    return sum(nanos * int(getattr(usage, kind)) for kind, nanos in NANOS.items())


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_call(story: Story, entries: list[Entry]) -> Iterator[str]:
    """What is wrong with one call, given the entries under its id in the order of booking."""
    net = sum(entry.sign for entry in entries)
    if story.seen and net != 1:
        yield f"the provider saw it, and {net} entries stand"
    # Where the connection was never told of, or the process died, the provider may have seen it for all that is known.
    unknown = story.died or (story.opened and not story.refused)
    if not story.seen and (net > 1 or (net and not unknown)):
        yield f"the provider never saw it, and {net} entries stand"
    if net == 1:
        yield from _of_amount(story, entries[-1])
        yield from _of_outcome(story, entries[-1])
    yield from _of_reply(story)


def _of_amount(story: Story, entry: Entry) -> Iterator[str]:
    amount, planned = entry.charge.amount_nanos, story.planned
    if planned.model != PRICED:
        if (amount, entry.charge.status) not in ((None, "unpriced"), (0, "priced")):
            yield f"its model has no price, and {amount} is booked as {entry.charge.status}"
        return
    if amount is None:
        yield "its amount is unknown"
        return
    known = _stated(story)
    exact = known is not None and (amount, entry.charge.status) == (price(known), "priced")
    if known is not None and not exact and not story.died:
        yield f"the provider said {known} = {price(known)} nanos, booked {amount} as {entry.charge.status}"
    if not exact and story.seen:  # the prompt's bound is generous: it must not hide a missing output
        true = _generated(story)
        if entry.outcome == "expired":  # nobody looked at the reply: the quote is all that is known
            true = structs.replace(true, output=_unbounded(story, true.output))
        if amount < price(true) or entry.usage.output < true.output:
            yield f"the provider generated {true} = {price(true)} nanos, booked {entry.usage} = {amount}"
    if known is None and amount and entry.charge.status == "priced":
        yield f"nobody said what it used, and {amount} is booked as priced"


def _of_outcome(story: Story, entry: Entry) -> Iterator[str]:
    planned, provided = story.planned, story.planned.provided
    if story.died or story.cancelled:
        return
    if entry.outcome == "expired":
        yield "it came to its end, and its estimate stands"
    if provided.trouble == "lingers" and planned.events_of_google:
        return  # they end with the connection
    whole = b"".join(piece.raw for piece in story.pieces)
    finished = False  # the end marker reached the gateway while the client was there
    if story.reply is not None and story.reply.stream and not provided.trouble.startswith("status"):
        there = story.left_at is None or story.left_at >= len(whole)
        finished = there and not _fails(story) and whole in bytes(story.delivered)
    patient = (
        planned.client.manner == "stays" and not story.left and provided.trouble in ("none", "lingers") and story.seen
    )
    lasts_s = provided.connect_s + provided.think_s + provided.gap_s * (1 + len(whole) // provided.chunk)
    in_time = provided.connect_s + provided.think_s < 3.9 and lasts_s < 7.5
    if finished and entry.outcome in ("cut", "left") and planned.client.manner in ("stays", "leaves"):
        yield f"the provider's end marker arrived, and it is booked as {entry.outcome}"
    elif patient and in_time and story.reply is not None and story.reply.stream and entry.outcome != "ok":
        yield f"nothing was wrong and everything in time, and it is booked as {entry.outcome}"


def _stated(story: Story) -> Usage | None:
    """The usage that the provider stated as its last word, all of which reached the gateway."""
    reply, provided = story.reply, story.planned.provided
    if reply is None or not provided.traits.tells_usage or _fails(story):
        return None
    if provided.trouble.startswith("status"):
        return Usage() if provided.trouble == "status" and story.eof else None
    # A stream's last piece is the end marker, its usage stands before it, or, in a response and in Google's events, in it; of
    # two choices only the end says which is last.
    two = story.planned.choices > 1
    last = story.planned.dialect == "openai-responses" or story.planned.events_of_google
    in_the_end = two or not reply.stream or last
    needed = story.pieces if in_the_end else story.pieces[:-1]
    marked = reply.stream and not story.planned.events_of_google
    if two and not (b"".join(piece.raw for piece in needed) in story.delivered if marked else story.eof):
        return None
    if len(_useful(story)) < len(b"".join(piece.raw for piece in needed).rstrip()):
        return None
    lie = provided.lie if story.planned.dialect != "openai-embeddings" else None
    if lie in ("absurd", "negative"):
        return None
    beside = reply.usage.reasoning if story.planned.dialect == "google-generate" else 0
    return structs.replace(reply.usage, output=stated(lie, reply.usage.output - beside) + beside)


def _useful(story: Story) -> bytes:
    return bytes(story.delivered).replace(PING, b"").strip()


_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_CAPPED: Final = (*_CAPS, "generationConfig")


def _asked(story: Story) -> dict[str, Any]:
    """The client's request, with the output cap that a budget made the gateway set."""
    asked: dict[str, Any] = msgspec.json.decode(story.planned.body)
    return asked | {name: story.got[name] for name in _CAPPED if name in story.got}


def _unbounded(story: Story, output: int) -> int:
    """Of what was generated unseen, where nobody set a cap, the gateway expects so much and no more."""
    told = story.got | story.got.get("generationConfig", {})
    if any(told.get(name) is not None for name in _CAPS):
        return output
    return min(output, story.default_cap * story.planned.choices)


def _fails(story: Story) -> bool:
    """Whether an error stands in the place of the reply's end."""
    trouble = story.planned.provided.trouble
    return trouble in ("error", "error_done") or (
        trouble == "error_first" and story.reply is not None and not story.reply.stream
    )


def _generated(story: Story) -> Usage:
    """What the provider generated of what it sent. Reasoning counts only while nothing was seen of the text: later the
    text is what bounds the estimate, and reasoning leaves no trace in it.
    """
    reply, trouble = story.reply, story.planned.provided.trouble
    if reply is None or trouble.startswith("status"):
        return Usage()
    if _fails(story) and not reply.stream:
        return Usage()
    if not reply.stream:  # all of it, before the first byte
        text = sum(piece.tokens - piece.reasoning for piece in story.pieces)
        return structs.replace(reply.usage, output=text if story.eof else _unbounded(story, text))
    begun, at, received = list[Piece](), 0, len(_useful(story))
    for piece in story.pieces:
        if at >= received:
            break
        begun.append(piece)
        at += len(piece.raw)
    output = sum(piece.tokens - piece.reasoning for piece in begun)
    if trouble.startswith("error"):
        return structs.replace(reply.usage, output=output) if output else Usage()
    return structs.replace(reply.usage, output=output or _unbounded(story, sum(piece.tokens for piece in begun)))


def _of_reply(story: Story) -> Iterator[str]:
    planned, body = story.planned, bytes(story.body).replace(b"\r\n", b"\n")
    stays = story.id != "" and not (story.left or story.died or story.cancelled)
    if stays and planned.client.manner != "stops" and not story.ended:
        yield "the client waits for the end of its reply"
    if story.status is None or story.status >= 300:
        return
    error = body.find(b'"request_id":"%b"' % story.id.encode())
    told = error >= 0
    if told:
        begins, ends = (b",\n", b"}\n]") if planned.array else (b"\n\n", b"\n\n")
        end = body.find(ends, error) + len(ends)
        if body[end:]:
            yield f"after the gateway's error event comes {body[end:]!r}"
        body = body[: body.rfind(begins, 0, error) + (0 if planned.array else 2)]
        if any(marker in body for marker in END_MARKERS):
            yield "an end marker, and then an error event of the gateway"
    reply, pieces = answer_to(planned, msgspec.json.encode(_asked(story)))
    full = b"".join(piece.raw for piece in pieces).replace(b"\r\n", b"\n")
    got = _COST.sub(b"", body)
    for junk in (PING, b" ") if reply.stream else (b" ",):
        full, got = full.replace(junk, b""), got.replace(junk, b"")
    if not full.startswith(got):
        yield f"the client got what the provider did not send: {got[-200:]!r}"
    elif stays and story.ended and not told and len(got) < len(full):
        yield f"the client got {len(got)} of {len(full)} bytes, and no error"


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def over_limit(
    budgets: Iterable[Budget], entries: Iterable[Entry], holds: Iterable[Hold], asked: Hold | None
) -> str | None:
    """A hard budget that is passed: by the spent and held together when `asked` is granted, else by the spent alone."""
    entries, holds = list(entries), list(holds)
    for budget in budgets:
        if not budget.hard or budget.limit is None:
            continue
        used: Counter[tuple[str, int]] = Counter()
        for entry in entries:
            used[_place(budget, entry)] += entry.sign * _cost(budget, entry)
        for hold in holds if asked is not None else ():
            used[_place(budget, hold)] += _hold_cost(budget, hold)
        if asked is not None:
            place = _place(budget, asked)
            if used[place] > budget.limit and _hold_cost(budget, asked):
                return f"{budget.scope} {budget.measure} {place}: {used[place]} of {budget.limit}"
        elif any(count > budget.limit for count in used.values()):
            return f"{budget.scope} {budget.measure}: {dict(used)} of {budget.limit}"
    return None


def honest(script: Script) -> bool:
    """Whether no provider states more than it could have used."""
    return all(call.provided.lie != "triple" for call in script.calls)


def _place(budget: Budget, of: Entry | Hold) -> tuple[str, int]:
    id = {"all": "", "project": of.scopes.project, "session": f"{of.scopes.project}/{of.scopes.session}"}[budget.scope]
    seconds = {"total": 2**62, "minute": 60, "day": 86400}[budget.window]
    return id, of.at_us // (seconds * 1_000_000)


def _cost(budget: Budget, entry: Entry) -> int:
    if budget.measure == "usd":
        return entry.charge.amount_nanos if entry.charge.amount_nanos is not None else 0
    return entry.usage.input_tokens + entry.usage.output if budget.measure == "tokens" else 1


def _hold_cost(budget: Budget, hold: Hold) -> int:
    if budget.measure == "requests":
        return 1
    if budget.measure == "usd":
        assert hold.quote_nanos is not None, "an unpriced call under a hard budget"
        return hold.quote_nanos
    assert hold.quote_usage is not None, "an unbounded call under a hard budget"
    return hold.quote_usage.input_tokens + hold.quote_usage.output
