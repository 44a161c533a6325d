"""Stage 2 in several processes is stage 2 in one."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from searchr3.dataset import RetrievalDataset
from searchr3.embedding import backbone
from searchr3.errors import RecipeError
from searchr3.group import ALONE, Group
from searchr3.model import SearchR3
from searchr3.progress import Screen
from searchr3.runs.pipeline import RunFolder
from searchr3.training import grpo, stage1
from searchr3.training.checkpoints import BEST, is_whole
from searchr3.training.common import DevEvaluation
from searchr3.training.dev import DevSet
from searchr3.training.parallel import check_launcher, share_of
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer

MakeRecipe = Callable[..., Recipe]
Launch = Callable[..., None]
SCRIPT = Path(__file__).with_name("parallel.py")


def prepare(folder: Path, toy: RetrievalDataset, recipe: Recipe) -> None:
    toy.save(folder / "data")
    (folder / "recipe.json").write_text(json.dumps(recipe.dump()), encoding="utf-8")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return fmean((a[name] - b[name]).abs().mean().item() for name in a if name in b)


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    return json.loads((folder / f"{name}-0.json").read_text(encoding="utf-8"))


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.endswith(("seconds", "time"))} for row in rows
    ]


def test_two_processes_are_taught_what_one_is(
    tmp_path: Path, tiny_base: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, launch: Launch
) -> None:
    recipe = toy_recipe(
        *("stage2.steps=3", "stage2.queries=4", "stage2.evaluate_every=3", "stage2.contrastive=0.5"),
        *("stage2.contrastive_pairs=5", "stage2.warmup_share=0", "stage2.environment.audit_every=2"),
    )
    prepare(tmp_path, toy, recipe)

    for size in (1, 2):
        launch(size, SCRIPT, tmp_path, size, "stage2")

    one, first, second = weights(tmp_path, "1"), weights(tmp_path, "2", 0), weights(tmp_path, "2", 1)
    moved = difference(one, SearchR3.from_base(tiny_base, max_length=96).model.state_dict())
    assert moved > 3e-4
    assert difference(first, second) == 0
    assert difference(one, first) < 1e-3 * moved
    figures = ("loss", "grad_norm", "contrastive", "contrastive_share_tokens", "reward", "reward_ndcg")
    figures = (*figures, "reward_gain", "environment_documents", "audit_reward_error", "eval_direct")
    for alone, shared in zip(curve(tmp_path, "1"), curve(tmp_path, "2"), strict=True):
        for name in figures:
            assert (name in alone) == (name in shared), name
            assert shared.get(name, 0) == pytest.approx(alone.get(name, 0), rel=2e-3, abs=1e-5), name
    # the first process tells of all, once
    episodes, others = (
        (tmp_path / f"run-{size}" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
        for size in (1, 2)
    )
    assert len(episodes) == 3 * 4
    for mine, theirs in zip(map(json.loads, episodes), map(json.loads, others), strict=True):
        assert (mine["step"], mine["query"]) == (theirs["step"], theirs["query"])
        assert sorted(one["reasoning"] for one in mine["rollouts"]) == sorted(
            one["reasoning"] for one in theirs["rollouts"]
        )


@pytest.mark.slow
def test_two_processes_that_were_stopped_go_on_bit_for_bit(
    tmp_path: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, launch: Launch
) -> None:
    recipe = toy_recipe(
        *("stage2.steps=4", "stage2.evaluate_every=2", "stage2.contrastive=0.5", "stage2.warmup_share=0")
    )
    prepare(tmp_path, toy, recipe)

    launch(2, SCRIPT, tmp_path, "whole", "stage2")
    launch(2, SCRIPT, tmp_path, "again", "stage2", "3")
    checkpoint = tmp_path / "run-again" / "checkpoint-2"
    assert is_whole(checkpoint)
    assert not (tmp_path / "again-0.safetensors").exists()
    assert {"kept-0.json", "kept-1.json", "rng_state_0.pth", "rng_state_1.pth", "environment"} <= {
        path.name for path in checkpoint.iterdir()
    }
    launch(2, SCRIPT, tmp_path, "again", "stage2")

    assert difference(weights(tmp_path, "whole"), weights(tmp_path, "again")) == 0
    assert without_times(curve(tmp_path, "whole")) == without_times(curve(tmp_path, "again"))
    whole, again = ((tmp_path / f"run-{name}" / "episodes.jsonl").read_bytes() for name in ("whole", "again"))
    assert whole == again


@pytest.mark.parametrize(
    ("settings", "lora", "said"),
    [
        ({"FSDP_VERSION": "1"}, False, "fsdp_version: set it, in the configuration of accelerate, to 2"),
        ({}, False, "fsdp_version"),
        ({"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, False, "cpu_ram_efficient_loading"),
        ({"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, True, "to FULL_STATE_DICT"),
    ],
)
def test_a_launcher_that_deals_weights_otherwise_is_told_so(
    settings: dict[str, str], lora: bool, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_launcher({"ACCELERATE_USE_FSDP": "true", **settings}, lora)
    check_launcher(settings, lora)
    good = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    check_launcher({"ACCELERATE_USE_FSDP": "true", **good}, lora)
    check_launcher({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, lora=False)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("stage2.queries=3",), "stage2.queries: 3 queries cannot be divided among 2 processes"),
        (("stage2.queries=2", "stage2.rollouts=4", "stage2.accumulation=8"), "stage2.accumulation"),
    ],
)
def test_what_cannot_be_divided_is_told_in_one_line(
    overrides: tuple[str, ...],
    said: str,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Two:
        rank, size = 0, 2

    monkeypatch.setattr(grpo, "start_group", Two)
    with pytest.raises(RecipeError, match=said):
        grpo.grpo_config(toy_recipe(*overrides), tmp_path)


def test_a_run_that_cannot_be_divided_ends_before_stage_1(
    toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    class Three:
        rank, size = 0, 3

        def gather(self, array: Any) -> list[Any]:
            return [array] * 3

    toy.save(tmp_path / "toy")
    recipe = toy_recipe(f"data.source={tmp_path / 'toy'}", "stage1.batch_size=9")
    with Screen(silent=True) as screen, pytest.raises(RecipeError, match=r"stage2\.queries: 2 queries"):
        RunFolder(tmp_path / "run", recipe, screen, Three()).run(False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch", "processes", "pairs", "said"),
    [
        (
            8,
            3,
            None,
            "stage1.batch_size: 8 pairs cannot be divided among 3 processes; set it to a multiple of 3",
        ),
        (16, 2, 13, "the 13 training pairs are fewer than a batch of 16, .* among 2 processes; set it to 12"),
        (8, 4, 3, "the 3 training pairs are fewer .* among 4 processes; train in 3 or fewer"),
    ],
)
def test_pairs_that_cannot_be_divided_are_told(
    batch: int, processes: int, pairs: int | None, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        share_of(batch, processes, pairs)
    assert share_of(batch, 1, pairs) == min(batch, pairs or batch)


SUMMED = """
import sys, torch, torch.distributed as dist
from safetensors.torch import save_file
from searchr3.training.parallel import sum_gradients, unsynced
dist.init_process_group("gloo")
rank = dist.get_rank()
layers = {name: torch.nn.Linear(3, 1, bias=False) for name in ("all", "second", "nowhere")}
model = torch.nn.parallel.DistributedDataParallel(torch.nn.ModuleDict(layers))
with unsynced(model):
    for name in ("all", "second")[: 1 + rank]:
        (layers[name].weight.sum() * (1 + rank)).backward()
sum_gradients(model)
found = {name: layer.weight.grad for name, layer in layers.items() if layer.weight.grad is not None}
save_file(found, f"{sys.argv[1]}/{rank}.safetensors")
"""


def test_gradients_are_summed_and_who_has_none_anywhere_stays_without(tmp_path: Path, launch: Launch) -> None:
    launch(2, "-c", SUMMED, tmp_path)
    for rank in (0, 1):
        found = {name: one.tolist() for name, one in load_file(tmp_path / f"{rank}.safetensors").items()}
        assert found == {"all": [[3.0] * 3], "second": [[2.0] * 3]}


def test_a_process_that_sees_further_gpus_leaves_them_alone(
    toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would give each as large a batch as the recipe's, by way of `DataParallel`."""
    real = TrainingArguments.__post_init__

    def sees_eight(self: TrainingArguments) -> None:
        real(self)
        self._n_gpu = 8

    monkeypatch.setattr(TrainingArguments, "__post_init__", sees_eight)
    recipe = toy_recipe()
    config = grpo.grpo_config(recipe, tmp_path)
    assert config.train_batch_size == recipe.stage2.queries * recipe.stage2.rollouts
    search = SearchR3.from_base(recipe.model.base, max_length=96)
    trainer = Stage1Trainer(search, None, toy, recipe, tmp_path, None)
    assert next(iter(trainer.get_train_dataloader()))["pairs"].shape == (recipe.stage1.batch_size, 2)


def test_each_process_draws_by_itself(
    toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stage 1 samples and drops out in one process is not the same again in the next."""
    recipe, drawn = toy_recipe(), []
    for number in (0, 1, 0):
        monkeypatch.setattr(stage1, "start_group", lambda number=number: Mock(rank=number, size=2))
        search = SearchR3.from_base(recipe.model.base, max_length=96)
        Stage1Trainer(search, None, toy, recipe, tmp_path, None)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


class Evaluated(DevEvaluation):
    """What evaluates, of a trainer."""

    best_of = ("direct",)
    think_on_dev = True

    def __init__(self, group: Group, dev: Any, search: SearchR3, recipe: Recipe):
        self.group, self.dev, self.search, self.recipe = group, dev, search, recipe
        self.model = search.model
        self.callback_handler = Mock()
        self.args = self.state = self.control = Mock()

    def search_model(self) -> SearchR3:
        return self.search

    def log(self, *_: Any) -> None: ...


def test_all_processes_go_by_the_dev_figures_of_the_first(
    on_ranks: Callable[..., Any], tiny_model: Path, toy_recipe: MakeRecipe
) -> None:
    """They may differ in rounding, but not in which checkpoint is best or when to stop."""
    recipe, search = toy_recipe(), SearchR3(tiny_model)

    def work(group: Group) -> dict[str, float]:
        dev = Mock(score=lambda *_: {"direct": 0.5 + group.rank})
        return Evaluated(group, dev, search, recipe).evaluate()

    assert on_ranks(2, work) == [{"eval_direct": 0.5, BEST: 0.5}] * 2


def test_each_process_encodes_and_thinks_for_its_part_of_dev(
    on_ranks: Callable[..., Any], tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    recipe, dev, rows = toy_recipe(), DevSet.of(toy, 8, 40), [0, 0, 0]

    def counted(place: int) -> SearchR3:
        def count(module: Any, hidden: tuple[Tensor, ...]) -> None:
            rows[place] += len(hidden[0])

        search = SearchR3(tiny_model)
        backbone(search.model).layers[0].register_forward_pre_hook(count)
        return search

    searches = [counted(place) for place in range(3)]
    alone = Evaluated(ALONE, dev, searches[2], recipe).evaluate()
    found = on_ranks(2, lambda group: Evaluated(group, dev, searches[group.rank], recipe).evaluate())
    assert found[0] == found[1] == pytest.approx(alone, abs=1e-6)
    assert max(rows[:2]) < 0.6 * rows[2]
