"""Ends of commands and replies, found in any cut of the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.testing.resp import Ends

FRAMES = [
    b"+OK\r\n", b"-ERR no\r\n", b":7\r\n", b"_\r\n", b",1.5\r\n", b"#t\r\n", b"(12345678901234567890\r\n", b"PING\r\n",
    b"$5\r\na\r\nb\n\r\n", b"$0\r\n\r\n", b"$-1\r\n", b"=5\r\ntxt:a\r\n", b"!3\r\nno!\r\n", b"*0\r\n", b"*-1\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"*3\r\n*1\r\n*0\r\n%1\r\n+a\r\n*2\r\n:1\r\n$-1\r\n~1\r\n:1\r\n",
    b"|1\r\n+ttl\r\n:1\r\n$2\r\nhi\r\n", b"%0\r\n",
]  # fmt: skip
PUSH = b">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n"


@given(st.lists(st.sampled_from([*FRAMES, PUSH])), st.data())
def test_ends_in_any_cut(frames: list[bytes], data: st.DataObject) -> None:
    """The end of each frame but a push is found, however the bytes are cut."""
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    expected, at = [], 0
    for frame in frames:
        at += len(frame)
        expected += [at] * (frame != PUSH)
    ends, found = Ends(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [begin + place for place in ends.feed(stream[begin:end])]
    assert found == expected


@pytest.mark.parametrize("noise", [b"\x16\x03\x01" * 100_000, b"$x\r\n*9q\r\n", b"\n" * 10])
def test_noise_is_no_error(noise: bytes) -> None:
    """What is no RESP, as TLS is, is no error and is not kept beyond a bound."""
    ends = Ends()
    for _ in range(3):
        ends.feed(noise)
    assert len(ends._head) <= 1 << 16
