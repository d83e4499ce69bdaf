"""Usage as JSON lines, in a shape of our own: docs/reference/import.md has every field.

    {"at": "2026-11-22T12:00:00Z", "project": "shop", "model": "gpt-4o-mini", "input": 1200, "output": 300}

Tokens stand either in the ledger's disjoint kinds or as OpenAI counts them (`prompt_tokens` is the whole prompt). A field
that is not known is a mistake: nothing that somebody wrote is passed over in silence.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from tollkeeper.importing.records import Given, Members, Record, instant, values
from tollkeeper.tracker import arguments
from tollkeeper.values import KINDS, MAX_MODEL, Part, Reading, Scopes, Usage

name: Final = "usage"

COUNTS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens")
FIELDS: Final = (
    "at", "request_id", "project", "agent", "session", "user", "key", "tags", "provider", "model", "served", "tier",
    "speed", "geo", "cost_usd", *KINDS, *COUNTS,
)  # fmt: skip
_KNOWN: Final = frozenset(FIELDS)


def fits(members: Members) -> bool:
    """A time or a model, by our names."""
    return "at" in members or "model" in members


def read(raw: bytes, given: Given) -> Record:
    """A line's object. Raises ValueError: why it cannot be booked."""
    fields = values(raw)
    for field in fields.keys() - _KNOWN:
        near = get_close_matches(field, FIELDS, n=1)
        raise ValueError(
            f"{field[:60]!r} is not a field; "
            + (f"did you mean {near[0]}?" if near else "take it out, or name it as a tag")
        )
    for needed in ("at", "model"):
        if needed not in fields:
            raise ValueError(f"{needed}: is required")
    model = arguments.model(fields["model"])
    names = {field: arguments.name(fields[field], field) for field in _NAMES if field in fields}.get
    served = None if "served" not in fields else arguments.name(fields["served"], "served", MAX_MODEL)
    reported = arguments.cost(fields.get("cost_usd"), "cost_usd")
    usage = _usage(fields)
    if usage is None and reported is None:
        raise ValueError(f"usage: expected token counts ({', '.join(COUNTS[:2])}, or input, output, …) or cost_usd")
    return Record(
        at_us=instant(fields["at"], "at", given),
        scopes=Scopes(
            project=names("project", given.project), agent=names("agent", given.agent), session=names("session"),
            user=names("user"), key=names("key"),
            tags=arguments.labels(fields["tags"], "tags") if "tags" in fields else (),
        ),
        dialect=name, provider=names("provider", given.provider), model=model, request_id=names("request_id"),
        reading=Reading(
            parts=() if usage is None else (Part(usage),), model=served, tier=names("tier"), speed=names("speed"),
            geo=names("geo"), reported_usd=reported, final=True,
        ),
    )  # fmt: skip


_NAMES: Final = ("project", "agent", "session", "user", "key", "provider", "request_id", "tier", "speed", "geo")


def _usage(fields: dict[str, Any]) -> Usage | None:
    """What was used; None where the line does not say."""
    kinds = {field: arguments.count(value, field) for field, value in fields.items() if field in KINDS}
    counts = [field for field in COUNTS if field in fields]
    if not counts:
        return Usage(**kinds) if kinds else None
    if kinds:
        raise ValueError(
            f"{counts[0]}: expected either counts as OpenAI has them or kinds, got {next(iter(kinds))} too"
        )
    prompt, completion, cached, written = (fields.get(field) for field in COUNTS)
    return arguments.usage(None, prompt, completion, 0 if cached is None else cached, 0 if written is None else written)
