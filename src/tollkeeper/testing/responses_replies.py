"""What a fake provider answers at /v1/responses: the events of a stream, or the whole response object.

Counted as its other replies are: a prompt token is four bytes of text (and four for each item), an output token one word. A
response cut short by its cap is incomplete. Where the ask brings a function and no result of one, the reply calls it; a
web_search tool searches once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from tollkeeper.testing.faults import Piece
from tollkeeper.testing.replies import CREATED, SERVED, BadAskError, Reply, Traits, _cap, _check, _words, encode, tokens
from tollkeeper.values import Usage

FAILED: Final = Piece(
    b'event: response.failed\ndata: {"type":"response.failed","response":{"status":"failed","error":'
    b'{"code":"server_error","message":"The model failed."},"output":[],"usage":null}}\n\n'
)
"""How a stream ends after an error."""


def openai_responses(body: dict[str, Any], number: int, traits: Traits) -> Reply:
    """POST /v1/responses."""
    asked, prompt, cap = _check(body, "model", str), _prompt(body), _cap(body, "max_output_tokens")
    thought = traits.reasoning_tokens if cap is None else min(traits.reasoning_tokens, cap)
    words, capped = _words({"messages": body["input"]}, None if cap is None else cap - thought)
    cached, output = min(traits.cached_tokens, prompt), thought + len(words)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + output,
    }
    status = "incomplete" if capped else "completed"
    items = list(_items(body, number, "".join(words), thought, end=status))
    end: dict[str, Any] = {"status": status, "output": items}
    if capped:
        end["incomplete_details"] = {"reason": "max_output_tokens"}
    if traits.tells_usage:
        end["usage"] = usage
    begin = _response(body, number, SERVED.get(asked, asked))
    if body.get("stream"):
        pieces = list(_events(begin, begin | end, words, thought))
    else:
        pieces = [Piece(encode(begin | end), output, thought)]
    counted = Usage(
        input=prompt - cached, cache_read=cached, output=output, reasoning=thought,
        web_search=sum(item["type"] == "web_search_call" for item in items),
    )  # fmt: skip
    return Reply(model=begin["model"], stream=bool(body.get("stream")), usage=counted, pieces=pieces)


def _prompt(body: dict[str, Any]) -> int:
    asked = _check(body, "input", (str, list))
    items = [{"content": asked}] if isinstance(asked, str) else asked
    if not all(isinstance(item, dict) for item in items):
        raise BadAskError("Invalid type for 'input': expected text or a list of items.")
    prompt = sum(4 + tokens(item.get("content", item.get("output"))) for item in items)
    return prompt + tokens(body.get("instructions")) + tokens(body.get("tools"))


def _response(body: dict[str, Any], number: int, model: str) -> dict[str, Any]:
    """The response object as it begins."""
    return {
        "id": f"resp_{number:08d}", "object": "response", "created_at": CREATED, "status": "in_progress",
        "background": False, "error": None, "incomplete_details": None, "instructions": body.get("instructions"),
        "model": model, "output": [], "parallel_tool_calls": True,
        "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "service_tier": "default" if body.get("service_tier") in (None, "auto") else body["service_tier"],
        "store": True, "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
        "tools": body.get("tools") or [], "top_p": 1.0, "truncation": "disabled", "metadata": {},
    }  # fmt: skip


def _items(body: dict[str, Any], number: int, text: str, thought: int, *, end: str) -> Iterator[dict[str, Any]]:
    """The output items as they end."""
    tools = {tool.get("type"): tool for tool in body.get("tools") or () if isinstance(tool, dict)}
    results = isinstance(body["input"], list) and any(
        each.get("type") == "function_call_output" for each in body["input"]
    )
    if thought:
        yield {"id": f"rs_{number:08d}", "type": "reasoning", "summary": []}
    if "web_search" in tools:
        action = {"type": "search", "query": "toll"}
        yield {"id": f"ws_{number:08d}", "type": "web_search_call", "status": "completed", "action": action}
    if "function" in tools and not results:
        yield {
            "id": f"fc_{number:08d}", "type": "function_call", "status": end, "call_id": f"call_{number:08d}",
            "name": tools["function"].get("name"), "arguments": encode({"say": text}).decode(),
        }  # fmt: skip
    else:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        yield {"id": f"msg_{number:08d}", "type": "message", "status": end, "role": "assistant", "content": [part]}


def _events(begin: dict[str, Any], end: dict[str, Any], words: list[str], thought: int) -> Iterator[Piece]:
    numbers = count()

    def event(kind: str, tokens: int = 0, thought: int = 0, **members: Any) -> Piece:
        data = {"type": kind, "sequence_number": next(numbers)} | members
        return Piece(b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(data)), tokens, thought)

    yield event("response.created", response=begin)
    yield event("response.in_progress", response=begin)
    for index, item in enumerate(end["output"]):
        place = {"item_id": item["id"], "output_index": index}
        match item["type"]:
            case "reasoning":
                yield event("response.output_item.added", thought, thought, output_index=index, item=item)
            case "web_search_call":
                opened = {name: value for name, value in item.items() if name != "action"} | {"status": "in_progress"}
                yield event("response.output_item.added", output_index=index, item=opened)
                for step in ("in_progress", "searching", "completed"):
                    yield event(f"response.web_search_call.{step}", **place)
            case "function_call":
                opened = item | {"status": "in_progress", "arguments": ""}
                yield event("response.output_item.added", output_index=index, item=opened)
                name = "response.function_call_arguments"
                for size, delta in ((0, '{"say":"'), *((1, word) for word in words), (0, '"}')):
                    yield event(f"{name}.delta", size, **place, delta=delta)
                yield event(f"{name}.done", **place, arguments=item["arguments"])
            case _:
                yield event(
                    "response.output_item.added",
                    output_index=index,
                    item=item | {"status": "in_progress", "content": []},
                )
                (part,), place = item["content"], place | {"content_index": 0}
                yield event("response.content_part.added", **place, part=part | {"text": ""})
                for word in words:
                    yield event("response.output_text.delta", 1, **place, delta=word, logprobs=[])
                yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
                yield event("response.content_part.done", **place, part=part)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{end['status']}", response=end)
