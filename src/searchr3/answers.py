"""What a search answers, whatever it searched: a run's corpus, or a store of the user's own documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hit:
    """A found document, or a part of one. Its texts are not HTML: escape them before showing."""

    rank: int
    score: float
    document_id: str
    title: str
    snippet: str
    metadata: dict[str, str]


Thinks = bool | Literal["auto"]
"""Whether a query is thought about; "auto": where its direct ranking is unsure."""


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found, and what the model thought before it.

    Attributes:
        thought: whether the query was thought about at all.
    """

    reasoning: str
    thinking_tokens: int
    emitted: bool
    hits: list[Hit]
    thought: bool = True
