"""LoRA: one model whether merged or not, a base that is the model without its adapter, exact gradients."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import add_fused_lm_head

from searchr3.dataset import RetrievalDataset
from searchr3.model import SearchR3
from searchr3.training import stage1, stage2
from searchr3.training.adapter import add_adapter
from searchr3.training.cached import backward
from searchr3.training.checkpoints import StartCounts
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1
from searchr3.training.stage2 import Stage2Trainer, train_stage2

MakeRecipe = Callable[..., Recipe]
LORA = "model.lora={r: 4, dropout: 0.2}"
FAST = ("stage1.learning_rate=0.01", "stage2.learning_rate=0.01", "stage2.warmup_share=0")
TEXTS = ["parse the date", "x", "count the words of every line in the file", "def merge(a, b): ..."]


@pytest.fixture
def search(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model, dtype="float32")


@pytest.fixture
def no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 2 keeps what it learnt, better or worse."""
    monkeypatch.setattr(StartCounts, "on_train_begin", lambda *_, **__: None)


def trained_rows(search: SearchR3, dataset: RetrievalDataset, recipe: Recipe) -> None:
    """An adapter that does something, the token's rows included."""
    add_adapter(search, recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in search.model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


def said(search: SearchR3) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Greedy thoughts, and the vectors of documents, direct queries and queries after thinking."""
    thoughts = search.generate(TEXTS, max_new_tokens=6)
    vectors = [
        search.encode_document(TEXTS),
        search.encode_query(TEXTS),
        search.encode_query(TEXTS, thoughts),
    ]
    return [one.token_ids for one in thoughts], np.concatenate(vectors)


def ends(search: SearchR3) -> Tensor:
    return search.model.get_input_embeddings().weight.detach().clone()


# Merged or not


@pytest.mark.usefixtures("no_way_back")
def test_a_trained_adapter_is_one_model_merged_or_not(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """After each stage, in the order of a run: the second begins from the merged model of the first."""
    recipe = toy_recipe(LORA, *FAST, "stage2.contrastive=1")
    before, rows = said(search), ends(search)
    for stage in ("stage1", "stage2"):
        if stage == "stage1":
            train_stage1(search, toy, recipe, tmp_path / "c1")
        else:
            train_stage2(search, toy, recipe, tmp_path / "c2")
        trained = said(search)
        search.save_pretrained(tmp_path / stage)
        again = said(search)  # saving leaves it as it was
        search.reload(tmp_path / stage)

        merged = said(search)
        assert trained[0] == again[0] == merged[0]
        np.testing.assert_allclose(trained[1], again[1], atol=1e-6)
        np.testing.assert_allclose(trained[1], merged[1], atol=1e-5)
        assert not hasattr(search.model, "peft_config")
        assert np.abs(trained[1] - before[1]).max() > 0.01
        changed = (ends(search) != rows).any(dim=1).nonzero().flatten().tolist()
        assert changed == [search.conversation.embed_id]
        before, rows = merged, ends(search)


# The base


@pytest.mark.parametrize("tokens", ["null", "300"])
def test_a_step_without_its_adapter_is_a_step_with_a_second_model(
    tokens: str,
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole trajectory of stage 1, with dropout and the gradient cache."""

    class TwoModels(Stage1Trainer):
        def __init__(self, search: SearchR3, base: None, *rest: Any) -> None:
            second = copy.deepcopy(search.model).unload().eval().requires_grad_(False)
            super().__init__(search, second, *rest)

    recipe = toy_recipe(LORA, *FAST, "stage1.kl=0.5", "stage1.steps=3", f"stage1.micro_tokens={tokens}")
    found = []
    for trainer in (Stage1Trainer, TwoModels):
        monkeypatch.setattr(stage1, "Stage1Trainer", trainer)
        search = SearchR3(tiny_model, dtype="float32")
        curve = train_stage1(search, toy, recipe, tmp_path / trainer.__name__)
        found.append(([row["kl"] for row in curve], search.model.state_dict()))

    (one, weights), (two, others) = found
    assert one == pytest.approx(two, abs=1e-6)
    assert one[0] == pytest.approx(0, abs=0.05) and one[-1] > 1e-3
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.usefixtures("no_way_back")
@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained before"])
def test_the_reference_of_grpo_is_the_adapter_as_it_was(
    trained: bool,
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole trajectory of stage 2, against one whose reference is a model of its own."""

    class TwoModels(Stage2Trainer):
        def __init__(self, search: SearchR3, *rest: Any) -> None:
            second = copy.deepcopy(search.model).merge_and_unload().eval().requires_grad_(False)
            super().__init__(search, *rest)
            add_fused_lm_head(second, temperature=self.temperature)  # as TRL does to a reference of its own
            self.ref_model = second

    recipe = toy_recipe("model.lora={r: 4}", *FAST, "stage2.beta=0.5", "stage2.steps=3")
    found = []
    for trainer in (Stage2Trainer, TwoModels):
        monkeypatch.setattr(stage2, "Stage2Trainer", trainer)
        search = SearchR3(tiny_model, dtype="float32")
        if trained:
            trained_rows(search, toy, recipe)
        curve = train_stage2(search, toy, recipe, tmp_path / trainer.__name__)
        weights = {name: one for name, one in search.model.state_dict().items() if "default" in name}
        found.append(([row["kl"] for row in curve if "kl" in row], weights))

    (one, weights), (two, others) = found
    assert one == pytest.approx(two, abs=1e-5)
    assert one[0] == pytest.approx(0, abs=1e-6) and one[-1] > 1e-4
    assert weights
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-4, rtol=1e-3, msg=name)


# Gradients


def gradients(trainer: Stage1Trainer, seed: int = 0) -> dict[str, Tensor]:
    """Of one step on eight pairs."""
    trainer.model.zero_grad()
    torch.manual_seed(seed)
    trainer.training_step(trainer.model, {"pairs": torch.stack([trainer.pairs[row] for row in range(8)])})
    learning = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    return {name: one.grad.clone() for name, one in learning.items() if one.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cache_repeats_the_dropout_of_its_first_pass(
    precision: str,
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same passes, once with their graphs kept and once run twice."""
    recipe = toy_recipe(
        *("model.lora={r: 4, dropout: 0.4}", f"model.precision={precision}", "stage1.kl=0.5"),
        *("stage1.own_samples=0", "stage1.micro_tokens=200"),
    )
    trained_rows(search, toy, recipe)
    trainer = Stage1Trainer(search, None, toy, recipe, tmp_path, None)
    passes: list[int] = []

    def kept(chunks: Any, *rest: Any) -> float:
        passes.append(len(chunks))
        *losses, cache, autocast = rest
        assert cache
        return backward(chunks, *losses, False, autocast)

    cached, another = gradients(trainer), gradients(trainer, seed=1)
    monkeypatch.setattr(stage1, "backward", kept)
    whole = gradients(trainer)

    assert passes[0] > 2
    assert cached.keys() == whole.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(cached[name], grad, atol=1e-5, rtol=1e-3, msg=name)
    assert max((another[name] - grad).abs().max() for name, grad in whole.items()) > 0.01
