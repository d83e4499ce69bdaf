"""The table of dialects."""

from __future__ import annotations

from tollkeeper.dialects import DIALECTS


def test_every_dialect_has_its_name_and_path() -> None:
    """Each dialect stands under its own name, and its path begins below a provider's base URL."""
    assert {name: dialect.path for name, dialect in DIALECTS.items()} == {
        "openai-chat": "/chat/completions",
        "openai-responses": "/responses",
        "openai-embeddings": "/embeddings",
        "anthropic-messages": "/messages",
    }
    assert all(dialect.name == name for name, dialect in DIALECTS.items())
