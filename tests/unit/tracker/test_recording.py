"""tollkeeper.tracker.recording: a reply as it is booked by record_response: for whom, under which id, exact or honest."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.tracking import booked, tracker

from tollkeeper.errors import Conflict
from tollkeeper.settlement import NO_USAGE
from tollkeeper.values import Part, Scopes, Usage

ID = "chatcmpl-0123456789abcdefghij"
CHAT: dict[str, Any] = {
    "id": ID,
    "model": "tenth",
    "service_tier": "flex",
    "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1000, "total_tokens": 1010},
}
MUTE = CHAT | {"usage": None, "service_tier": None}
CONVERSE: dict[str, Any] = {
    "output": {}, "usage": {"inputTokens": 13, "outputTokens": 82, "totalTokens": 95},
    "ResponseMetadata": {"RequestId": "r"},
}  # fmt: skip
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def test_books_what_the_reply_says(tmp_path: Path) -> None:
    """A4, A8: usage, served model, tier and price are the reply's; who and when are the caller's; reports have it."""
    async with tracker(tmp_path) as costs:
        told = await costs.record_response(
            "openai-chat", CHAT, project_id="p", agent_id="a", model="asked", session_id="s", user_id="u", key_id="k",
            tags=["y", "x"], provider="ollama", http_status=200, timestamp=NOON,
        )  # fmt: skip
        (entry,) = await booked(costs)
        assert (told.booked, told.entry) == ("booked", entry)
        assert (told.amount_usd, entry.charge.missing) == (Decimal("0.1"), ("service_tier=flex",))
        assert (entry.call, entry.dialect, entry.provider, entry.model, entry.served) == (
            ID, "openai-chat", "ollama", "asked", "tenth",
        )  # fmt: skip
        assert entry.scopes == Scopes(project="p", agent="a", session="s", user="u", key="k", tags=("x", "y"))
        assert (entry.usage, entry.tier, entry.outcome, entry.http_status, entry.note) == (
            Usage(input=10, output=1000), "flex", "ok", 200, None,
        )  # fmt: skip
        assert (await costs.get_session_usage("s")).total_cost_usd == Decimal("0.1")


async def test_the_same_reply_counts_once(tmp_path: Path) -> None:
    """B2: by the provider's own id, in each form and at once; other contents under it are a conflict; a request_id wins."""
    async with tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite") as costs:
        forms: list[object] = [CHAT, CHAT, [{**CHAT}], iter([{**CHAT}])]
        tries = [costs.record_response("openai-chat", form, project_id="p", model="tenth") for form in forms]
        assert sorted(told.booked for told in await asyncio.gather(*tries)) == ["booked", *["repeated"] * 3]
        with pytest.raises(Conflict):
            await costs.record_response("openai-chat", CHAT, project_id="p", agent_id="another", model="tenth")
        await costs.record_response("openai-chat", CHAT, project_id="q", model="tenth")
        await costs.record_response("openai-chat", CHAT, project_id="p", model="tenth", request_id="mine")
        assert [entry.call for entry in await booked(costs)] == [ID, ID, "mine"]


async def test_a_reply_without_an_id(tmp_path: Path) -> None:
    """B2: without an id of its own, or with one that is not unique, each record is a call; `request_id` makes it one."""
    async with tracker(tmp_path) as costs:
        for _ in range(2):
            await costs.record_response("openai-chat", CHAT | {"id": "chatcmpl-407"}, project_id="p")
        for _ in range(2):
            await costs.record_response("bedrock-converse", CONVERSE, project_id="p", model="tenth", request_id="r")
        assert (await costs.get_project_usage("p")).total_requests == 3


async def test_model_is_the_replys_or_asked(tmp_path: Path) -> None:
    """Without `model` the reply's counts; a reply that names none needs it, and nothing is booked without."""
    async with tracker(tmp_path) as costs:
        told = await costs.record_response("openai-chat", CHAT, project_id="p")
        assert (told.entry.model, told.entry.served) == ("tenth", "tenth")
        for dialect, body in (("bedrock-converse", CONVERSE), ("openai-chat", {"error": {"type": "x"}})):
            with pytest.raises(ValueError, match=r"^model: this reply names none; pass the model that was asked for$"):
                await costs.record_response(dialect, body, project_id="p")
        assert len(await booked(costs)) == 1


async def test_a_dialects_home_is_its_provider(tmp_path: Path) -> None:
    """A4: Bedrock's replies have AWS's prices, regional tenth and all, unless another provider is named."""
    async with tracker(tmp_path) as costs:
        model = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
        prices = []
        for name in (
            model,
            f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{model}",
            model.replace("us.", "global."),
        ):
            told = await costs.record_response("bedrock-converse", CONVERSE, project_id="p", model=name)
            assert (told.entry.provider, told.status, told.entry.served) == ("bedrock", "priced", name)
            prices.append([term.usd for term in told.entry.charge.terms])
        assert prices == [["3.3", "16.5"], ["3.3", "16.5"], ["3", "15"]]
        told = await costs.record_response(
            "bedrock-converse", CONVERSE, project_id="p", model="us.amazon.nova-micro-v1:0"
        )
        assert told.amount_usd == Decimal("0.000011935")
        told = await costs.record_response(
            "bedrock-converse", CONVERSE, project_id="p", model="gpt-4o", provider="openai"
        )
        assert told.entry.provider == "openai"


async def test_a_profile_decides_the_price(tmp_path: Path) -> None:
    """A4: InvokeModel's reply names the vendor's model; the price is that of the profile that was called."""
    body = {"model": "claude-sonnet-4-5-20250929", "usage": {"input_tokens": 10, "output_tokens": 1}}
    async with tracker(tmp_path) as costs:
        for place, usd in (("us.", "3.3"), ("global.", "3"), ("eu.", "3.3")):
            asked = f"{place}anthropic.claude-sonnet-4-5-20250929-v1:0"
            told = await costs.record_response(
                "anthropic-messages", body, project_id="p", model=asked, provider="bedrock"
            )
            assert (told.status, told.entry.served, told.entry.charge.terms[0].usd) == ("priced", asked, usd)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"type": "insufficient_quota"}}, None),
        ({"error": {"type": "insufficient_quota"}}, 429),
        (b"upstream timed out", 504),
        (b'data: {"error":{"message":"no"}}\n\n', None),
        ([{"error": {"message": "no"}}], None),
    ],
)
async def test_refusals_cost_nothing(tmp_path: Path, body: object, status: int | None) -> None:
    """A refusal by the provider is an error that costs 0, whether its status is known or not (decision 14)."""
    async with tracker(tmp_path) as costs:
        told = await costs.record_response("openai-chat", body, project_id="p", model="tenth", http_status=status)
        assert (told.amount_usd, told.status, told.entry.outcome) == (0, "priced", "error")
        assert (told.entry.http_status, told.entry.note) == (status, "upstream_refused")


async def test_no_usage_is_not_zero(tmp_path: Path) -> None:
    """A5: a reply without usage is unpriced and says why; with a bound of its prompt it is an estimate from above."""
    async with tracker(tmp_path) as costs:
        told = await costs.record_response("openai-chat", MUTE, project_id="p", request_id="1")
        assert (told.amount_usd, told.status, told.entry.note) == (None, "unpriced", NO_USAGE)
        told = await costs.record_response("openai-chat", MUTE, project_id="p", request_id="2", prompt_tokens=50)
        assert (told.status, told.entry.usage.input) == ("estimated", 50)
        assert told.entry.usage.output >= len("Hi")
        stream = [{"model": "tenth", "choices": [{"delta": {"content": "Hello"}}]}]
        told = await costs.record_response("openai-chat", stream, project_id="p", prompt_tokens=50)
        assert (told.entry.usage, told.amount_usd) == (Usage(input=50, output=5), Decimal("0.0005"))
        day = await costs.get_project_usage("p")
        assert (day.total_requests, day.unpriced_requests) == (3, 1)


async def test_what_the_reply_cannot_say(tmp_path: Path) -> None:
    """A4: a `tier` that the caller knows counts: no reply says that it came in a batch."""
    async with tracker(tmp_path) as costs:
        body = CHAT | {"model": "gpt-4o-mini", "service_tier": "default"}
        usual = await costs.record_response("openai-chat", body, project_id="p", request_id="1")
        batch = await costs.record_response("openai-chat", body, project_id="p", request_id="2", tier="batch")
        assert (usual.entry.tier, batch.entry.tier) == ("default", "batch")
        assert usual.amount_usd is not None
        assert batch.amount_usd is not None or batch.status == "partial"


async def test_several_models_are_parts(tmp_path: Path) -> None:
    """Turns of several models are booked as parts, each at its own price."""
    turns = [
        {"type": "message", "input_tokens": 5, "output_tokens": 10, "model": "tenth"},
        {"type": "advisor_message", "input_tokens": 7, "output_tokens": 20, "model": "free"},
    ]
    usage = {"input_tokens": 5, "output_tokens": 10, "iterations": turns}
    body = {"id": "msg_0123456789abcdefghij", "model": "tenth", "usage": usage}
    async with tracker(tmp_path) as costs:
        told = await costs.record_response("anthropic-messages", body, project_id="p")
        assert told.entry.parts == (
            Part(Usage(input=5, output=10), "tenth"), Part(Usage(input=7, output=20), "free"),
        )  # fmt: skip
        assert (told.amount_usd, told.entry.usage) == (Decimal("0.001"), Usage(input=12, output=30))


GOOD: dict[str, Any] = {"dialect": "openai-chat", "body": CHAT, "project_id": "p", "model": "tenth"}


@pytest.mark.parametrize(
    ("bad", "argument"),
    [
        ({"dialect": "openai"}, "dialect"),
        ({"dialect": None}, "dialect"),
        ({"body": None}, "body"),
        ({"body": 7}, "body"),
        ({"body": {"stream": iter(())}}, "body"),
        ({"project_id": ""}, "project_id"),
        ({"model": ""}, "model"),
        ({"request_id": ""}, "request_id"),
        ({"tags": "x"}, "tags"),
        ({"provider": ""}, "provider"),
        ({"tier": "x" * 200}, "tier"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"http_status": 42}, "http_status"),
        ({"http_status": True}, "http_status"),
        ({"timestamp": datetime(2026, 1, 1)}, "timestamp"),  # noqa: DTZ001 what is refused
    ],
)
async def test_bad_input_writes_nothing(tmp_path: Path, bad: dict[str, Any], argument: str) -> None:
    """Each mistake is a ValueError that names its argument, and the ledger stays empty."""
    async with tracker(tmp_path) as costs:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            await costs.record_response(**GOOD | bad)
        assert await booked(costs) == []


async def test_switched_off(tmp_path: Path) -> None:
    """With tracking off the reply is read and priced, and nothing is booked."""
    async with tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite", cost_tracking_enabled=False) as costs:
        told = await costs.record_response(**GOOD)
        assert (told.booked, told.amount_usd) == ("off", Decimal("0.1"))
    assert not (tmp_path / "ledger.sqlite").exists()
