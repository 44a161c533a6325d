"""Rollouts whose vectors come from the pass that samples them: neither prompt nor thought is read again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from searchr3.model import SearchR3
from searchr3.thinking import sampled
from searchr3.training.groups import Key, Rollouts, rollout_key


class OnePass:
    """Samples rollouts, and remembers their vectors until the next are sampled.

    Args:
        max_new_tokens, temperature: of the sampling.
        instruction: the task that all prompts hold.
    """

    def __init__(self, max_new_tokens: int, temperature: float, instruction: str | None = None):
        self.limits = max_new_tokens, temperature
        self.instruction = instruction
        self.known: dict[Key, np.ndarray] = {}

    def sample(self, search: SearchR3, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Completions, stop token included; by the random numbers of the process."""
        beginning = search.conversation.reasoning_start(self.instruction)
        completions, vectors = sampled(search, prompts, beginning, *self.limits)
        keys = (rollout_key(*ids) for ids in zip(prompts, completions, strict=True))
        self.known = dict(zip(keys, vectors, strict=True))
        return completions

    def vectors(self, search: SearchR3, rollouts: Rollouts) -> np.ndarray:
        """Of each rollout, (n, d); one that was not sampled, but put in, is encoded."""
        unknown = [row for row, key in enumerate(rollouts.keys) if key not in self.known]
        rendered = rollouts.rendered()
        encoded = search.encode_rendered([rendered[row] for row in unknown])
        found = self.known | {rollouts.keys[row]: one for row, one in zip(unknown, encoded, strict=True)}
        return np.stack([found[key] for key in rollouts.keys])
