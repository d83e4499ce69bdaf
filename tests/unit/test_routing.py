"""Routing: which rule decides, and where a provider may live."""

from __future__ import annotations

import pytest

from tollkeeper.errors import BadRequest, NotAllowed, UnknownModel
from tollkeeper.routing import Table, check_base_url, is_loopback, is_metadata
from tollkeeper.values import MAX_MODEL, Provider, Route

CHAT, EMBED, MESSAGES = "openai-chat", "openai-embeddings", "anthropic-messages"


def provider(name: str, *dialects: str) -> Provider:
    return Provider(name=name, base_url=f"https://{name}.example.com/v1", dialects=frozenset(dialects))


OPENAI, GROQ, ANTHROPIC = provider("openai", CHAT, EMBED), provider("groq", CHAT), provider("anthropic", MESSAGES)
OWNERS = {"gpt-4o": "openai", "claude": "anthropic", "gemini": "google", "taken": "openai"}


def table(*providers: Provider, routes: dict[str, tuple[Route, ...]] | None = None) -> Table:
    return Table({one.name: one for one in providers}, routes or {}, OWNERS.get)


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
        assert [(route.provider.name, route.model) for route in ALL.candidates(model, dialect)] == routes


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
