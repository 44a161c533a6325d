"""The rollouts of one generation batch: groups of one query each, and what their rewards tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from searchr3.conversation import Conversation, Rendered
from searchr3.generation import split_completion
from searchr3.group import Group

Key = tuple[int, ...]

VARIES = 1e-4
"""A standard deviation of the rewards of a group up to here is none: TRL divides by it and as much."""
SATURATED = 0.99
"""nDCG from which on there is nothing left to gain."""
USEFUL = 0.01
"""A group whose best and worst nDCG are so far apart teaches something; less is noise, which
`scale_rewards: group` would blow up."""


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
        direct: the last of each group was not sampled, see `with_direct`.
    """

    queries: list[str]
    prompts: list[list[int]]
    completions: list[list[int]]
    size: int
    conversation: Conversation
    direct: bool = False

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

    @cached_property
    def keys(self) -> list[Key]:
        return [rollout_key(*ids) for ids in zip(self.prompts, self.completions, strict=True)]

    def rendered(self) -> list[Rendered]:
        """What each is embedded as: closed by force where the token was not said."""
        return [
            self.conversation.close(prompt, thought)
            for prompt, thought in zip(self.prompts, self.thoughts, strict=True)
        ]

    def formed(self, least_tokens: int | None) -> Tensor:
        """(n,) bool: a thought of at least so many tokens, and then the embed token; None: only the token."""
        if least_tokens is None:
            return self.emitted
        return torch.tensor(
            [said and self.conversation.is_thought(thought, least_tokens) for thought, said in self._split]
        )

    @property
    def asked(self) -> list[str]:
        """The query id of each of the q groups."""
        return self.queries[:: self.size]

    def grouped(self, values: Tensor) -> Tensor:
        """(n,) → (q, G)."""
        return values.view(-1, self.size)

    def sampled(self, values: Tensor) -> Tensor:
        """(n,) → (q, s): values of the rollouts that the policy made; s is G, or G − 1 with a direct one."""
        return self.grouped(values)[:, : self.size - self.direct]

    def figures(self, ndcg: Tensor, rank: Tensor, direct: Tensor, candidates: int) -> dict[str, float]:
        """What a step tells of its rollouts. Rollouts that were put in count only where groups are compared.

        Args:
            ndcg: (n,) retrieval reward.
            rank: (n,) of the best relevant document in the whole corpus.
            direct: (q,) retrieval reward of each query's direct vector.
            candidates: K of the reward.
        """
        keys = [self.sampled_keys(row) for row in range(len(direct))]
        alike = torch.tensor([len(own) > 1 and len(set(own)) == 1 for own in keys])
        return {
            "reward_ndcg": self.sampled(ndcg).mean().item(),
            "thinking_tokens": self.sampled(self.lengths).float().mean().item(),
            "thinking_share": _share(self.sampled(self.lengths) > 0),
            "emission_rate": _share(self.sampled(self.emitted)),
            "distinct_rollouts": len({key for own in keys for key in own}) / sum(map(len, keys)),
            "rank_median": float(np.median(self.sampled(rank))),
            **gain_figures(self.sampled(ndcg), direct),
            **group_figures(self.grouped(ndcg), self.grouped(rank), candidates, alike),
        }

    def sampled_keys(self, group: int) -> list[Key]:
        start = group * self.size
        return self.keys[start : start + self.size - self.direct]


def with_direct(
    completions: Sequence[list[int]], size: int, answer: Sequence[int], embed_id: int
) -> list[list[int]]:
    """Put what is said without thinking in the place of the last rollout of each group of `size`."""
    said = [*answer, embed_id]
    return [
        list(said) if row % size == size - 1 else completion for row, completion in enumerate(completions)
    ]


def gain_figures(ndcg: Tensor, direct: Tensor) -> dict[str, float]:
    """What thinking is worth: (q, s) nDCG with it against (q,) of the same queries' direct vectors.

    Returns:
        `reward_direct`, the mean without thinking; `reward_gain`, the mean difference; `reward_moved`, the
        mean of its absolute value, which is 0 only where thinking changes nothing; `gain_share`, the share
        of the rollouts that are better than direct.
    """
    gain = ndcg - direct[:, None]
    return {
        "reward_direct": direct.mean().item(),
        "reward_gain": gain.mean().item(),
        "reward_moved": gain.abs().mean().item(),
        "gain_share": _share(gain > VARIES),
    }


def group_figures(ndcg: Tensor, rank: Tensor, candidates: int, alike: Tensor) -> dict[str, float]:
    """Shares of the q groups from which GRPO learns, and why it does not from the others.

    Args:
        ndcg: (q, G) of their rollouts.
        rank: (q, G) of the best relevant document in the whole corpus.
        candidates: K of the reward.
        alike: (q,) bool, all sampled rollouts are the same tokens.

    Returns:
        `groups_with_variance`: the nDCG varies, however little. `groups_useful`: by `USEFUL` at least.
        `groups_saturated`: all rollouts are above `SATURATED`; `groups_hopeless`: in all of them the relevant
        documents are beyond the candidates. Of the groups without variance, by the first cause that applies:
        `zero_variance_same` (all rollouts are one), `…_saturated`, `…_hopeless`, `…_other` (the thoughts
        differ, the ranks do not); these four and `groups_with_variance` add up to 1.
    """
    flat = ndcg.std(dim=1) <= VARIES
    saturated = ndcg.amin(dim=1) > SATURATED
    hopeless = (rank > candidates).all(dim=1)
    figures = {
        "groups_with_variance": _share(~flat),
        "groups_useful": _share(ndcg.amax(dim=1) - ndcg.amin(dim=1) >= USEFUL),
        "groups_saturated": _share(saturated),
        "groups_hopeless": _share(hopeless),
    }
    for cause, holds in (("same", alike), ("saturated", saturated), ("hopeless", hopeless)):
        figures[f"zero_variance_{cause}"] = _share(flat & holds)
        flat = flat & ~holds
    return figures | {"zero_variance_other": _share(flat)}


def of_all(figures: dict[str, float], group: Group) -> dict[str, float]:
    """The mean of each figure over the processes, so that all judge alike; collective.

    They have equally many rollouts. (The mean of their medians stands for the median.)
    """
    parts = group.gather(np.array([list(figures.values())], dtype=np.float64))
    return dict(zip(figures, np.concatenate(parts).mean(axis=0).tolist(), strict=True))


def _share(which: Tensor) -> float:
    return which.float().mean().item()
