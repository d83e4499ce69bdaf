"""The table of dialects."""

from __future__ import annotations

from tollkeeper.dialects import DIALECTS, HOMES, METERED
from tollkeeper.prices import data


def test_every_dialect_has_its_name_and_path() -> None:
    """Each dialect stands under its own name, and its path begins below a provider's base URL."""
    assert {name: dialect.path for name, dialect in DIALECTS.items()} == {
        "openai-chat": "/chat/completions",
        "openai-embeddings": "/embeddings",
        "anthropic-messages": "/messages",
        "openai-responses": "/responses",
        "google-generate": "/models/{model}",
    }
    assert all(dialect.name == name for name, dialect in DIALECTS.items())


def test_what_is_spoken_is_metered() -> None:
    """Every dialect can be metered, one that the gateway does not speak too; a home is a provider of the price data."""
    assert METERED.items() >= DIALECTS.items()
    assert set(METERED) - set(DIALECTS) == {"bedrock-converse", "cohere-chat", "ollama-chat"}
    assert all(dialect.name == name for name, dialect in METERED.items())
    assert set(HOMES) <= set(METERED)
    assert all(data.models(home) for home in HOMES.values())
