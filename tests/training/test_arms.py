"""The arms: what each leaves out is really off, and (a) learns from as many tokens as stage 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from searchr3.dataset import RetrievalDataset
from searchr3.model import SearchR3
from searchr3.training import stage2
from searchr3.training.arms import (
    DIRECT_ONLY,
    NO_CONTRASTIVE,
    NO_POLICY,
    best_dev,
    direct_only,
    direct_only_arms,
    direct_only_data,
    gradient_tokens,
    stage2_arms,
    steps_for,
)
from searchr3.training.recipe import OptimizerRecipe, Recipe
from searchr3.training.stage1 import train_stage1
from searchr3.training.stage2 import Stage2Trainer, train_stage2

MakeRecipe = Callable[..., Recipe]
SHORT = (
    "stage2.contrastive=0.5",
    "stage2.steps=1",
    "stage2.evaluate_every=1",
    "data.dev_queries=2",
    "stage2.warmup_share=0",
)


@pytest.fixture
def model(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model, dtype="float32")


def learnt(tiny_model: Path, toy: RetrievalDataset, recipe: Recipe, folder: Path) -> torch.Tensor:
    """All weights after a stage 2 whose last step counts, whatever dev says."""
    search = SearchR3(tiny_model, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage2Trainer, "_load_best_model", lambda self: None)
        train_stage2(search, toy, recipe, folder)
    return torch.cat([one.flatten() for one in search.model.state_dict().values()])


# What they are


def test_arms_of_stage_2_leave_out_one_loss_each(toy_recipe: MakeRecipe) -> None:
    recipe = toy_recipe(*SHORT)
    arms = stage2_arms(recipe)
    assert list(arms) == [NO_POLICY, NO_CONTRASTIVE]
    for arm, key in ((arms[NO_POLICY], "policy_gradient"), (arms[NO_CONTRASTIVE], "contrastive")):
        changed = {k for k, v in arm.stage2 if v != getattr(recipe.stage2, k)}
        assert (changed, getattr(arm.stage2, key)) == ({key}, 0)
        assert arm.stage1 == recipe.stage1


@pytest.mark.parametrize("off", ["stage2.policy_gradient=0", "stage2.contrastive=0"])
def test_an_arm_that_would_teach_nothing_new_is_left_out(toy_recipe: MakeRecipe, off: str) -> None:
    assert stage2_arms(toy_recipe(*SHORT, off)) == {}


def test_direct_only_learns_as_stage_2_does_from_what_stage_2_has(
    toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    schedule = ("stage2.schedule=cosine", "stage2.learning_rate=0.002", "stage2.warmup_share=0.3")
    looks = ("stage2.steps=40", "stage2.evaluate_every=10", "stage2.patience=1")
    recipe = toy_recipe(*schedule, *looks)

    arm, data = direct_only(recipe, 100), direct_only_data(toy)

    for name in OptimizerRecipe.model_fields:
        assert getattr(arm.stage1, name) == getattr(recipe.stage2, name)
    assert (arm.stage1.steps, arm.stage1.evaluate_every, arm.stage1.patience) == (100, 25, None)
    assert (arm.stage1.batch_size, arm.stage1.info_nce) == (8, recipe.stage1.info_nce)
    assert data.qrels["stage1"] == toy.qrels["stage2"]
    assert {key: data.qrels[key] for key in ("dev", "test")} == {
        key: toy.qrels[key] for key in ("dev", "test")
    }
    assert not any(query.reasoning for query in data.queries.values())


def test_direct_only_is_also_tried_at_the_rate_of_stage_1(toy_recipe: MakeRecipe) -> None:
    rates = ("stage1.learning_rate=0.01", "stage2.learning_rate=0.002", "stage2.schedule=cosine")
    recipe = toy_recipe(*rates)
    arms = direct_only_arms(recipe, 7)
    assert [one.stage1.learning_rate for one in arms.values()] == [0.002, 0.01]
    slow, fast = arms.values()
    assert slow == direct_only(recipe, 7) == direct_only_arms(recipe, 7, both_rates=False)[DIRECT_ONLY]
    assert {key for key, value in fast.stage1 if value != getattr(slow.stage1, key)} == {"learning_rate"}
    assert [*direct_only_arms(toy_recipe("stage1.learning_rate=0.002", *rates[1:]), 7)] == [DIRECT_ONLY]


def test_the_dev_score_of_an_arm_is_that_of_what_it_kept() -> None:
    assert best_dev([{"step": 0, "eval_direct": 0.4}, {"step": 2, "eval_direct": 0.3}, {"loss": 1.0}]) == 0.4
    assert best_dev([{"loss": 1.0}]) == 0.0


# What they learn


def test_direct_only_learns_by_info_nce_alone_from_as_many_tokens(
    model: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = toy_recipe("stage2.contrastive=0.5", "stage2.steps=2", "data.dev_queries=2")
    tokens = gradient_tokens(train_stage2(model, toy, recipe, tmp_path / "stage2"))
    data = direct_only_data(toy)
    steps = steps_for(tokens, data, model.conversation, direct_only(recipe, 1))

    curve = train_stage1(model, data, direct_only(recipe, steps), tmp_path / "direct_only", start_counts=True)

    rows = [row for row in curve if "loss" in row]
    assert len(rows) == steps > 1
    assert abs(gradient_tokens(curve) - tokens) <= gradient_tokens(curve) / steps
    for row in rows:
        assert row["loss"] == pytest.approx(row["info_nce"], rel=1e-4)
    assert abs(steps_for(3 * tokens, data, model.conversation, direct_only(recipe, 1)) - 3 * steps) <= 2


def test_without_the_policy_gradient_the_reward_teaches_nothing(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    another = ("stage2.reward={ndcg: 0, format: 0, length: 1}", "stage2.scale_rewards=batch")
    full, other_full = (toy_recipe(*SHORT, *more) for more in ((), another))
    a, b, c = (
        learnt(tiny_model, toy, recipe, tmp_path / str(number))
        for number, recipe in enumerate(
            [full, stage2_arms(full)[NO_POLICY], stage2_arms(other_full)[NO_POLICY]]
        )
    )
    assert torch.equal(b, c)
    assert not torch.equal(a, b)


def test_without_the_contrastive_term_its_settings_teach_nothing(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    full, other = (toy_recipe(*SHORT, f"stage2.contrastive_temperature={t}") for t in (0.05, 1.0))
    a, b, c = (
        learnt(tiny_model, toy, recipe, tmp_path / str(number))
        for number, recipe in enumerate([full, *(stage2_arms(one)[NO_CONTRASTIVE] for one in (full, other))])
    )
    assert torch.equal(b, c)
    assert not torch.equal(a, b)


def test_direct_only_is_never_worse_on_dev_than_its_start(
    model: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    before = {name: one.clone() for name, one in model.model.state_dict().items()}
    ruinous = direct_only(toy_recipe("stage2.learning_rate=50", "stage2.warmup_share=0"), 2)

    curve = train_stage1(model, direct_only_data(toy), ruinous, tmp_path, start_counts=True)

    dev = {row["step"]: row["eval_direct"] for row in curve if "eval_direct" in row}
    assert dev[0] > dev[2]
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Tokens


def test_gradient_tokens_of_stage_2_are_those_of_rollouts_and_contrastive_texts(
    model: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path, monkeypatch: Any
) -> None:
    seen = 0
    real = Stage2Trainer._reward

    def reward(self: Stage2Trainer, prompts: Any, completion_ids: Any, query_id: Any, **rest: Any) -> Any:
        nonlocal seen
        found = real(self, prompts, completion_ids, query_id, **rest)
        asked = self.conversation.reasoning_prompts(prompts, self.dataset.instruction)
        seen += sum(map(len, asked)) + sum(map(len, completion_ids))
        seen += sum(len(text.ids) for text in self._term.texts)
        return found

    monkeypatch.setattr(stage2.Stage2Trainer, "_reward", reward)
    parts = ("stage2.accumulation=2", "stage2.updates=2", "stage2.steps=4", "stage2.evaluate_every=4")
    recipe = toy_recipe("stage2.contrastive=0.5", "stage2.log_every=3", "data.dev_queries=2", *parts)

    curve = train_stage2(model, toy, recipe, tmp_path)

    assert gradient_tokens(curve) == seen > 0
    counts = [row["gradient_tokens"] for row in curve]
    assert counts == sorted(counts) and counts[0] == 0
