"""CostTracker: what is recorded, what it answers, and that a mistake writes nothing."""

from __future__ import annotations

import asyncio
import decimal
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.tracking import DOLLAR, booked, live, tracker

from tollkeeper.config import load
from tollkeeper.errors import ConfigError, Conflict, StoreUnavailable
from tollkeeper.stores.opening import open_store
from tollkeeper.testing.clock import START_US, ManualClock
from tollkeeper.tracker import CostTracker, configuration
from tollkeeper.values import Scopes, Usage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


# ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("store", ["memory:", "file"])
async def test_records_and_reports(tmp_path: Path, store: str) -> None:
    """A1, A7: cached tokens are priced apart and the sum is exact, in the record, the entry and every report."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path}/ledger.sqlite"
    with decimal.localcontext(prec=3):
        async with tracker(tmp_path, url) as costs:
            told = await costs.record_usage(
                "p", "a", "cached", 25_978, 13, cached_tokens=24_540, session_id="s", user_id="u", tags=["y", "x"]
            )
            assert (told.amount_usd, told.status, told.booked) == (Decimal("0.005955"), "priced", "booked")
            (entry,) = await booked(costs)
            assert entry == told.entry
            assert entry.scopes == Scopes(project="p", agent="a", session="s", user="u", tags=("x", "y"))
            assert entry.usage == Usage(input=1438, cache_read=24_540, output=13)
            assert [term.usd for term in entry.charge.terms] == ["1.5", "0.15", "9"]
            for report in (
                await costs.get_project_usage("p"),
                await costs.get_agent_usage("p", "a", "month"),
                await costs.get_session_usage("s"),
            ):
                assert (report.total_requests, report.total_tokens) == (1, 25_991)
                assert report.total_cost_usd == report.by_model["cached"].total_cost_usd == Decimal("0.005955")


async def test_unknown_is_not_zero(tmp_path: Path) -> None:
    """A5: without a price the amount is None and the count of unpriced requests rises; a price of 0 stays 0."""
    async with tracker(tmp_path) as costs:
        unknown = await costs.record_usage("p", "a", "no-such-model", 10, 1)
        free = await costs.record_usage("p", "a", "free", 10, 1)
        assert (unknown.amount_usd, unknown.status) == (None, "unpriced")
        assert (free.amount_usd, free.status) == (Decimal(0), "priced")
        day = await costs.get_project_usage("p")
        assert (day.total_requests, day.unpriced_requests, day.total_cost_usd) == (2, 1, 0)
        assert day.by_model["no-such-model"].unpriced_requests == 1
        assert await costs.calculate_cost("no-such-model", 10, 1) is None
        assert await costs.estimate_request_cost("no-such-model", 10, 1) is None
        assert await costs.estimate_request_cost("no-such-model", 10, 1, default_usd="0.05") == Decimal("0.05")


@pytest.mark.parametrize("model", ["llama3:8b", "vendor/model:free"])
async def test_model_names_survive(tmp_path: Path, model: str) -> None:
    """A6: a name with a colon or a slash is the same in the entry and in every report."""
    async with tracker(tmp_path) as costs:
        assert (await costs.record_usage("p", "a", model, 1, 0)).amount_usd == Decimal("0.000001")
        assert list((await costs.get_project_usage("p")).by_model) == [model]


async def test_a_given_cost_counts_beside_ours(tmp_path: Path) -> None:
    """A8: `cost_usd` is what is booked, our own figure and the unit prices stand beside it; it prices an unknown model."""
    async with tracker(tmp_path) as costs:
        charge = (await costs.record_usage("p", "a", "tenth", 5, 1000, cost_usd="0.09")).entry.charge
        assert (charge.amount_nanos, charge.reported_nanos, charge.computed_nanos) == (90_000_000, 90_000_000, 10**8)
        assert charge.terms
        assert charge.price_version
        told = await costs.record_usage("p", "a", "unknown", 5, 5, cost_usd=Decimal("0.0000000125"))
        assert (told.status, told.entry.charge.amount_nanos) == ("priced", 12), "half to even, once"
        assert (await costs.record_usage("p", "a", "tenth", 5, 1000, cost_usd=0)).amount_usd == 0


async def test_provider_decides_the_price(tmp_path: Path) -> None:
    """A provider is a preset or one of the price data; without one the model's owner is named, or nobody."""
    async with tracker(tmp_path) as costs:
        told = [
            (await costs.record_usage("p", "a", model, 10**6, 0, provider=provider))
            for model, provider in (("gpt-4o", None), ("gpt-4o", "openai"), ("gpt-4o", "ollama"), ("odd", None))
        ]
        assert [each.entry.provider for each in told] == ["openai", "openai", "ollama", "unknown"]
        assert [each.amount_usd for each in told] == [Decimal("2.5"), Decimal("2.5"), None, None]


async def test_a_request_counts_once(tmp_path: Path) -> None:
    """B2: the same request five times at once, and again later, is one entry; other contents under its id are a conflict."""
    async with tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite") as costs:

        async def record(tokens: int = 1000) -> str:
            return (await costs.record_usage("p", "a", "tenth", 0, tokens, request_id="r")).booked

        answers = await asyncio.gather(*(record() for _ in range(5)))
        assert sorted(answers) == ["booked", *["repeated"] * 4]
        assert await record() == "repeated"
        with pytest.raises(Conflict, match="other contents"):
            await record(999)
        await costs.record_usage("q", "a", "tenth", 0, 1, request_id="r")  # another project's r is another request
        assert len(await booked(costs)) == 2


async def test_a_lost_answer_is_asked_again(tmp_path: Path) -> None:
    """B2: recorded again after a cancellation, whose record may or may not have been written, a call counts once."""
    async with await tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite") as costs:
        for steps in range(6):
            call = costs.record_usage("p", "a", "tenth", 0, 1, request_id=f"r{steps}")
            task = asyncio.ensure_future(call)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            told = await costs.record_usage("p", "a", "tenth", 0, 1, request_id=f"r{steps}")
            assert told.booked in ("booked", "repeated")
            assert (await costs.get_project_usage("p")).total_requests == steps + 1


GOOD: dict[str, Any] = {
    "project_id": "p",
    "agent_id": "a",
    "model": "tenth",
    "prompt_tokens": 1,
    "completion_tokens": 1,
}


@pytest.mark.parametrize(
    ("bad", "argument"),
    [
        ({"project_id": ""}, "project_id"),
        ({"project_id": "x" * 129}, "project_id"),
        ({"agent_id": "a\n"}, "agent_id"),
        ({"session_id": ""}, "session_id"),
        ({"user_id": 7}, "user_id"),
        ({"key_id": "\x7f"}, "key_id"),
        ({"request_id": ""}, "request_id"),
        ({"tags": "one"}, "tags"),
        ({"model": ""}, "model"),
        ({"provider": ""}, "provider"),
        ({"tier": "x" * 200}, "tier"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"prompt_tokens": True}, "prompt_tokens"),
        ({"completion_tokens": 1.5}, "completion_tokens"),
        ({"completion_tokens": float("nan")}, "completion_tokens"),
        ({"completion_tokens": 10**9 + 1}, "completion_tokens"),
        ({"completion_tokens": None}, "completion_tokens"),
        ({"cached_tokens": 2}, "prompt_tokens"),
        ({"cache_write_tokens": -2}, "cache_write_tokens"),
        ({"usage": Usage(output=1)}, "usage"),
        ({"cost_usd": 0.1}, "cost_usd"),
        ({"cost_usd": "nan"}, "cost_usd"),
        ({"cost_usd": Decimal(-1)}, "cost_usd"),
        ({"timestamp": datetime(2026, 1, 1)}, "timestamp"),  # noqa: DTZ001 what is refused
        ({"timestamp": datetime(1999, 1, 1, tzinfo=UTC)}, "timestamp"),
        ({"timestamp": datetime(2027, 1, 1, tzinfo=UTC)}, "timestamp"),
    ],
)
async def test_bad_input_writes_nothing(tmp_path: Path, bad: dict[str, Any], argument: str) -> None:
    """Each mistake is a ValueError that names its argument, and the ledger stays empty; a hold refuses the same."""
    async with tracker(tmp_path) as costs:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            await costs.record_usage(**GOOD | bad)
        shared = {
            "project_id",
            "agent_id",
            "model",
            "prompt_tokens",
            "session_id",
            "user_id",
            "key_id",
            "tags",
            "provider",
        }
        if bad.keys() <= shared and "cached_tokens" not in bad:
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                costs.hold(**{name: value for name, value in (GOOD | bad).items() if name in shared})
        assert (await booked(costs), await live(costs)) == ([], 0)


@pytest.mark.parametrize(
    ("call", "values", "argument"),
    [
        ("get_project_usage", ("p", "week"), "period"),
        ("get_project_usage", ("p", "day", datetime(2026, 1, 1)), "timestamp"),  # noqa: DTZ001 what is refused
        ("get_agent_usage", ("p", ""), "agent_id"),
        ("get_agent_usage", ("p", "a", "total"), "period"),
        ("get_session_usage", ("s" * 129,), "session_id"),
        ("get_session_usage", ("s", ""), "project_id"),
        ("check_budget", ("p", 0.5), "budget_limit"),
        ("check_budget", ("p", -1), "budget_limit"),
        ("should_alert", ("p", "NaN"), "threshold"),
        ("estimate_request_cost", ("tenth", 1, -1), "max_completion_tokens"),
        ("estimate_request_cost", ("tenth", 1, 1, None, 0.5), "default_usd"),
        ("calculate_cost", ("tenth", 1, None), "completion_tokens"),
    ],
)
async def test_bad_questions(tmp_path: Path, call: str, values: tuple[object, ...], argument: str) -> None:
    """What is asked wrongly is a ValueError that names its argument."""
    async with tracker(tmp_path) as costs:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            await getattr(costs, call)(*values)


# ── what was spent ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_budget_and_alert(tmp_path: Path) -> None:
    """C5: None is no limit, 0 is zero and leaves nothing, and a limit is reached when it is spent to the last nano."""
    async with tracker(tmp_path, default_budget_limit="0.20", cost_alert_threshold="0.10") as costs:
        assert await costs.check_budget("p") == (True, 0, Decimal("0.2"))
        assert await costs.check_budget("p", 0) == (False, 0, 0)
        assert await costs.should_alert("p") == (False, 0)
        await costs.record_usage("p", "a", "tenth", 0, 1000)
        await costs.record_usage("p", "a", "tenth", 0, 999, timestamp=NOON + timedelta(days=0, hours=10))
        assert await costs.check_budget("p") == (True, Decimal("0.1999"), Decimal("0.2"))
        assert await costs.check_budget("p", "0.1999") == (False, Decimal("0.1999"), Decimal("0.1999"))
        assert await costs.should_alert("p") == (True, Decimal("0.1999"))
        assert await costs.should_alert("p", Decimal("0.1999")) == (True, Decimal("0.1999"))
        assert await costs.should_alert("p", Decimal("0.2")) == (False, Decimal("0.1999"))
    async with tracker(tmp_path) as costs:
        assert await costs.check_budget("p") == (True, 0, None)
        assert await costs.should_alert("p") == (False, 0)


async def test_prices_ask_nothing_of_a_ledger(tmp_path: Path) -> None:
    """Computing a price opens no ledger; an estimate is never below the price, and both are exact."""
    path = tmp_path / "ledger.sqlite"
    async with tracker(tmp_path, f"sqlite:///{path}") as costs:
        assert await costs.calculate_cost("cached", 25_978, 13, cached_tokens=24_540) == Decimal("0.005955")
        assert await costs.calculate_cost("cached", usage=Usage(cache_read=10**6)) == Decimal("0.15")
        assert await costs.estimate_request_cost("cached", 25_978, 13) == Decimal("0.039084")
        assert not path.exists()


# ── opening, closing, one per process ────────────────────────────────────────────────────────────────────────────────


async def test_opens_lazily_closes_once(tmp_path: Path) -> None:
    """The ledger's file appears at the first use; close() may be repeated, and nothing is taken after it."""
    path = tmp_path / "ledger.sqlite"
    costs = tracker(tmp_path, f"sqlite:///{path}")
    assert not path.exists()
    await costs.record_usage("p", "a", "tenth", 0, 1000)
    assert path.exists()
    await asyncio.gather(costs.close(), costs.close())
    await costs.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await costs.record_usage("p", "a", "tenth", 0, 1000)
    async with tracker(tmp_path, f"sqlite:///{path}") as again:
        assert (await again.get_project_usage("p")).total_requests == 1


async def test_a_given_store_stays_open(tmp_path: Path) -> None:
    """A Store that is passed in is used, and left to its owner."""
    store = open_store(f"sqlite:///{tmp_path}/ledger.sqlite")
    for _ in range(2):
        async with tracker(tmp_path, store) as costs:
            await costs.record_usage("p", "a", "tenth", 0, 1000)
    assert len([entry async for entry in store.entries(0, 2**62)]) == 2
    await store.close()


def test_threads_share_a_tracker(tmp_path: Path) -> None:
    """Several threads, each with its own event loop, record at once: every record is there once."""
    costs = tracker(tmp_path, f"sqlite:///{tmp_path}/ledger.sqlite")

    async def work(name: str) -> None:
        await asyncio.gather(*(costs.record_usage("p", name, "tenth", 0, 1, session_id="s") for _ in range(50)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(f"a{n}"))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        async with costs:
            assert (await costs.get_agent_usage("p", "a3")).total_requests == 50
            return (await costs.get_session_usage("s")).total_requests

    assert asyncio.run(count()) == 200


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder whose tollkeeper.toml names a ledger in memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOLLKEEPER_CONFIG", raising=False)
    (tmp_path / "tollkeeper.toml").write_text('store = "memory:"\ndefault_budget_limit = "7"\n')
    return tmp_path


async def test_settings_from_everywhere(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over the file; a path, a dict and a Config are taken as they are, a dict without either."""
    monkeypatch.setenv("TOLLKEEPER_COST_ALERT_THRESHOLD", "3")
    for settings in (None, "tollkeeper.toml", surroundings / "tollkeeper.toml"):
        config = configuration(settings)
        assert (config.store, config.default_budget_limit_nanos, config.cost_alert_threshold_nanos) == (
            "memory:", 7 * 10**9, 3 * 10**9,
        )  # fmt: skip
    config = configuration({"cost_alert_threshold": "4"})
    assert (config.store, config.default_budget_limit_nanos) == ("sqlite:///tollkeeper.sqlite", None)
    assert config.cost_alert_threshold_nanos == 4 * 10**9
    assert configuration(config) is config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": "postgres://x"}, r"^store: expected 'sqlite:///path/to/file', 'redis://host:6379/0' or 'memory:'$"),
        ({"store": 5}, r"^store: expected 'sqlite:///path'"),
        ({"settings": {"stor": "memory:"}}, r"^settings: stor: is not known; did you mean store\?$"),
        (
            {"settings": {"budgets": [{"scope": "project", "limit": 0.5}]}},
            r"^settings: budgets #1.limit: .*never a float",
        ),
        ({"settings": "absent.toml"}, r"^absent.toml: cannot be read"),
    ],
)
def test_wrong_settings(surroundings: Path, arguments: dict[str, Any], message: str) -> None:
    """I2: what is set wrongly is one line that names it, before anything is opened."""
    with pytest.raises(ConfigError, match=message):
        CostTracker(**arguments)


async def test_tracking_switched_off(tmp_path: Path) -> None:
    """Switched off, nothing is booked, held or refused, and the answer says so; arguments are checked all the same."""
    path = tmp_path / "ledger.sqlite"
    budgets = [DOLLAR | {"limit": "0"}]
    off = await tracker(tmp_path, f"sqlite:///{path}", cost_tracking_enabled=False, budgets=budgets)
    async with off as costs:
        told = await costs.record_usage("p", "a", "tenth", 0, 1000)
        assert (told.booked, told.amount_usd) == ("off", Decimal("0.1"))
        async with costs.hold("p", "a", "tenth", 0, 1000) as hold:
            assert (await hold.settle(prompt_tokens=0, completion_tokens=1)).booked == "off"
        async with costs.hold("p", "a", "tenth", 0, 1000) as hold:
            await hold.void()
        async with costs.hold("p", "a", "tenth", 0, 1000):
            pass
        with pytest.raises(ValueError, match=r"^model: "):
            await costs.record_usage("p", "a", "", 0, 1000)
        assert not path.exists()
        assert (await costs.get_project_usage("p")).total_requests == 0


async def test_default_ledger(surroundings: Path) -> None:
    """A Config decides everything: its store, its budgets and their limits."""
    config = load({"store": "memory:", "default_budget_limit": "1"}, {})
    async with CostTracker(settings=config, clock=ManualClock(START_US)) as costs:
        assert await costs.check_budget("p") == (True, 0, Decimal(1))
