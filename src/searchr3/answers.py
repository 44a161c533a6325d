"""What a search answers, whatever it searched: a run's corpus, or a store of the user's own documents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """A found document, or a part of one."""

    rank: int
    score: float
    document_id: str
    title: str
    snippet: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found, and what the model thought before it."""

    reasoning: str
    thinking_tokens: int
    emitted: bool
    hits: list[Hit]
