"""The composition root: what is built, what listens, what is taken from a changed file, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import app, chores, config
from tollkeeper.errors import ConfigError, StoreCorrupt, StoreOwned, StoreUnavailable
from tollkeeper.keys import hash_secret
from tollkeeper.testing.clock import ManualClock
from tollkeeper.values import Scopes

KEY = f'[[keys]]\nid = "k"\nproject = "p"\nhash = "{hash_secret("s")}"\n'
BUDGET = '[[budgets]]\nscope = "project"\nlimit = "%s"\n'


def loaded(folder: Path, text: str = "", store: str = "memory:", **environ: str) -> config.Config:
    file = folder / "tollkeeper.toml"
    file.write_text(f'store = "{store}"\ndata_dir = "{folder}"\n' + text)
    return config.load(file, environ)


async def limits(gate: Any) -> list[int | None]:
    standings = await gate.store.standings(Scopes(project="p"), "m", gate.clock.now_us())
    return [standing.budget.limit for standing in standings]


async def test_build(tmp_path: Path) -> None:
    """A configuration becomes a gate with its limits, budgets, keys and clock; nothing listens or runs yet."""
    settings = (
        "idle_timeout_s = 7\ndrain_seconds = 3\ndefault_output_cap = 9\nexpose_cost = false\n" + KEY + BUDGET % "2"
    )
    clock = ManualClock()
    built = app.build(loaded(tmp_path, settings), clock)
    gate = built.gate
    assert gate.clock is clock
    assert (gate.limits.idle_s, gate.limits.drain_s, gate.limits.default_output_cap) == (7, 3, 9)
    assert not gate.limits.expose_cost
    assert not gate.keys.is_open
    assert await limits(gate) == [2_000_000_000]
    await gate.store.close()


async def test_every_limit_is_passed_on(tmp_path: Path) -> None:
    """No setting of the line is forgotten: each field of flow.Limits comes from the configuration."""
    settings = (
        "first_byte_timeout_s = 11\nidle_timeout_s = 12\ntotal_timeout_s = 13\nhold_ttl_s = 14\ndrain_seconds = 15\n"
        'attempts = 2\nwhen_all_open = "refuse"\n'
        'drain_limit = 16\non_disconnect = "cancel"\ndefault_output_cap = 17\ndefault_project = "mine"\n'
        "expose_cost = false\nexpose_cost_in_streams = true\noutput_caps = { m = 18 }\n"
        'output_ceilings = { m = 19 }\nquote = "typical"\n'
    )
    built = app.build(loaded(tmp_path, settings))
    found, default = built.gate.limits, type(built.gate.limits)()
    same = [name for name in found.__struct_fields__ if getattr(found, name) == getattr(default, name)]
    assert same == []
    await built.gate.store.close()


async def test_ids_are_in_order_and_differ(tmp_path: Path) -> None:
    """Call ids of one process never repeat and sort by time; another process's differ."""
    clock = ManualClock()
    one, other = (app.build(loaded(tmp_path), clock) for _ in range(2))
    ids = []
    for _ in range(100):
        ids += [one.gate.new_id() for _ in range(10)]
        clock.advance(0.001)
    assert sorted(ids) == ids
    assert len({*ids, *(other.gate.new_id() for _ in range(1000))}) == 2000
    assert all(each.isalnum() and len(each) <= 64 for each in ids)
    for built in (one, other):
        await built.gate.store.close()


@pytest.mark.parametrize("text", ['host = "0.0.0.0"', 'prices = "none.toml"'])
def test_build_refuses_before_it_opens(tmp_path: Path, text: str) -> None:
    """I2: a mistake that only building finds leaves no ledger behind."""
    with pytest.raises(ConfigError):
        app.build(loaded(tmp_path, text, store="sqlite:///x.sqlite"))
    assert [file.name for file in tmp_path.iterdir()] == ["tollkeeper.toml"]


def test_build_refuses_a_damaged_ledger(tmp_path: Path) -> None:
    """B6: a file that is no ledger is told, and not touched."""
    (tmp_path / "x.sqlite").write_bytes(b"not a ledger")
    with pytest.raises(StoreCorrupt):
        app.build(loaded(tmp_path, store="sqlite:///x.sqlite"))
    assert (tmp_path / "x.sqlite").read_bytes() == b"not a ledger"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_listen(tmp_path: Path, host: str) -> None:
    """A free port where 0 is asked for, in either family; connections send at once."""
    try:
        listening = app.listen(loaded(tmp_path, f'host = "{host}"\nport = 0\n'))
    except ConfigError:
        if host == "::1":
            pytest.skip("this machine has no IPv6")
        raise
    with listening:
        at, port = listening.getsockname()[:2]
        assert (at, port > 0) == (host, True)
        with socket.create_connection((at, port)), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


#: Beyond loopback a gateway needs one.
KEY = f'[[keys]]\nid = "k"\nproject = "p"\nhash = "sha256:{"0" * 64}"\n'


def test_listen_refuses(tmp_path: Path) -> None:
    """I2: a port in use and a host that is not here are one line that names the settings."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, at in (("127.0.0.1", port), ("192.0.2.77", 0), ("no-such-host.invalid", 0)):
            with pytest.raises(ConfigError) as error:
                app.listen(loaded(tmp_path, f'host = "{host}"\nport = {at}\n{KEY}'))
            assert str(error.value).startswith("host, port: ")
            assert f"{host}:{at}" in str(error.value)
            assert "\n" not in str(error.value)


def test_an_open_gateway_is_never_listening(tmp_path: Path) -> None:
    """H1: beyond loopback without keys the port is not even opened."""
    with pytest.raises(ConfigError, match="add a key"):
        app.listen(loaded(tmp_path, 'host = "0.0.0.0"\nport = 0\n'))


async def test_running_ends_what_it_began(tmp_path: Path) -> None:
    """At the end the chores are stopped, the pool is closed, and the ledger is free for another owner."""
    before = asyncio.all_tasks()
    built = app.build(loaded(tmp_path, store="sqlite:///x.sqlite"))
    async with built.running(tmp_path / "tollkeeper.toml", {}) as running:
        assert running is built
        assert len(asyncio.all_tasks() - before) == 3  # expire, prune, reload
        with pytest.raises(StoreOwned):
            app.build(loaded(tmp_path, store="sqlite:///x.sqlite"))
    assert asyncio.all_tasks() == before
    again = app.build(loaded(tmp_path, store="sqlite:///x.sqlite"))
    await again.gate.store.close()


async def test_reload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C5: a changed file's budgets and keys are taken, once; a mistake is told and changes nothing."""
    caplog.set_level(logging.INFO, "tollkeeper")
    built = app.build(loaded(tmp_path, BUDGET % "1"))
    file = tmp_path / "tollkeeper.toml"
    reload = app.Reload(file, {}, built.gate)
    await reload()
    assert caplog.records == []

    def write(text: str) -> None:
        before = file.stat().st_mtime_ns
        file.write_text('store = "memory:"\n' + text)
        os.utime(file, ns=(before + 1, before + 1))

    write(BUDGET % "5" + KEY)
    await reload()
    assert await limits(built.gate) == [5_000_000_000]
    assert not built.gate.keys.is_open
    for mistake in (BUDGET % "-1", 'host = "0.0.0.0"\n', "not toml"):
        write(mistake)
        await reload()
        await reload()
        assert caplog.records[-1].levelname == "ERROR"
        assert await limits(built.gate) == [5_000_000_000]
        assert not built.gate.keys.is_open
    assert len(caplog.records) == 4
    file.unlink()
    await reload()
    assert await limits(built.gate) == [5_000_000_000]
    await built.gate.store.close()


async def test_reload_prices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed price file is taken without a restart; one with a mistake is told once and changes nothing."""
    prices = tmp_path / "prices.toml"

    def write(text: str) -> None:
        before = prices.stat().st_mtime_ns if prices.exists() else 0
        prices.write_text(text)
        os.utime(prices, ns=(before + 1, before + 1))

    def cost() -> int | None:
        return built.gate.prices.quote_nanos(None, "mine", 1_000_000, 0, built.gate.clock.now_us())

    write('[[price]]\nmodel = "mine"\ninput = 2\n')
    built = app.build(loaded(tmp_path, 'prices = "prices.toml"'))
    reload = app.Reload(tmp_path / "tollkeeper.toml", {}, built.gate, prices)
    admitted = built.gate.prices
    assert cost() == 2_000_000_000
    write('[[price]]\nmodel = "mine"\ninput = 3\n')
    await reload()
    assert cost() == 3_000_000_000
    assert admitted.quote_nanos(None, "mine", 1_000_000, 0, built.gate.clock.now_us()) == 2_000_000_000
    write('[[price]]\nmodel = "mine"\ninput = -3\noutput = 1.5\n')
    caplog.clear()
    await reload()
    await reload()
    assert cost() == 3_000_000_000
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "price 1 (mine): input: -3 is negative" in caplog.text
    write('[[price]]\nmodel = "mine"\ninput = 4\n')
    await reload()
    assert cost() == 4_000_000_000
    await built.gate.store.close()


async def test_reload_without_a_configuration_file(tmp_path: Path) -> None:
    """A price file that a variable names is watched as well."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "mine"\ninput = 2\n')
    environ = {"TOLLKEEPER_PRICES": str(prices), "TOLLKEEPER_STORE": "memory:"}
    built = app.build(config.load({}, environ))
    before = asyncio.all_tasks()
    async with built.running(None, environ):
        assert len(asyncio.all_tasks() - before) == 3  # expire, prune, reload
    reload = app.Reload(None, environ, built.gate, prices)
    prices.write_text('[[price]]\nmodel = "mine"\ninput = "2.5"\n')
    await reload()
    assert built.gate.prices.quote_nanos(None, "mine", 1_000_000, 0, 0) == 2_500_000_000


async def test_reload_follows_the_setting(tmp_path: Path) -> None:
    """Prices in the settings are taken too, and a price file that is named only later is watched, also with a mistake."""
    built = app.build(loaded(tmp_path, '[[prices]]\nmodel = "mine"\ninput = 2\n'))
    reload = app.Reload(tmp_path / "tollkeeper.toml", {}, built.gate)
    assert built.gate.prices.quote_nanos(None, "mine", 1_000_000, 0, 0) == 2_000_000_000
    book = built.gate.prices
    loaded(tmp_path, 'drain_limit = 7\n[[prices]]\nmodel = "mine"\ninput = 2\n')
    await reload()
    assert built.gate.prices is book  # the same prices: what is compiled stays
    (tmp_path / "own.toml").write_text('[[price]]\nmodel = "mine"\ninput = "?"')
    loaded(tmp_path, 'prices = "own.toml"')
    await reload()
    assert built.gate.prices is book
    (tmp_path / "own.toml").write_text('[[price]]\nmodel = "mine"\ninput = 12345e-3')
    await reload()
    assert built.gate.prices is book
    (tmp_path / "own.toml").write_text('[[price]]\nmodel = "mine"\ninput = 9')
    await reload()
    assert built.gate.prices.quote_nanos(None, "mine", 1_000_000, 0, 0) == 9_000_000_000
    await built.gate.store.close()


async def test_reload_tries_again_what_the_ledger_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: a ledger that fails while limits change does not lose the change."""
    built = app.build(loaded(tmp_path, BUDGET % "1"))
    file = tmp_path / "tollkeeper.toml"
    reload = app.Reload(file, {}, built.gate)
    file.write_text('store = "memory:"\n' + BUDGET % "500")

    async def fail(_: Any) -> None:
        raise StoreUnavailable("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(built.gate.store, "set_budgets", fail)
        with pytest.raises(StoreUnavailable):
            await reload()
    await reload()
    assert await limits(built.gate) == [500_000_000_000]
    await built.gate.store.close()


async def test_signal_is_told_at_once(tmp_path: Path) -> None:
    """I3: from the signal on /readyz says that the gateway stops, while calls under way go on."""
    built = app.build(loaded(tmp_path))
    server = app.server(built)
    assert not built.api.draining
    server.handle_exit(signal.SIGTERM, None)
    assert built.api.draining
    assert server.should_exit
    assert not server.force_exit
    await built.gate.store.close()


def test_chores_are_quick_enough() -> None:
    """C5: a changed file is seen within a second; C2: a dead hold soon after its deadline."""
    assert chores.RELOAD_EVERY_S < 1
    assert chores.EXPIRE_EVERY_S <= 5
