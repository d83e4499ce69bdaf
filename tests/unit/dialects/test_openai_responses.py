"""OpenAI responses: the ask and its bounds, the reply's end, usage and errors, and the event that breaks a stream off."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollkeeper.dialects import openai_responses
from tollkeeper.dialects.json_body import FILE_TOKENS, TEMPLATE_TOKENS, TOOL_PREAMBLE_TOKENS
from tollkeeper.dialects.openai_responses import HELD_TOKENS, HOSTED_TOKENS, IMAGE_TOKENS, read_ask, write_body
from tollkeeper.errors import BadRequest, BudgetExceeded, StreamBroken
from tollkeeper.sse import Event, read_event
from tollkeeper.values import Budget, Part, Reading, Refusal, Standing, Usage

NONE: frozenset[str] = frozenset()
USAGE = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
READ = Usage(input=7, output=2)


def chunk(kind: str, **members: Any) -> Event:
    data = json.dumps({"type": kind} | members, separators=(",", ":")).encode()
    return read_event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))


def lifecycle(kind: str, **response: Any) -> Event:
    """An event that carries the response."""
    return chunk(f"response.{kind}", response={"model": "gpt-5-2025-08-07", "output": [], "usage": None} | response)


CREATED = lifecycle("created", status="in_progress", service_tier="auto")
TEXT = chunk("response.output_text.delta", delta="Hé\n", logprobs=[], obfuscation="xxxxxxxx")
DONE = read_event(b"data: [DONE]\n\n")
FAILED = {"status": "failed", "error": {"code": "server_error", "message": "It failed."}}


def replay(*events: Event, quirks: frozenset[str] = NONE) -> tuple[openai_responses.Reducer, Reading]:
    reducer = openai_responses.reducer(stream=True, hide_usage=True, quirks=quirks)
    assert [reducer.event(event) for event in events] == [event.raw for event in events]  # nothing is ever hidden
    return reducer, reducer.reading()


# ---- the ask --------------------------------------------------------------------------------------------------------


def test_ask() -> None:
    """An ask carries what the line needs: model, stream, the cap (reasoning inside), user, tier."""
    body = (
        b'{"model":"gpt-5","input":"Hi","stream":true,"max_output_tokens":9,"user":"bob","safety_identifier":"x",'
        b'"service_tier":"flex"}'
    )
    ask = read_ask(body)
    assert (ask.dialect, ask.path, ask.model, ask.stream) == ("openai-responses", "/responses", "gpt-5", True)
    assert (ask.output_cap, ask.choices, ask.user, ask.tier, ask.generates) == (9, 1, "bob", "flex", True)
    assert ask.prompt_bound == len(body) + TEMPLATE_TOKENS
    assert read_ask(b'{"model":"m","safety_identifier":"x"}').user == "x"
    assert read_ask(b'{"model":"m","max_tokens":5}').output_cap is None  # that name is chat's


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model": None}, "model"),
        ({"stream": "true"}, "stream"),
        ({"background": 1}, "background"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"reasoning": "high"}, "reasoning"),
        ({"user": 7}, "user"),
        ({"safety_identifier": 7}, "safety_identifier"),
        ({"service_tier": {}}, "service_tier"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], name: str) -> None:
    """H4: a field of another type or out of bounds is refused by its name."""
    with pytest.raises(BadRequest, match=f"^{name}: expected"):
        read_ask(json.dumps({"model": "m", **fields}).encode())


def test_background_is_refused_but_as_a_stream() -> None:
    """C3: a response whose end is not seen cannot be counted: refused, saying why; as a stream its end is seen."""
    with pytest.raises(BadRequest, match=r'^background: .* cannot be counted; leave it out, or add "stream": true'):
        read_ask(b'{"model":"m","background":true}')
    assert read_ask(b'{"model":"m","background":true,"stream":true}').stream
    assert not read_ask(b'{"model":"m","background":false}').stream


def beyond(**fields: Any) -> int:
    """The prompt bound above the body's bytes and the template."""
    body = json.dumps({"model": "m", **fields}).encode()
    return read_ask(body).prompt_bound - TEMPLATE_TOKENS - len(body)


def said(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"input": 'they said {"type":"input_image"}, previous_response_id and "type":"mcp"'}, 0),
        ({"input": said({"type": "input_text", "text": "x"})}, 0),
        ({"input": said({"type": "input_image", "image_url": "https://x/y.png"})}, IMAGE_TOKENS),
        ({"input": said({"type": "input_image", "file_id": "file-1"})}, IMAGE_TOKENS),
        ({"input": [{"type": "function_call_output", "output": [{"type": "input_image", "file_id": "f"}]}]}, IMAGE_TOKENS),
        ({"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}}]}, IMAGE_TOKENS),
        ({"input": said({"type": "input_file", "file_id": "f"}, {"type": "input_file", "file_url": "u"})}, 2 * FILE_TOKENS),
        ({"input": said({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}})}, 0),
        ({"previous_response_id": "resp_1"}, HELD_TOKENS),
        ({"previous_response_id": None, "conversation": None, "prompt": None}, 0),
        ({"conversation": {"id": "conv_1"}}, HELD_TOKENS),
        ({"prompt": {"id": "pmpt_1"}}, HELD_TOKENS),
        ({"input": [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}]}, HELD_TOKENS),
        ({"previous_response_id": "resp_1", "input": [{"id": "msg_2"}]}, HELD_TOKENS),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "web_search"}]}, TOOL_PREAMBLE_TOKENS),
        ({"tools": [{"type": "computer_use_preview"}]}, TOOL_PREAMBLE_TOKENS),
        ({"tools": [{"type": "web_search"}]}, TOOL_PREAMBLE_TOKENS + HOSTED_TOKENS),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}]}, TOOL_PREAMBLE_TOKENS + HOSTED_TOKENS),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, TOOL_PREAMBLE_TOKENS + HOSTED_TOKENS),
        ({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, TOOL_PREAMBLE_TOKENS + HOSTED_TOKENS),
        ({"tools": [{"type": "mcp"}, {"type": "image_generation"}]}, TOOL_PREAMBLE_TOKENS + 2 * HOSTED_TOKENS),
        ({"input": [{"type": "web_search_call", "id": "ws_1", "action": {}}]}, 0),
        ({"reasoning": {"effort": "high", "mode": "standard"}}, 0),
        ({"reasoning": {"mode": "pro"}}, HOSTED_TOKENS),
    ],
)  # fmt: skip
def test_prompt_bound_covers_what_bytes_do_not(fields: dict[str, Any], tokens: int) -> None:
    """C3: images, files, what the provider holds and what runs there have declared bounds; text about them has none."""
    assert beyond(**fields) == tokens


def test_escapes_hide_nothing() -> None:
    """C3: a part whose type is written with escapes is bounded like any other."""
    body = rb'{"model":"m","input":[{"role":"user","content":[{"type":"input\u005fima\u0067e","file_id":"f"}]}]}'
    assert read_ask(body).prompt_bound == len(body) + TEMPLATE_TOKENS + IMAGE_TOKENS


PIXELS = "A" * 3_000_000
URL = "data:image/png;base64," + PIXELS


@pytest.mark.parametrize(
    "items",
    [
        said({"type": "input_image", "image_url": URL}),
        [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": URL}]}],
        [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}],
        [{"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": PIXELS}],
    ],
)  # fmt: skip
def test_inline_images_are_not_text(items: Any) -> None:
    """An inline image is bounded as an image, however many bytes it has."""
    body = json.dumps({"model": "m", "input": items}).encode()
    assert IMAGE_TOKENS < read_ask(body).prompt_bound < IMAGE_TOKENS + TEMPLATE_TOKENS + 300


@pytest.mark.parametrize("items", [said({"image_url": URL}), [7, PIXELS], PIXELS])
def test_other_shapes_get_no_discount(items: Any) -> None:
    """What is not an image by its type counts its bytes."""
    assert beyond(input=items) == 0


def test_body_keeps_its_values() -> None:
    """Every value stays byte for byte but the model's name, and the cap where none was set."""
    body = b'{"model":"a","input":[{"content": "\\u00e9\\/ "}],"temperature":1.0e0,"x":{"b":1,"a":1}}'
    ask = read_ask(body)
    renamed = body.replace(b'"a",', b'"b\\"",', 1)
    assert write_body(ask, model='b"', output_cap=None, quirks=NONE) == renamed
    assert write_body(ask, model='b"', output_cap=50, quirks=NONE) == renamed[:-1] + b',"max_output_tokens":50}'
    capped = read_ask(b'{"model":"a","max_output_tokens":5}')
    assert json.loads(write_body(capped, model="a", output_cap=50, quirks=NONE))["max_output_tokens"] == 5


# ---- the reply ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "done"])
def test_usage_comes_with_the_end(kind: str) -> None:
    """D2: each of the events that end a stream has the usage; before it there is none, and [DONE] ends nothing."""
    _, reading = replay(CREATED, TEXT, DONE)
    assert (reading.parts, reading.ended, reading.final) == ((), False, False)
    _, reading = replay(CREATED, TEXT, lifecycle(kind, usage=USAGE, service_tier="default"), DONE)
    assert (reading.parts, reading.ended, reading.final) == ((Part(READ, "gpt-5-2025-08-07"),), True, True)
    assert (reading.model, reading.tier) == ("gpt-5-2025-08-07", "default")
    assert reading.error == ("failed" if kind == "failed" else None)


def test_served_tier() -> None:
    """A4: the tier is the one at the end, where priority may have become default; a cut stream has the first one."""
    end = lifecycle("completed", usage=USAGE, service_tier="default")
    assert replay(lifecycle("created", service_tier="priority"), end)[1].tier == "default"
    assert replay(lifecycle("created", service_tier="priority"), TEXT)[1].tier == "priority"


@pytest.mark.parametrize(
    ("event", "content", "size"),
    [
        (CREATED, False, 0),
        (lifecycle("queued"), False, 0),
        (lifecycle("in_progress"), False, 0),
        (read_event(b": ping\n\n"), False, 0),
        (chunk("ping"), False, 0),
        (chunk("response.content_part.added", part={"type": "output_text", "text": ""}), False, 0),
        (chunk("response.output_item.added", item={"type": "message", "content": []}), False, 0),
        (chunk("response.web_search_call.searching"), False, 0),
        (chunk("response.image_generation_call.partial_image", partial_image_b64="AAAA"), False, 0),
        (chunk("response.output_text.done", text="Hi"), False, 0),
        (chunk("response.output_text.delta", delta=""), False, 0),
        (chunk("response.output_text.delta", delta=None), False, 0),
        (TEXT, True, 9),  # as it is written: H\u00e9\n
        (chunk("response.refusal.delta", delta="No."), True, 3),
        (chunk("response.reasoning_summary_text.delta", delta="Hm"), True, 2),
        (chunk("response.function_call_arguments.delta", delta='{"'), True, 3),
        (chunk("response.mcp_call_arguments.delta", delta="x"), True, 1),
        (chunk("response.code_interpreter_call_code.delta", delta="x"), True, 1),
        (chunk("response.audio.transcript.delta", delta="x"), True, 1),
        (chunk("response.something_new.delta", delta="new"), True, 3),
        (chunk("response.something_new", text="new"), False, 0),
    ],
)
def test_content(event: Event, content: bool, size: int) -> None:
    """D5: what carries a delta is content, known or not; how a response begins, pings and pictures are not."""
    reducer, reading = replay(event)
    assert (reducer.content, reading.output_bytes) == (content, size)


def item(kind: str, id: str = "x", **members: Any) -> Event:
    return chunk("response.output_item.done", item={"id": id, "type": kind, "status": "completed"} | members)


def test_items_without_deltas_count_their_own_bytes() -> None:
    """D1: a call that comes in one piece bounds its tokens by its bytes; text that came in deltas is not counted twice."""
    call = item("function_call", name="f", arguments='{"a":1}')
    assert replay(CREATED, call)[1].output_bytes == len('f{\\"a\\":1}')
    assert replay(CREATED, TEXT, item("message", content=[{"text": "Hé\n"}]))[1].output_bytes == 9
    assert replay(CREATED, TEXT, item("message", content=[]), call)[1].output_bytes == 9 + len('f{\\"a\\":1}')
    assert replay(CREATED, item("image_generation_call", result="AAAA"))[1].output_bytes == 0


def test_secret_reasoning_is_unseen() -> None:
    """D1: after reasoning that was not shown, the bytes seen bound nothing; reasoning that is shown is text."""
    begun = chunk("response.output_item.added", item={"type": "reasoning", "summary": []})
    summary = chunk("response.reasoning_summary_text.delta", delta="Hm")
    assert replay(CREATED, begun, TEXT)[1].unseen
    assert replay(CREATED, begun, summary, TEXT)[1].unseen
    assert not replay(CREATED, begun, chunk("response.reasoning_text.delta", delta="Hm"), TEXT)[1].unseen
    assert not replay(CREATED, chunk("response.output_item.added", item=7), TEXT)[1].unseen


def test_tools_are_counted() -> None:
    """A4: searches are counted by the provider's own word, else by the items at the end, else by those that were seen."""
    search = {"type": "web_search_call", "action": {"type": "search"}}
    page = {"type": "web_search_call", "action": {"type": "open_page"}}
    ends: dict[str, Any] = {"usage": USAGE, "output": [search, page]}
    told = {"tool_usage": {"web_search": {"num_requests": 3}}}
    for response, count in ((ends, 1), (ends | told, 3), ({"usage": USAGE}, 1), ({"usage": USAGE, "output": None}, 1)):
        _, reading = replay(
            CREATED, item("web_search_call", action={"type": "search"}), lifecycle("completed", **response)
        )
        assert reading.usage == Usage(input=7, output=2, web_search=count)
    _, reading = replay(lifecycle("completed", **ends, **told), quirks=frozenset(["every_search_item"]))
    assert reading.usage.web_search == 2


def test_pictures_are_a_part_of_their_own() -> None:
    """A4: a picture is usage of the model that drew it, at that model's price."""
    drawn = {
        "input_tokens": 9,
        "output_tokens": 1056,
        "output_tokens_details": {"image_tokens": 1056, "text_tokens": 0},
    }
    end = lifecycle(
        "completed",
        usage=USAGE,
        tool_usage={"image_gen": drawn},
        tools=[{"type": "image_generation", "model": "gpt-image-2"}],
    )
    _, reading = replay(CREATED, end)
    assert reading.parts[1:] == (Part(Usage(input=9, output_image=1056), "gpt-image-2"),)
    assert reading.parts[0] == Part(READ, "gpt-5-2025-08-07")


def test_a_response_that_failed_at_once_used_nothing() -> None:
    """A5: `usage: null` of a response that failed before any content is the provider's last word: 0, and not unknown."""
    error = chunk("error", error={"type": "insufficient_quota", "code": "insufficient_quota", "message": "No money."})
    reducer, reading = replay(CREATED, error, lifecycle("failed", **FAILED))
    assert (reading.parts, reading.final, reading.ended) == ((Part(Usage(), "gpt-5-2025-08-07"),), True, True)
    assert (reading.error, reducer.content) == ("insufficient_quota", False)


BEGUN = chunk("response.output_item.added", item={"type": "message"})
SILENT = chunk("response.failed", response={"model": "m"} | FAILED)  # no word of usage


@pytest.mark.parametrize(
    "events", [(CREATED, TEXT), (CREATED, BEGUN), (CREATED, item("web_search_call"))], ids=["text", "begun", "searched"]
)
def test_a_response_that_failed_later_used_something(events: tuple[Event, ...]) -> None:
    """A5: after content, or an item of the output, `usage: null` says nothing: it is not known what was used."""
    _, reading = replay(*events, lifecycle("failed", **FAILED))
    assert (reading.parts, reading.final, reading.ended, reading.error) == ((), False, True, "server_error")
    assert replay(CREATED, SILENT)[1].parts == ()


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (chunk("error", error={"type": "server_error", "code": "x", "message": "m"}), "server_error"),
        (chunk("error", code="rate_limit_exceeded", message="Slow down.", param=None), "rate_limit_exceeded"),
        (chunk("error", code=None, message="Slow down.", error=None), "Slow down."),
        (read_event(b'data: {"error":{"message":"boom"}}\n\n'), "boom"),
        (read_event(b"event: error\ndata: oops\n\n"), "error"),
        (lifecycle("failed", **FAILED, usage=USAGE), "server_error"),
        (lifecycle("cancelled", status="cancelled"), "cancelled"),
    ],
)
def test_errors_in_the_stream(event: Event, error: str) -> None:
    """D2: an in-band error is seen in every shape; the first one counts."""
    assert replay(CREATED, event)[1].error == error
    assert replay(CREATED, event, chunk("error", message="later"))[1].error == error


def test_absurd_usage_is_absent() -> None:
    """F4: usage that cannot be believed is told and not counted."""
    _, reading = replay(CREATED, TEXT, lifecycle("completed", usage=USAGE | {"output_tokens": -2}))
    assert (reading.parts, reading.note, reading.inferred, reading.final) == ((), "absurd usage", True, False)
    assert (reading.error, reading.ended) == (None, True)


def test_odd_events_are_relayed() -> None:
    """An end of another shape is an end; an event that is not JSON counts as content, since it may be."""
    assert replay(CREATED, chunk("response.completed"))[1].ended
    assert replay(CREATED, chunk("response.completed", response=[]))[1].ended
    assert replay(read_event(b'event: response.completed\ndata: {"response":{"usage":null}}\n\n'))[1].ended
    odd = read_event(b"data: {oops\n\n")
    reducer, reading = replay(odd)
    assert (reducer.content, reading.output_bytes) == (True, len(odd.data))


@pytest.mark.parametrize(
    ("body", "parts", "error", "size", "note"),
    [
        (b'{"model":"m","status":"completed","usage":{"input_tokens":7,"output_tokens":2}}', (Part(READ, "m"),), None, 0, None),
        (b'{"model":"m","status":"incomplete","usage":{"input_tokens":7,"output_tokens":2}}', (Part(READ, "m"),), None, 0, None),
        (b'{"model":"m"}', (), None, 13, None),
        (b'{"status":"failed","error":{"code":"c"},"output":[],"usage":null}', (Part(Usage()),), "c", 0, None),
        (b'{"status":"failed","error":{"code":"c"},"output":[{}],"usage":null}', (), "c", 67, None),
        (b'{"status":"queued","usage":null}', (), None, 32, "unfinished"),
        (b'{"error":{"type":"t"}}', (), "t", 22, None),
        (b'{"usage":{"input_tokens":true}}', (), None, 31, "absurd usage"),
        (b"<html>", (), None, 6, None),
    ],
)  # fmt: skip
def test_whole(body: bytes, parts: tuple[Part, ...], error: str | None, size: int, note: str | None) -> None:
    """A whole body gives its usage; without one its bytes bound what was generated."""
    reducer = openai_responses.reducer(stream=False, hide_usage=False, quirks=NONE)
    assert not reducer.ended
    reducer.whole(body)
    assert (reducer.ended, reducer.content) == (True, True)
    reading = reducer.reading()
    assert (reading.parts, reading.error, reading.output_bytes, reading.note) == (parts, error, size, note)
    assert reading.final is bool(parts)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    """C7: a refusal has OpenAI's shape, with the numbers beside."""
    standing = Standing(
        budget=Budget(scope="session", limit=10, measure="usd"), id="s1", project="alpha", window_start_us=0,
        resets_at_us=None, spent=10, held=0,
    )  # fmt: skip
    refused = BudgetExceeded(Refusal(standing=standing, asked=1))
    body = json.loads(openai_responses.refusal(refused, "r1"))
    assert body["request_id"] == "r1"
    assert (body["error"]["type"], body["error"]["code"]) == ("insufficient_quota", "budget_exceeded")


def test_broken_stream_is_told_as_sdks_raise_on() -> None:
    """D3: a broken stream ends with an event of type error that the official SDK raises on, and no end follows."""
    raw = openai_responses.broken(StreamBroken("cut"), "r1")
    event = read_event(raw)
    told = json.loads(event.data)
    assert (event.name, told["type"], told["error"]["type"]) == (b"error", "error", "server_error")
    assert isinstance(told["sequence_number"], int)
    _, reading = replay(CREATED, TEXT, event)
    assert (reading.error, reading.ended) == ("server_error", False)
