"""What vLLM needs, by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from searchr3.training.engine_memory import engine_lines, gpu_bytes, kept
from searchr3.training.estimate import GIB, Memory, Setting, Shape
from searchr3.training.recipe import Recipe
from searchr3.training.workload import Lengths

MakeRecipe = Callable[..., Recipe]
SHAPE = Shape(28, 1536, 12, 1536, 256, 8960, 151936, tied=True)
SETTING = Setting(GIB, GIB, bf16=True, checkpointing=True)
LENGTHS = Lengths(50, 100, 100, 50, 124, 200)
TRAINER = Memory(
    **{"weights": 4 * GIB, "copies": 0, "gradients": 4 * GIB, "optimizer": 8 * GIB, "buckets": 0},
    **{"bf16_weights": 0, "rows": 0, "activations": 12 * GIB, "logits": 0, "vectors": 0},
    **{"generation": GIB, "saving": 0},
)


def test_keys_and_values_are_those_of_bf16() -> None:
    assert kept(SHAPE, 1000) == 1000 * 28 * 2 * 256 * 2


@pytest.mark.parametrize(
    ("keys", "engine", "expected"),
    [
        ("gpu_memory: 0.3", 1, 28 / 0.7),  # the trainer's peak in what vLLM leaves
        ("gpu_memory: 0.3, sleep: true", 1, 28),  # asleep it leaves all
        ("gpu_memory: 0.5, sleep: true", 1, 32),  # awake it leaves what is always held
        ("gpu_memory: 0.05", 4, 80),  # its share must hold itself
    ],
)
def test_a_gpu_holds_the_trainer_and_vllm(
    toy_recipe: MakeRecipe, keys: str, engine: int, expected: float
) -> None:
    recipe = toy_recipe(f"stage2.generation={{engine: vllm, {keys}}}")
    assert gpu_bytes(recipe, TRAINER, engine * GIB) == pytest.approx(expected * GIB)


def test_the_lines_tell_what_is_needed_where(toy_recipe: MakeRecipe) -> None:
    keys = ("stage2.queries=64", "stage2.rollouts=8", "model.max_new_tokens=900")
    cache = kept(SHAPE, 1024) / GIB  # of one rollout

    def lines(generation: str, setting: Setting = SETTING) -> list[str]:
        recipe = toy_recipe(*keys, f"stage2.generation={{{generation}}}")
        return list(engine_lines(recipe, SHAPE, setting, TRAINER, LENGTHS))

    assert lines("engine: transformers") == []
    (served,) = lines("engine: vllm, mode: server")
    assert "2.0 GiB for the weights" in served and f"{512 * cache:,.1f} GiB for all 512" in served
    (shared,) = lines("engine: vllm, tensor_parallel: 2", replace(SETTING, processes=4))
    assert "its weights are 1.0 GiB" in shared and f"all 128 rollouts at once {128 * cache:,.1f}" in shared
    assert "must then have 40.0 GiB" in shared
