"""tollkeeper.errors: the tree as it is drawn, and what each leaf says of itself."""

from __future__ import annotations

import re

import pytest

from tollkeeper import errors
from tollkeeper.errors import BudgetExceeded, ConfigError, RateLimited, RequestError, TollkeeperError, UpstreamRefused
from tollkeeper.testing.clock import START_US
from tollkeeper.values import Budget, Refusal, Standing

BRANCH = re.compile(r"^ {4}((?:│ {3})*)[├└]── (.+)$", re.MULTILINE)

#: Whether a provider may have billed for the call. What is not here owes nothing.
OWED = {"UpstreamTimeout": "unknown", "StreamBroken": "yes", "Outrun": "unknown"}

REFUSAL = Refusal(
    standing=Standing(
        budget=Budget(scope="all", limit=0), id="", project="", window_start_us=START_US, resets_at_us=None,
        spent=0, held=0,
    ),
    asked=1,
)  # fmt: skip


CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TollkeeperError)]
LEAVES = [error for error in CLASSES if not any(other.__base__ is error for other in CLASSES)]


def drawn() -> tuple[dict[str, str], dict[str, int]]:
    """The docstring's tree: each name's parent, and the statuses that it tells."""
    parents, statuses, line = dict[str, str](), dict[str, int](), ["TollkeeperError"]
    for found in BRANCH.finditer(errors.__doc__ or ""):
        depth = len(found[1]) // 4 + 1
        for told in found[2].split(" · "):
            name, _, rest = told.partition(" ")
            parents[name] = line[depth - 1]
            if status := re.match(r" *(\d{3})\b", rest):
                statuses[name] = int(status[1])
            line[depth:] = [name]
    return parents, statuses


def test_the_tree_is_as_drawn() -> None:
    """Every class stands in the drawing below its parent, with its status, and nothing else stands there."""
    parents, statuses = drawn()
    assert parents == {error.__name__: error.__base__.__name__ for error in CLASSES if error is not TollkeeperError}
    assert len(statuses) > 10
    assert statuses == {error.__name__: error.http_status for error in CLASSES if error.__name__ in statuses}


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.__name__)
def test_a_leaf_says_what_it_is(error: type[TollkeeperError]) -> None:
    """Its code is its own and its name; its status is a client's 4xx or a server's 5xx; it says what may be owed."""
    assert vars(error)["code"] == re.sub(r"(?<!^)([A-Z])", r"_\1", error.__name__).lower()
    assert error.http_status in (range(400, 500) if issubclass(error, RequestError) else (404, 409, *range(500, 600)))
    assert error.owed == OWED.get(error.__name__, "no")
    assert "http_status" in vars(error) or error in (UpstreamRefused, ConfigError)  # its own from outside; never served


def test_branches_have_no_code() -> None:
    """C6: only leaves are raised; a branch that were would read as an internal error. No two leaves share a code."""
    branches = [error for error in CLASSES if error not in LEAVES]
    assert {error.code for error in branches} == {TollkeeperError.code} == {"internal_error"}
    codes = [error.code for error in LEAVES]
    assert len({*codes, "internal_error"}) == len(codes) + 1


@pytest.mark.parametrize("error", [BudgetExceeded, RateLimited])
def test_a_budgets_refusal_is_carried(error: type[BudgetExceeded | RateLimited]) -> None:
    """C7: the refusal with its numbers, and its line as the error's own."""
    raised = error(REFUSAL)
    assert raised.refusal is REFUSAL
    assert str(raised) == REFUSAL.message()


def test_a_providers_refusal_has_its_status() -> None:
    """The status is the error's, not the class's; without a message it says what was answered."""
    quiet, told = UpstreamRefused(429), UpstreamRefused(529, "overloaded")
    assert (quiet.http_status, str(quiet)) == (429, "the provider answered 429")
    assert (told.http_status, str(told)) == (529, "overloaded")
    assert UpstreamRefused.http_status == 500
