"""DeepSpeed on two processes of the CPU (gloo), through accelerate, where it is installed."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from safetensors.torch import load_file
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.model import SearchR3
from searchr3.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Launch = Callable[..., None]
SCRIPT = Path(__file__).with_name("parallel.py")
DEEPSPEED = {  # what `accelerate launch` sets for a configuration with DeepSpeed
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "DS_ACCELERATOR": "cpu",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed"),
]


def saved(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-model" / "model.safetensors")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return fmean((a[name] - b[name]).abs().mean().item() for name in a)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_with_deepspeed_a_stage_is_that_stage(
    stage: str, toy: RetrievalDataset, toy_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path, launch: Launch
) -> None:
    """ZeRO-2; the weights stay whole."""
    recipe = toy_recipe(
        *("stage1.own_samples=0", "stage1.kl=0.1", "stage1.steps=3", "stage1.micro_tokens=300"),
        *("stage1.evaluate_every=3", "stage1.chat_prompts=3", "stage2.steps=3", "stage2.queries=4"),
        *("stage2.evaluate_every=3", "stage2.contrastive=0.5", "stage2.contrastive_pairs=5"),
        "stage2.warmup_share=0",
    )
    toy.save(tmp_path / "data")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.dump()), encoding="utf-8")

    launch(1, SCRIPT, tmp_path, "one", stage)
    launch(2, SCRIPT, tmp_path, "two", stage, **DEEPSPEED)

    one, two = saved(tmp_path, "one"), saved(tmp_path, "two")
    start = SearchR3.from_base(tiny_base, max_length=96).model.state_dict()
    moved = difference(one, {name: weight for name, weight in start.items() if name in one})
    assert moved > 3e-4
    assert difference(one, two) < 1e-3 * moved
    curves = [
        json.loads((tmp_path / f"{name}-0.json").read_text(encoding="utf-8")) for name in ("one", "two")
    ]
    for alone, shared in zip(*curves, strict=True):
        assert math.isclose(shared.get("loss", 0), alone.get("loss", 0), rel_tol=2e-3, abs_tol=1e-5)
