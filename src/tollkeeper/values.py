"""Frozen values that two steps of the line or more share. No behaviour beyond reading themselves.

Instants are UTC microseconds (`…_us`), amounts nano-dollars (`…_nanos`), counts tokens or units. `None` is unknown.
They are trees of plain values, so the garbage collector need not know of them (`gc=False`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.money import format_nanos

MAX_TOKENS: Final = 10**9
"""No call has more tokens of one kind: a count above it is absurd and never reaches a counter."""
MAX_ID: Final = 128
"""Characters in an id of a project, agent, session, user, key or tag."""
MAX_MODEL: Final = 256
"""Characters in a model's name; the longest known (inference-profile ARNs) have about 150."""

OTHER: Final = "_other"
"""Where cells count ids past the cardinality cap."""

ChargeStatus = Literal["priced", "partial", "unpriced", "estimated"]
DialectName = Literal["openai-chat", "openai-embeddings", "openai-responses", "anthropic-messages", "google-generate"]
Outcome = Literal["ok", "error", "cut", "left", "expired"]
ScopeKind = Literal["all", "project", "agent", "session", "user", "key", "model", "tag"]
Measure = Literal["usd", "tokens", "requests"]
Window = Literal["minute", "hour", "day", "week", "month", "total"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)


class Usage(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Counts of one call in disjoint kinds: no token stands in two of them (`reasoning` is information only)."""

    input: int = 0  #: prompt tokens read neither from a cache nor written to one, text and what is not split further
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0  #: generated tokens, reasoning inside
    input_audio: int = 0
    cache_read_audio: int = 0
    output_audio: int = 0
    input_image: int = 0
    output_image: int = 0
    web_search: int = 0  #: searches, not tokens
    file_search: int = 0  #: searches, not tokens
    audio_seconds: int = 0  #: audio that is billed by its length and not by tokens
    code_session: int = 0  #: containers in which the provider ran code
    reasoning: int = 0  #: how much of `output` was reasoning; never priced beside it

    @property
    def input_tokens(self) -> int:
        """The whole prompt: what decides a context tier."""
        return (
            self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h
            + self.input_audio + self.cache_read_audio + self.input_image
        )  # fmt: skip

    @property
    def output_tokens(self) -> int:
        return self.output + self.output_audio + self.output_image

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


KINDS: Final[tuple[str, ...]] = Usage.__struct_fields__
"""Every usage kind, in the order of the ledger's columns; the last one is `reasoning`."""
UNIT_KINDS: Final = ("web_search", "file_search", "audio_seconds", "code_session")
"""Kinds that count something else than tokens."""
TOKEN_KINDS: Final = tuple(kind for kind in KINDS if kind not in UNIT_KINDS and kind != "reasoning")
"""Kinds that add up to `Usage.tokens`."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """Usage of one model inside a call: most calls have one; Anthropic's advisor and compaction have more."""

    usage: Usage
    model: str | None = None  #: the model that served it, None where the reply does not say


class Reading(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the meter read from a reply."""

    parts: tuple[Part, ...] = ()  #: empty: the reply carried no usage
    model: str | None = None  #: the model that served, as the reply names it
    tier: str | None = None  #: the service tier that served
    speed: str | None = None
    geo: str | None = None
    reported_usd: Decimal | None = None  #: what the provider says that it charged
    final: bool = False  #: the usage is the provider's last word, not an interim count
    inferred: bool = False  #: some of the usage was worked out, not stated
    assumed: bool = False  #: and some of that is a bound of ours: what it costs is an estimate
    ended: bool = False  #: the dialect's end marker was seen (always True for a whole body)
    output_bytes: int = 0  #: bytes of generated text seen: they bound its tokens from above
    unseen: bool = False  #: some of what was generated is not shown (secret reasoning): bytes seen bound nothing
    error: str | None = None  #: type or message of an error inside the reply
    note: str | None = None  #: what the reply said and could not be believed ("absurd usage")

    @property
    def usage(self) -> Usage:
        """All parts added up."""
        if len(self.parts) == 1:
            return self.parts[0].usage
        return Usage(**{kind: sum(getattr(part.usage, kind) for part in self.parts) for kind in KINDS})


class Term(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One product of a charge's sum: quantity × usd / per."""

    model: str
    kind: str
    quantity: int
    usd: str  #: exact decimal text; the price of `per` units
    per: int = 1_000_000


class Charge(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Usage × prices. `computed_nanos` is ours, `reported_nanos` the provider's own figure; `amount_nanos` is what counts."""

    amount_nanos: int | None
    status: ChargeStatus
    computed_nanos: int | None = None
    reported_nanos: int | None = None
    price_version: str = ""
    terms: tuple[Term, ...] = ()  #: the unit prices used: pricing again is a function of the entry
    missing: tuple[str, ...] = ()  #: kinds that had no rate of their own
    estimated: bool = False  #: the usage is a bound of ours, also where the status is `partial` or `unpriced`


class Scopes(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """For whom a call is made. Agents, sessions, users and tags belong to their project."""

    project: str
    agent: str | None = None
    session: str | None = None
    user: str | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()


class Ask(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A client's request as its dialect read it."""

    dialect: str
    model: str
    stream: bool
    body: dict[str, msgspec.Raw]  #: top-level fields, values byte for byte
    prompt_bound: int  #: no prompt of this body has more tokens
    output_cap: int | None  #: tokens that one choice may have, None where the body sets no limit
    choices: int = 1
    generates: bool = True  #: False where the reply has no output tokens (embeddings)
    free: bool = False  #: costs nothing anywhere (counting tokens): passed through, neither held nor booked
    path: str = ""  #: where it goes below a provider's base URL; {model} stands for the route's model
    array: bool = False  #: its stream comes as one JSON array and not as events
    plain: bool = False  #: its prompt is text and nothing else: its tokens can be learned from its bytes
    wants_usage: bool = True  #: whether the client asked for a usage event in its stream
    user: str | None = None  #: from the dialect's own user field
    tier: str | None = None  #: the service tier asked for
    speed: str | None = None  #: and the speed
    geo: str | None = None  #: and the place of inference
    others: tuple[str, ...] = ()  #: models, by the provider's names, that the body lets it serve instead


class Credential(msgspec.Struct, frozen=True, gc=False):
    """A provider's key. `name` is that of its variable or file and may be shown, the secret never is."""

    name: str
    secret: str

    def __repr__(self) -> str:
        return f"Credential({self.name!r})"


class Provider(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A place that speaks dialects at a base URL with any of its credentials."""

    name: str
    base_url: str
    dialects: frozenset[str]
    prices: str | None = None  #: provider id in the price data, None: only overrides price its models
    credentials: tuple[Credential, ...] = ()  #: calls are spread over them; empty: it needs none
    credential_header: str = "authorization"  #: `authorization` gets "Bearer …", any other the bare secret
    headers: tuple[tuple[str, str], ...] = ()
    quirks: frozenset[str] = frozenset()
    paths: tuple[tuple[str, str], ...] = ()  #: dialect → path below the base URL where it is not the dialect's own
    credential_headers: tuple[tuple[str, str], ...] = ()  #: dialect → credential header where it is another one
    counts: Literal["reported", "computed"] = "reported"  #: whose figure counts where it reports what a call cost

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, {self.base_url!r})"


class Place(NamedTuple):
    """Where a call may go, by names; `key` is the name of the provider's credential, never its secret."""

    provider: str
    key: str
    model: str


class Route(msgspec.Struct, frozen=True, gc=False):
    """One way to serve a model: a provider, its name for the model, and which of its credentials is sent."""

    provider: Provider
    model: str
    credential: Credential | None = None
    weight: int = 1  #: its share where routes are drawn by weight
    place: Place = Place("", "", "")  #: its names, by which its health is known; found by itself

    def __post_init__(self) -> None:
        key = "" if self.credential is None else self.credential.name
        msgspec.structs.force_setattr(self, "place", Place(self.provider.name, key, self.model))


class Quote(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The upper bound of what a call can cost; where quotes are typical, what most such calls stay within."""

    amount_nanos: int | None  #: None: it cannot be priced, or has no bound
    usage: Usage | None  #: the tokens that it stands on; None: without an output cap there is no bound
    output_cap: int | None  #: output tokens that one choice may have; None: nothing bounds them
    written_cap: int | None = None  #: the cap that makes it so once it is written into the request; None: it is so
    price_version: str = ""


class Hold(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A quote reserved against budgets: the record of an attempt before it goes out, named by the gateway.

    Everything that an entry needs is in it, so that the ledger alone can book it at its estimate when its gateway dies.
    """

    id: str  #: the attempt's id: "<call>/<n>"
    call: str
    attempt: int
    scopes: Scopes
    dialect: str
    provider: str
    model: str  #: the model asked for
    quote_nanos: int | None
    quote_usage: Usage | None  #: the bound that the quote stands on; None: the call has no output cap
    at_us: int  #: when it was reserved: fixes every window that it counts in
    deadline_us: int
    price_version: str = ""
    sent: str | None = None  #: the provider's name for the model, where it is another one
    tier: str | None = None  #: asked for, as are speed and geo: what the quote stands on
    speed: str | None = None
    geo: str | None = None


class Entry(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One attempt as booked. Immutable.

    A correction is two more entries: the old one again with `sign` -1, and what is right with the next `revision`.
    """

    id: str
    call: str
    at_us: int
    attempt: int = 1
    calls: int = 1  #: 1 on the entry that counts the call, 0 on those of its further attempts
    revision: int = 0
    sign: int = 1
    scopes: Scopes
    dialect: str
    provider: str
    model: str  #: the model asked for
    served: str  #: the model that served; the one asked for where the reply did not say
    tier: str | None = None
    outcome: Outcome = "ok"
    http_status: int | None = None
    usage: Usage = Usage()
    charge: Charge
    latency_ms: int | None = None
    note: str | None = None  #: why it is estimated, corrected or an error; never prompt text
    speed: str | None = None
    geo: str | None = None
    sent: str | None = None  #: the provider's name for the model, where it is not `model`
    parts: tuple[Part, ...] = ()  #: usage by model, where more than one served, or another than `served`
    by: str | None = None  #: who asked for a correction
    other: tuple[ScopeKind, ...] = ()  #: scopes whose id is past the cardinality cap: their cells count under OTHER


class Budget(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A limit on a scope. `id` "*" limits each of them alone; agents, sessions, users and tags name their project too."""

    scope: ScopeKind
    limit: int | None  #: nanos for `usd`, else a count; None: no limit; 0: blocks
    measure: Measure = "usd"
    window: Window = "month"
    id: str = "*"
    project: str = "*"
    timezone: str = "UTC"
    hard: bool = True  #: False: counted and shown, never refused
    when_away: int = 0  #: what each gateway may admit while a shared ledger is away, in the limit's unit
    lease: int = 0  #: what a gateway may hold of a shared ledger's budget in advance, in the limit's unit; 0: nothing
    instead: str | None = None  #: the model that a call goes to where this hard budget would refuse it; None: refused


class Standing(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One budget as it stands for one call."""

    budget: Budget
    id: str  #: the scope's own id, "" for `all`
    project: str
    window_start_us: int
    resets_at_us: int | None  #: None: `total` never resets
    spent: int
    held: int

    @property
    def remaining(self) -> int | None:
        """What may still be reserved, never below 0; None without a limit."""
        return None if self.budget.limit is None else max(0, self.budget.limit - self.spent - self.held)


class Grant(msgspec.Struct, frozen=True, gc=False):
    """The answer to a reservation that was granted."""

    tightest: Standing | None = None  #: the budget with the least share of its limit left, this hold included
    capped: bool = (
        False  #: a hard budget in usd or tokens relies on the output cap: it must be written into the request
    )


class Refusal(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Why a call was refused by a budget, in numbers."""

    standing: Standing
    asked: int | None  #: what the call would have held; None: it cannot be priced
    reason: Literal["over", "unpriced", "unbounded"] = "over"

    def message(self) -> str:
        """One line for people: scope, id, window, limit, spent, held, asked, reset."""
        standing, budget = self.standing, self.standing.budget
        name = budget.scope if budget.scope == "all" else f"{budget.scope} {standing.id!r}"
        if standing.project and budget.scope not in ("all", "project"):
            name += f" of project {standing.project!r}"
        head = f"{budget.window} budget of {name}"
        if self.reason == "unpriced":
            return (
                f"The {head} is in usd and this model has no price; add one to the price file, or use a priced model."
            )
        if self.reason == "unbounded":
            return (
                f"The {head} needs an output cap; set max_tokens in the request or default_output_cap in the settings."
            )
        resets = "never" if standing.resets_at_us is None else iso_utc(standing.resets_at_us)
        unit = budget.measure
        return (
            f"The {head} cannot pay for this call: limit {show_amount(budget.limit, unit)}, "
            f"spent {show_amount(standing.spent, unit)}, held {show_amount(standing.held, unit)}, "
            f"this call may need {show_amount(self.asked, unit)}; resets {resets}."
        )


def show_amount(amount: int | None, measure: str) -> str:
    """An amount in its measure's unit for people: "$0.5", "1200 tokens", "none"."""
    if amount is None:
        return "none"
    return f"${format_nanos(amount)}" if measure == "usd" else f"{amount} {measure}"


def utc(at_us: int) -> datetime:
    """An instant as a datetime."""
    return EPOCH + at_us * _MICRO


def moment_of(value: object) -> datetime | None:
    """What TOML or ISO text says of an instant: a time with its zone, or a day, which is its midnight in UTC. None: no instant."""
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value) if len(value) == len("2026-01-31") else datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time(), UTC)
    return value if isinstance(value, datetime) and value.tzinfo is not None else None


def us_of(moment: datetime) -> int:
    """The instant of a datetime that has a zone."""
    return (moment - EPOCH) // _MICRO


@lru_cache(256)
def iso_utc(at_us: int) -> str:
    """An instant as "2026-11-22T12:00:00Z"."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
