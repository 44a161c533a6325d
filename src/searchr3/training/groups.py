"""The rollouts of one generation batch: groups of one query each, and what their rewards tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from searchr3.conversation import Conversation, Rendered
from searchr3.generation import split_completion

Key = tuple[int, ...]

VARIES = 1e-4
"""A standard deviation of the rewards of a group up to here is none: TRL divides by it and as much."""
SATURATED = 0.99
"""nDCG from which on there is nothing left to gain."""


def rollout_key(prompt: Sequence[int], completion: Sequence[int]) -> Key:
    """Names a rollout by its token ids: rollouts of the same ids have the same vector."""
    return (*prompt, -1, *completion)


@dataclass(frozen=True)
class Rollouts:
    """n rollouts, those of one query next to each other.

    Attributes:
        queries: the query id of each.
        prompts: token ids of each prompt.
        completions: token ids of what was said, the token that ended it included.
        size: G, rollouts a query; n is a multiple of it.
        conversation: how they are read.
    """

    queries: list[str]
    prompts: list[list[int]]
    completions: list[list[int]]
    size: int
    conversation: Conversation

    @cached_property
    def _split(self) -> list[tuple[list[int], bool]]:
        return [split_completion(completion, self.conversation) for completion in self.completions]

    @property
    def thoughts(self) -> list[list[int]]:
        """Token ids before the embed token, or before the end without it."""
        return [thought for thought, _ in self._split]

    @property
    def emitted(self) -> Tensor:
        """(n,) bool: whether the embed token was said."""
        return torch.tensor([said for _, said in self._split])

    @property
    def lengths(self) -> Tensor:
        """(n,) int64: tokens of the thoughts."""
        return torch.tensor([len(thought) for thought, _ in self._split])

    @property
    def keys(self) -> list[Key]:
        return [rollout_key(*ids) for ids in zip(self.prompts, self.completions, strict=True)]

    def rendered(self) -> list[Rendered]:
        """What each is embedded as: closed by force where the token was not said."""
        return [
            self.conversation.close(prompt, thought)
            for prompt, thought in zip(self.prompts, self.thoughts, strict=True)
        ]

    def formed(self, least_tokens: int) -> Tensor:
        """(n,) bool: a thought of at least so many tokens, and then the embed token."""
        return torch.tensor(
            [said and self.conversation.is_thought(thought, least_tokens) for thought, said in self._split]
        )


def group_figures(ndcg: Tensor) -> dict[str, float]:
    """Shares of the groups, (q, G) nDCG of their rollouts, that vary, and that have nothing left to gain."""
    return {
        "groups_with_variance": _share(ndcg.std(dim=1) > VARIES),
        "groups_saturated": _share(ndcg.amin(dim=1) > SATURATED),
    }


def _share(which: Tensor) -> float:
    return which.float().mean().item()
