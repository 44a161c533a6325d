"""Weights dealt among processes (FSDP2 on gloo, through accelerate): the same training, in equal passes."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.model import SearchR3
from searchr3.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Launch = Callable[..., None]
SCRIPT = Path(__file__).with_name("parallel.py")
FSDP = {  # what `accelerate launch` sets for a configuration with FSDP
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture
def folder(tmp_path: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe) -> Callable[..., Path]:
    def prepare(*overrides: str) -> Path:
        toy.save(tmp_path / "data")
        values = toy_recipe(*overrides).dump()
        (tmp_path / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
        return tmp_path

    return prepare


def passes(folder: Path, name: str) -> list[int]:
    return [int((folder / f"{name}-{rank}.passes").read_text()) for rank in (0, 1)]


def saved(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-model" / "model.safetensors")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return fmean((a[name] - b[name]).abs().mean().item() for name in a)


def same_training(folder: Path, base: Path, one: str, dealt: str, names: tuple[str, ...]) -> None:
    """Both runs moved the model, and moved it alike."""
    start = {
        name: weight
        for name, weight in SearchR3.from_base(base, max_length=96).model.state_dict().items()
        if name in saved(folder, one)
    }
    moved = difference(saved(folder, one), start)
    assert moved > 3e-4
    assert difference(saved(folder, one), saved(folder, dealt)) < 1e-3 * moved
    curves = [json.loads((folder / f"{name}-0.json").read_text(encoding="utf-8")) for name in (one, dealt)]
    for alone, shared in zip(*curves, strict=True):
        for name in names:
            assert shared.get(name, 0) == pytest.approx(alone.get(name, 0), rel=2e-3, abs=1e-5), name
    search = SearchR3(folder / f"{dealt}-model")
    vectors = search.encode_query(["parse the date"], reasoning=True, max_new_tokens=3)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0])


@pytest.mark.parametrize("tokens", [300, 900])
def test_stage_1_with_dealt_weights_is_stage_1(
    tokens: int, folder: Callable[..., Path], tiny_base: Path, launch: Launch
) -> None:
    """With the KL to a base that is dealt too, and micro-batches that differ in number.

    Of 900 tokens the first process has more than one, so that it caches, and the other has one.
    """
    place = folder(
        *("stage1.own_samples=0", "stage1.kl=0.1", "stage1.steps=3", f"stage1.micro_tokens={tokens}"),
        *("stage1.evaluate_every=3", "stage1.chat_prompts=3"),
    )
    launch(1, SCRIPT, place, "one", "stage1")
    launch(2, SCRIPT, place, "dealt", "stage1", **FSDP)

    assert len(set(passes(place, "dealt"))) == 1
    same_training(place, tiny_base, "one", "dealt", ("loss", "sft", "kl", "info_nce", "grad_norm"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_stage_2_with_dealt_weights_is_stage_2_also_when_it_was_stopped(
    lora: str, folder: Callable[..., Path], tiny_base: Path, launch: Launch
) -> None:
    place = folder(
        *("stage2.steps=4", "stage2.queries=4", "stage2.evaluate_every=2", "stage2.contrastive=0.5"),
        *("stage2.contrastive_pairs=5", "stage2.warmup_share=0", f"model.lora={lora}", "stage2.beta=0.1"),
    )
    launch(1, SCRIPT, place, "one", "stage2")
    launch(2, SCRIPT, place, "dealt", "stage2", **FSDP)
    assert len(set(passes(place, "dealt"))) == 1
    same_training(place, tiny_base, "one", "dealt", ("loss", "contrastive", "reward", "grad_norm", "kl"))

    launch(2, SCRIPT, place, "again", "stage2", "3", **FSDP)
    assert not (place / "again-model").exists()
    launch(2, SCRIPT, place, "again", "stage2", **FSDP)
    assert difference(saved(place, "dealt"), saved(place, "again")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_processes_that_sample_make_as_many_passes(
    stage: str, folder: Callable[..., Path], launch: Launch
) -> None:
    """In stage 1 not even as many thoughts are to be sampled; in stage 2 one's rollouts are over at once."""
    place = folder(
        *("stage1.own_samples=0.4", "stage1.kl=0.1", "stage1.micro_tokens=300", "model.lora={r: 4}"),
        *("model.batch_size=2", "stage2.queries=4", "stage2.contrastive=0.5"),
    )
    launch(2, SCRIPT, place, "dealt", stage, SAMPLED="1", **FSDP)
    counts = passes(place, "dealt")
    assert counts[0] == counts[1] > 20
