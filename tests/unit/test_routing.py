"""Routing: which rule decides, and where a provider may live."""

from __future__ import annotations

import pytest
from msgspec import structs

from tollkeeper.errors import BadRequest, NotAllowed, UnknownModel
from tollkeeper.routing import Candidates, Policy, Table, check_base_url, is_loopback, is_metadata, ordered
from tollkeeper.values import MAX_MODEL, Credential, Provider, Route

CHAT, EMBED, MESSAGES = "openai-chat", "openai-embeddings", "anthropic-messages"


def provider(name: str, *dialects: str) -> Provider:
    return Provider(name=name, base_url=f"https://{name}.example.com/v1", dialects=frozenset(dialects))


OPENAI, GROQ, ANTHROPIC = provider("openai", CHAT, EMBED), provider("groq", CHAT), provider("anthropic", MESSAGES)
OWNERS = {"gpt-4o": "openai", "claude": "anthropic", "gemini": "google", "taken": "openai"}


def table(*providers: Provider, routes: dict[str, tuple[Route, ...]] | None = None) -> Table:
    named = {name: Candidates(found, "weighted") for name, found in (routes or {}).items()}
    return Table({one.name: one for one in providers}, named, OWNERS.get)


ALL = table(
    OPENAI,
    GROQ,
    ANTHROPIC,
    routes={
        "fast": (Route(GROQ, "llama-3"),),
        "groq/alias": (Route(OPENAI, "gpt-4o"),),
        "taken": (Route(GROQ, "other"),),
        "both": (Route(ANTHROPIC, "claude"), Route(GROQ, "llama-3"), Route(OPENAI, "gpt-4o")),
    },
)


@pytest.mark.parametrize(
    ("model", "dialect", "routes"),
    [
        ("fast", CHAT, [("groq", "llama-3")]),  # a configured name
        ("groq/alias", CHAT, [("openai", "gpt-4o")]),  # before a provider's prefix
        ("taken", CHAT, [("groq", "other")]),  # before the owner
        ("both", CHAT, [("groq", "llama-3"), ("openai", "gpt-4o")]),  # only what speaks the dialect, in order
        ("both", MESSAGES, [("anthropic", "claude")]),
        ("groq/llama3:8b", CHAT, [("groq", "llama3:8b")]),  # a prefix, split at the first slash
        ("groq/vendor/model:free", CHAT, [("groq", "vendor/model:free")]),
        ("openai/gpt-4o", EMBED, [("openai", "gpt-4o")]),
        ("gpt-4o", CHAT, [("openai", "gpt-4o")]),  # the owner
        ("claude", MESSAGES, [("anthropic", "claude")]),
        ("gemini", MESSAGES, [("anthropic", "gemini")]),  # its owner is not configured: the only speaker
        ("vendor/model:free", EMBED, [("openai", "vendor/model:free")]),  # no provider of that name: kept whole
        ("llama3:8b", MESSAGES, [("anthropic", "llama3:8b")]),
        ("groq/", EMBED, [("openai", "groq/")]),  # nothing behind the slash: no prefix
    ],
)
def test_order_of_the_rules(model: str, dialect: str, routes: list[tuple[str, str]]) -> None:
    """A6: configured name, then provider prefix, then owner, then the only speaker; names are never cut elsewhere."""
    for _ in range(2):  # the second answer is the remembered one
        found = ALL.candidates(model, dialect)
        assert [(route.provider.name, route.model) for route in found.routes] == routes
        assert found.policy == ("weighted" if model in ALL.models() else "order")


@pytest.mark.parametrize(
    ("model", "dialect", "right"),
    [
        ("unheard", CHAT, "ask for 'provider/model', such as 'openai/unheard', with one of the providers groq, openai"),
        ("unheard", CHAT, "configured names both, fast, groq/alias, taken"),
        ("fast", MESSAGES, "goes to groq, which does not speak anthropic-messages but openai-chat"),
        ("claude", CHAT, "goes to anthropic, which does not speak openai-chat but anthropic-messages"),
        ("anthropic/claude", CHAT, "goes to anthropic"),
        ("x", "google-generate", "no configured provider (anthropic, groq, openai) speaks it"),
        ("x\ny" * 80, CHAT, "ask for 'provider/model'"),
    ],
)
def test_unknown_model_says_what_would_be_right(model: str, dialect: str, right: str) -> None:
    """A model without a route is refused with what would be right; a route in another dialect is no route."""
    with pytest.raises(UnknownModel) as caught:
        ALL.candidates(model, dialect)
    assert right in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_no_provider_at_all() -> None:
    """An empty table says how to get a provider."""
    with pytest.raises(UnknownModel, match="OPENAI_API_KEY"):
        table().candidates("gpt-4o", CHAT)


@pytest.mark.parametrize("model", ["", "m" * (MAX_MODEL + 1)])
def test_names_are_bounded(model: str) -> None:
    """H4: an empty or over-long name is the caller's mistake, and is not repeated."""
    with pytest.raises(BadRequest) as caught:
        ALL.candidates(model, CHAT)
    assert len(str(caught.value)) < 100


def test_key_allows_names_as_asked() -> None:
    """A key's list is of names as asked for: another way to the same model is not on it."""
    allowed = frozenset({"fast"})
    assert ALL.candidates("fast", CHAT, allowed)
    for model in ("groq/llama-3", "Fast", "fast ", "", "unheard", "m" * 1000):
        with pytest.raises(NotAllowed, match="it may use fast"):
            ALL.candidates(model, CHAT, allowed)
    with pytest.raises(NotAllowed, match="it may use none"):
        ALL.candidates("fast", CHAT, frozenset())


A, B = Credential("A", "sk-a"), Credential("B", "sk-b")
SPREAD = Provider(name="spread", base_url="https://s/v1", dialects=frozenset({CHAT}), credentials=(A, B))


def test_each_credential_is_a_route() -> None:
    """A target stands once for each key of its provider, in order, however it was found."""
    found = table(SPREAD, GROQ, routes={"m": (Route(GROQ, "x"), Route(SPREAD, "y", None, 3))})
    spread = (Route(SPREAD, "y", A, 3), Route(SPREAD, "y", B, 3))
    assert found.candidates("m", CHAT).routes == (Route(GROQ, "x"), *spread)
    assert found.candidates("spread/y", CHAT).routes == (Route(SPREAD, "y", A), Route(SPREAD, "y", B))
    assert table(SPREAD).candidates("z", CHAT).routes == (Route(SPREAD, "z", A), Route(SPREAD, "z", B))


# ---- which one is tried first ---------------------------------------------------------------------------------------

ONE, TWO, THREE = (Route(GROQ, name, None, weight) for name, weight in (("one", 1), ("two", 2), ("three", 7)))
KEYED = (Route(SPREAD, "k", A, 5), Route(SPREAD, "k", B, 5))


def unasked(route: Route) -> int | None:
    raise AssertionError(route)


def undrawn() -> float:
    raise AssertionError


def names(
    policy: Policy, *routes: Route, draws: tuple[float, ...] | None = None, turn: int = 0,
    costs: dict[str, int] | None = None, times: dict[str, float] | None = None,
) -> list[str]:  # fmt: skip
    """The models in the order in which they are tried, a credential behind its model's name."""
    found = ordered(
        Candidates(routes, policy), turn=turn,
        draw=undrawn if draws is None else iter(draws).__next__,
        cost=unasked if costs is None else lambda route: costs.get(route.model),
        latency=unasked if times is None else lambda route: times.get(route.model),
    )  # fmt: skip
    assert sorted(found, key=repr) == sorted(routes, key=repr)
    return [route.model + (route.credential.name if route.credential else "") for route in found]


def test_order() -> None:
    """E4: as configured; a target's keys stay together and take turns."""
    assert names("order", ONE, TWO, THREE, turn=5) == ["one", "two", "three"]
    assert names("order", ONE, *KEYED, TWO) == ["one", "kA", "kB", "two"]
    assert names("order", ONE, *KEYED, TWO, turn=1) == ["one", "kB", "kA", "two"]
    assert names("order", *KEYED, turn=2**63) == ["kA", "kB"]


@pytest.mark.parametrize("policy", ["order", "weighted", "cheapest", "fastest"])
def test_one_route_is_itself(policy: Policy) -> None:
    """Nothing is asked or drawn where there is one route."""
    assert names(policy, ONE, turn=3) == ["one"]


@pytest.mark.parametrize(
    ("draws", "tried"),
    [
        ((0.0, 0.0), ["one", "two", "three"]),
        ((0.09, 0.0), ["one", "two", "three"]),
        ((0.1, 0.0), ["two", "one", "three"]),
        ((0.3, 0.0), ["three", "one", "two"]),
        ((0.999, 0.34), ["three", "two", "one"]),
        ((1.0, 1.0), ["three", "two", "one"]),  # beyond what a draw gives: still each once
    ],
)
def test_weighted(draws: tuple[float, ...], tried: list[str]) -> None:
    """Each place is drawn by weight among the targets that are left; the last one needs no draw."""
    assert names("weighted", ONE, TWO, THREE, draws=draws) == tried


def test_weighted_shares() -> None:
    """Of 1,000 evenly spread draws each target comes first by its weight; its keys share that and take turns."""
    firsts = [names("weighted", ONE, TWO, THREE, draws=(number / 1000, 0.0))[0] for number in range(1000)]
    assert [firsts.count(name) for name in ("one", "two", "three")] == [100, 200, 700]
    assert names("weighted", ONE, *KEYED, draws=(0.5,), turn=1) == ["kB", "kA", "one"]


def test_cheapest() -> None:
    """By cost, whose price is not known last, ties as configured; 0 is a cost."""
    costs = {"one": 5, "three": 0, "k": 5}
    assert names("cheapest", TWO, ONE, *KEYED, THREE, costs=costs, turn=1) == ["three", "one", "kB", "kA", "two"]
    assert names("cheapest", TWO, ONE, costs={}) == ["two", "one"]


def test_fastest() -> None:
    """By time to the first byte, what was not measured yet first, ties as configured."""
    times = {"one": 0.5, "three": 0.0, "k": 0.5}
    assert names("fastest", ONE, *KEYED, THREE, TWO, times=times) == ["two", "three", "one", "kA", "kB"]
    assert names("fastest", TWO, ONE, times={}) == ["two", "one"]


def test_memory_is_bounded() -> None:
    """I4: names that clients make up do not pile up."""
    single = table(GROQ)
    for number in range(5000):
        single.candidates(f"made-up-{number}", CHAT)
    assert len(single._found) <= 1024


def test_owner_is_asked_once_for_a_known_model() -> None:
    """The price data are not searched again for every call."""
    asked: list[str] = []
    known = Table({"openai": OPENAI}, {}, lambda model: asked.append(model) or "openai")  # type: ignore[func-returns-value]
    for _ in range(3):
        known.candidates("gpt-4o", CHAT)
    assert asked == ["gpt-4o"]


def test_models() -> None:
    """GET /v1/models names what can be asked for: configured names and the models known of configured providers."""
    catalogue = {"openai": ["gpt-4o", "o3"], "mistral": ["large"]}
    assert ALL.models() == ("both", "fast", "groq/alias", "taken")
    assert ALL.models(catalogue=catalogue) == ("both", "fast", "groq/alias", "openai/gpt-4o", "openai/o3", "taken")
    assert ALL.models(frozenset({"z", "a"}), catalogue) == ("a", "z")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("both", {("anthropic", "claude"), ("groq", "llama-3"), ("openai", "gpt-4o")}),
        ("groq/vendor/model:free", {("groq", "vendor/model:free")}),
        ("claude", {("anthropic", "claude")}),
        ("unheard", {("openai", "unheard"), ("groq", "unheard"), ("anthropic", "unheard")}),
    ],
)
def test_targets(name: str, targets: set[tuple[str, str]]) -> None:
    """Where a name may lead, by the order of the rules: whatever the dialect."""
    assert ALL.targets([name]) == targets
    assert ALL.targets([name, "fast"]) == targets | {("groq", "llama-3")}
    assert ALL.targets([]) == set()
    assert [each.name for each in ALL.providers] == ["openai", "groq", "anthropic"]


def test_has() -> None:
    """A provider is there by its name, and by the name of a credential that it has."""
    own = table(structs.replace(OPENAI, credentials=(Credential("A", "secret"),)), GROQ)
    names = [("openai", ""), ("openai", "A"), ("openai", "secret"), ("groq", ""), ("groq", "A"), ("other", "")]
    assert [own.has(*each) for each in names] == [True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("https://api.example.com/v1", None),
        ("https://api.example.com/v1/", None),
        ("HTTPS://API.example.com:8443", None),
        ("https://10.0.0.7/v1", None),
        ("http://localhost:11434/v1", None),
        ("http://127.0.0.1:8000/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://api.example.com", "use https"),
        ("http://localhost.example.com", "use https"),
        ("http://127.0.0.1.example.com", "use https"),
        ("http://0.0.0.0:1/", "use https"),
        ("", "web address"),
        ("api.example.com/v1", "web address"),
        ("file:///etc/passwd", "web address"),
        ("https://", "web address"),
        ("https:///v1", "web address"),
        ("https://[::1", "not a URL"),
        ("https://h:99999", "not a URL"),
        ("https://h:0", "port 0"),
        ("https://user@h", "user name or password"),
        ("https://user:canary@h", "user name or password"),
        ("https://@h", "user name or password"),
        ("https://h/v1?", "query"),
        ("https://h/v1#canary", "fragment"),
        ("https://h/v 1", "plain characters"),
        ("https://h\\@evil/", "plain characters"),
        ("https://h/\r\nX: y", "plain characters"),
        ("https://exämple.com", "plain characters"),
        ("https://169.254.169.254/latest", "metadata"),
        ("https://169.254.1.1", "metadata"),
        ("https://[fe80::1]/", "metadata"),
        ("https://[fe80::1%25eth0]/", "metadata"),
        ("https://[fd00:ec2::254]/", "metadata"),
        ("https://[fd00:0ec2:0::0254]/", "metadata"),
        ("https://[::ffff:169.254.169.254]/", "metadata"),
        ("https://[::ffff:a9fe:a9fe]/", "metadata"),
        ("https://[64:ff9b::a9fe:a9fe]/", "metadata"),
        ("https://[2002:a9fe:a9fe::1]/", "metadata"),
        ("https://metadata.google.internal/", "metadata"),
        ("https://METADATA.google.internal./", "metadata"),
        ("https://169.254.169.254./", "metadata"),
        ("https://2852039166/", "usual form"),
        ("https://0xa9fea9fe/", "usual form"),
        ("https://0xa9.0xfe.0xa9.0xfe/", "usual form"),
        ("https://0251.0376.0251.0376/", "usual form"),
        ("https://169.254.43518/", "usual form"),
        ("http://127.1/", "usual form"),
    ],
)
def test_base_urls(url: str, right: str | None) -> None:
    """H3: https, or http on this machine; no secrets in it; no link-local or metadata address in any spelling."""
    if right is None:
        assert check_base_url(url) == url.rstrip("/").replace("HTTPS", "https")
        return
    with pytest.raises(ValueError, match=right) as caught:
        check_base_url(url)
    assert "canary" not in str(caught.value)


def test_declared_exceptions() -> None:
    """What is refused by default can be declared, one host or one provider at a time."""
    assert check_base_url("http://gpu:8000/v1", insecure=True) == "http://gpu:8000/v1"
    assert check_base_url("https://169.254.1.1", allow_hosts=["169.254.1.1"]) == "https://169.254.1.1"
    with pytest.raises(ValueError, match="metadata"):
        check_base_url("http://169.254.169.254", insecure=True, allow_hosts=["169.254.1.1"])


def test_hosts() -> None:
    """Names and addresses of this machine and of clouds' metadata are told apart from all others."""
    assert all(map(is_loopback, ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]))
    assert not any(
        map(is_loopback, ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com"])
    )
    assert all(
        map(is_metadata, ["169.254.0.1", "fe80::1", "fd00:ec2::254", "metadata.google.internal", "100.100.100.200"])
    )
    assert not any(map(is_metadata, ["", "10.0.0.1", "fd00::1", "api.openai.com", "169.253.0.1"]))
