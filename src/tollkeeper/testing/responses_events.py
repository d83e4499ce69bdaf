"""The fake provider's streamed responses: their items, and their events as OpenAI sends them.

Events are numbered; each item is begun, filled and done, and the end has all of it once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tollkeeper.testing.faults import Piece

encode = msgspec.json.encode


def message(id: str, text: str, status: str) -> dict[str, Any]:
    """What the model says."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def function_call(id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """A call of the caller's own function."""
    return {
        "id": id, "type": "function_call", "call_id": f"call_{id}", "name": name, "arguments": arguments,
        "status": status,
    }  # fmt: skip


def reasoning(id: str) -> dict[str, Any]:
    """Thinking that is kept secret."""
    return {"id": id, "type": "reasoning", "summary": []}


def web_search(id: str) -> dict[str, Any]:
    """A search, and not the opening of a page."""
    return {"id": id, "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "toll"}}


def events(response: dict[str, Any], words: list[str], thought: int, usage: dict[str, Any] | None) -> Iterator[Piece]:
    """The pieces of a stream that ends in `response`; its last item is filled word by word, each one token."""
    numbers = iter(range(2**31))

    def event(kind: str, tokens: int = 0, thought: int = 0, **members: Any) -> Piece:
        data = encode({"type": kind} | members | {"sequence_number": next(numbers)})
        return Piece(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), tokens, thought)

    begun = response | {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    begun.pop("tool_usage", None)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    *before, last = response["output"]
    for index, item in enumerate(before):
        spent = thought if item["type"] == "reasoning" else 0
        yield event("response.output_item.added", spent, spent, output_index=index, item=item)
        yield event("response.output_item.done", output_index=index, item=item)
    where = {"item_id": last["id"], "output_index": len(before)}
    if last["type"] == "message":
        yield from _said(event, where, last, words)
    else:
        empty = last | {"arguments": "", "status": "in_progress"}
        yield event("response.output_item.added", output_index=len(before), item=empty)
        for word in words:
            yield event("response.function_call_arguments.delta", 1, delta=word, **where)
        yield event("response.function_call_arguments.done", arguments=last["arguments"], name=last["name"], **where)
    yield event("response.output_item.done", output_index=len(before), item=last)
    end = "response.incomplete" if response["status"] == "incomplete" else "response.completed"
    yield event(end, response=response | ({} if usage is None else {"usage": usage}))


def _said(event: Any, where: dict[str, Any], item: dict[str, Any], words: list[str]) -> Iterator[Piece]:
    empty, (part,) = item | {"content": [], "status": "in_progress"}, item["content"]
    yield event("response.output_item.added", output_index=where["output_index"], item=empty)
    where |= {"content_index": 0}
    yield event("response.content_part.added", part=part | {"text": ""}, **where)
    for word in words:
        yield event("response.output_text.delta", 1, delta=word, logprobs=[], **where)
    yield event("response.output_text.done", text=part["text"], logprobs=[], **where)
    yield event("response.content_part.done", part=part, **where)
