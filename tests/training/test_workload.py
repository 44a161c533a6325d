"""Tokens of a run before it runs, held against those that the trainers pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.embedding import backbone
from searchr3.environment import CorpusEnvironment, Full
from searchr3.model import SearchR3
from searchr3.training import stage1
from searchr3.training.estimate import Shape
from searchr3.training.forward import Item, Outputs
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer
from searchr3.training.stage2 import Stage2Trainer
from searchr3.training.workload import (
    Lengths,
    measuring_work,
    refreshed,
    stage1_passes,
    stage1_work,
    stage2_passes,
    stage2_work,
)

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def search(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model, dtype="float32")


@pytest.mark.parametrize("cached", [(), ("stage1.micro_tokens=200",)], ids=["kept", "cached"])
def test_stage_1_passes_as_many_tokens_as_were_counted(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: tuple[str, ...],
) -> None:
    recipe = toy_recipe(
        "stage1.steps=8", "stage1.evaluate_every=8", "stage1.batch_size=16", "stage1.kl=0", *cached
    )
    learnt = read = spoken = 0
    longest = 0
    real = stage1.run

    def spy(model: Any, items: list[Item], pad_id: int, speak: Any = None) -> Outputs:
        nonlocal learnt, read, spoken, longest
        outputs = real(model, items, pad_id, speak)
        tokens = sum(len(item.ids) for item in items)
        if outputs.vectors.requires_grad:
            learnt, spoken = learnt + tokens, spoken + len(outputs.labels)
            longest = max(longest, len(items) * max(len(item.ids) for item in items))
        else:
            read += tokens
        return outputs

    monkeypatch.setattr(stage1, "run", spy)
    Stage1Trainer(search, None, toy, recipe, tmp_path, None).train()

    lengths = Lengths.measured(toy, search.conversation, recipe)
    work = stage1_work(toy, search.conversation, recipe, lengths, 1)
    passes = stage1_passes(recipe, lengths, Shape.of(search.model.config), 1)
    assert work.learnt == pytest.approx(learnt, rel=0.1)
    assert work.spoken == pytest.approx(spoken, rel=0.1)
    assert bool(read) == bool(cached)
    if cached:
        assert work.read - work.learnt == pytest.approx(
            8 * 16 * 0.4 * lengths.prompt, rel=0.3
        )  # its own samples
        assert work.learnt == pytest.approx(read, rel=0.1)
        assert longest <= passes.learnt == 200


@pytest.mark.parametrize("term", [(), ("stage2.contrastive=0.5", "stage2.contrastive_pairs=4")])
def test_stage_2_learns_from_as_many_tokens_as_were_counted(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    term: tuple[str, ...],
) -> None:
    keys = ("stage2.queries=4", "stage2.accumulation=2", "stage2.contrastive_negatives=0")
    recipe = toy_recipe(*keys, *term)
    corpus = {key: document.content for key, document in toy.training_corpus().items()}
    environment = CorpusEnvironment(corpus, search.encode_document, Full(), 20, 0.3)
    trainer = Stage2Trainer(search, environment, toy, recipe, tmp_path)
    passed: list[int] = []

    def count(module: Any, args: Any, named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            passed.append(named["input_ids"].numel())

    backbone(trainer.model).register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()

    lengths = Lengths.measured(toy, search.conversation, recipe)
    work = stage2_work(recipe, lengths, len(corpus))
    assert work.learnt == pytest.approx(sum(passed), rel=0.15)  # padding is counted here
    passes = stage2_passes(recipe, lengths, Shape.of(search.model.config), 1)
    micro_batches = 2 * recipe.stage2.steps
    assert sum(passed) / micro_batches <= 1.1 * passes.learnt
    assert (len(passed) > micro_batches) == bool(passes.vectors) == bool(term)


@pytest.mark.parametrize(
    ("keys", "prompts", "wholes"),
    [
        ((), 32, 32),  # each rollout is read before it thinks, and for its vector
        (("reads_once",), 4, 0),
        (("reads_once", "stage2.beta=0.1"), 4, 32),
        (("reads_once", "stage2.generation={engine: vllm}"), 0, 64),
        (("stage2.generation={engine: vllm, correct: false}",), 0, 32),
    ],
)
def test_what_is_read_hangs_on_who_generates(
    toy_recipe: MakeRecipe, keys: tuple[str, ...], prompts: int, wholes: int
) -> None:
    recipe = toy_recipe(
        *("stage2.queries=4", "stage2.rollouts=8", "stage2.environment.policy=frozen", "stage2.steps=2"),
        *(key for key in keys if key != "reads_once"),
    )
    lengths = Lengths(direct=7, prompt=11, document=0, thought=5, longest_prompt=11, longest_document=0)
    found = stage2_work(recipe, lengths, 100, "reads_once" in keys)
    assert found.read == 2 * (11 * prompts + 17 * wholes + 7 * 4)


def test_lengths_are_those_of_the_conversations(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    recipe, chat = toy_recipe(), search.conversation
    found = Lengths.measured(toy, chat, recipe)
    corpus = [len(one.ids) for one in chat.documents([one.content for one in toy.training_corpus().values()])]
    assert found.document == pytest.approx(sum(corpus) / len(corpus))
    assert found.longest_document == max(corpus)
    assert found.prompt <= found.longest_prompt <= recipe.model.max_length
    bare = Lengths.measured(toy.without_reasoning(), chat, recipe)
    assert bare.thought == recipe.model.max_new_tokens  # nobody knows better


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("budget=0.1", 100),
        ("budget=30", 30),
        ("budget=5000", 1000),
        ("policy=frozen", 0),
        ("policy=full", 1000),
    ],
)
def test_what_a_generation_encodes_again(toy_recipe: MakeRecipe, keys: str, expected: float) -> None:
    assert refreshed(toy_recipe(f"stage2.environment.{keys}"), 1000) == expected


def test_a_stage_that_is_skipped_costs_nothing(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    recipe = toy_recipe("stage1.steps=0", "stage2.steps=0")
    lengths, chat = Lengths.assumed(recipe), search.conversation
    assert isinstance(chat, Conversation)
    assert stage1_work(toy, chat, recipe, lengths, 1).learnt == 0
    assert stage2_work(recipe, lengths, 100).learnt == 0
    assert measuring_work(toy, recipe, lengths).read > 0  # base and result are still measured
