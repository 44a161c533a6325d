"""What vLLM needs of a GPU, beside the trainer or on its own. Pure formulas, no torch."""

from __future__ import annotations

from collections.abc import Iterator

from searchr3.training.estimate import GIB, Memory, Setting, Shape
from searchr3.training.recipe import Recipe
from searchr3.training.workload import Lengths

_WIDE = 2  # bytes of a number: vLLM holds weights, keys and values in bf16


def engine_lines(
    recipe: Recipe, shape: Shape, setting: Setting, trainer: Memory, lengths: Lengths
) -> Iterator[str]:
    """Lines of a dry run on the memory of vLLM; none where transformers generates."""
    stage = recipe.stage2
    if stage.generation.engine != "vllm" or not stage.steps:
        return
    weights = _WIDE * setting.parameters
    rollouts = stage.queries * stage.rollouts
    one = kept(shape, lengths.longest_prompt + recipe.model.max_new_tokens)
    if stage.generation.served:
        yield (
            f"the vLLM server needs, on GPUs of its own, {_gib(weights)} for the weights, and for keys and "
            f"values {_gib(one)} at least, {_gib(rollouts * one)} for all {rollouts:,} rollouts at once"
        )
        return
    share, parts = stage.generation.gpu_memory, stage.generation.tensor_parallel
    own = rollouts // setting.processes  # of a copy on several GPUs more, but each keeps a part of them
    least = gpu_bytes(recipe, trainer, (weights + one) // parts)
    yield (
        f"vLLM takes {share:g} of each GPU, which must then have {_gib(least)}; its weights are "
        f"{_gib(weights // parts)}, and keys and values of all {own:,} rollouts at once {_gib(own * one)}"
    )


def kept(shape: Shape, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    return tokens * shape.layers * 2 * shape.keys * _WIDE


def gpu_bytes(recipe: Recipe, trainer: Memory, engine: int) -> int:
    """The smallest GPU that holds the trainer beside vLLM, and vLLM itself in its share.

    vLLM takes its share of the GPU, however large that is. Where it sleeps it has it only while the trainer
    holds what it always does.

    Args:
        engine: bytes that vLLM needs at least.
    """
    settings = recipe.stage2.generation
    share = settings.gpu_memory
    beside = trainer.held if settings.sleep else trainer.total
    return round(max(trainer.total, beside / (1 - share), engine / share))


def _gib(number: float) -> str:
    return f"{number / GIB:,.1f} GiB"
