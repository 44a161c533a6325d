"""What the event loop hands to the model's thread, and how the thread answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from searchr3.conversation import Rendered
from searchr3.serving.backend import Ask, Kind, Said
from searchr3.serving.speech import Speech
from searchr3.tasks import Task

AROUND = 32  # characters that the conversation around a text costs, about


def work(text: str) -> int:
    """What a text costs to encode, in characters."""
    return AROUND + len(text)


@dataclass(eq=False)
class Job:
    """A request of either kind.

    Attributes:
        settle: gets the result, or an error; from the thread.
        taken: how many of its parts were begun; `left` have no result yet.
        gone: nobody waits for it any more.
    """

    settle: Callable[[Any], None]
    left: int
    taken: int = 0
    gone: bool = False


@dataclass(eq=False)
class Texts(Job):
    """Texts to be encoded.

    Attributes:
        waiting: work of those that were not yet, see `work`.
        turn: work done in this turn.
    """

    texts: Sequence[str] = ()
    kind: Kind = "document"
    instruction: str | None = None
    waiting: int = 0
    turn: int = 0
    ready: dict[int, Rendered] = field(default_factory=dict)  # rendered, not yet encoded
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    tokens: int = 0

    def __post_init__(self) -> None:
        self.waiting = sum(map(work, self.texts))


@dataclass(eq=False)
class Asks(Job):
    """Thoughts and chats; `waiting`: those that were not begun."""

    asks: Sequence[Ask] = ()
    heard: Callable[[str], None] | None = None  # of the only one: gets its text piece by piece
    tasks: dict[Task, int] = field(default_factory=dict)
    said: dict[int, Said] = field(default_factory=dict)
    speech: Speech | None = None

    @property
    def waiting(self) -> int:
        return len(self.asks) - self.taken


def poster(call: Callable[..., None], *first: Any) -> Callable[[Any], None]:
    """`call(*first, one)` in the running event loop, from whatever thread; nothing if the loop has ended."""
    loop = asyncio.get_running_loop()

    def post(one: Any) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(partial(call, *first, one))

    return post


def settle(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():  # it was cancelled
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)
