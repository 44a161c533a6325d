"""Requests that wait for a model, and those that it is at work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(eq=False)
class Task:
    """One request: what is asked, and what has come of it so far.

    Attributes:
        prompt: token ids.
        max_new_tokens: most tokens said before the end is forced.
        temperature: 0 decodes greedily, above 0 samples from the full distribution.
        embeds: whether it ends in a vector; else it is plain chat and ends with the turn.
        beginning: how many of its first ids other prompts begin with too, such as the system prompt.
        seed: of the sampling; None draws one.
        said: token ids so far, without the token that ended it.
        stop: the token by which the model ended it itself, if it did.
        ended: by `stop`; for one that embeds, by the embed token.
        vector: unit vector, (d,) float32, once done.
        done: nothing more will come.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    embeds: bool = True
    beginning: int = 0
    seed: int | None = None
    said: list[int] = field(default_factory=list)
    stop: int | None = None
    ended: bool = False
    vector: np.ndarray | None = None
    done: bool = False
    _draw: torch.Generator | None = field(default=None, repr=False)
    _next: int = field(default=-1, repr=False)  # the token that the next step reads
    _closes: bool = field(default=False, repr=False)  # no token is chosen any more

    @property
    def most(self) -> int:
        """Tokens that its row may come to hold."""
        return len(self.prompt) + self.max_new_tokens + 1


class Runner(ABC):
    """Runs tasks, step by step. One thread submits and steps.

    Args:
        rows: most requests in one step; further ones wait, first come, first served.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.waiting: deque[Task] = deque()
        self.active: list[Task] = []

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.active or self.waiting)

    def submit(self, task: Task) -> Task:
        """Let a task wait for a row. Returns it.

        Raises:
            ValueError: it has no prompt, or may say less than nothing.
        """
        if not task.prompt or task.max_new_tokens < 0:
            raise ValueError("a task needs a prompt, and a max_new_tokens of at least 0")
        self.waiting.append(task)
        return task

    def cancel(self, task: Task) -> None:
        """Forget a task, wherever it is; its row is free at once."""
        task.done = True
        if task in self.waiting:
            self.waiting.remove(task)
        elif task in self.active:
            self._leave(self.active.index(task))

    @abstractmethod
    def step(self) -> list[Task]:
        """Work on those who wait and those at work. Returns the tasks that were in it."""

    def _leave(self, row: int) -> None:
        del self.active[row]
