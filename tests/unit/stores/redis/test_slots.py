"""tollkeeper.stores.redis.slots with fill.lua on a real Redis: a balance begins with what the entries add, between two batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.slots import FakeJournal, applier, contents, shared

from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.stores.redis.apply import Doubted, Shared
from tollkeeper.stores.redis.fill import Filling
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.slots import TRIES_MAX, open_slot
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, an_entry
from tollkeeper.values import Scopes

TAG = tag_of("alpha")
TOTAL = Shape("project", "usd", "total", "UTC")
MINUTE = Shape("project", "requests", "minute", "UTC")
ALL = Shape("all", "usd", "total", "UTC")


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    """A process on the session's Redis, with two entries of alpha applied."""
    with shared(redis_server) as found:
        applier(found, FakeJournal("a", an_entry("1/1"), an_entry("2/1"))).catch_up()
        yield found


def balance(server: RedisServer, ours: Shared, shape: Shape = TOTAL, project: str = "alpha") -> bytes | None:
    with server.client() as client:
        found: bytes | None = client.hget(ours.keys.balance(BalanceKey(shape, project, "", 0)), "spent")
    return found


def test_fills(redis_server: RedisServer, ours: Shared) -> None:
    """P3: a balance begins with what was booked before; opening again changes nothing."""
    open_slot(ours, TAG, "epoch-1", [TOTAL])
    assert balance(redis_server, ours) == b"%d" % (2 * DIME)
    assert ours.shapes[TAG] == {TOTAL}
    before = contents(redis_server)
    open_slot(ours, TAG, "epoch-1", [TOTAL])
    assert contents(redis_server) == before


def test_another_epoch(redis_server: RedisServer, ours: Shared) -> None:
    """B4: a Redis that was emptied meanwhile opens no slot for those who have not noticed."""
    with pytest.raises(Doubted, match="begun again from nothing"):
        open_slot(ours, TAG, "epoch-0", [TOTAL])
    assert balance(redis_server, ours) is None


def test_entries_between(redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: a batch that comes while the entries are read is in the balance, once."""
    journal, read = FakeJournal("b"), Filling.read
    late = iter([an_entry("3/1"), an_entry("4/1")])

    def reading(filling: Filling) -> None:
        read(filling)
        for entry in late:
            journal.book(entry)
            applier(ours, journal).catch_up()
            break

    monkeypatch.setattr(Filling, "read", reading)
    open_slot(ours, TAG, "epoch-1", [TOTAL])
    assert balance(redis_server, ours) == b"%d" % (4 * DIME)


def test_entries_that_keep_coming(redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that never rests is not filled: the caller hears of it, and no shape is kept by halves."""
    journal, read = FakeJournal("b"), Filling.read

    def reading(filling: Filling) -> None:
        read(filling)
        journal.book(an_entry(f"late-{journal.last}/1"))
        applier(ours, journal).catch_up()

    monkeypatch.setattr(Filling, "read", reading)
    with pytest.raises(Doubted, match="entries keep coming"):
        open_slot(ours, TAG, "epoch-1", [TOTAL])
    assert journal.last == TRIES_MAX
    with redis_server.client() as client:
        assert client.smembers(ours.keys.shapes(TAG)) == set()


def test_without_a_project(redis_server: RedisServer, ours: Shared) -> None:
    """P3: the slot of all projects begins with as much of each as its own cursors cover; the rest follows with its batch."""
    ours.register(["beta"])
    beta = FakeJournal("b", an_entry("1/1", scopes=Scopes(project="beta")))
    applier(ours, beta).catch_up()
    with redis_server.client() as client:
        client.hset(ours.keys.cursor(GLOBAL), f"{beta.id}@{tag_of('beta')}", 0)
    open_slot(ours, GLOBAL, "epoch-1", [ALL])
    assert balance(redis_server, ours, ALL, "") == b"%d" % (2 * DIME)
    applier(ours, beta).catch_up()
    assert balance(redis_server, ours, ALL, "") == b"%d" % (3 * DIME)


def test_windows_that_are_over(redis_server: RedisServer, ours: Shared) -> None:
    """F3: no balance is made for a window whose deadline has passed."""
    journal = FakeJournal("b", an_entry("old/1", at_us=AT_US - 200 * DAY_US))
    applier(ours, journal).catch_up()
    open_slot(ours, TAG, "epoch-1", [MINUTE])
    with redis_server.client() as client:
        found = list(client.scan_iter("*:balance:*"))
    assert len(found) == 1
    assert found[0].endswith(str(AT_US - AT_US % (60 * 10**6)).encode())


def test_a_project_that_is_not_listed(redis_server: RedisServer, ours: Shared) -> None:
    """B4: the slot of all projects begins with all that its cursors cover, whatever the list of projects says just then."""
    with redis_server.client() as client:
        client.delete(ours.keys.projects)
    open_slot(ours, GLOBAL, "epoch-1", [ALL])
    assert balance(redis_server, ours, ALL, "") == b"%d" % (2 * DIME)


@pytest.mark.parametrize(("tag", "shape", "project"), [(TAG, TOTAL, "alpha"), (GLOBAL, ALL, "")])
def test_emptied_while_it_is_read(
    redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch, tag: str, shape: Shape, project: str
) -> None:
    """B4: what was read before Redis was emptied and filled again counts for nothing, however many batches came since."""
    read = Filling.read

    def reading(filling: Filling) -> None:
        read(filling)
        monkeypatch.setattr(Filling, "read", read)
        with redis_server.client() as client:
            client.flushall()
        ours.forget()
        ours.beat("epoch-1", "", "", 0)
        ours.register(["alpha"])
        applier(ours, FakeJournal("c", *(an_entry(f"{number}/1") for number in range(2, 5)))).catch_up()

    monkeypatch.setattr(Filling, "read", reading)
    open_slot(ours, tag, "epoch-1", [shape])
    assert balance(redis_server, ours, shape, project) == b"%d" % (3 * DIME)


def test_listed_while_redis_is_emptied(
    redis_server: RedisServer, ours: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: a project that was listed just before Redis was emptied is listed again: who hears of it late knows nothing."""
    beat = Shared.beat

    def beating(shared: Shared, *said: str) -> list[str]:
        told = beat(shared, *said)  # type: ignore[arg-type]
        monkeypatch.setattr(Shared, "beat", beat)
        with redis_server.client() as client:
            client.flushall()
        shared.forget()  # on the thread that recovers, while the answer is on its way
        return told

    monkeypatch.setattr(Shared, "beat", beating)
    ours.register(["beta"])
    ours.beat("epoch-2", "", "", 0)
    ours.register(["beta"])
    assert list(ours.projects().values()) == ["beta"]
