"""What must hold of a simulated run: the stories that clients and providers tell against the ledger.

The amounts are worked out here once more, in whole numbers, so that a fault in the gateway's own arithmetic shows too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import structs

from tollkeeper.errors import Outrun
from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.testing.faults import Piece
from tollkeeper.testing.judge_course import is_good, of_course, serving
from tollkeeper.testing.script import DEAR, PRICED, Script
from tollkeeper.testing.scripted_provider import PING, answer_to, stated
from tollkeeper.testing.stage import END_MARKERS, Story, Tried
from tollkeeper.values import Budget, Entry, Hold, Usage

#: Nanos for one token.
NANOS: Final = {"input": 1000, "cache_read": 100, "cache_write_5m": 1250, "cache_write_1h": 2000, "output": 2000}
TIMES: Final = {PRICED: 1, DEAR: 2}
PRICES: Final = "\n".join(
    f'[[price]]\nmodel = "{model}"\n' + "\n".join(f'{kind} = "{times * nanos / 1000}"' for kind, nanos in NANOS.items())
    for model, times in TIMES.items()
)
_COST: Final = re.compile(rb"(: x-tollkeeper-cost[^\n]*\n)+\n")


@cache
def prices() -> PriceBook:
    """The prices of a run."""
    return PriceBook(parse(PRICES))


def price(usage: Usage, model: str = PRICED) -> int:
    """What a usage of a model costs, in nanos."""
    return TIMES[model] * sum(nanos * int(getattr(usage, kind)) for kind, nanos in NANOS.items())


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_call(story: Story, entries: list[Entry]) -> Iterator[str]:
    """What is wrong with one call, given the entries under its id in the order of booking."""
    calls = sum(entry.sign * entry.calls for entry in entries)
    if calls != (sum(entry.sign for entry in entries) > 0):
        yield f"its entries count as {calls} calls"
    if strange := {entry.id for entry in entries} - {tried.id for tried in story.tries}:
        yield f"nobody asked for {strange}"
    for tried in story.tries:
        tried.lost = any(entry.id == tried.id and entry.note == Outrun.code for entry in entries)
    for tried in story.tries:
        for wrong in _of_attempt(story, tried, [entry for entry in entries if entry.id == tried.id]):
            yield f"attempt {tried.number}: {wrong}"
    yield from of_course(story, {entry.id for entry in entries})
    replies = [list(_of_reply(story, tried)) for tried in serving(story)]
    yield from min(replies, key=len) if replies else _of_reply(story, None)


def _of_attempt(story: Story, tried: Tried, entries: list[Entry]) -> Iterator[str]:
    net = sum(entry.sign for entry in entries)
    if tried.seen and net != 1:
        yield f"the provider saw it, and {net} entries stand"
    # What could not be reached counts the call where its hedge is out already, and costs nothing.
    counted = tried.beside is not None and not tried.is_hedge and net and not entries[-1].charge.amount_nanos
    if not tried.seen and (net > 1 or (net and not (tried.died or counted))):
        yield f"the provider never saw it, and {net} entries stand"
    if tried.opened_s is not None and not tried.granted:
        yield "it went out, and no budget was asked"
    if net == 1:
        yield from _of_amount(story, tried, entries[-1])
        yield from _of_outcome(story, tried, entries[-1])


def _of_amount(story: Story, tried: Tried, entry: Entry) -> Iterator[str]:
    amount = entry.charge.amount_nanos
    if story.planned.model != PRICED:
        if (amount, entry.charge.status) not in ((None, "unpriced"), (0, "priced")):
            yield f"its model has no price, and {amount} is booked as {entry.charge.status}"
        return
    if amount is None:
        yield "its amount is unknown"
        return
    model = PRICED if tried.route is None else tried.route.model
    known = _stated(story, tried)
    exact = known is not None and (amount, entry.charge.status) == (price(known, model), "priced")
    if known is not None and not exact and not tried.died:
        yield f"the provider said {known} = {price(known, model)} nanos, booked {amount} as {entry.charge.status}"
    if not exact and tried.seen:  # the prompt's bound is generous: it must not hide a missing output
        true = _generated(story, tried)
        if entry.outcome == "expired":  # nobody looked at the reply: the quote is all that is known
            true = structs.replace(true, output=_unbounded(story, tried, true.output))
        if amount < price(true, model) or entry.usage.output < true.output:
            yield f"the provider generated {true} = {price(true, model)} nanos, booked {entry.usage} = {amount}"
    if known is None and amount and entry.charge.status == "priced":
        yield f"nobody said what it used, and {amount} is booked as priced"


def _of_outcome(story: Story, tried: Tried, entry: Entry) -> Iterator[str]:
    planned, provided = story.planned, tried.provided
    if tried.died or story.cancelled:
        return
    if entry.outcome == "expired":
        yield "it came to its end, and its estimate stands"
    if provided.trouble == "lingers" and planned.events_of_google:
        return  # they end with the connection
    whole = b"".join(piece.raw for piece in tried.pieces)
    finished = False  # the end marker reached the gateway while the client was there
    if tried.reply is not None and tried.reply.stream and not provided.trouble.startswith("status"):
        there = tried.left_at is None or tried.left_at >= len(whole)
        finished = there and not _fails(tried) and whole in bytes(tried.delivered)
    patient = planned.client.manner == "stays" and not story.left and is_good(story, tried) and tried.seen
    if finished and entry.outcome in ("cut", "left") and planned.client.manner in ("stays", "leaves"):
        yield f"the provider's end marker arrived, and it is booked as {entry.outcome}"
    elif patient and not tried.lost and tried.reply is not None and tried.reply.stream and entry.outcome != "ok":
        yield f"nothing was wrong and everything in time, and it is booked as {entry.outcome}"


def _stated(story: Story, tried: Tried) -> Usage | None:
    """The usage that the provider stated as its last word, all of which reached the gateway."""
    reply, provided = tried.reply, tried.provided
    if reply is None or not provided.traits.tells_usage or _fails(tried):
        return None
    if provided.trouble.startswith("status"):
        return Usage() if provided.trouble == "status" and tried.eof else None
    # A stream's last piece is the end marker, its usage stands before it, or, in a response and in Google's events, in it; of
    # two choices only the end says which is last.
    two = story.planned.choices > 1
    last = story.planned.dialect == "openai-responses" or story.planned.events_of_google
    in_the_end = two or not reply.stream or last
    needed = tried.pieces if in_the_end else tried.pieces[:-1]
    marked = reply.stream and not story.planned.events_of_google
    if two and not (b"".join(piece.raw for piece in needed) in tried.delivered if marked else tried.eof):
        return None
    if len(_useful(tried)) < len(b"".join(piece.raw for piece in needed).rstrip()):
        return None
    lie = provided.lie if story.planned.dialect != "openai-embeddings" else None
    if lie in ("absurd", "negative"):
        return None
    beside = reply.usage.reasoning if story.planned.dialect == "google-generate" else 0
    return structs.replace(reply.usage, output=stated(lie, reply.usage.output - beside) + beside)


def _useful(tried: Tried) -> bytes:
    return bytes(tried.delivered).replace(PING, b"").strip()


_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_WRITTEN: Final = (*_CAPS, "generationConfig", "model")


def _asked(story: Story, tried: Tried) -> dict[str, Any]:
    """The client's request, with the output cap that a budget made the gateway set, and the provider's name for the model."""
    asked: dict[str, Any] = msgspec.json.decode(story.planned.body)
    return asked | {name: tried.got[name] for name in _WRITTEN if name in tried.got}


def _unbounded(story: Story, tried: Tried, output: int) -> int:
    """Of what was generated unseen, where nobody set a cap, the gateway expects so much and no more."""
    told = tried.got | tried.got.get("generationConfig", {})
    if any(told.get(name) is not None for name in _CAPS):
        return output
    return min(output, (story.limits.default_output_cap or 0) * story.planned.choices)


def _fails(tried: Tried) -> bool:
    """Whether an error stands in the place of the reply's end."""
    trouble = tried.provided.trouble
    return trouble in ("error", "error_done") or (
        trouble == "error_first" and tried.reply is not None and not tried.reply.stream
    )


def _generated(story: Story, tried: Tried) -> Usage:
    """What the provider generated of what it sent. Reasoning counts only while nothing was seen of the text: later the
    text is what bounds the estimate, and reasoning leaves no trace in it.
    """
    reply, trouble = tried.reply, tried.provided.trouble
    if reply is None or trouble.startswith("status"):
        return Usage()
    if _fails(tried) and not reply.stream:
        return Usage()
    if not reply.stream:  # all of it, before the first byte
        text = sum(piece.tokens - piece.reasoning for piece in tried.pieces)
        return structs.replace(reply.usage, output=text if tried.eof else _unbounded(story, tried, text))
    begun, at, received = list[Piece](), 0, len(_useful(tried))
    for piece in tried.pieces:
        if at >= received:
            break
        begun.append(piece)
        at += len(piece.raw)
    output = sum(piece.tokens - piece.reasoning for piece in begun)
    if trouble.startswith("error"):
        return structs.replace(reply.usage, output=output) if output else Usage()
    return structs.replace(reply.usage, output=output or _unbounded(story, tried, sum(piece.tokens for piece in begun)))


def _of_reply(story: Story, tried: Tried | None) -> Iterator[str]:
    """It is this attempt's: no two answer alike."""
    planned, body = story.planned, bytes(story.body).replace(b"\r\n", b"\n")
    stays = story.id != "" and not (story.left or story.died or story.cancelled)
    if stays and planned.client.manner != "stops" and not story.ended:
        yield "the client waits for the end of its reply"
    if story.status is None:
        return
    if tried is None or tried.reply is None:
        if b'"request_id":"%b"' % story.id.encode() not in body and story.ended:
            yield f"no provider answered, and the client got {body!r}"
        return
    asked, reply, pieces = _asked(story, tried), tried.reply, tried.pieces
    assert reply is not None
    if asked != tried.got:
        body_asked = msgspec.json.encode(asked)
        reply, pieces = answer_to(planned, body_asked, tried.number, provided=tried.provided, target=tried.target)
    full = b"".join(piece.raw for piece in pieces).replace(b"\r\n", b"\n")
    error = body.find(b'"request_id":"%b"' % story.id.encode())
    told = error >= 0
    if story.status >= 300:
        if not told and body and body != full:
            yield f"the client got what the provider did not send: {body!r}"
        return
    if told:
        begins, ends = (b",\n", b"}\n]") if planned.array else (b"\n\n", b"\n\n")
        end = body.find(ends, error) + len(ends)
        if body[end:]:
            yield f"after the gateway's error event comes {body[end:]!r}"
        body = body[: body.rfind(begins, 0, error) + (0 if planned.array else 2)]
        if any(marker in body for marker in END_MARKERS):
            yield "an end marker, and then an error event of the gateway"
    got = _COST.sub(b"", body) if b": x-tollkeeper-cost" in body else body
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
    return all(provided.lie != "triple" for call in script.calls for provided in call.provided)


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
