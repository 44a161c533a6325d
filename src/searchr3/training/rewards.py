"""What a rollout is paid: the recipe's part of `searchr3.reward`, applied to a batch of rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from searchr3.training.section import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from searchr3.training.groups import Rollouts


class RewardRecipe(Section):
    temperature: Weight = Field(
        0.3, description="T of the soft rank, relative to the spread of the candidates' scores; 0 gives nDCG"
    )
    ndcg: Weight = Field(1.0, description="weight of the retrieval reward")
    format: Weight = Field(
        0.1, description="reward for a thought, other than the fixed direct answer, then the embed token"
    )
    least_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="tokens that make a thought, for `format`; default: 1. With `length` every rollout that "
        "says the token earns `format`, one that says it at once too",
    )
    length: Weight = Field(
        0.0,
        description="cost of a thinking token beyond the free ones, in nDCG: the policy learns to say the "
        "embed token at once where thinking does not pay; needs `stage2.scale_rewards: batch` or `none`",
    )
    free_tokens: Annotated[int, Field(ge=0)] = Field(0, description="thinking tokens that cost nothing")

    @model_validator(mode="after")
    def _silence_is_paid_or_charged(self) -> RewardRecipe:
        if self.length and self.least_tokens:
            raise ValueError(
                "length charges for thinking, least_tokens pays for it; set least_tokens=0 or length=0"
            )
        if self.free_tokens and not self.length:
            raise ValueError("free_tokens means nothing without length; set length, or free_tokens=0")
        return self

    @property
    def least(self) -> int | None:
        """Tokens that make a thought; None where there need be none, and the fixed answer is one too."""
        if self.length:
            return None
        return 1 if self.least_tokens is None else self.least_tokens

    def cost(self, tokens: float) -> float:
        """What so many thinking tokens cost, in nDCG: `length / ndcg` for each beyond the free ones."""
        return self.length / (self.ndcg or 1.0) * max(0.0, tokens - self.free_tokens)


def rewards(ndcg: Tensor, rollouts: Rollouts, settings: RewardRecipe) -> Tensor:
    """The whole reward of each rollout, (n,), from its retrieval reward (n,)."""
    from searchr3.reward import RewardWeights, combine  # a recipe is read without torch

    weights = RewardWeights(settings.ndcg, settings.format, settings.length, settings.free_tokens)
    return combine(ndcg, rollouts.formed(settings.least), rollouts.lengths, weights)
