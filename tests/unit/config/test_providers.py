"""Providers: presets, zero configuration, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper.config import load
from tollkeeper.config.providers import presets
from tollkeeper.config.written import DIALECTS, QUIRKS
from tollkeeper.errors import ConfigError
from tollkeeper.routing import check_base_url
from tollkeeper.values import Credential


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_presets_are_sound() -> None:
    """Each preset has known dialects and quirks, an allowed URL, and a price id that the price data have."""
    from genai_prices import data

    known = presets()
    assert len(known) >= 15
    priced = {provider.id for provider in data.providers}
    for name, preset in known.items():
        assert preset.dialects, name
        assert preset.dialects <= set(DIALECTS), name
        assert preset.quirks <= set(QUIRKS), name
        assert preset.prices is None or preset.prices in priced, name
        assert set(preset.paths) <= preset.dialects, name
        if preset.base_url is not None:
            assert check_base_url(preset.base_url) == preset.base_url, name
            assert preset.key_env or preset.base_url.startswith("http://127.0.0.1"), name


def test_zero_configuration() -> None:
    """With no file each preset whose key variable is set is a provider, and no other."""
    config = load(
        None, {"OPENAI_API_KEY": "sk-o", "ANTHROPIC_API_KEY": " sk-a\n", "GOOGLE_API_KEY": "g", "GROQ_API_KEY": ""}
    )
    assert sorted(config.providers) == ["anthropic", "google", "openai"]
    anthropic = config.providers["anthropic"]
    assert anthropic.credentials == (Credential("ANTHROPIC_API_KEY", "sk-a"),)
    assert anthropic.credential_header == "x-api-key"
    assert anthropic.headers == (("anthropic-version", "2023-06-01"),)
    assert config.providers["openai"].base_url == "https://api.openai.com/v1"


def test_every_keyed_preset_works_unconfigured() -> None:
    """Any usual variable alone makes its provider; Azure, which has no base URL of its own, needs one."""
    for name, preset in presets().items():
        for variable in preset.key_env:
            found = load(None, {variable: "k"}).providers
            assert list(found) == ([] if preset.base_url is None else [name])


def test_configured_providers_are_the_only_ones() -> None:
    """Once the file names a provider, key variables add none."""
    Path("tollkeeper.toml").write_text("[providers.ollama]\n")
    found = load(None, {"OPENAI_API_KEY": "sk-o"}).providers
    assert list(found) == ["ollama"]
    assert found["ollama"].credentials == ()


def test_a_table_stands_over_its_preset() -> None:
    """What the table says wins, the rest is the preset's; header names fold."""
    Path("secret").write_text("sk-file\n")
    Path("tollkeeper.toml").write_text(
        '[providers.eu]\npreset = "azure"\nbase_url = "https://eu.openai.azure.com/openai/v1/"\napi_key_file = "secret"\n'
        'headers = { X-Team = "a" }\n'
        '[providers.anthropic]\nheaders = { Anthropic-Version = "2024-01-01" }\nprices = "aws"\n'
        '[providers.own]\nbase_url = "http://gpu:8000/v1"\ninsecure = true\ndialects = ["openai-chat"]\n'
        'api_key_env = "OWN"\ncredential_header = "X-Api-Key"\npaths = { openai-chat = "/x" }\n'
    )
    found = load(None, {"ANTHROPIC_API_KEY": "sk-a", "OWN": "sk-own"}).providers
    assert found["eu"].base_url == "https://eu.openai.azure.com/openai/v1"
    assert found["eu"].credentials == (Credential("secret", "sk-file"),)
    assert (found["eu"].credential_header, found["eu"].prices) == ("api-key", "azure")
    assert found["eu"].headers == (("x-team", "a"),)
    assert found["anthropic"].headers == (("anthropic-version", "2024-01-01"),)
    assert found["anthropic"].prices == "aws"
    own = found["own"]
    assert own.credentials == (Credential("OWN", "sk-own"),)
    assert (own.credential_header, own.paths) == ("x-api-key", (("openai-chat", "/x"),))


def test_credential_headers() -> None:
    """A dialect may have a credential header of its own; one that a table names for all of them stands over a preset's."""
    Path("tollkeeper.toml").write_text(
        "[providers.google]\n"
        '[providers.vertex]\npreset = "google"\nbase_url = "https://vertex.example/v1"\ncredential_header = "authorization"\n'
        '[providers.mixed]\npreset = "google"\ncredential_headers = { openai-chat = "X-Key" }\n'
    )
    found = load(None, {"GEMINI_API_KEY": "g"}).providers
    google = found["google"]
    assert (google.credential_header, google.credential_headers) == (
        "authorization",
        (("google-generate", "x-goog-api-key"),),
    )
    assert dict(google.paths)["openai-chat"] == "/openai/chat/completions"
    assert (found["vertex"].credential_header, found["vertex"].credential_headers) == ("authorization", ())
    assert dict(found["mixed"].credential_headers) == {"google-generate": "x-goog-api-key", "openai-chat": "x-key"}
    Path("tollkeeper.toml").write_text('[providers.google]\nheaders = { x-goog-api-key = "a" }\n')
    with pytest.raises(ConfigError, match="is set by the gateway itself"):
        load(None, {"GEMINI_API_KEY": "g"})


@pytest.mark.parametrize(
    ("secret", "right"), [("", "is empty"), ("a\nb", "characters that no header"), ("é", "no header")]
)
def test_bad_secret_files(secret: str, right: str) -> None:
    """A key file that cannot be a header's value is refused at start, unshown."""
    Path("secret").write_text(secret, "utf-8")
    Path("tollkeeper.toml").write_text('[providers.openai]\napi_key_file = "secret"\n')
    with pytest.raises(ConfigError, match=right) as caught:
        load(None, {})
    assert "\n" not in str(caught.value)


def several(line: str, **environ: str) -> tuple[Credential, ...]:
    Path("tollkeeper.toml").write_text(f"[providers.openai]\n{line}\n")
    return load(None, environ).providers["openai"].credentials


def test_several_keys() -> None:
    """A provider has as many keys as are listed, in order, each named by its variable or file; a preset's is one."""
    for name in ("a", "b"):
        Path(name).write_text(f"sk-{name}\n")
    assert several('api_key_env = ["A", "B"]', A="sk-a", B=" sk-b") == (
        Credential("A", "sk-a"),
        Credential("B", "sk-b"),
    )
    assert several('api_key_file = ["b", "a"]') == (Credential("b", "sk-b"), Credential("a", "sk-a"))
    one = Credential("OPENAI_API_KEY", "sk-o")
    assert (
        several("", OPENAI_API_KEY="sk-o") == several('api_key_env = "OPENAI_API_KEY"', OPENAI_API_KEY="sk-o") == (one,)
    )
    for listed in ('["A", "B"]', "A"):
        found = several("", TOLLKEEPER_PROVIDERS__OPENAI__API_KEY_ENV=listed, A="sk-a", B="sk-b")
        assert [each.name for each in found] == (["A", "B"] if "B" in listed else ["A"])


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ('api_key_env = ["A", "C"]', "api_key_env: the variable C is not set"),
        ('api_key_env = ["A", "EMPTY"]', "api_key_env: the variable EMPTY is not set"),
        ('api_key_env = ["A", "SAME"]', "api_key_env: A and SAME hold the same key; keep one of them"),
        ('api_key_env = ["A", "A"]', "api_key_env: A and A hold the same key"),
        ('api_key_env = ["A", "ODD"]', "api_key_env: the key in ODD has characters that no header can carry"),
        ('api_key_env = ["A", "sk-canary"]', "api_key_env: expected the name of an environment variable in capitals"),
        ("api_key_env = []", "api_key_env: expected the name of an environment variable, or a list of names"),
        ("api_key_env = 1", "api_key_env: expected the name of an environment variable, or a list of names"),
        ('api_key_file = ["a", "canary"]', "api_key_file #2: the file cannot be read"),
        ('api_key_file = ["a", "same"]', "api_key_file: a and same hold the same key"),
        ("api_key_file = []", "api_key_file: expected a path as text, or a list of paths"),
        ('api_key_env = ["A"]\napi_key_file = ["a"]', "api_key_file: is one way too many"),
    ],
)
def test_bad_lists_of_keys(line: str, right: str) -> None:
    """I2, H2: a key of a list that is missing or stands twice is told by its name, and no secret is."""
    for name in ("a", "same"):
        Path(name).write_text("sk-canary")
    with pytest.raises(ConfigError) as caught:
        several(line, A="sk-canary", SAME="sk-canary", ODD="canary\x7f", EMPTY=" ")
    assert f"providers.openai.{right}" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_allowed_hosts() -> None:
    """H3: a metadata address is let through only where it is listed."""
    Path("tollkeeper.toml").write_text(
        'allow_hosts = ["169.254.1.1"]\n[providers.x]\nbase_url = "https://169.254.1.1/v1"\ndialects = ["openai-chat"]\n'
    )
    assert load(None, {}).providers["x"].base_url == "https://169.254.1.1/v1"


def test_whose_figure_counts() -> None:
    """A8: the provider's own by default; a table says otherwise; another word is one line."""

    def counts(line: str) -> str:
        Path("tollkeeper.toml").write_text(f"[providers.openrouter]\n{line}\n")
        return load(None, {"OPENROUTER_API_KEY": "k"}).providers["openrouter"].counts

    assert counts("") == "reported"
    assert counts('counts = "computed"') == "computed"
    with pytest.raises(ConfigError, match=r"providers\.openrouter\.counts: expected one of"):
        counts('counts = "mine"')
