"""AWS event-stream messages for tests, written by the encoding's description and not by our own reader of it."""

from __future__ import annotations

import json
import zlib


def text_header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\7" + len(value).to_bytes(2) + value.encode()


def framed(headers: bytes, payload: bytes) -> bytes:
    prelude = (16 + len(headers) + len(payload)).to_bytes(4) + len(headers).to_bytes(4)
    message = prelude + zlib.crc32(prelude).to_bytes(4) + headers + payload
    return message + zlib.crc32(message).to_bytes(4)


def event(kind: str, payload: object) -> bytes:
    headers = (":event-type", kind), (":content-type", "application/json"), (":message-type", "event")
    return framed(b"".join(text_header(*each) for each in headers), json.dumps(payload).encode())


def exception(kind: str, message: str) -> bytes:
    headers = (":exception-type", kind), (":content-type", "application/json"), (":message-type", "exception")
    return framed(b"".join(text_header(*each) for each in headers), json.dumps({"message": message}).encode())


def error(code: str, message: str) -> bytes:
    headers = (":error-code", code), (":error-message", message), (":message-type", "error")
    return framed(b"".join(text_header(*each) for each in headers), b"")


def converse(text: str, usage: dict[str, object] | None) -> bytes:
    """A stream of ConverseStream, without its end where no usage is given."""
    stream = event("messageStart", {"p": "abc", "role": "assistant"})
    stream += event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}, "p": "ab"})
    stream += event("contentBlockStop", {"contentBlockIndex": 0}) + event("messageStop", {"stopReason": "end_turn"})
    return stream if usage is None else stream + event("metadata", {"usage": usage, "metrics": {"latencyMs": 7}})
