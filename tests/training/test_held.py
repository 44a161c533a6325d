"""Linear layers held in bf16 under an adapter: no bit of a pass changes, and what is saved loses nothing."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.errors import RecipeError
from searchr3.evaluation.chat import still_chats
from searchr3.group import ALONE
from searchr3.model import SearchR3
from searchr3.progress import Screen
from searchr3.runs.pipeline import RunFolder
from searchr3.training.adapter import add_adapter
from searchr3.training.checkpoints import StartCounts
from searchr3.training.precision import held
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1
from searchr3.training.stage2 import train_stage2
from searchr3.training.weights import merged_weights

MakeRecipe = Callable[..., Recipe]
BF16 = torch.bfloat16
LORA = ("model.lora={r: 4}", "model.precision=bf16")
FEW = ("data.dev_queries=4", "data.dev_documents=10", "stage1.batch_size=4", "stage1.chat_prompts=1")
FAST = ("stage1.learning_rate=0.01", "stage2.learning_rate=0.01", "stage2.warmup_share=0")
TEXTS = ["parse the date", "x", "count the words of every line in the file"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def published(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: Any) -> Path:
    """Folder of a base with the embed token, saved in bf16; its head is the embedding, or its own."""
    search = SearchR3.from_base(tiny_base, max_length=96)
    if not request.param:
        model = search.model
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(1).clone())
    search.model.to(BF16)
    folder = tmp_path_factory.mktemp("published") / "base"
    search.save_pretrained(folder)
    return folder


def both(folder: Path) -> tuple[SearchR3, SearchR3]:
    """A model whose linear layers are held in bf16, and one that is float32, for passes in bf16."""
    ours, plain = SearchR3(folder, products=BF16), SearchR3(folder, dtype="float32")
    plain.autocast = BF16
    return ours, plain


def learning(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def with_adapters(folder: Path, recipe: Recipe) -> tuple[SearchR3, SearchR3]:
    """`both` with one adapter, which does something."""
    pair = both(folder)
    for one in pair:
        add_adapter(one, recipe)
    torch.manual_seed(0)
    other = learning(pair[1].model)
    with torch.no_grad():
        for name, weight in learning(pair[0].model).items():
            other[name].copy_(weight.add_(0.1 * torch.randn(weight.shape)))
    return pair


def vectors(search: SearchR3) -> np.ndarray:
    return np.concatenate([search.encode_document(TEXTS), search.encode_query(TEXTS)])


def numbers(folder: Path) -> dict[str, Tensor]:
    return SearchR3(folder, dtype="float32").model.state_dict()


# Passes


def test_passes_are_those_of_float32_weights_to_the_last_bit(published: Path) -> None:
    ours, plain = both(published)
    types = {name: weight.dtype for name, weight in ours.model.named_parameters()}
    tied = "lm_head.weight" not in types
    assert {name for name, kind in types.items() if kind is BF16} == {
        name for name in types if "proj" in name or name == "lm_head.weight"
    }
    assert types["model.embed_tokens.weight"] is types["model.norm.weight"] is torch.float32
    assert tied == ours.model.config.tie_word_embeddings

    assert np.array_equal(vectors(ours), vectors(plain))
    assert ours.generate(TEXTS, max_new_tokens=5) == plain.generate(TEXTS, max_new_tokens=5)


def test_gradients_of_stage_1_are_those_of_float32_weights(
    published: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """With the adapter's base as the anchor of the KL, cached gradients and checkpointing."""
    keys = ("stage1.kl=0.5", "stage1.micro_tokens=120", "stage1.own_samples=0")
    recipe = toy_recipe(*LORA, *FEW, *keys, "model.gradient_checkpointing=true")
    found = []
    for search in with_adapters(published, recipe):
        trainer = Stage1Trainer(search, None, toy, recipe, tmp_path, None)
        torch.manual_seed(0)
        pairs = torch.stack([trainer.pairs[row] for row in range(4)])
        loss = trainer.training_step(trainer.model, {"pairs": pairs})
        found.append((loss, {name: one.grad for name, one in learning(trainer.model).items()}))
    (ours, of_ours), (plain, of_plain) = found
    assert torch.equal(ours, plain)
    assert all(weight.dtype is torch.float32 for weight in of_ours.values() if weight is not None)
    for name, gradient in of_plain.items():
        assert torch.equal(of_ours[name], gradient), name
    assert sum(gradient.abs().max() > 0 for gradient in of_ours.values()) == len(of_ours)


# Saved


@pytest.mark.parametrize("rounded", [False, True], ids=["bf16", "float32"])
def test_what_is_saved_is_as_if_all_had_been_float32(
    rounded: bool, published: Path, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Also of weights that bf16 does not hold; merged it gives the vectors of model and adapter."""
    folder = published
    if rounded:
        search = SearchR3(published, dtype="float32")
        with torch.no_grad():
            for weight in search.model.parameters():
                weight *= 1 + 2**-10
        folder = tmp_path / "float32"
        search.save_pretrained(folder)
    ours, plain = with_adapters(folder, toy_recipe(*LORA))
    trained = vectors(ours)
    for search, name in ((ours, "ours"), (plain, "plain")):
        search.save_pretrained(tmp_path / name)

    saved, expected = numbers(tmp_path / "ours"), numbers(tmp_path / "plain")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in expected.items())
    assert np.array_equal(vectors(ours), trained)  # saving leaves it as it was

    plain.autocast = None
    merged = vectors(SearchR3(tmp_path / "ours", dtype="float32"))
    np.testing.assert_allclose(vectors(plain), merged, atol=1e-5)
    ours.reload(tmp_path / "ours")
    assert (vectors(ours) * trained).sum(axis=1).min() > 0.999  # what bf16 itself costs
    ours.save_pretrained(tmp_path / "again")
    assert all(torch.equal(numbers(tmp_path / "again")[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_resumed_stage_is_the_stage_without_interruption(
    stage: str,
    published: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit; and what trained is let go of before another model comes."""
    monkeypatch.setattr(StartCounts, "on_train_begin", lambda *_, **__: None)  # what was learnt is kept
    keys = (
        "stage1.steps=3",
        "stage2.steps=3",
        "stage2.rollouts=2",
        "stage2.beta=0.1",
        "stage2.contrastive=1",
    )
    recipe = toy_recipe(*LORA, *FEW, *FAST, *keys, "stage1.own_samples=0", "stage1.noisy_traces=0")
    work = {"stage1": train_stage1, "stage2": train_stage2}[stage]

    def train(folder: str, tell: Any = None) -> SearchR3:
        search = SearchR3(published, products=BF16)
        work(search, toy, recipe, tmp_path / folder, tell=tell)
        return search

    def stop(news: dict[str, Any]) -> None:
        if news["step"] == 3:
            raise KeyboardInterrupt

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("halves", stop)
    resumed = train("halves")

    expected = learning(whole.model)
    for name, weight in learning(resumed.model).items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, expected[name]), name
    resumed.save_pretrained(tmp_path / "saved")
    before = numbers(published)
    moved = {
        name for name, weight in numbers(tmp_path / "saved").items() if not torch.equal(weight, before[name])
    }
    assert "model.embed_tokens.weight" in moved and any("q_proj" in name for name in moved)

    held_once = weakref.ref(next(whole.model.parameters()))
    del expected
    whole.reload(published)
    assert held_once() is None


# A run


def test_only_frozen_layers_under_bf16_are_held(
    published: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    assert held(toy_recipe(*LORA)) is BF16
    assert held(toy_recipe(*LORA), dealt=True) is None
    assert held(toy_recipe(LORA[0])) is held(toy_recipe(LORA[1])) is None
    for keys in (LORA[:1], LORA[1:]):
        with pytest.raises(RecipeError, match=r"loaded with products=, .*; load it without"):
            train_stage1(SearchR3(published, products=BF16), toy, toy_recipe(*keys), tmp_path)


def test_a_run_holds_its_models_so_and_saves_them_whole(
    published: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy.save(tmp_path / "toy")
    recipe = toy_recipe(*LORA, *FEW, f"data.source={tmp_path / 'toy'}", f"model.base={published}")
    folder = RunFolder(tmp_path / "run", recipe, Screen(silent=True), ALONE)
    _, model = folder.begin()
    base = SearchR3(tmp_path / "run" / "base")
    assert {weight.dtype for weight in base.model.parameters()} == {BF16}  # as it was published
    assert {weight.dtype for weight in model.model.parameters()} == {BF16, torch.float32}

    folder.learn("stage1", model, lambda _: [])
    expected = vectors(model)
    saved = SearchR3(tmp_path / "run" / "stage1")
    assert {weight.dtype for weight in saved.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.model.parameters()} == {BF16, torch.float32}
    saved.autocast = BF16
    assert np.array_equal(vectors(saved), expected)

    chat = still_chats(model, tmp_path / "run" / "base", 2)
    assert chat["kl_base_trained"] == 0 and chat["same_token"] == 1

    monkeypatch.setattr("searchr3.training.parallel.deals_weights", lambda environment: True)
    _, dealt = folder.begin()
    assert {weight.dtype for weight in dealt.model.parameters()} == {torch.float32}


def test_vllm_gets_the_weights_of_float32(published: Path, toy_recipe: MakeRecipe) -> None:
    ours, plain = (
        dict(merged_weights(one.model, Accelerator(cpu=True)))
        for one in with_adapters(published, toy_recipe(*LORA))
    )
    assert ours.keys() == plain.keys()
    assert all(ours[name].dtype is torch.float32 and torch.equal(ours[name], plain[name]) for name in plain)
