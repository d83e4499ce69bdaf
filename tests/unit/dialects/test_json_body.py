"""A request body read strictly."""

from __future__ import annotations

import re

import msgspec
import pytest

from tollkeeper.dialects.json_body import (
    WINDOW_TOKENS,
    json_depth_ok,
    media_tokens,
    read_count,
    read_flag,
    read_larger,
    read_model,
    read_object,
    read_text,
    write_object,
)
from tollkeeper.errors import BadRequest, RequestTooLarge

BAD = [
    (b"", "not JSON"),
    (b"[]", "not a JSON object"),
    (b'"x"', "not a JSON object"),
    (b"{} x", "not JSON"),
    (b'{"a":NaN}', "not JSON"),
    (b'{"a":[Infinity]}', "not JSON"),
    (b'{"a":"\xff"}', "not UTF-8"),
    (b'\xef\xbb\xbf{"a":1}', "not JSON"),
    (b'{"a":1,"a":1}', "^a: .*twice"),
    (b'{"a":12,"a":1}', "^a: .*twice"),
    (b'{"a":1, "b":2, "a":1}', "^a: .*twice"),
    (b'{"a": {"x":1} , "\\u0061": {"x":1} }', "twice"),
    (b'{ "b":0,"a":"","a":"","a":""}', "^a: .*twice"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_bad_bodies_are_refused(body: bytes, message: str) -> None:
    """H4: what is not one JSON object with each member once is refused, and says why."""
    with pytest.raises(BadRequest, match=message):
        read_object(body)


def test_nested_duplicates_are_the_providers_matter() -> None:
    """Only top-level members are read here; deeper ones go on byte for byte."""
    body = b'{"a": {"x": 1, "x": 2}, "b": [ 1 , 2 ]}'
    assert write_object(read_object(body)) == b'{"a":{"x": 1, "x": 2},"b":[ 1 , 2 ]}'


def test_deep_bodies_are_refused() -> None:
    """H4: a body nested beyond what can be read is refused as too large, whatever stands in it."""
    with pytest.raises(RequestTooLarge):
        read_object(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    ("body", "limit", "ok"),
    [
        (b'{"a":[[]]}', 3, True),
        (b'{"a":[[]]}', 2, False),
        (b'{"a":"[[[[[["}', 1, True),
        (b'{"a":"\\"[[[["}', 1, True),
        (b'{"a":"\\\\", "b":[[]]}', 2, False),
        (b"[" * 128 + b"]" * 128, 128, True),
        (b"[" * 129 + b"]" * 129, 128, False),
        (b'{"a":{"b":[{"c":[]}]}}', 5, True),
        (b'{"a":{"b":[{"c":[]}]}}', 4, False),
        (b"[" + b'["[",{}],' * 30_000 + b"[[]]]", 3, True),
        (b"[" + b'["[",{}],' * 30_000 + b"[[[]]]]", 3, False),
        (b"[" + b'"x[",' * 300_000 + b"[[[]]]]", 3, False),
    ],
)
def test_depth(body: bytes, limit: int, ok: bool) -> None:
    """H4: depth counts arrays and objects alike, and brackets in text not at all."""
    assert json_depth_ok(body, limit) is ok


@pytest.mark.parametrize("value", [b"true", b"-1", b"1.0", b"1e3", b'"1"', b"1000000001", b"1" * 400, b"[]"])
def test_counts_are_whole_and_bounded(value: bytes) -> None:
    """A count is a whole number within its bounds, and the refusal names the field."""
    with pytest.raises(BadRequest, match=r"^n: expected a whole number from 0 to 1000000000"):
        read_count(read_object(b'{"n":' + value + b"}"), "n")


def test_fields() -> None:
    """Absent and null are the same; values of another type are refused by name."""
    body = read_object(b'{"zero":0,"none":null,"yes":true,"text":"x","number":1}')
    assert [read_count(body, name) for name in ("zero", "none", "gone")] == [0, None, None]
    assert [read_flag(body, name) for name in ("yes", "none", "gone")] == [True, False, False]
    assert [read_text(body, name) for name in ("text", "none", "gone")] == ["x", None, None]
    for read, name in ((read_flag, "number"), (read_text, "yes"), (read_text, "number")):
        with pytest.raises(BadRequest, match=f"^{name}: expected"):
            read(body, name)


def test_a_count_with_two_names() -> None:
    """C3: where a client gives both, the larger one bounds it."""
    body = read_object(b'{"a":3,"b":5,"zero":0,"none":null}')
    pairs = (("a", "b"), ("b", "a"), ("zero", "a"), ("none", "b"), ("zero", "gone"), ("none", "gone"))
    assert [read_larger(body, *pair) for pair in pairs] == [5, 5, 3, 5, 0, None]


@pytest.mark.parametrize("word", [b"image", rb"im\u0061ge", rb"\u0069\u006D\u0061\u0067\u0065"])
def test_parts_are_counted_however_they_are_spelt(word: bytes) -> None:
    """C3: a part whose name is written in escapes is the same part; in a text it is none; all parts are a window at most."""
    bounds = ((b'"image"', re.compile(rb'"type"\s*:\s*"image"'), 5_000),)
    piece = b'{"type": "' + word + b'"}'
    assert media_tokens(b"[" + piece + b"," + piece + b"]", bounds) == 10_000
    assert media_tokens(msgspec.json.encode(["\\u0022", piece.decode(), "\u00e9\u0001"]), bounds) == 0
    assert media_tokens(piece * 1_000, bounds) == WINDOW_TOKENS


@pytest.mark.parametrize("model", [b"null", b'""', b"1", b'"a\\nb"', b'"' + b"m" * 257 + b'"', b"[]"])
def test_model_is_a_name(model: bytes) -> None:
    """The model is text of 1 to 256 printable characters."""
    with pytest.raises(BadRequest, match=r"^model: expected"):
        read_model(read_object(b'{"model":' + model + b"}"))
    assert read_model(read_object(b'{"model":"' + b"m" * 256 + b'"}')) == "m" * 256
