"""A recipe's second stage as the settings of `trl.GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl import GRPOConfig
from trl.trainer import utils as trl_utils

from searchr3.group import start_group
from searchr3.training.common import arguments
from searchr3.training.parallel import micro_batch, on_one_device
from searchr3.training.recipe import Recipe
from searchr3.training.rollout_engine import engine_arguments


def grpo_config(recipe: Recipe, folder: Path, stop_ids: Sequence[int] = ()) -> GRPOConfig:
    """Ours to TRL's: one generation for `updates` optimizer steps; with one the policy loss is on-policy.

    Args:
        stop_ids: tokens that end a rollout of vLLM.

    Raises:
        RecipeError: the queries or the micro-batches cannot be divided among the processes.
    """
    stage = recipe.stage2
    args = GRPOConfig(
        **arguments(recipe, stage, folder),
        gradient_accumulation_steps=stage.accumulation,
        per_device_train_batch_size=micro_batch(stage, start_group().size),
        steps_per_generation=stage.accumulation * stage.updates,
        num_generations=stage.rollouts,
        max_completion_length=recipe.model.max_new_tokens,
        temperature=stage.sampling_temperature,
        top_k=0,
        top_p=1.0,
        beta=stage.beta,
        epsilon=stage.epsilon,
        loss_type=stage.loss_type,
        scale_rewards=stage.scale_rewards,
        disable_dropout=True,
        **engine_arguments(stage.generation, stop_ids, recipe.model.max_length + recipe.model.max_new_tokens),
    )
    on_one_device(args)
    return args


@contextmanager
def completions_alone() -> Iterator[None]:
    """Within it TRL scores the tokens of completions alone: the same log-probabilities at less cost.

    On GPUs it does so by itself. Elsewhere it scores prompts and padding, too, so that shapes stay the same
    for devices that compile; on a CPU that is most of what the vocabulary costs.
    """
    name = "_use_triton"  # in this module it says no more than whether positions are picked
    before = getattr(trl_utils, name, None)
    if before is None:  # another version, whose way is not known
        yield
        return
    setattr(trl_utils, name, lambda device: device.type == "cpu" or before(device))
    try:
        yield
    finally:
        setattr(trl_utils, name, before)
