"""Recorded replies in the dialects that only the library reads, Bedrock's aside, and what the recordings are in all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.conformance import test_recorded, test_recorded_bedrock
from tests.fixtures_folder import reader

from tollkeeper.dialects import METERED
from tollkeeper.tracker.replies import Heard, ReplyReader
from tollkeeper.values import Usage

DIALECT_OF = {"cohere chat stream": "cohere-chat", "ollama native stream": "ollama-chat"}
EXCHANGES = [x for x in reader().exchanges() if x.tag in DIALECT_OF]
IDS = [x.tag for x in EXCHANGES]


def expected(exchange: Any) -> Usage:
    """What the last object of the body states, by plain json."""
    last = re.findall(rb"^(?:data: )?(\{.*\})$", exchange.body, re.MULTILINE)[-1]
    told = json.loads(last)
    if "delta" in told:
        units = told["delta"]["usage"]["billed_units"]
        return Usage(input=units["input_tokens"], output=units["output_tokens"])
    return Usage(input=told["prompt_eval_count"], output=told["eval_count"])


def heard(exchange: Any, size: int) -> Heard:
    reply = ReplyReader(METERED[DIALECT_OF[exchange.tag]], frozenset())
    for at in range(0, len(exchange.body), size):
        reply.feed(exchange.body[at : at + size])
    return reply.finish(exchange.status, over=True)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)
def test_usage_is_what_the_body_states(exchange: Any) -> None:
    """A9: whole and in 1-byte chunks, the usage read is the usage stated."""
    told = heard(exchange, len(exchange.body))
    assert told.reading.usage == expected(exchange)
    assert (told.reading.final, told.reading.ended, told.complete) == (True, True, True)
    assert heard(exchange, 1) == told


def test_no_recording_is_passed_over() -> None:
    """A9: each of the recorded exchanges is read by one of these suites, or is no call of a model."""
    read = {
        (x.file, x.index) for x in (*test_recorded.EXCHANGES, *test_recorded_bedrock.EXCHANGES, *EXCHANGES)
    }  # fmt: skip
    rest = [x for x in reader().exchanges() if (x.file, x.index) not in read]
    assert [x.url for x in rest if not re.search(r"/token$|/cachedContents", x.url)] == []
    assert len(read) + len(rest) == 136
