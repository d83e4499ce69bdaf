"""flow, attempt, call: a call from its bytes to its end. Every run is judged: `played` raises on what does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from msgspec import structs
from tests.lines import GOOD, MARKED, SHAPES, STREAMS, a_call, a_run, entry, events, played

from tollkeeper import attempt
from tollkeeper.dialects import DIALECTS
from tollkeeper.meter import Meter
from tollkeeper.testing.script import Ledger, Manners, Planned
from tollkeeper.testing.simulate import Run
from tollkeeper.upstream import Answer, Opening
from tollkeeper.values import Ask, Budget, Provider, Route

USD = Budget(scope="project", measure="usd", window="total", limit=200_000)
STOPS = Manners(manner="stops", leaves_s=None, slow_s=0, stops_at=1)


def error_of(run: Run, number: int = 0) -> dict[str, Any]:
    """The error in a refusal's body."""
    found: dict[str, Any] = msgspec.json.decode(bytes(run.stories[number].body))["error"]
    return found


# ── a good call ──


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_a_good_call(dialect: str, stream: bool | str) -> None:
    """The reply as it came, its headers, and one exact entry that names the call."""
    run = played(a_call(dialect, stream))
    story, found = run.stories[0], entry(run)
    assert (found.id, found.call, found.attempt, found.calls, found.outcome) == ("call-0/1", "call-0", 1, 1, "ok")
    assert (found.dialect, found.model, found.served, found.http_status, found.note) == (dialect, "m", "m", 200, None)
    assert (found.scopes.project, found.scopes.session) == ("p", "s")
    assert found.charge.status == "priced"
    assert found.latency_ms is not None
    assert found.latency_ms > 0
    assert story.headers[b"x-tollkeeper-request-id"] == b"call-0"
    assert (b"x-tollkeeper-cost" in story.headers) == (not stream)


def test_the_cost_in_a_stream() -> None:
    """Told in a comment before the end marker, where it is asked for."""
    run = played(a_call(), expose_cost_in_streams=True)
    assert b": x-tollkeeper-cost 0.000033\n: x-tollkeeper-cost-status priced\n\ndata: [DONE]\n\n" in run.stories[0].body


def test_usage_is_asked_for_and_hidden() -> None:
    """D2: the provider tells its usage, the client that did not ask does not see it."""
    hidden, asked = (
        bytes(played(a_call(body=body)).stories[0].body) for body in ({}, {"stream_options": {"include_usage": True}})
    )
    assert b"usage" not in hidden
    assert b'"completion_tokens":' in asked


# ── refused before it is sent ──


@pytest.mark.parametrize("body", [{"model": ""}, {"stream": 1}, {"max_tokens": -1}])
def test_a_bad_request(body: dict[str, Any]) -> None:
    """400 by the dialect, nothing reserved, nothing sent."""
    run = played(a_call(body=body))
    assert (run.stories[0].status, bool(run.stories[0].opened), run.entries(0)) == (400, False, [])
    assert run.stories[0].headers[b"x-should-retry"] == b"false"


def test_a_budget_refuses() -> None:
    """C7: 402 with the numbers; nothing is sent, nothing booked."""
    run = played(a_call(cap=1000), budgets=(USD,))
    assert (run.stories[0].status, bool(run.stories[0].opened), run.entries(0)) == (402, False, [])
    assert error_of(run)["code"] == "budget_exceeded"
    assert run.stories[0].headers[b"x-tollkeeper-budget-limit"] == b"0.0002"


@pytest.mark.parametrize("cap", [None, 7])
def test_a_hard_budget_caps_the_output(cap: int | None) -> None:
    """C3: a call without a cap gets the configured one, and is told; one with a cap keeps it."""
    big = structs.replace(USD, limit=10**9)
    run = played(a_call(body={"max_tokens": cap}), budgets=(big,), default_output_cap=9)
    assert entry(run).usage.output == (9 if cap is None else 7)
    assert run.stories[0].headers.get(b"x-tollkeeper-output-cap") == (b"9" if cap is None else None)


@pytest.mark.parametrize(("ceiling", "written"), [(20, None), (50, None), (90, b"50")])
def test_a_ceiling_bounds_without_being_written(ceiling: int, written: bytes | None) -> None:
    """C3: the hold and its estimate stand on the model's ceiling where it is below the cap, and the provider is not told."""
    open_end = a_call(body={"max_tokens": None}, trouble="cut", at=0)
    big = structs.replace(USD, limit=10**9)
    run = played(open_end, budgets=(big,), default_output_cap=50, output_ceilings={"m": ceiling})
    assert run.stories[0].headers.get(b"x-tollkeeper-output-cap") == written
    assert (entry(run).charge.status, entry(run).usage.output) == ("estimated", min(50, ceiling))


def test_what_is_learned() -> None:
    """A reply with the provider's last word teaches how many tokens such a prompt has; a cut or refused one does not."""
    for planned in (a_call(trouble="cut", at=0), a_call(trouble="status"), a_call(body={"n": 0})):
        assert played(planned).gate.densities.about(*_kind(planned)) is None
    calls = [a_call(number=number) for number in range(50)]
    run = played(*calls)
    tokens = entry(run).usage.input_tokens
    assert run.gate.densities.about(*_kind(calls[0])) in range(tokens, tokens * 104 // 100 + 2)


def _kind(planned: Planned) -> tuple[Route, Ask]:
    provider = Provider(name="o", base_url="", dialects=frozenset())
    asked = msgspec.json.decode(planned.body) | {"n": 1}
    return Route(provider, "m"), DIALECTS[planned.dialect].read_ask(msgspec.json.encode(asked))


def test_parallel_calls_share_a_budget() -> None:
    """C1: as many as the budget pays for, to the last one."""
    calls = [a_call(number=number, gap_s=0.5) for number in range(20)]
    run = played(*calls, budgets=(Budget(scope="project", measure="requests", window="total", limit=7),))
    assert [run.stories[number].status for number in range(20)].count(200) == 7


def test_a_ledger_that_is_away_refuses() -> None:
    """503, and nothing is sent."""
    run = played(a_call(), ledger=Ledger(outages_s=((0, 100),)))
    assert (run.stories[0].status, bool(run.stories[0].opened)) == (503, False)
    assert error_of(run)["code"] == "store_unavailable"


# ── what the provider does ──


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 529])
@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_a_providers_error_is_relayed(dialect: str, stream: bool | str, status: int) -> None:
    """As it came; it costs nothing, and is one entry."""
    call = a_call(dialect, stream, trouble="status", status=status)
    run = played(call)
    assert run.stories[0].status == status
    assert run.stories[0].body == b"".join(events(call))
    assert (entry(run).outcome, entry(run).charge.amount_nanos, entry(run).note) == ("error", 0, "upstream_refused")


@pytest.mark.parametrize("status", [302, 401, 600, 999])
def test_what_concerns_the_operator_is_not_relayed(status: int) -> None:
    """H3: a redirect, a rejected credential or a status that HTTP does not have is a 502 that says where to look."""
    run = played(a_call(trouble="status", status=status))
    assert run.stories[0].status == 502
    assert f"answered {status}; check its base_url and key" in error_of(run)["message"]


def test_no_connection_costs_nothing() -> None:
    """502, no entry, no hold."""
    run = played(a_call(trouble="refuses"))
    assert (run.stories[0].status, error_of(run)["code"], run.entries(0)) == (502, "upstream_unreachable", [])


@pytest.mark.parametrize("trouble", ["breaks", "silent"])
def test_no_answer_is_booked_at_the_quote(trouble: str) -> None:
    """What a provider used that has the request and never answers is not known."""
    run = played(a_call(trouble=trouble))
    assert run.stories[0].status == (502 if trouble == "breaks" else 504)
    assert (entry(run).charge.status, entry(run).usage.output, entry(run).outcome) == ("estimated", 20, "cut")


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_an_error_before_any_text(dialect: str, stream: bool | str) -> None:
    """A stream that begins with an error gets a status of its own, and costs nothing where nothing was said to be used."""
    run = played(a_call(dialect, stream, trouble="error", at=0, chunk=65536))
    assert (run.stories[0].status, entry(run).outcome) == (502, "error")
    assert entry(run).charge.amount_nanos == 0


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
@pytest.mark.parametrize("chunk", [97, 65536])
def test_an_error_and_then_the_reply(dialect: str, stream: bool | str, chunk: int) -> None:
    """Nothing of it is held back for good, and it is paid for."""
    run = played(a_call(dialect, stream, trouble="error_first", chunk=chunk))
    assert run.stories[0].status == 200
    assert (entry(run).outcome, entry(run).charge.status) == ("error", "priced")


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_an_error_after_text(dialect: str, stream: bool | str) -> None:
    """D3: relayed as it came, without an end marker; what was seen bounds the estimate."""
    run = played(a_call(dialect, stream, trouble="error", at=0.7))
    assert run.stories[0].status == 200
    assert (entry(run).outcome, entry(run).charge.status) == ("error", "estimated")
    assert 20 >= entry(run).usage.output > 0


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_no_usage_is_an_estimate(dialect: str, stream: bool | str) -> None:
    """Unknown is never 0: the text bounds it."""
    run = played(a_call(dialect, stream, traits=structs.replace(GOOD.traits, tells_usage=False)))
    assert (entry(run).outcome, entry(run).charge.status) == ("ok", "estimated")
    assert (entry(run).usage.output == 20) == (dialect != "openai-embeddings")


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_a_cut_before_any_text_is_booked_at_the_bound(dialect: str, stream: bool | str) -> None:
    """What a provider reasoned before its first word leaves no trace: the most that it can be counts."""
    run = played(a_call(dialect, stream, trouble="cut_event", at=0.1))
    assert run.stories[0].tries[0].delivered
    assert (entry(run).charge.status, entry(run).usage.output) == ("estimated", 20)


def test_half_an_event_counts() -> None:
    """There may be text in it: its bytes bound the estimate as those of whole events do."""
    text = b'data: {"choices":[{"delta":{"content":"toll"}}]}\n\n'
    half = b'data: {"choices":[{"delta":{"content":"' + b"a b c d e f " * 20
    meter = Meter(DIALECTS["openai-chat"], stream=True, hide_usage=False, quirks=frozenset())
    assert meter.feed(text + half) == text
    assert meter.finish().output_bytes >= len(b"toll") + 240


# ── time ──


@pytest.mark.parametrize(
    ("provided", "over_s", "code"),
    [
        ({"trouble": "silent"}, 4, "upstream_timeout"),  # first byte
        ({"trouble": "stalls", "at": 0.5}, 3, "upstream_timeout"),  # idle
        ({"trouble": "pings", "at": 0.5}, 12, "upstream_timeout"),  # total
        ({"trouble": "stalls", "at": 0.5, "stall_s": 2.0}, 2, None),  # shorter than idle
    ],
)
def test_time_limits(provided: dict[str, Any], over_s: float, code: str | None) -> None:
    """Each wait has its bound; what was read is relayed and booked."""
    run = played(a_call(**provided))
    assert over_s <= run.over_s < over_s + 1
    assert entry(run).note == code


@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize(("dialect", "stream"), MARKED)
def test_a_finished_reply_stays_finished(dialect: str, stream: bool | str, policy: str) -> None:
    """After its end marker neither the deadline nor a client that leaves cuts a reply short."""
    left = played(a_call(dialect, stream, trouble="lingers", leaves_s=0.5), on_disconnect=policy)
    late = played(a_call(dialect, stream, trouble="lingers", think_s=3.5), total_s=4)
    for run in (left, late):
        assert (entry(run).outcome, entry(run).charge.status) == ("ok", "priced")
    assert late.stories[0].ended


def test_a_provider_that_does_not_close_is_not_waited_for() -> None:
    """A second after the end marker the reply ends."""
    assert played(a_call(trouble="lingers")).over_s < attempt.AFTER_END_S + 0.5


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_a_client_that_does_not_read(dialect: str, stream: bool | str, stops_at: int) -> None:
    """D6: it holds its call no longer than the limits allow, at the end of the reply as in the middle."""
    run = played(a_call(dialect, stream, client=structs.replace(STOPS, stops_at=stops_at)))
    assert run.over_s < 2 * 3 + 1
    assert len(run.entries(0)) == 1


# ── the client leaves ──


def test_a_client_that_leaves_is_drained() -> None:
    """D1: the reply is read to its end and booked exactly."""
    run = played(a_call(gap_s=0.2, leaves_s=0.3))
    assert (entry(run).outcome, entry(run).charge.status) == ("left", "priced")
    assert run.over_s > 1


@pytest.mark.parametrize(
    "limits", [{"on_disconnect": "cancel"}, {"drain_limit": 0}, {"drain_s": 0.01}], ids=["policy", "limit", "time"]
)
def test_a_client_that_leaves_is_cut_off(limits: dict[str, Any]) -> None:
    """Closed at once by policy or beyond the bounds of draining, and booked at an estimate."""
    run = played(a_call(gap_s=0.2, leaves_s=0.3), **limits)
    assert (entry(run).outcome, entry(run).charge.status) == ("left", "estimated")
    assert run.over_s < 0.5


def test_draining_is_bounded() -> None:
    """At most drain_limit replies are drained at a time."""
    run = played(*(a_call(number=number, gap_s=0.2, leaves_s=0.3) for number in range(5)), drain_limit=2)
    statuses = [entry(run, number).charge.status for number in range(5)]
    assert (statuses.count("priced"), statuses.count("estimated")) == (2, 3)


def test_leaving_while_the_cut_is_told() -> None:
    """The count of drained replies is right also where the client leaves after the reading is over."""
    run = played(a_call(trouble="cut", at=0.5, client=structs.replace(STOPS, stops_at=2, leaves_s=0.5), chunk=97))
    assert run.gate.draining == 0


# ── the ledger fails ──


def test_a_hold_that_cannot_be_let_go_is_owed() -> None:
    """A call that was never sent is not booked because the ledger was away when its hold was let go."""
    run = played(a_call(trouble="refuses", connect_s=1), ledger=Ledger(outages_s=((0.5, 5),)))
    assert (run.stories[0].status, run.entries(0)) == (502, [])
    assert run.over_s < 2  # the client does not wait for it


def test_a_settlement_is_tried_again() -> None:
    """B2: within its bounds; the end of the reply waits for it; it counts once."""
    run = played(a_call(), ledger=Ledger(outages_s=((0.05, 0.6),)))
    assert entry(run).charge.status == "priced"
    assert 0.6 < run.over_s < 1.2


def test_what_the_ledger_does_not_take_is_owed() -> None:
    """B1: the reply ends, and the call is booked when the ledger is back."""
    run = played(a_call(), ledger=Ledger(outages_s=((0.05, 8),)))
    assert sum(attempt.SETTLE_PAUSES_S) < run.over_s < 3
    assert entry(run).charge.status == "priced"
    assert run.gate.owed == []


# ── shapes that the scripted provider does not have ──


class OneAnswer:
    """An upstream with one answer for all."""

    def __init__(self, status: int, body: bytes, content_type: bytes) -> None:
        self.status, self.is_stream = status, content_type == b"text/event-stream"
        self.headers = [(b"content-type", content_type)]
        self.sent = True
        self._body = body

    def open(self, route: Route, dialect: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Opening:
        return self

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *why: object) -> None:
        pass

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body


def test_an_error_that_comes_as_a_stream_keeps_its_body() -> None:
    """A refusal is relayed as it came, whatever its content type."""
    run = a_run(a_call())
    error = b'data: {"error":{"message":"slow down"}}\n\n'
    run.gate.upstream = OneAnswer(429, error, b"text/event-stream")
    run.play()
    assert (run.stories[0].status, bytes(run.stories[0].body)) == (429, error)
    assert run.stories[0].headers[b"content-length"] == b"%d" % len(error)


def test_a_good_status_without_an_event() -> None:
    """D2: an empty stream is a broken one."""
    run = a_run(a_call())
    run.gate.upstream = OneAnswer(200, b"", b"text/event-stream")
    run.play()
    assert (run.stories[0].status, error_of(run)["code"]) == (502, "stream_broken")
    assert entry(run).charge.status == "estimated"
