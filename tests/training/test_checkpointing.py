"""Gradient checkpointing: the same step, with every layer computed twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from searchr3.dataset import RetrievalDataset
from searchr3.embedding import backbone
from searchr3.environment import CorpusEnvironment, Full
from searchr3.model import SearchR3
from searchr3.training.adapter import add_adapter
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer
from searchr3.training.stage2 import Stage2Trainer

MakeRecipe = Callable[..., Recipe]
ON = "model.gradient_checkpointing=true"
LORA = "model.lora={r: 4, dropout: 0.3}"
STEPS = ["stage1.steps=1", "stage1.evaluate_every=1", "stage2.steps=1", "stage2.evaluate_every=1"]
Learn = Callable[..., tuple[dict[str, Tensor], int, int]]


class Counted:
    """Counts the calls of a layer's attention with and without a graph."""

    def __init__(self, model: Any):
        self.with_graph = self.without = 0
        backbone(model).layers[0].self_attn.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.with_graph += 1
        else:
            self.without += 1


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to be given."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        named = model.named_parameters()
        self.found = {name: one.grad.clone() for name, one in named if one.grad is not None}


@pytest.fixture
def learn(tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path) -> Learn:
    """Trains a step of a stage; its gradients and the counted calls."""

    def of(stage: str, *overrides: str) -> tuple[dict[str, Tensor], int, int]:
        recipe = toy_recipe(*STEPS, *overrides)
        search = SearchR3(tiny_model, dtype="float32")
        torch.manual_seed(0)
        if recipe.model.lora:
            add_adapter(search, recipe)
        folder = tmp_path / f"{stage}-{recipe.model.gradient_checkpointing}"
        if stage == "stage1":
            trainer: Any = Stage1Trainer(search, None, toy, recipe, folder, None)
        else:
            corpus = {key: document.content for key, document in toy.training_corpus().items()}
            environment = CorpusEnvironment(corpus, search.encode_document, Full(), 20, 0.3)
            trainer = Stage2Trainer(search, environment, toy, recipe, folder)
        trainer.args.load_best_model_at_end = False
        calls = Counted(trainer.model)
        torch.manual_seed(1)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        return gradients.found, calls.with_graph, calls.without

    return of


@pytest.mark.parametrize("lora", [(), (LORA,)], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("stage1", ("stage1.kl=0",)),
        ("stage1", ("stage1.kl=0", "stage1.micro_tokens=200")),  # with cached gradients
        ("stage2", ("stage2.contrastive=0.5", "stage2.accumulation=2")),
    ],
)
def test_the_gradients_are_the_same_and_each_layer_is_computed_again(
    learn: Learn, stage: str, keys: tuple[str, ...], lora: tuple[str, ...]
) -> None:
    """Dropout is repeated as well: in the second pass of cached gradients, and in the backward pass."""
    plain, calls, encodings = learn(stage, *keys, *lora)
    again, more, others = learn(stage, *keys, *lora, ON)

    assert calls and (more, others) == (2 * calls, encodings)
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 0.01
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-3)


def test_generation_and_encoding_keep_their_cache(tiny_model: Path) -> None:
    """What is only read is not computed again, and a checkpointed model speaks as before."""
    search = SearchR3(tiny_model)
    said, vectors = search.generate(["sort the list"], 8), search.encode_query(["sort the list"])
    search.model.activation_checkpointing_enable()
    search.model.train()
    calls = Counted(search.model)

    assert search.generate(["sort the list"], 8) == said
    assert len(said[0].token_ids) + 1 >= calls.without > 1
    assert search.encode_query(["sort the list"]) == pytest.approx(vectors)
    assert not calls.with_graph and search.model.training
