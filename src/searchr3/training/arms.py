"""The training arms that a gain is held against: the same start, the same labels, something left out.

(a) direct only: stage 1 continued on the queries of stage 2 by InfoNCE alone, as many gradient tokens, at the
learning rate of stage 2 and at that of stage 1, the better by dev;
(b) stage 2 without the policy gradient; (c) stage 2 without the contrastive term.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.training.checkpoints import BEST
from searchr3.training.pairs import Pairs
from searchr3.training.recipe import OptimizerRecipe, Recipe
from searchr3.training.stage1_batch import BatchMaker

_COUNTED = 10_000  # pairs whose tokens are counted

DIRECT_ONLY, NO_POLICY, NO_CONTRASTIVE = "direct_only", "no_policy", "no_contrastive"
AT_STAGE1_RATE = "direct_only_stage1_rate"


def stage2_arms(recipe: Recipe) -> dict[str, Recipe]:
    """Arms (b) and (c) → their recipes; one that would learn nothing, or be stage 2 itself, is left out.

    Without its weight the whole of GRPO's loss is gone, a KL to the start (`stage2.beta`) included.
    """
    stage = recipe.stage2
    if not (stage.policy_gradient and stage.contrastive):
        return {}
    off = {NO_POLICY: {"policy_gradient": 0.0}, NO_CONTRASTIVE: {"contrastive": 0.0}}
    return {
        name: recipe.model_copy(
            update={"name": f"{recipe.name}, {name}", "stage2": stage.model_copy(update=without)}
        )
        for name, without in off.items()
    }


def direct_only(recipe: Recipe, steps: int) -> Recipe:
    """Arm (a): a stage 1 of InfoNCE over direct queries, batches as in stage 1, rate and schedule of stage 2.

    It is held against dev as often as stage 2, and does not end early.

    Args:
        steps: see `steps_for`.
    """
    first, second = recipe.stage1, recipe.stage2
    schedule = {name: getattr(second, name) for name in OptimizerRecipe.model_fields}
    off = {"sft": 0.0, "kl": 0.0, "triplet": 0.0, "reasoned_share": 0.0, "chat_prompts": 0}
    looks = max(1, round(second.steps / second.evaluate_every))
    rhythm = {"steps": steps, "evaluate_every": max(1, -(-steps // looks)), "patience": None}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}, {DIRECT_ONLY}",
            "data": recipe.data.model_copy(update={"mixture": ()}),
            "stage1": first.model_copy(update=schedule | off | rhythm | {"log_every": second.log_every}),
        }
    )


def direct_only_arms(recipe: Recipe, steps: int, both_rates: bool = True) -> dict[str, Recipe]:
    """Arm (a) by its name: at stage 2's learning rate, and with `both_rates` at stage 1's where that differs.

    Warm-up and decay are stage 2's in both.
    """
    arm, rate = direct_only(recipe, steps), recipe.stage1.learning_rate
    if not both_rates or rate == arm.stage1.learning_rate:
        return {DIRECT_ONLY: arm}
    stage = arm.stage1.model_copy(update={"learning_rate": rate})
    name = f"{recipe.name}, {AT_STAGE1_RATE}"
    return {DIRECT_ONLY: arm, AT_STAGE1_RATE: arm.model_copy(update={"name": name, "stage1": stage})}


def direct_only_data(dataset: RetrievalDataset) -> RetrievalDataset:
    """What arm (a) learns from: the queries of stage 2 in the place of stage 1's, without any trace."""
    return replace(dataset, qrels={**dataset.qrels, "stage1": dataset.split("stage2")}).without_reasoning()


def gradient_tokens(curve: Sequence[Mapping[str, float]]) -> int:
    """Tokens that went forward and backward in a whole training, by its curve."""
    return max((int(row.get("gradient_tokens", 0)) for row in curve), default=0)


def best_dev(curve: Sequence[Mapping[str, float]]) -> float:
    """The dev score of what arm (a) has kept, by its curve."""
    return max((row["eval_direct"] for row in curve if "eval_direct" in row), default=0.0)


def direct_given_up(curve: Sequence[Mapping[str, float]]) -> float:
    """How far direct search on dev is, in what stage 1 has kept, below its best on the way; by the curve.

    What is kept is the best at both forms; who only wants direct search would keep another.
    """
    looks = [row for row in curve if "eval_direct" in row]
    if not looks:
        return 0.0
    kept = max(looks, key=lambda row: row[BEST])
    return max(row["eval_direct"] for row in looks) - kept["eval_direct"]


def steps_for(tokens: int, dataset: RetrievalDataset, conversation: Conversation, recipe: Recipe) -> int:
    """The steps in which arm (a) learns from `tokens` tokens, as nearly as whole steps allow.

    By the mean tokens of a pair, over all pairs or a sample of many.

    Args:
        dataset: as `direct_only_data` gives it.
        recipe: as `direct_only` gives it.
    """
    pairs = Pairs(dataset, "stage1")
    rows = random.Random(recipe.seed).sample(range(len(pairs)), min(_COUNTED, len(pairs)))
    maker = BatchMaker(dataset, pairs, conversation, recipe, lambda prompts: [])
    items = maker.of([pairs.pairs[row] for row in rows], 0, own_samples=False).items
    of_pair = sum(len(item.ids) for item in items) / len(rows)
    return max(1, round(tokens / (of_pair * min(recipe.stage1.batch_size, len(pairs)))))
