"""The environment's part of the recipe, and the refresh policy that it names. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from searchr3.training.section import Count, Section, Share, Weight

if TYPE_CHECKING:
    from searchr3.environment import RefreshPolicy


class EnvironmentRecipe(Section):
    policy: Literal["certified", "corrector", "neighbourhood", "random", "full", "frozen"] = Field(
        "certified",
        description="which documents are re-encoded before a batch is scored: `certified` what the rewards "
        "hang on most, `corrector` and `random` a uniform draw, `neighbourhood` the paper's graph-local "
        "update; `certified` and `corrector` predict the others from those",
    )
    budget: Annotated[float, Field(gt=0)] | None = Field(
        0.01, description="most documents a step; below 1 a share of the corpus; null: no limit"
    )
    epsilon: Weight = Field(
        0.0,
        description="`certified`: stop early once the rewards are known to err by no more on average; "
        "0 spends the whole budget",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="`certified`: share of the steps in which they may err by more"
    )
    calibration: Share = Field(0.2, description="`certified`: share of the budget of each of its two draws")
    correct: bool = Field(
        True, description="`certified`: predict the vectors that are not re-encoded from those that are"
    )
    neighbours: Count = Field(
        8, description="`neighbourhood`: neighbours of a document in the proximity graph"
    )
    candidates: Count = Field(100, description="K: other documents in the reward, those that score highest")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="of the stored vectors; `float16` halves them"
    )
    audit_every: Count | None = Field(
        None, description="steps between audits: rewards held against those of fresh vectors; null: none"
    )
    audit_documents: Count | None = Field(
        None,
        description="uniformly drawn documents of an audit, besides what the rollouts see; "
        "null: the whole corpus, exact",
    )

    @property
    def limit(self) -> float | int | None:
        """The budget as the policies take it: a share as float, a number of documents as int."""
        return self.budget if self.budget is None or self.budget < 1 else int(self.budget)

    @model_validator(mode="after")
    def _draws_end(self) -> EnvironmentRecipe:
        if self.budget is None and self.policy in ("random", "corrector"):
            raise ValueError(f"policy {self.policy} needs a budget; `full` encodes everything")
        if self.budget == 1:
            raise ValueError("budget 1 is one document a step; for all of them say `policy: full`")
        if self.budget is not None and self.budget > 1 and self.budget != int(self.budget):
            raise ValueError(
                f"budget {self.budget} is neither a share below 1 nor a whole number of documents"
            )
        return self


def refresh_policy(recipe: EnvironmentRecipe, temperature: float, seed: int = 0) -> RefreshPolicy:
    """The policy that a recipe names.

    Args:
        temperature: of the reward.
        seed: of the policy's draws.
    """
    from searchr3.environment import Certified, Corrected, Frozen, Full, Neighbourhood, Random

    budget = recipe.limit
    if recipe.policy == "full":
        return Full()
    if recipe.policy == "frozen":
        return Frozen()
    if recipe.policy == "neighbourhood":
        return Neighbourhood(recipe.neighbours, budget)
    if recipe.policy == "certified":
        return Certified(
            recipe.candidates,
            temperature,
            recipe.epsilon,
            recipe.delta,
            budget,
            recipe.calibration,
            recipe.correct,
            seed,
        )
    assert budget is not None  # the recipe has seen to it
    drawn = Random(budget, seed)
    return Corrected(drawn) if recipe.policy == "corrector" else drawn
