"""Stage 2: rewards through the rollouts' own vectors, exact steps whatever the micro-batches, resuming."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.embedding import embed
from searchr3.environment import CorpusEnvironment, Full
from searchr3.errors import DataError, RecipeError
from searchr3.generation import Reasoning, pad_ids
from searchr3.losses import allowed_negatives, info_nce
from searchr3.model import SearchR3
from searchr3.training import stage2
from searchr3.training.checkpoints import BEST, StartCounts
from searchr3.training.common import check_data, relevant_documents
from searchr3.training.contrastive import ContrastiveTerm
from searchr3.training.dev import DevSet
from searchr3.training.groups import Rollouts
from searchr3.training.one_pass import OnePass
from searchr3.training.recipe import Recipe
from searchr3.training.stage2 import Stage2Trainer, train_stage2

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., tuple[SearchR3, Stage2Trainer, list[dict[str, float]]]]


@pytest.fixture
def train(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path, monkeypatch: Any
) -> Train:
    """Trains stage 2 in a folder of its own; returns model, trainer and the curve from step 1 on."""
    trainers: list[Stage2Trainer] = []

    class Remembered(Stage2Trainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            trainers.append(self)

    monkeypatch.setattr(stage2, "Stage2Trainer", Remembered)

    def run(
        *overrides: str, folder: str = "run", dataset: RetrievalDataset = toy, **arguments: Any
    ) -> tuple[SearchR3, Stage2Trainer, list[dict[str, float]]]:
        search = arguments.pop("search", None) or SearchR3(tiny_model, dtype="float32")
        curve = train_stage2(search, dataset, toy_recipe(*overrides), tmp_path / folder, **arguments)
        return search, trainers[-1], [entry for entry in curve if entry["step"]]

    return run


@pytest.fixture
def trainer(tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path) -> Stage2Trainer:
    """A trainer that has not begun, with a corpus that is encoded afresh for every batch."""
    search = SearchR3(tiny_model, dtype="float32")
    corpus = {key: document.content for key, document in toy.training_corpus().items()}
    environment = CorpusEnvironment(corpus, search.encode_document, Full(), candidates=20, temperature=0.3)
    recipe = toy_recipe("stage2.reward.format=0.25", "stage2.contrastive=0.5")
    return Stage2Trainer(search, environment, toy, recipe, tmp_path)


@pytest.fixture
def some_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other rollout ends with the embed token, which an untrained model never says."""
    real = Stage2Trainer._generate_single_turn

    def generate(self: Stage2Trainer, *arguments: Any) -> tuple[list[list[int]], None]:
        completions, logprobs = real(self, *arguments)
        embed = self.conversation.embed_id
        said = [[*ids[: 1 + row % 3], embed] if row % 2 else ids for row, ids in enumerate(completions)]
        return said, logprobs

    monkeypatch.setattr(Stage2Trainer, "_generate_single_turn", generate)


def weights(search: SearchR3) -> dict[str, Tensor]:
    return search.model.state_dict()


def contents(data: RetrievalDataset) -> list[str]:
    return [document.content for document in data.corpus.values()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupting(step: int) -> Callable[[dict[str, Any]], None]:
    def tell(news: dict[str, Any]) -> None:
        if news["step"] == step:
            raise KeyboardInterrupt

    return tell


# Reward


def rewards_of(trainer: Stage2Trainer, queries: list[str], completions: list[list[int]]) -> list[float]:
    texts = [trainer.dataset.queries[key].text for key in queries]
    return trainer._reward(texts, completions, queries)


def test_a_rollout_is_rewarded_by_its_own_vector(trainer: Stage2Trainer, toy: RetrievalDataset) -> None:
    """As the Python API embeds a query after this reasoning; the format reward comes on top where due."""
    chat, search = trainer.conversation, trainer.search_model()
    queries = [key for key in list(trainer.qrels)[:2] for _ in range(4)]
    thoughts = [chat.thought_ids([toy.corpus[f"d{n}"].text[:20]])[0] for n in range(8)]
    said = [row % 2 == 0 for row in range(8)]
    completions = [[*one, chat.embed_id] if yes else one for one, yes in zip(thoughts, said, strict=True)]

    rewards = rewards_of(trainer, queries, completions)

    texts = [toy.queries[key].text for key in queries]
    own = search.encode_query(texts, [Reasoning("", tuple(one), True) for one in thoughts])
    relevant = [trainer.qrels[key] for key in queries]
    ndcg = trainer.environment.score(own, relevant).reward
    expected = ndcg + 0.25 * np.array(said)
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert len(np.unique(ndcg.round(4))) > 4
    assert trainer._parts["emission_rate"] == [0.5]
    assert trainer._parts["thinking_tokens"] == [np.mean([len(one) for one in thoughts])]


def test_the_end_of_the_turn_ends_a_rollout_without_the_token(trainer: Stage2Trainer) -> None:
    chat = trainer.conversation
    key = next(iter(trainer.qrels))
    thought = chat.thought_ids(["parse the date"])[0]
    end = chat.tokenizer.eos_token_id

    cut, forced, said, same_again = rewards_of(
        trainer, [key] * 4, [[*thought, end], thought, [*thought, chat.embed_id], [*thought, end]]
    )

    assert cut == pytest.approx(forced) == pytest.approx(same_again)
    assert said == pytest.approx(cut + 0.25)


def test_the_fixed_answer_and_too_few_words_are_no_thought(trainer: Stage2Trainer) -> None:
    """A policy that learns to say nothing, or what it says without thinking, is not paid for its format."""
    chat = trainer.conversation
    key = next(iter(trainer.qrels))
    fixed = chat.thought_ids(["The embedding is"])[0]
    one = chat.thought_ids(["x"])[0][:1]
    rollouts = [[*ids, chat.embed_id] for ids in (fixed, [*fixed, *one], one, [])]

    def paid(least: int, format: float) -> list[float]:
        reward = trainer.stage.reward.model_copy(update={"least_tokens": least, "format": format})
        trainer.stage = trainer.stage.model_copy(update={"reward": reward})
        return rewards_of(trainer, [key] * 4, rollouts)

    nothing = np.array(paid(0, 0.0))
    for least, expected in ((0, [0, 1, 1, 1]), (1, [0, 1, 1, 0]), (2, [0, 1, 0, 0])):
        np.testing.assert_allclose(paid(least, 1.0) - nothing, expected, atol=1e-5)


def test_the_gain_is_over_the_direct_vectors_of_the_same_queries(trainer: Stage2Trainer) -> None:
    search = trainer.search_model()
    queries = [key for key in list(trainer.qrels)[:2] for _ in range(4)]
    texts = [trainer.dataset.queries[key].text for key in queries[::4]]

    rewards_of(trainer, queries, [[]] * 8)

    relevant = [trainer.qrels[key] for key in queries]
    direct = trainer.environment.score(search.encode_query(texts), relevant[::4]).reward
    own = search.encode_query([texts[0]] * 4 + [texts[1]] * 4, [Reasoning("", (), False)] * 8)
    ndcg = trainer.environment.score(own, relevant).reward
    assert trainer._parts["reward_direct"] == [pytest.approx(direct.mean(), abs=1e-5)]
    assert trainer._parts["reward_gain"] == [pytest.approx(ndcg.mean() - direct.mean(), abs=1e-5)]
    assert trainer._parts["zero_variance_same"] == [1.0]


def test_thoughts_and_direct_vectors_know_the_instruction(trainer: Stage2Trainer) -> None:
    search, key = trainer.search_model(), next(iter(trainer.qrels))
    text = trainer.dataset.queries[key].text
    trainer.dataset = replace(trainer.dataset, instruction="Find code.")
    task = {"instruction": "Find code."}

    rewards_of(trainer, [key] * 4, [[]] * 4)

    assert trainer._tokenize_prompts([text])[0] == trainer.conversation.reasoning_prompts([text], **task)
    relevant = [trainer.qrels[key]]
    direct = trainer.environment.score(search.encode_query([text], **task), relevant).reward[0]
    own = search.encode_query([text], [Reasoning("", (), False)], **task)
    ndcg = trainer.environment.score(own, relevant).reward[0]
    assert trainer._parts["reward_direct"] == [pytest.approx(direct, abs=1e-5)]
    assert trainer._parts["reward_ndcg"] == [pytest.approx(ndcg, abs=1e-5)]


def test_reward_makes_no_difference_to_training_mode(trainer: Stage2Trainer) -> None:
    key = next(iter(trainer.qrels))
    trainer.model.train()

    rewards_of(trainer, [key] * 4, [[trainer.conversation.embed_id]] * 4)

    assert trainer.model.training


def test_contrastive_negatives_are_the_best_wrong_hits_of_each_query(
    trainer: Stage2Trainer, toy: RetrievalDataset
) -> None:
    assert trainer.contrastive
    a, b = list(trainer.qrels)[:2]
    trainer.qrels[a] = {"d140": 1.0, "d141": 2.0}
    ids = trainer.environment.ids
    hits = np.array([[ids.index(key) for key in ("d141", "d140", "d7", "d8")]] * 8)

    rollouts = Rollouts([a] * 4 + [b] * 4, [[]] * 8, [[]] * 8, 4, trainer.conversation)
    negatives = trainer.contrastive.negatives(rollouts, hits)

    assert negatives == ["d7", "d141"]


@pytest.mark.parametrize("documents", ["null", "20"])
def test_audits_come_at_their_steps_and_change_nothing(documents: str, train: Train) -> None:
    plain, _, _ = train("stage2.steps=4", "stage2.evaluate_every=4", folder="plain")
    keys = ("stage2.environment.audit_every=2", f"stage2.environment.audit_documents={documents}")
    audited, _, curve = train("stage2.steps=4", "stage2.evaluate_every=4", *keys, folder="audited")

    rows = {row["step"]: row for row in curve if "audit_drift" in row}
    assert list(rows) == [1, 3]  # of steps 0 and 2: the policy that a step ends is one further
    assert rows[1]["audit_reward_error"] == pytest.approx(0, abs=1e-6)  # nothing had moved yet
    assert rows[3]["audit_drift"] > 0 and 0 <= rows[3]["audit_top10_overlap"] <= 1
    assert same(weights(plain), weights(audited))


@pytest.mark.usefixtures("some_say_it")
def test_more_pairs_take_part_with_their_direct_queries_alone(train: Train) -> None:
    _, trainer, _ = train("stage2.contrastive=0.5", "stage2.contrastive_pairs=6", "stage2.steps=1")

    term = trainer._term
    assert term is not None and trainer.contrastive
    more = trainer.contrastive.more_pairs(0)
    assert len(set(more)) == 6 and set(more) <= set(trainer.qrels)
    chat, data = trainer.conversation, trainer.dataset
    texts = {tuple(one.ids) for one in term.texts}
    for key in more:
        direct = chat.queries([data.queries[key].text])
        positive = chat.documents([data.corpus[trainer.contrastive.best[key]].content])
        assert {tuple(one.ids) for one in (*direct, *positive)} <= texts
    assert len(term.rollouts) <= 4  # those of the batch that emitted the token
    assert term.gradients.abs().sum(dim=1).min() > 0


def test_the_policy_gradient_can_be_left_out(
    train: Train, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StartCounts, "on_train_begin", lambda *_, **__: None)  # which would be kept
    search, _, _ = train("stage2.policy_gradient=0", "stage2.warmup_share=0", "stage2.weight_decay=0")

    assert same(weights(search), weights(SearchR3(tiny_model, dtype="float32")))


# The corpus


def test_held_out_documents_are_not_in_the_corpus(train: Train, toy: RetrievalDataset) -> None:
    held_out = frozenset(list(toy.corpus)[::3])

    _, trainer, _ = train("stage2.steps=1", dataset=replace(toy, held_out=held_out))

    assert not held_out & set(trainer.environment.ids)
    assert not held_out & {one for grades in trainer.qrels.values() for one in grades}
    assert set(trainer.environment.ids) == set(toy.corpus) - held_out
    assert len(trainer.qrels) > 10


def test_queries_without_a_relevant_document_in_the_corpus_are_left_out(toy: RetrievalDataset) -> None:
    first, second, third = list(toy.split("stage2"))[:3]
    judged = {first: {"d1": 0}, second: {"d1": 1, "d2": 3}, third: {"d2": 1}}
    dataset = replace(toy, qrels={"stage2": judged}, held_out=frozenset({"d2"}))

    assert relevant_documents(dataset, "stage2") == {second: {"d1": 1.0}}
    with pytest.raises(DataError, match="'stage2' has no relevant document"):
        relevant_documents(replace(dataset, held_out=frozenset(dataset.corpus)), "stage2")


def test_fewer_queries_than_a_step_wants_are_told_before_training(
    toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    there = len(toy.split("stage2"))

    check_data(toy, toy_recipe(f"stage2.queries={there}"))
    check_data(toy, toy_recipe(f"stage2.queries={there + 1}", "stage2.steps=0"))
    with pytest.raises(RecipeError, match=f"stage2.queries: a step wants {there + 1} queries.* has {there};"):
        check_data(toy, toy_recipe(f"stage2.queries={there + 1}"))


@pytest.mark.parametrize("split", ["stage1", "stage2", "dev", "test"])
def test_a_missing_split_is_told_before_training(
    split: str, toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    less = replace(toy, qrels={name: qrels for name, qrels in toy.qrels.items() if name != split})

    with pytest.raises(DataError, match=f"no split '{split}'"):
        check_data(less, toy_recipe())
    if split.startswith("stage"):
        check_data(less, toy_recipe(f"{split}.steps=0"))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_that_measures_nothing_is_told_before_training(
    split: str, toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    judged = {key: dict.fromkeys(grades, 0) for key, grades in toy.split(split).items()}

    with pytest.raises(DataError, match=f"split '{split}' has no relevant document"):
        check_data(replace(toy, qrels={**toy.qrels, split: judged}), toy_recipe())


@pytest.mark.usefixtures("some_say_it")
@pytest.mark.parametrize(
    ("policy", "newest"),
    [("frozen", 0), ("neighbourhood", 1), ("certified", 1), ("corrector", 1), ("random", 1), ("full", 1)],
)
def test_documents_are_encoded_again_as_the_policy_says(policy: str, newest: int, train: Train) -> None:
    """A frozen corpus stays frozen, with the contrastive term as well."""
    _, trainer, curve = train(f"stage2.environment.policy={policy}", "stage2.contrastive=0.3")

    version = trainer.environment.store.version
    assert version.max() == newest
    assert (version == newest).all() == (policy in ("frozen", "full"))
    assert curve[-1]["environment_mean_age"] == pytest.approx(
        {"frozen": 1, "full": 0}.get(policy, 0.9), abs=0.1
    )
    besides = curve[-1]["contrastive_share_tokens"]  # the term takes no stale vector
    assert {"full": besides == 0, "frozen": besides > 0}.get(policy, 0 <= besides <= 1)


def test_known_vectors_are_taken_over(train: Train, tiny_model: Path, toy: RetrievalDataset) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(toy.corpus), 32)).astype(np.float32)

    _, trainer, _ = train("stage2.environment.policy=frozen", vectors=vectors)

    np.testing.assert_array_equal(trainer.environment.store.vectors, vectors)


# Steps


@pytest.mark.usefixtures("some_say_it")
@pytest.mark.parametrize(
    "overrides",
    [
        ("stage2.contrastive=0",),
        ("stage2.contrastive=0.5", "stage2.contrastive_pairs=5"),
        ("stage2.contrastive=0.5", "stage2.loss_type=grpo", "stage2.beta=0.1"),
        ("stage2.contrastive=0.5", "model.lora={r: 4}"),
    ],
    ids=["policy", "contrastive", "grpo-kl", "lora"],
)
def test_eight_micro_batches_of_one_equal_one_of_eight(
    overrides: tuple[str, ...], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StartCounts, "on_train_begin", lambda *_, **__: None)  # which could be kept in both
    always = ("stage2.warmup_share=0", "stage2.schedule=constant_with_warmup", *overrides)
    one, _, curve = train("stage2.accumulation=1", *always, folder="one")
    eight, trainer, parts = train("stage2.accumulation=8", *always, folder="eight")

    assert trainer.args.per_device_train_batch_size == 1
    assert [entry["reward_ndcg"] for entry in parts] == pytest.approx(
        [entry["reward_ndcg"] for entry in curve], abs=1e-5
    )
    assert [entry["grad_norm"] for entry in parts] == pytest.approx(
        [entry["grad_norm"] for entry in curve], rel=1e-3
    )
    for name, weight in weights(one).items():
        # two steps of Adam move a weight by about 2e-4; where a gradient is next to nothing, rounding decides
        assert (weights(eight)[name] - weight).abs().mean() < 1e-6, name


@pytest.mark.parametrize(("parts", "updates"), [(1, 1), (4, 1), (4, 2)])
def test_gradients_through_the_rollouts_are_those_of_the_plain_loss(
    parts: int, updates: int, trainer: Stage2Trainer, toy: RetrievalDataset
) -> None:
    """Every vector is read where it was read for the reward, in padded micro-batches as TRL makes them.

    Of several updates each gets on average the gradient of the whole.
    """
    trainer.stage = trainer.stage.model_copy(update={"updates": updates})
    chat, pad_id, model = trainer.conversation, trainer.pad_id, trainer.model
    trainer.args.steps_per_generation = parts
    keys = [key for key in list(trainer.qrels)[:2] for _ in range(4)]
    thoughts = chat.thought_ids(
        ["date", "string lazily", "", "list", "file", "file", "parse the date", "load"]
    )
    completions = [[*one, chat.embed_id] for one in thoughts]
    completions[3] = thoughts[3]  # never said: no part in the term
    rewards_of(trainer, keys, completions)
    term = trainer._term
    assert term is not None

    prompts = chat.reasoning_prompts([toy.queries[key].text for key in keys])
    rollouts = [chat.close(prompts[row], thoughts[row]) for row in range(8) if row != 3]
    names = {tuple(one.ids): key for key, one in zip(toy.corpus, chat.documents(contents(toy)), strict=True)}
    documents = [names[tuple(one.ids)] for one in term.texts[2:]]
    allowed = allowed_negatives(documents, [set(trainer.qrels[key]) for key in (keys[0], keys[4])])
    vectors = [embed(model, texts, pad_id) for texts in (rollouts, term.texts[:2], term.texts[2:])]
    positive, query_of = torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    plain = 0.5 * info_nce(vectors[1], vectors[2], positive, 0.05, allowed)
    plain = plain + 0.5 * info_nce(vectors[0], vectors[2], positive[query_of], 0.05, allowed[query_of])
    plain.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    for part in range(parts):
        trainer._step = part
        rows = range(part, 8, parts)
        prompt_ids, prompt_mask = pad_ids([prompts[row] for row in rows], pad_id, left=True)
        completion_ids, completion_mask = pad_ids([completions[row] for row in rows], pad_id)
        inputs = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
        inputs |= {"completion_ids": completion_ids, "completion_mask": completion_mask}
        ids = torch.cat([prompt_ids, completion_ids], dim=1)
        mask = torch.cat([prompt_mask, completion_mask], dim=1)
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        trainer._cached_loss(model, inputs, hidden, term).backward()

    assert len(documents) == 4
    assert term.loss == pytest.approx(plain.item(), rel=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad / updates, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_only_completions_are_scored_and_as_trl_scores_them(
    trainer: Stage2Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import utils

    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 15]])
    there = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])  # prompts of three tokens
    rows: list[int] = []
    real = utils._ChunkedLogProbFunction.apply

    def apply(hidden: Tensor, *arguments: Any) -> Any:
        rows.append(len(hidden))
        return real(hidden, *arguments)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", apply)
    found, told = {}, {}
    for name, method in {
        "theirs": super(Stage2Trainer, trainer)._get_per_token_logps_and_entropies,
        "ours": trainer._get_per_token_logps_and_entropies,
    }.items():
        trainer.model.zero_grad()
        logps, entropies, _ = method(trainer.model, ids, there, 3, compute_entropy=True)
        (logps * torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 0.0]])).sum().backward()
        told[name] = logps, entropies
        found[name] = {key: value.grad.clone() for key, value in trainer.model.named_parameters()}
    assert rows == [10, 4]
    for a, b in zip(told["theirs"], told["ours"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for key, gradient in found["theirs"].items():
        torch.testing.assert_close(gradient, found["ours"][key], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("some_say_it")
def test_the_contrastive_term_takes_part(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StartCounts, "on_train_begin", lambda *_, **__: None)  # which could be kept in both
    always = ("stage2.warmup_share=0", "stage2.steps=1")

    without, _, plain = train(*always, folder="without")
    with_term, _, curve = train("stage2.contrastive=1", *always, folder="with")

    assert not same(weights(without), weights(with_term))
    assert curve[0]["contrastive"] > 0
    assert curve[0]["grad_norm"] > 2 * plain[0]["grad_norm"]


@pytest.mark.usefixtures("some_say_it")
def test_the_contrastive_term_alone_brings_queries_to_their_documents(
    train: Train, toy: RetrievalDataset
) -> None:
    """Without any policy gradient its own loss falls on the same two queries."""
    two = dict(list(toy.split("stage2").items())[:2])
    rewardless = ("stage2.reward.ndcg=0", "stage2.reward.format=0", "stage2.contrastive=1")

    _, _, curve = train(
        *rewardless,
        "stage2.steps=6",
        "stage2.evaluate_every=6",
        "stage2.learning_rate=0.003",
        "stage2.contrastive_negatives=4",
        dataset=replace(toy, qrels={**toy.qrels, "stage2": two}),
    )

    assert {entry["reward"] for entry in curve} == {0.0}
    assert curve[-1]["contrastive"] < 0.7 * curve[0]["contrastive"]


@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_the_kl_of_grpo_holds_on_to_the_model_at_the_start_of_the_stage(
    lora: str, tiny_model: Path, train: Train
) -> None:
    """Not to the one that lies in the folder that it was loaded from."""
    search = SearchR3(tiny_model, dtype="float32")
    with torch.no_grad():
        for weight in search.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    _, _, curve = train(
        "stage2.beta=0.1",
        f"model.lora={lora}",
        "stage2.warmup_share=0",
        "stage2.learning_rate=0.01",
        search=search,
    )

    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert curve[1]["kl"] > 1e-5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_rollout_of_each_group_is_the_fixed_answer(
    accumulation: int, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vector is that of its own tokens, after the reasoning prompt, in the reward and in the term."""
    seen: list[Rollouts] = []
    real = ContrastiveTerm.of

    def of(self: ContrastiveTerm, search: SearchR3, rollouts: Rollouts, vectors: Any, *rest: Any) -> Any:
        prompts = self.conversation.reasoning_prompts([self.dataset.queries[k].text for k in rollouts.asked])
        fixed = [self.conversation.close(one, self.conversation.answer_ids) for one in prompts]
        np.testing.assert_allclose(vectors[3::4], search.encode_rendered(fixed), atol=1e-5)
        seen.append(rollouts)
        return real(self, search, rollouts, vectors, *rest)

    monkeypatch.setattr(ContrastiveTerm, "of", of)
    _, trainer, curve = train(
        "stage2.direct_rollout=true",
        "stage2.contrastive=0.5",
        f"stage2.accumulation={accumulation}",
        episodes=tmp_path / "episodes.jsonl",
    )

    chat = trainer.conversation
    assert len(seen) == 2
    for rollouts in seen:
        assert rollouts.completions[3::4] == [[*chat.answer_ids, chat.embed_id]] * 2
    term = trainer._term
    assert term is not None and set(seen[-1].keys[3::4]) <= set(term.rollouts)
    assert all(np.isfinite(entry["grad_norm"]) for entry in curve)
    assert curve[0]["emission_rate"] == 0  # of the rollouts that the untrained policy made
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert all(sum(one["emitted"] for one in line["rollouts"]) == 1 for line in lines)


# Health


def test_alarms_are_told_kept_and_in_the_curve(train: Train, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    _, trainer, curve = train(
        "stage2.steps=4",
        "stage2.health.window=2",
        "stage2.health.distinct=null",
        tell=told.append,
        alarms=tmp_path / "alarms.json",
    )

    (alarm,) = [one for one in trainer.health.alarms if one.name == "emission"]
    assert (alarm.step, alarm.value, alarm.threshold) == (2, 0.0, 0.8)
    assert alarm.as_dict() in json.loads((tmp_path / "alarms.json").read_text())
    assert [entry.get("alarm_emission") for entry in curve] == [None, 1.0, 1.0, 1.0]
    assert [news["step"] for news in told if news.get("alarm") == alarm.message] == [2]
    assert trainer.state.global_step == 4


def test_an_alarm_ends_the_stage_if_asked(train: Train, tmp_path: Path) -> None:
    overrides = ("stage2.steps=9", "stage2.evaluate_every=2", "stage2.health.window=3")

    search, trainer, curve = train(*overrides, "stage2.health.stop=true", alarms=tmp_path / "alarms.json")

    assert trainer.state.global_step == 3
    assert curve[-1]["step"] == 3 and curve[-1]["alarm_emission"] == 1.0
    assert {alarm["step"] for alarm in json.loads((tmp_path / "alarms.json").read_text())} == {3}
    best = Path(str(trainer.state.best_model_checkpoint))
    assert same(weights(search), weights(SearchR3(best, dtype="float32")))
    assert not search.model.training


def test_a_resumed_run_goes_on_with_the_monitor(train: Train) -> None:
    """No alarm twice, and normal is what the run began with."""
    overrides = ("stage2.steps=6", "stage2.evaluate_every=2", "stage2.health.window=2")

    _, alone, _ = train(*overrides, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        train(*overrides, folder="halves", tell=interrupting(5))
    _, resumed, _ = train(*overrides, folder="halves")

    assert alone.health.alarms
    assert resumed.health.state_dict() == alone.health.state_dict()


# Checkpoints


@pytest.mark.parametrize(
    ("reasoned", "best"), [([0.1, 0.2, 0.9, 0.1], 2), ([0.9, 0.2, 0.3, 0.1], 0), ([0.1, 0.5, 0.4, 0.6], 3)]
)
def test_the_best_checkpoint_by_direct_and_reasoned_remains_the_start_included(
    reasoned: list[float], best: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = [0.4, 0.3, 0.2, 0.3]
    figures: Iterator[tuple[float, float]] = iter(zip(direct, reasoned, strict=True))
    seen: list[dict[str, Tensor]] = []

    def score(self: DevSet, model: SearchR3, max_new_tokens: int = 0, cost: Any = None) -> dict[str, float]:
        assert max_new_tokens == 4
        seen.append({name: weight.clone() for name, weight in model.model.state_dict().items()})
        return dict(zip(("direct", "reasoned"), next(figures), strict=True))

    monkeypatch.setattr(DevSet, "score", score)

    search, trainer, _ = train("stage2.steps=3", "stage2.evaluate_every=1", "stage2.warmup_share=0")

    assert same(weights(search), seen[best])
    assert not same(seen[best], seen[best - 1])
    means = [entry[BEST] for entry in trainer.state.log_history if BEST in entry]
    assert means == pytest.approx([(a + b) / 2 for a, b in zip(direct, reasoned, strict=True)])


def test_the_start_stays_a_candidate_when_the_run_is_moved(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.9, 0.2, 0.3])
    monkeypatch.setattr(DevSet, "score", lambda *_: dict.fromkeys(("direct", "reasoned"), next(figures)))
    overrides = ("stage2.steps=4", "stage2.evaluate_every=2", "stage2.warmup_share=0")
    with pytest.raises(KeyboardInterrupt):
        train(*overrides, tell=interrupting(3))
    (tmp_path / "run").rename(tmp_path / "moved")

    _, trainer, _ = train(*overrides, folder="moved")

    assert trainer.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-0")


def test_the_start_is_a_candidate_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run does not take the model that it goes on from for the start."""
    overrides = ("stage2.steps=4", "stage2.evaluate_every=2")
    with pytest.raises(KeyboardInterrupt):
        train(*overrides, tell=interrupting(3))

    _, trainer, _ = train(*overrides)

    assert [entry["step"] for entry in trainer.state.log_history if BEST in entry] == [0, 2, 4]


@pytest.mark.usefixtures("some_say_it")
def test_resumed_training_equals_training_without_interruption(train: Train, tmp_path: Path) -> None:
    """Weights to the last bit, the age of every document's vector, and each episode once."""
    overrides = ("stage2.steps=6", "stage2.contrastive=0.3", "stage2.accumulation=2")

    whole, alone, curve = train(*overrides, folder="whole", episodes=tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        train(*overrides, folder="halves", episodes=tmp_path / "halves.jsonl", tell=interrupting(5))
    torch.manual_seed(99)
    halves, resumed, again = train(*overrides, folder="halves", episodes=tmp_path / "halves.jsonl")

    assert same(weights(whole), weights(halves))
    np.testing.assert_array_equal(alone.environment.store.version, resumed.environment.store.version)
    np.testing.assert_array_equal(alone.environment.store.vectors, resumed.environment.store.vectors)
    assert len(set(resumed.environment.store.version)) > 2
    assert (tmp_path / "halves.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    figures = ("reward_ndcg", "contrastive", "thinking_tokens", "eval_ndcg@10", "environment_mean_age")
    assert [[entry.get(name) for name in figures] for entry in again] == [
        [entry.get(name) for name in figures] for entry in curve
    ]


def test_episodes_are_dumped_every_so_many_steps(train: Train, toy: RetrievalDataset, tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"

    train("stage2.steps=3", "stage2.episodes_every=2", episodes=path)

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 2, 2]
    texts = {toy.queries[key].text: key for key in toy.split("stage2")}
    for line in lines:
        assert line["relevant"] == list(toy.split("stage2")[texts[line["query"]]])
        assert len(line["rollouts"]) == 4
        rewards = [rollout["reward"] for rollout in line["rollouts"]]
        assert rewards == sorted(rewards, reverse=True)
        assert all(0 <= rollout["ndcg"] <= 1 for rollout in line["rollouts"])
        assert all(1 <= rollout["rank"] <= len(toy.corpus) for rollout in line["rollouts"])
        assert all(rollout["first_hit"] in toy.corpus for rollout in line["rollouts"])


def test_the_curve_holds_what_tells_a_collapse(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []

    search, _, curve = train(tell=told.append)

    expected = {
        "reward",
        "reward_ndcg",
        "thinking_tokens",
        "emission_rate",
        "groups_with_variance",
        "groups_useful",
        "zero_variance_same",
        "reward_direct",
        "reward_gain",
        "gain_share",
        "rank_median",
    }
    assert all(expected | {"environment_mean_age"} <= entry.keys() for entry in curve)
    assert {"eval_direct", "eval_reasoned", "eval_thinking_tokens"} <= curve[-1].keys()
    assert {news["stage"] for news in told} == {"stage2"}
    assert "loss" not in capsys.readouterr().out
    assert not search.model.training


def test_dev_charges_thoughts_that_cost_something(train: Train) -> None:
    charged = ("stage2.reward.length=0.01", "stage2.scale_rewards=batch", "stage2.steps=1")
    _, trainer, curve = train(*charged, "stage2.evaluate_every=1")
    dev = {key.removeprefix("eval_"): value for key, value in curve[-1].items()}
    assert dev["thinking_cost"] == pytest.approx(0.01 * dev["thinking_tokens"]) and dev["thinking_cost"] > 0
    wanted = (dev["direct"] + dev["reasoned"] - dev["thinking_cost"]) / 2
    assert trainer.dev_score(dev) == pytest.approx(wanted)


def test_the_trained_model_carries_nothing_of_the_trainer(train: Train) -> None:
    search, _, _ = train()

    assert not search.model.model._forward_hooks


@pytest.mark.parametrize("overrides", [(), ("model.lora={r: 4}",)], ids=["whole", "lora"])
def test_rollouts_of_an_unknown_architecture_are_read_twice(
    overrides: tuple[str, ...], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trainer, curve = train(*overrides)
    assert trainer.one_pass is not None and trainer.one_pass.known

    monkeypatch.setattr(SearchR3, "reads_once", False)
    _, trainer, other = train(*overrides)
    assert trainer.one_pass is None
    assert [sorted(row) for row in other] == [sorted(row) for row in curve]


def test_with_a_length_cost_the_rollout_put_in_says_the_token_at_once(
    trainer: Stage2Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that always thinks would never sample it, and so not learn where it is enough."""
    sampled = [[7, 8, 9]] * 4
    monkeypatch.setattr(OnePass, "sample", lambda *_: sampled)
    chat = trainer.conversation

    def put_in(length: float) -> list[int]:
        reward = trainer.stage.reward.model_copy(update={"length": length})
        trainer.stage = trainer.stage.model_copy(update={"direct_rollout": True, "reward": reward})
        completions = trainer._generate_single_turn([[1]] * 4)[0]
        assert completions[:3] == sampled[:3]
        return completions[3]

    assert put_in(0.0) == [*chat.answer_ids, chat.embed_id]
    assert put_in(0.01) == [chat.embed_id]
