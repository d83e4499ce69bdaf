"""tollkeeper.stores.redis.ask: what is sent to Redis."""

from __future__ import annotations

import hashlib

import pytest

from tollkeeper.stores.redis.ask import Ask, Script


def test_a_script_is_called_by_its_hash() -> None:
    """Keys are counted, and the first one decides on the server; the text is there for a Redis that has lost it."""
    script = Script("void")
    ask = script(["{a}:holds", "{a}:due"], ["id", 5])
    assert ask.command == (
        "EVALSHA",
        hashlib.sha1(script.text.encode()).hexdigest(),
        2,
        "{a}:holds",
        "{a}:due",
        "id",
        5,
    )
    assert (ask.key, ask.script) == ("{a}:holds", script)
    assert Ask(("GET", "k")).key == "k"


@pytest.mark.parametrize(
    "name", ["reserve", "fill", "beat", "census", "since", "renew", "lease", "move", "apply", "void", "open"]
)
def test_amounts_are_checked_alike(name: str) -> None:
    """F4: the check of an amount stands before every script that reads one as text, behind the line that makes it one."""
    text = Script(name).text
    assert text.startswith("#!lua\n")
    assert text.count("function amount(") == (" amount(" in text.replace("function amount(", ""))
