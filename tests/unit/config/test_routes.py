"""Routes, what stands in for a refused call, and breakers: what a name leads to, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper.breaker import Bounds
from tollkeeper.config import Config, load
from tollkeeper.errors import ConfigError
from tollkeeper.values import Budget

PROVIDERS = """
[providers.a]
base_url = "https://a/v1"
dialects = ["openai-chat", "openai-embeddings"]
[providers.b]
base_url = "https://b/v1"
dialects = ["openai-chat"]
[providers.messages]
base_url = "https://m/v1"
dialects = ["anthropic-messages"]
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(text: str, **environ: str) -> Config:
    Path("t.toml").write_text(text + PROVIDERS, "utf-8")
    return load(Path("t.toml"), environ)


def led(text: str, **environ: str) -> dict[str, tuple[str, list[str]]]:
    """Each name's policy and targets, a weight behind those that have one."""
    return {
        name: (
            found.policy,
            [f"{r.provider.name}/{r.model}" + (f"*{r.weight}" if r.weight > 1 else "") for r in found.routes],
        )
        for name, found in loaded(text, **environ).routes.items()
    }


def test_one_target() -> None:
    """Text and a table with both are one target."""
    assert led('[routes]\nx = "a/v/m:free"\ny = { provider = "b", model = "n" }') == {
        "x": ("order", ["a/v/m:free"]),
        "y": ("order", ["b/n"]),
    }


def test_several_targets() -> None:
    """Targets stand in configured order, with their weights; no credential is chosen yet."""
    text = """
        [routes.x]
        policy = "weighted"
        to = ["a/m", { provider = "b", model = "m", weight = 3 }]
        [routes.y]
        policy = "cheapest"
        to = [{ provider = "b", model = "n" }]
    """
    assert led(text) == {"x": ("weighted", ["a/m", "b/m*3"]), "y": ("cheapest", ["b/n"])}
    assert {route.credential for found in loaded(text).routes.values() for route in found.routes} == {None}


def test_other_names_are_taken_in() -> None:
    """A name takes in the targets of others, which may stand below it, through any number of names; not their policy."""
    text = """
        [routes]
        x = { to = [{ route = "y" }, "a/last"] }
        y = { policy = "weighted", to = [{ provider = "a", model = "m", weight = 2 }, { route = "z" }] }
        z = { policy = "fastest", to = ["b/z", { route = "alone" }] }
        alone = "a/alone"
    """
    assert led(text) == {
        "x": ("order", ["a/m*2", "b/z", "a/alone", "a/last"]),
        "y": ("weighted", ["a/m*2", "b/z", "a/alone"]),
        "z": ("fastest", ["b/z", "a/alone"]),
        "alone": ("order", ["a/alone"]),
    }


def test_a_chain_of_a_thousand_names() -> None:
    """A long chain is no cycle and takes no recursion."""
    names = "".join(f'n{number} = {{ to = ["a/{number}", {{ route = "n{number + 1}" }}] }}\n' for number in range(1500))
    assert len(led(f'[routes]\n{names}n1500 = "b/end"')["n0"][1]) == 1501


def test_routes_from_the_environment() -> None:
    """A name's targets are JSON, its policy a word; they are taken into the file's table."""
    environ = {
        "TOLLKEEPER_ROUTES__X__TO": '["a/m", {"provider": "b", "model": "m", "weight": 2}]',
        "TOLLKEEPER_ROUTES__Y": "b/n",
    }
    assert led('[routes.x]\npolicy = "weighted"', **environ) == {
        "x": ("weighted", ["a/m", "b/m*2"]),
        "y": ("order", ["b/n"]),
    }


def to(*targets: str, policy: str = "order", more: str = "") -> str:
    return f'[routes.x]\npolicy = "{policy}"\nto = [{", ".join(targets)}]\n{more}\n'


BAD = [
    # cycles
    (to('{ route = "x" }'), "routes.x.to", "leads back to itself: x → x"),
    (to('{ route = "y" }') + '[routes]\ny = { to = [{ route = "x" }] }', "routes.x.to", "itself: x → y → x"),
    (
        to('"a/m"', '{ route = "y" }')
        + '[routes]\nfree = "b/m"\nin = { to = [{ route = "x" }] }\ny = { to = [{ route = "free" }, { route = "z" }] }\n'
        + 'z = { to = [{ route = "x" }] }',
        "routes.x.to",
        "leads back to itself: x → y → z → x",
    ),
    # what is not there
    (to('"c/m"'), "routes.x.to #1.provider", "'c' is not known; expected one of a, b, messages"),
    (to('"a/m"', '{ provider = "message", model = "m" }'), "routes.x.to #2.provider", "did you mean messages?"),
    (to('{ route = "yy" }') + '[routes]\nyyy = "a/m"', "routes.x.to #1.route", "'yy' is not known; did you mean yyy?"),
    # what is never reached
    (to('"a/m"', '"b/m"', '"a/m"'), "routes.x.to #3", "a/m stands in it twice; the second is never reached"),
    (to('"a/m"', '{ route = "y" }') + '[routes]\ny = "a/m"', "routes.x.to #2", "a/m stands in it twice"),
    (
        to('"b/m"', '"messages/m"'),
        "routes.x.to #2",
        "messages/m speaks none of openai-chat: it could never stand in",
    ),
    (to('"messages/m"', '{ route = "y" }') + '[routes]\ny = "a/m"', "routes.x.to #2", "none of anthropic-messages"),
    # what does not go together
    (to('{ provider = "a", model = "m", weight = 2 }'), "routes.x.to #1.weight", 'set policy = "weighted", or remove'),
    (
        to('{ route = "y", weight = 2 }', policy="weighted"),
        "routes.x.to #1.weight",
        "has no meaning here; the targets of 'y' have their own, or remove it",
    ),
    (to('"a/m"', more='provider = "a"'), "routes.x.provider", "stands beside to; list it there"),
    (to('"a/m"', more='model = "m"'), "routes.x.model", "stands beside to"),
    (to('{ route = "y", provider = "a" }'), "routes.x.to #1.provider", "stands beside route; keep one of them"),
    (to('{ route = "y", model = "m" }'), "routes.x.to #1.model", "stands beside route"),
    # values
    (to('{ provider = "a", model = "m", weight = 0 }', policy="weighted"), "to #1.weight", "expected 1 or more, got 0"),
    (to('{ provider = "a", model = "m", weight = true }', policy="weighted"), "to #1.weight", "expected a number"),
    (to('{ provider = "a", model = "m", weight = 1.5 }', policy="weighted"), "to #1.weight", "a whole number"),
    (to(), "routes.x.to", "expected at least 1 item"),
    ('[routes]\nx = { to = "a/m" }', "routes.x.to", "expected a list"),
    (to("1"), "routes.x.to #1", "expected a table"),
    (to('"a"'), "routes.x.to #1", "expected 'provider/model'"),
    (to("{}"), "routes.x.to #1.provider", "is required: the name of a provider"),
    (to('{ provider = "a" }'), "routes.x.to #1.model", "is required: its name for the model"),
    (to('{ provider = "a", modle = "m" }'), "routes.x.to #1.modle", "did you mean model?"),
    (to('"a/m"', policy="random"), "routes.x.policy", "expected one of 'order', 'weighted', 'cheapest' or 'fastest'"),
    ('[routes.x]\npolicy = "order"', "routes.x.provider", "is required"),
    ('[routes]\nx = { too = ["a/m"] }', "routes.x.too", "did you mean to?"),
    # attempts and breakers
    ("attempts = 0", "attempts", "expected 1 or more"),
    ("attempts = 6", "attempts", "expected at most 5"),
    ("retry_budget = 1.1", "retry_budget", "expected at most 1"),
    ("retry_budget = nan", "retry_budget", "expected"),
    ('when_all_open = "wait"', "when_all_open", "expected one of 'try' or 'refuse'"),
    ("[breaker]\nfailures = 0", "breaker.failures", "expected 1 or more"),
    ("[breaker]\nratio = 0", "breaker.ratio", "expected more than 0"),
    ("[breaker]\nslow_ratio = 2", "breaker.slow_ratio", "expected at most 1"),
    ("[breaker]\nslow_s = 0", "breaker.slow_s", "expected more than 0"),
    ("[breaker]\nopen_max_s = 29", "breaker.open_max_s", "expected open_s (30 seconds) or more"),
    ("[breaker]\nfailure = 1", "breaker.failure", "did you mean failures?"),
]


@pytest.mark.parametrize(("text", "setting", "right"), BAD)
def test_bad_routes_are_one_line(text: str, setting: str, right: str) -> None:
    """E4, I2: a cycle, a target that is never reached and what does not go together are refused at start, in one line."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    said = str(caught.value)
    assert said.startswith("t.toml: ")
    assert f"{setting}: " in said
    assert right in said
    assert "\n" not in said


def instead(name: str, **fields: str) -> str:
    given = {"scope": '"model"', "id": '"dear"', "limit": '"1"', "instead": f'"{name}"'} | fields
    return "[[budgets]]\n" + "".join(f"{field} = {value}\n" for field, value in given.items())


@pytest.mark.parametrize("name", ["cheap", "a/m", "messages/vendor/m"])
def test_instead(name: str) -> None:
    """C6: a hard budget may name the model that a call goes to where it would refuse it."""
    (budget,) = loaded(instead(name) + '[routes]\ncheap = "b/m"\n').budgets
    assert budget == Budget(scope="model", id="dear", limit=10**9, instead=name)


@pytest.mark.parametrize("measure", ["tokens", "requests"])
def test_instead_of_any_measure(measure: str) -> None:
    """C6: tokens and requests as well as dollars."""
    assert loaded(instead("a/m", measure=f'"{measure}"', limit="5")).budgets[0].instead == "a/m"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (
            instead("chep"),
            "#1.instead: expected a name in [routes], or 'provider/model'; 'chep' is not known; did you mean cheap?",
        ),
        (instead("message/m"), "'message' is not known; did you mean messages?"),
        (instead("a/"), "#1.instead: expected a name in [routes]"),
        (instead("a/m", hard="false"), "#1.instead: is for hard budgets with a limit, others refuse nothing"),
        (instead("a/m", limit='"none"'), "#1.instead: is for hard budgets with a limit"),
        (instead("a/m") + instead("b/m"), "#2: limits the same as #1"),
    ],
)
def test_bad_instead(text: str, right: str) -> None:
    """I2: a name that leads nowhere, or a budget that refuses nothing, is one line."""
    with pytest.raises(ConfigError) as caught:
        loaded(text + '[routes]\ncheap = "b/m"\n')
    assert str(caught.value).startswith("t.toml: budgets #")
    assert right in str(caught.value)


def test_attempts_and_breakers() -> None:
    """Each has its default and is resolved; a slow call may be none."""
    config = loaded("")
    assert (config.attempts, config.retry_budget, config.when_all_open, config.hedge) == (3, 0.2, "try", False)
    assert config.breaker == Bounds(
        failures=3, ratio=0.5, minimum=10, window_s=30, slow_s=60, slow_ratio=0.8, open_s=30, open_max_s=300, probe_s=60
    )
    text = 'attempts = 1\nretry_budget = 0\nhedge = true\nwhen_all_open = "refuse"\n[breaker]\nfailures = 5\nslow_s = "none"\n'
    changed = loaded(text, TOLLKEEPER_BREAKER__OPEN_S="1.5")
    assert (changed.attempts, changed.retry_budget, changed.when_all_open, changed.hedge) == (1, 0, "refuse", True)
    assert (changed.breaker.failures, changed.breaker.slow_s, changed.breaker.open_s) == (5, None, 1.5)
