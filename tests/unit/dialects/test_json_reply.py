"""What every dialect reads from replies and writes into errors."""

from __future__ import annotations

import json
from decimal import Decimal

import msgspec
import pytest

from tollkeeper.dialects.json_reply import (
    error_label,
    generated_bytes,
    read_members,
    read_usd,
    refusal_numbers,
    reply_id,
)
from tollkeeper.errors import BadRequest, BudgetExceeded
from tollkeeper.values import Budget, Refusal, Standing


@pytest.mark.parametrize(
    ("text", "usd"),
    [
        (b"0.00504", "0.00504"),
        (b"2.96e-05", "0.0000296"),
        (b"0", "0"),
        (b"0.1234567890123456789", "0.1234567890123456789"),
        (b"-1", None),
        (b"1e400", None),
        (b"1e999999999999", None),
        (b"true", None),
        (b"null", None),
        (b"", None),
        (b"{}", None),
        (b'"nan"', None),
    ],
)
def test_money_is_read_exactly_or_not_at_all(text: bytes, usd: str | None) -> None:
    """F4: reported money is the decimal on the wire; hostile amounts are no amounts."""
    assert read_usd(msgspec.Raw(text)) == (None if usd is None else Decimal(usd))


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (b'{"type":"overloaded_error","code":1,"message":"m"}', "overloaded_error"),
        (b'{"type":null,"code":429,"message":"m"}', "429"),
        (b'{"type":"","message":"m"}', "m"),
        (b'{"type":["odd"],"message":"m"}', "m"),
        (b'"boom"', "boom"),
        (b"{}", "error"),
        (b"", "error"),
        (b'{"message":"' + b"x" * 5000 + b'"}', "x" * 200),
    ],
)
def test_error_label(error: bytes, label: str) -> None:
    """An in-band error is named by its type, code or message, shortened."""
    assert error_label(error) == label


def test_generated_bytes() -> None:
    """Every member with something in it counts, but the ones beside the text."""
    delta = read_members(b'{"role":"assistant","content":"abc","refusal":null,"tool_calls":[],"reasoning":""}')
    assert generated_bytes(delta, frozenset(["role"])) == 3
    assert read_members(b"[1]") == {}


def test_refusal_numbers() -> None:
    """C7: a refusal names scope, id, window, limit, spent, held, asked and reset; usd as decimal text."""
    standing = Standing(
        budget=Budget(scope="agent", limit=1_000_000_000, window="day"),
        id="writer",
        project="alpha",
        window_start_us=0,
        resets_at_us=86_400_000_000,
        spent=900_000_000,
        held=50_000_001,
    )
    assert refusal_numbers(BudgetExceeded(Refusal(standing=standing, asked=100_000_000))) == {
        "reason": "over",
        "scope": "agent",
        "id": "writer",
        "project": "alpha",
        "measure": "usd",
        "window": "day",
        "limit": "1",
        "spent": "0.9",
        "held": "0.050000001",
        "asked": "0.1",
        "resets_at": "1970-01-02T00:00:00Z",
    }
    tokens = msgspec.structs.replace(
        standing, budget=Budget(scope="agent", limit=5, measure="tokens", window="total"), resets_at_us=None
    )
    numbers = refusal_numbers(BudgetExceeded(Refusal(standing=tokens, asked=None, reason="unbounded")))
    assert (numbers["limit"], numbers["asked"], numbers["resets_at"]) == (5, None, None)
    assert refusal_numbers(BadRequest("x")) == {}


@pytest.mark.parametrize(
    ("document", "id"),
    [
        ({"id": "chatcmpl-B1cD2eF3gH4iJ5kL6"}, "chatcmpl-B1cD2eF3gH4iJ5kL6"),
        ({"type": "message_start", "message": {"id": "msg_01AbCdEfGhIjKlMnOp"}}, "msg_01AbCdEfGhIjKlMnOp"),
        ({"type": "response.created", "response": {"id": "resp_0123456789abcdef"}}, "resp_0123456789abcdef"),
        ({"responseId": "x3VmaZ-lGoXgvdIPrpTN4Ao"}, "x3VmaZ-lGoXgvdIPrpTN4Ao"),
        ({"id": "chatcmpl-407"}, None),
        ({"id": ""}, None),
        ({"id": "x" * 129}, None),
        ({"id": "chatcmpl-B1cD2eF3gH4i\n5kL6"}, None),
        ({"id": 7}, None),
        ({"message": "an error that has the words of an error"}, None),
        ([], None),
    ],
)
def test_reply_ids(document: object, id: str | None) -> None:
    """B2: a provider's id of a reply is read in each dialect's place; one too short to be unique is none."""
    assert reply_id(json.dumps(document).encode()) == id
    assert reply_id(b"\xff{") is None
