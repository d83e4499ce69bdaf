"""usage_lines: our own shape, in which nothing is passed over in silence."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from tests.logs import why

from tollkeeper.importing import usage_lines
from tollkeeper.importing.records import Given, Record
from tollkeeper.testing.clock import START_US
from tollkeeper.values import KINDS, Part, Scopes, Usage

GIVEN = Given(project="shop", agent="writer", provider="openai", now_us=START_US)
LEAST = {"at": "2026-01-01T00:00:00Z", "model": "gpt-4o-mini", "input": 5}


def read(**fields: Any) -> Record:
    return usage_lines.read(json.dumps(LEAST | fields).encode(), GIVEN)


def test_the_least() -> None:
    """A time, a model and usage are enough; what the line does not say is what was given beside it."""
    record = read()
    assert (record.at_us, record.model, record.request_id, record.provider) == (START_US, "gpt-4o-mini", None, "openai")
    assert record.scopes == Scopes(project="shop", agent="writer")
    assert record.reading.parts == (Part(Usage(input=5)),)
    assert record.reading.final


def test_every_field() -> None:
    """Every documented field arrives, and wins over what was given."""
    kinds = {kind: number for number, kind in enumerate(KINDS, 1)}
    record = read(
        request_id="r1", project="p", agent="a", session="s", user="u", key="k", tags=["y", "x"], provider="groq",
        model="vendor/model:free", served="m-2", tier="flex", speed="fast", geo="us", cost_usd="0.25", **kinds,
    )  # fmt: skip
    assert record.scopes == Scopes(project="p", agent="a", session="s", user="u", key="k", tags=("x", "y"))
    assert (record.request_id, record.provider, record.model) == ("r1", "groq", "vendor/model:free")
    reading = record.reading
    assert (reading.model, reading.tier, reading.speed, reading.geo) == ("m-2", "flex", "fast", "us")
    assert (reading.usage, reading.reported_usd) == (Usage(**kinds), Decimal("0.25"))


def test_counts_as_openai_has_them() -> None:
    """A1: prompt_tokens is the whole prompt; cached and written tokens are taken out of it."""
    counts = {"prompt_tokens": 25_978, "completion_tokens": 13, "cached_tokens": 24_540, "cache_write_tokens": 38}
    raw = json.dumps({name: LEAST[name] for name in ("at", "model")} | counts).encode()
    assert usage_lines.read(raw, GIVEN).reading.usage == Usage(
        input=1400, cache_read=24_540, cache_write_5m=38, output=13
    )


@pytest.mark.parametrize("cost", ["0.1234567890123", "12", "0"])
def test_a_cost_is_exact(cost: str) -> None:
    """A7: a cost is decimal text, or a number of which the text on the wire counts; it needs no usage beside it."""
    for shown in (f'"{cost}"', cost):
        raw = b'{"at": "2026-01-01T00:00:00Z", "model": "m", "cost_usd": %s}' % shown.encode()
        record = usage_lines.read(raw, GIVEN)
        assert (record.reading.reported_usd, record.reading.parts) == (Decimal(cost), ())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"at": None}, "at: is required"),
        ({"model": None}, "model: is required"),
        ({"at": "2026-01-01"}, "at: expected an ISO 8601 time with its zone"),
        ({"at": 1767225600}, "at: expected an ISO 8601 time"),
        ({"input": None}, "usage: expected token counts"),
        ({"input": -1}, "input: expected a whole number from 0"),
        ({"input": 10**9 + 1}, "input: expected a whole number from 0"),
        ({"input": 1.5}, "input: expected a whole number"),
        ({"input": True}, "input: expected a whole number"),
        ({"output": "5"}, "output: expected a whole number"),
        ({"prompt_tokens": 5, "completion_tokens": 5}, "prompt_tokens: expected either counts as OpenAI has them or kinds"),
        ({"input": None, "prompt_tokens": 5}, "completion_tokens: expected a whole number"),
        ({"input": None, "prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 6}, "prompt_tokens: expected the whole"),
        ({"promt_tokens": 5}, "'promt_tokens' is not a field; did you mean prompt_tokens?"),
        ({"temperature": 0}, "'temperature' is not a field"),
        ({"cost_usd": "NaN"}, "cost_usd: expected dollars"),
        ({"cost_usd": -0.5}, "cost_usd: expected dollars"),
        ({"cost_usd": "many"}, "cost_usd: expected dollars"),
        ({"project": ""}, "project: expected 1 to 128 printable"),
        ({"project": 5}, "project: expected text"),
        ({"agent": "a\nb"}, "agent: expected 1 to 128 printable"),
        ({"model": "m" * 300}, "model: expected 1 to 256"),
        ({"served": ""}, "served: expected 1 to 256"),
        ({"tags": "a,b"}, "tags: expected a list of texts"),
        ({"request_id": "x" * 129}, "request_id: expected 1 to 128"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_mistakes(fields: dict[str, Any], says: str) -> None:
    """I2: each mistake is one line that names the field and what would be right."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read(**fields)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=3)
)


@generated(st.dictionaries(st.sampled_from([*usage_lines.FIELDS, "other"]), VALUES, max_size=8))
def test_any_fields(fields: dict[str, Any]) -> None:
    """H4: whatever a line says, it is read within bounds or refused in one line."""
    record = why(lambda: read(**fields))
    if isinstance(record, str):
        assert "\n" not in record
    else:
        assert all(0 <= getattr(record.reading.usage, kind) <= 10**9 for kind in KINDS)


def test_fits() -> None:
    """A line with a time or a model may be meant so."""
    assert usage_lines.fits({"at": b""})
    assert not usage_lines.fits({"startTime": b""})
