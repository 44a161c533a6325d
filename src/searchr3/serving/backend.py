"""What the API needs of a model: `worker.Worker` has it in this process, `remote.Remote` behind vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from searchr3.errors import SearchR3Error

Kind = Literal["query", "document"]
Turns = tuple[tuple[str, str], ...]  # roles and contents


class Refused(SearchR3Error):
    """What was asked for cannot be done; the message says what would do."""


class Closed(SearchR3Error):
    """The model takes no more requests."""


class Busy(SearchR3Error):
    """So much waits that a request would hardly be answered in time.

    Attributes:
        seconds: that it would wait, about.
    """

    def __init__(self, seconds: float):
        super().__init__(f"too much waits already, for about {seconds:.0f} s; ask again later, or for less")
        self.seconds = seconds


class Unavailable(SearchR3Error):
    """What the model runs on gives no answer now."""


class Faulty(SearchR3Error):
    """What the model runs on answers what it should not; asking again will not help."""


@dataclass(frozen=True)
class Ask:
    """One generation.

    Attributes:
        what: a query to be thought about, which ends in a vector; or the turns of a chat, which does not.
        max_new_tokens: most tokens said.
        fewer: of a chat: where the model's context has not so much room, fewer are said; else it is refused.
        instruction: task instruction of a query.
        temperature: 0 is greedy.
        seed: of the sampling; None draws one.
    """

    what: str | Turns
    max_new_tokens: int
    instruction: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    fewer: bool = False

    @property
    def embeds(self) -> bool:
        """Whether it ends in a vector."""
        return isinstance(self.what, str)


@dataclass(frozen=True)
class Said:
    """What came of an `Ask`.

    Attributes:
        text: for people; of a chat, the reply.
        tokens: how many were said.
        prompt_tokens: how many were read before.
        ended: by the model itself: a thought by the embed token, a reply with the turn.
        vector: unit vector, (d,) float32, of a query.
    """

    text: str
    tokens: int
    prompt_tokens: int
    ended: bool
    vector: np.ndarray | None


@dataclass(frozen=True)
class Embedded:
    """Unit vectors, (n, d) float32, and how many tokens were read for them."""

    vectors: np.ndarray
    tokens: int


@dataclass
class Figures:
    """What a backend has done since its start, and is doing now."""

    said_thinking: int = 0
    said_chat: int = 0
    read: int = 0
    texts: int = 0
    steps: int = 0  # of the engine, where it is in this process
    rows: int = 0  # thoughts and chats in work
    waiting: int = 0  # texts and chats that nothing was done for yet


class Backend(Protocol):
    """A model that embeds, thinks and chats for many at once.

    A call that is cancelled is forgotten: nothing more is computed for it. What cannot be done raises
    `Refused`, what would have to wait too long `Busy`, and everything `Closed` once it has ended; one that
    computes elsewhere may raise `Unavailable` or `Faulty`. Where it must be begun and ended, it is an
    asynchronous context manager.
    """

    figures: Figures

    @property
    def dimension(self) -> int:
        """Of its vectors."""

    async def trouble(self) -> str | None:
        """What keeps it from answering, in a few words; None if nothing does."""

    async def embed(self, texts: Sequence[str], kind: Kind, instruction: str | None = None) -> Embedded:
        """Documents, or queries without thinking."""

    async def say(self, asks: Sequence[Ask]) -> list[Said]:
        """What comes of each."""

    def stream(self, ask: Ask) -> AsyncGenerator[str | Said, None]:
        """Its text, piece by piece, and at last the whole."""
