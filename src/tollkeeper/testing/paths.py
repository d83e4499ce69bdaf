"""Where a fake provider speaks which dialect, and what answers there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tollkeeper.testing.replies import (
    Reply,
    Traits,
    anthropic_count,
    anthropic_messages,
    openai_chat,
    openai_embeddings,
)
from tollkeeper.testing.responses_replies import openai_responses

PATHS: Final[dict[str, tuple[str, Callable[[dict[str, Any], int, Traits], Reply]]]] = {
    "/v1/chat/completions": ("openai-chat", openai_chat),
    "/v1/embeddings": ("openai-embeddings", openai_embeddings),
    "/v1/messages": ("anthropic-messages", anthropic_messages),
    "/v1/responses": ("openai-responses", openai_responses),
}
FREE: Final = {"/v1/messages/count_tokens": ("anthropic-messages", anthropic_count)}
"""What costs nothing, by path."""
