"""`tollkeeper demo`: its figures are those of the provider's bill, priced independently."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from tempfile import gettempdir

import genai_prices
import pytest

from tollkeeper import app, config
from tollkeeper.cli import demo
from tollkeeper.cli.gather import gather
from tollkeeper.clock import SystemClock
from tollkeeper.errors import ConfigError
from tollkeeper.ledger import window_of
from tollkeeper.money import to_nanos
from tollkeeper.reports import plan
from tollkeeper.testing.provider import Billed, FakeProvider, serving

DEMO = [sys.executable, "-m", "tollkeeper", "demo"]


def environ() -> dict[str, str]:
    """No settings, no keys: the demo needs none."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_") and "_KEY" not in name
    }
    return kept | {"COLUMNS": "80", "NO_PROXY": "*"}


def independent_nanos(line: Billed) -> int | None:
    """What genai-prices asks for one line of the bill; None: it does not know the model."""
    usage = line.usage
    written = usage.cache_write_5m + usage.cache_write_1h
    try:
        price = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input_tokens, cache_read_tokens=usage.cache_read or None,
                cache_write_tokens=written or None, output_tokens=usage.output_tokens or None,
            ),
            line.model, provider_id="anthropic" if line.dialect == "anthropic-messages" else "openai",
        )  # fmt: skip
    except LookupError:
        return None
    return to_nanos(Decimal(price.total_price))


async def test_the_report_is_the_bill(tmp_path: Path) -> None:
    """B4, A5: every line of the provider's bill is in the report at its price; the unknown model is unpriced."""
    fake = FakeProvider(cached_tokens=demo.CACHED)
    async with serving(fake) as provider:
        path = tmp_path / "tollkeeper.toml"
        path.write_text(demo.settings(tmp_path, 0, provider))
        gateway = app.build(config.load(path, demo.KEYS))
        async with gateway.running(), serving(gateway.api) as url:
            clients = demo.Clients(url)
            played = await demo.play(clients)
            await clients.close()
            month = window_of("month", "UTC", SystemClock().now_us())
            found = await gather(gateway.gate.store, plan("model", None, *month))
            assert await gateway.gate.store.live() == []
    billed = [independent_nanos(line) for line in fake.bill]
    assert found.total.amount_nanos == sum(nanos or 0 for nanos in billed) > 0
    assert found.total.unpriced == billed.count(None) == 1
    assert demo.counted_usage(found) == demo.billed_usage(fake)
    assert played.calls == len(fake.bill) == found.total.calls
    assert 0 < played.loop_calls < demo.LOOP_MAX
    assert "total budget of session 'night-run' of project 'research' cannot pay" in played.refusal


@pytest.fixture
def leftovers() -> Iterator[None]:
    """Fails where the demo leaves its folder behind."""
    before = set(Path(gettempdir()).glob("tollkeeper-demo-*"))
    yield
    assert set(Path(gettempdir()).glob("tollkeeper-demo-*")) <= before


@pytest.mark.usefixtures("leftovers")
async def test_without_a_terminal_it_ends(tmp_path: Path) -> None:
    """The demo as a process: three reports with one total, the provider's bill beside it, exit code 0."""
    process = await asyncio.create_subprocess_exec(
        *DEMO, cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told, err = await asyncio.wait_for(process.communicate(), 60)
    out = told.decode()
    assert (process.returncode, err.decode()) == (0, "")
    totals = re.findall(r"^total +\$(\S+) +(\d+) +([\d,]+) +1 unpriced", out, re.MULTILINE)
    assert len(totals) == 3
    (total,) = set(totals)
    billed = re.search(r"own bill: (\d+) requests, ([\d,]+) tokens; the ledger has the same", out)
    assert billed is not None
    assert total[1:] == billed.groups()
    assert "0 differences" in out
    assert "cannot pay for this call: limit $0.05" in out
    assert max(map(len, out.splitlines())) <= 80
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("leftovers")
async def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """With --keep it serves on until Ctrl-C, then ends cleanly."""
    process = await asyncio.create_subprocess_exec(
        *DEMO, "--keep", cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"until Ctrl-C" not in (line := await process.stdout.readline()):
            assert line, await process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")


def test_without_the_sdks_it_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: without the extra, one line says what to install."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the SDK openai and anthropic; run pip install 'tollkeeper\[demo\]'"):
        demo.run(0, keep=False)
