"""Stage 1: what is in a batch, what each loss sees, which checkpoint remains, going on when interrupted."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import DataError, ModelError, RecipeError
from searchr3.generation import Reasoning
from searchr3.losses import allowed_negatives, info_nce, sft, triplet_margin
from searchr3.model import SearchR3
from searchr3.training import language, stage1, stage1_batch
from searchr3.training.adapter import add_adapter
from searchr3.training.common import check_trackers
from searchr3.training.dev import DevSet
from searchr3.training.forward import Item, Outputs, run
from searchr3.training.pairs import Pairs
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1

MakeRecipe = Callable[..., Recipe]
SAID = Reasoning("own words", (5, 6, 7), True)


@pytest.fixture
def search(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model, dtype="float32")


@pytest.fixture
def make_trainer(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> Callable[..., Stage1Trainer]:
    """A trainer of full weights that has not begun; KL and chats off unless asked for."""

    def make(*overrides: str, dataset: RetrievalDataset = toy, base: Any = None) -> Stage1Trainer:
        recipe = toy_recipe("stage1.kl=0", "stage1.chat_prompts=0", *overrides)
        return Stage1Trainer(search, base, dataset, recipe, tmp_path, None)

    return make


def loss_of(trainer: Stage1Trainer, rows: list[int]) -> Tensor:
    pairs = torch.stack([trainer.pairs[row] for row in rows])
    return trainer.training_step(trainer.model, {"pairs": pairs})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every call of the losses, which still do their work."""
    seen: dict[str, list[tuple[Any, ...]]] = {"info_nce": [], "triplet_margin": [], "sft": []}

    def spy(name: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            seen[name].append(arguments)
            return real(*arguments)

        return call

    for name in seen:
        place = language if name == "sft" else stage1
        monkeypatch.setattr(place, name, spy(name, getattr(place, name)))
    return seen


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    figures: list[float],
    weights: list[dict[str, Tensor]],
    reasoned: Sequence[float] = (),
) -> None:
    """Dev scores as told; the weights at each are kept."""
    left: Iterator[float] = iter(figures)
    thought: Iterator[float] = iter(reasoned)

    def score(self: DevSet, model: SearchR3, max_new_tokens: int = 0, cost: Any = None) -> dict[str, float]:
        weights.append({name: weight.clone() for name, weight in model.model.state_dict().items()})
        return {"direct": next(left), "reasoned": next(thought, 0.0)}

    monkeypatch.setattr(DevSet, "score", score)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What is in a batch


def test_pairs_are_the_relevant_ones_of_the_split(toy: RetrievalDataset) -> None:
    judged = {key: dict(grades) for key, grades in toy.split("stage1").items()}
    first, second = list(judged)[:2]
    judged[first] |= {"d140": 2, "d141": 0}
    dataset = replace(toy, qrels={**toy.qrels, "stage1": judged})

    pairs = Pairs(dataset, "stage1")

    found = {(pairs.query_ids[query], pairs.document_ids[document]) for query, document in pairs.pairs}
    assert found == {
        (query, one) for query, grades in judged.items() for one, grade in grades.items() if grade
    }
    assert (first, "d140") in found
    assert len(pairs[0]) == 2
    assert len(judged[second]) == 1


def test_a_split_without_relevant_documents_is_refused(toy: RetrievalDataset) -> None:
    nothing = replace(toy, qrels={"stage1": {"q0": {"d0": 0}}})

    with pytest.raises(DataError, match="'stage1' has no relevant document"):
        Pairs(nothing, "stage1")


def negatives_of(trainer: Stage1Trainer, queries: list[int]) -> Counter[str]:
    drawn = [trainer.maker.hard_negatives(query, random.Random(query)) for query in queries]
    return Counter(trainer.pairs.document_ids[row] for rows in drawn for row in rows)


def test_held_out_documents_are_never_trained_on(
    make_trainer: Callable[..., Stage1Trainer], toy: RetrievalDataset
) -> None:
    held_out = frozenset(f"d{number}" for number in range(0, 150, 3))
    negatives = {key: replace(query, negatives=("d0", "d1", "d3")) for key, query in toy.queries.items()}
    dataset = replace(toy, held_out=held_out, queries=negatives)
    trainer = make_trainer("stage1.hard_negatives=3", dataset=dataset)

    used = {trainer.pairs.document_ids[document] for _, document in trainer.pairs.pairs}
    used |= negatives_of(trainer, [query for query, _ in trainer.pairs.pairs]).keys()

    assert len(trainer.pairs) > 10
    assert "d1" in used
    assert not used & held_out


def test_hard_negatives_are_never_relevant_ones(
    make_trainer: Callable[..., Stage1Trainer], toy: RetrievalDataset
) -> None:
    queries = {
        key: replace(query, negatives=(f"d{key[1:]}", "d7", "d8")) for key, query in toy.queries.items()
    }
    trainer = make_trainer("stage1.hard_negatives=2", dataset=replace(toy, queries=queries))
    rows = [row for row, known in enumerate(trainer.pairs.relevant) if not known & {"d7", "d8"}]

    assert negatives_of(trainer, rows) == {"d7": len(rows), "d8": len(rows)}


def test_false_negatives_are_masked(
    make_trainer: Callable[..., Stage1Trainer],
    toy: RetrievalDataset,
    calls: dict[str, list[tuple[Any, ...]]],
) -> None:
    a, b, c = list(toy.split("stage1"))[:3]
    shared = {"d140": 1}  # relevant to the first two queries: in the batch twice
    judged = {a: {**shared}, b: {**shared, "d141": 1}, c: {"d142": 1, "d140": 0}}
    queries = {key: replace(query, negatives=("d141",)) for key, query in toy.queries.items()}
    trainer = make_trainer(
        "stage1.hard_negatives=1",
        "stage1.noisy_traces=0",
        "stage1.own_samples=0",
        dataset=replace(toy, queries=queries, qrels={**toy.qrels, "stage1": judged}),
    )

    loss_of(trainer, [0, 1, 3])  # (a, d140), (b, d140), (c, d142); then d141 for a and for c

    expected = torch.tensor(
        [
            [False, False, True, True, True],
            [False, False, True, False, False],
            [True, True, False, True, True],
        ]
    )
    assert len(calls["info_nce"]) == len(calls["triplet_margin"]) == 2  # direct and reasoned
    for arguments in calls["info_nce"] + calls["triplet_margin"]:
        assert torch.equal(arguments[-1], expected)


# Where the reasoning comes from


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noisy traces and own samples that can be told from true traces."""
    monkeypatch.setattr(stage1_batch, "noisy_trace", lambda trace, others, rng: "noisy")
    monkeypatch.setattr(stage1, "reason", lambda model, chat, prompts, *_: [SAID] * len(prompts))


def sources(trainer: Stage1Trainer, rounds: int = 20, own_samples: bool = True) -> Counter[str]:
    """Which source the reasoning of each query comes from, over many draws."""
    rows = range(len(trainer.pairs.query_ids))
    chat = trainer.conversation
    noisy = tuple(chat.thought_ids(["noisy"])[0])
    traces = {tuple(ids) for ids in chat.thought_ids(trainer.maker.trace_pool)}
    found: Counter[str] = Counter()
    for seed in range(rounds):
        draws = [random.Random(f"{seed}:{row}") for row in rows]
        for thought, learn in trainer.maker.thoughts(rows, draws, own_samples).values():
            ids = tuple(thought)
            kind = {noisy: "noisy", SAID.token_ids: "own"}.get(ids, "trace" if ids in traces else "unknown")
            assert learn == (kind == "trace")
            found[kind] += 1
        found["queries"] += len(rows)
    return found


@pytest.mark.usefixtures("marked")
def test_reasoning_comes_from_its_sources_in_the_shares_of_the_recipe(
    make_trainer: Callable[..., Stage1Trainer],
) -> None:
    found = sources(make_trainer("stage1.noisy_traces=0.2", "stage1.own_samples=0.5"))

    assert found["queries"] == found.total() / 2 > 1000
    assert found["noisy"] / found["queries"] == pytest.approx(0.2, abs=0.04)
    assert found["own"] / found["queries"] == pytest.approx(0.5, abs=0.05)
    assert found["trace"] / found["queries"] == pytest.approx(0.3, abs=0.05)


@pytest.mark.usefixtures("marked")
def test_own_samples_wait_until_the_model_has_something_to_say(
    make_trainer: Callable[..., Stage1Trainer],
) -> None:
    trainer = make_trainer(
        "stage1.own_samples=0.5", "stage1.noisy_traces=0.2", "stage1.own_samples_after=0.5"
    )
    trainer.state.max_steps = 10

    trainer.state.global_step = 4
    early = sources(trainer, own_samples=trainer.may_sample)
    trainer.state.global_step = 5
    late = sources(trainer, own_samples=trainer.may_sample)

    assert early["own"] == 0
    assert early["noisy"] / early["queries"] == pytest.approx(0.7, abs=0.05)
    assert late["own"] / late["queries"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.usefixtures("marked")
def test_without_traces_there_are_own_samples_unless_they_are_turned_off(
    make_trainer: Callable[..., Stage1Trainer], toy: RetrievalDataset
) -> None:
    bare = toy.without_reasoning()

    asked, refused = (
        sources(make_trainer(f"stage1.own_samples={share}", dataset=bare), 1) for share in (0.1, 0)
    )

    assert asked["own"] == asked["queries"]
    assert refused.total() == refused["queries"]


def labels_of_sft(
    trainer: Stage1Trainer, calls: dict[str, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> Counter[int]:
    monkeypatch.setattr(stage1, "reason", lambda model, chat, prompts, *_: [SAID] * len(prompts))
    calls["sft"].clear()
    loss_of(trainer, [0, 1, 2])
    return Counter(label for _, labels, weights in calls["sft"] for label in labels[weights > 0].tolist())


@pytest.mark.parametrize("source", ["noisy_traces", "own_samples"])
def test_instead_of_noisy_traces_and_own_samples_the_true_traces_are_learnt(
    source: str,
    make_trainer: Callable[..., Stage1Trainer],
    calls: dict[str, list[tuple[Any, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = {"noisy_traces": 0, "own_samples": 0, source: 1}
    overrides = [f"stage1.{name}={share}" for name, share in shares.items()]

    trainer = make_trainer(*overrides)
    chat = trainer.conversation

    with_reasoning = labels_of_sft(trainer, calls, monkeypatch)
    direct_only = labels_of_sft(make_trainer("stage1.reasoned_share=0"), calls, monkeypatch)

    assert len(calls["info_nce"]) == 3  # direct and reasoned, then direct: the reasoned were in the batch
    traces = [trainer.maker.traces[query] for query, _ in trainer.pairs.pairs[:3]]
    expected = Counter(one for ids in chat.thought_ids(traces) for one in ids)
    # of the noisy or own thought itself the end alone, beside that of the true trace
    expected += Counter({chat.embed_id: 6, chat.tokenizer.eos_token_id: 6})
    assert with_reasoning - direct_only == expected


def test_true_traces_are_learnt_with_the_token_and_the_end_of_the_turn(
    make_trainer: Callable[..., Stage1Trainer],
    calls: dict[str, list[tuple[Any, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_only = make_trainer("stage1.noisy_traces=0", "stage1.own_samples=0")
    chat = true_only.conversation

    learnt = labels_of_sft(true_only, calls, monkeypatch)
    direct_only = labels_of_sft(make_trainer("stage1.reasoned_share=0"), calls, monkeypatch)

    traces = [true_only.maker.traces[query] for query, _ in true_only.pairs.pairs[:3]]
    expected = Counter(one for ids in chat.thought_ids(traces) for one in ids)
    expected += Counter({chat.embed_id: 3, chat.tokenizer.eos_token_id: 3})
    assert learnt - direct_only == expected


def test_reasoning_keeps_its_share_of_the_language_loss(
    make_trainer: Callable[..., Stage1Trainer], calls: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Whatever the number of its tokens; without any reasoning the direct answer has it all."""
    for share, overrides in (
        (0.9, ()),
        (0.25, ("stage1.sft_reasoning=0.25",)),
        (0, ("stage1.reasoned_share=0",)),
    ):
        trainer = make_trainer(*overrides, "stage1.noisy_traces=0", "stage1.own_samples=0")
        calls["sft"].clear()
        loss_of(trainer, [0, 1, 2])
        weights = torch.cat([arguments[2] for arguments in calls["sft"]])
        totals = [float(weights[weights == one].sum()) for one in weights.unique() if one]
        assert sorted(totals) == pytest.approx(sorted([1 - share, share] if share else [1]))
        total = sum(sft(*arguments).item() for arguments in calls["sft"])
        assert trainer._parts["sft"][-1] == pytest.approx(total)


# KL


def perturbed(trainer: Stage1Trainer) -> None:
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad and "norm" not in name:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_kl_is_zero_before_the_first_step(
    lora: str,
    precision: str,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    search: SearchR3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And with LoRA the base is the model itself, not a second one."""
    trainers: list[Stage1Trainer] = []

    class Untrained(Stage1Trainer):
        def train(self, **_: Any) -> None:  # type: ignore[override]
            trainers.append(self)

    monkeypatch.setattr(stage1, "Stage1Trainer", Untrained)
    train_stage1(search, toy, toy_recipe(f"model.lora={lora}", f"model.precision={precision}"), tmp_path)
    trainer = trainers[0]

    loss_of(trainer, [0, 1, 2, 3])
    perturbed(trainer)
    loss_of(trainer, [0, 1, 2, 3])

    before, after = trainer._parts["kl"]
    assert before == pytest.approx(0, abs=1e-6)
    assert after > 0.01
    assert (trainer.base is None) == (lora != "null")


def test_kl_is_taken_on_replies_to_chat_prompts_too(
    make_trainer: Callable[..., Stage1Trainer], search: SearchR3, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("stage1.kl=1", "stage1.chat_prompts=3", base=search.model)
    chats = [item for item in trainer.maker.of([(0, 0)], 0, False).items if item.position is None]

    assert len(chats) == 3
    assert all(item.anchor and not item.learn for item in chats)
    assert all(item.answer_start < len(item.ids) for item in chats)
    assert search.conversation.embed_id not in {one for item in chats for one in item.ids}


def untied(model: PreTrainedModel) -> None:
    """Give the model an output head of its own, as Qwen2.5-7B has."""
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    head.weight.data.copy_(model.get_input_embeddings().weight.detach())
    model.set_output_embeddings(head)


@pytest.mark.parametrize("tied", [True, False])
def test_with_lora_the_rows_of_the_embed_token_learn(
    tied: bool, search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """And what is saved, with the adapter merged, gives the same vectors."""
    recipe = toy_recipe("model.lora={r: 4}", "stage1.steps=2", "stage1.evaluate_every=2")
    row = search.conversation.embed_id
    if not tied:
        untied(search.model)
    before = search.model.get_input_embeddings().weight.detach().clone()

    train_stage1(search, toy, recipe, tmp_path / "checkpoints")
    trained = search.encode_document(["def parse_date(): ..."])
    search.save_pretrained(tmp_path / "saved")

    saved = SearchR3(tmp_path / "saved", dtype="float32")
    ends = (saved.model.get_input_embeddings().weight, saved.model.get_output_embeddings().weight)
    assert (ends[0] is ends[1]) == tied
    for after in ends:
        changed = (after.detach() != before).any(dim=1).nonzero().flatten().tolist()
        assert changed == [row]
    assert trained[0] @ saved.encode_document(["def parse_date(): ..."])[0] > 0.9999


def test_the_adapter_hangs_on_the_seed(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def trained(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        search = SearchR3(tiny_model, dtype="float32")
        recipe = toy_recipe("model.lora={r: 2}", "stage1.steps=1", f"seed={seed}", "stage1.chat_prompts=0")
        train_stage1(search, toy, recipe, tmp_path / f"{seed}-{noise}")
        return search.model.state_dict()

    first = trained(0, 1)
    assert same(first, trained(0, 2))
    assert not same(first, trained(1, 1))


# Training


def test_training_learns_and_leaves_a_curve(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    recipe = toy_recipe("stage1.steps=8", "stage1.evaluate_every=4", "stage1.batch_size=16")
    before = DevSet.of(toy, 10, 40).score(search)["direct"]

    curve = train_stage1(search, toy, recipe, tmp_path, told.append)

    after = DevSet.of(toy, 10, 40).score(search)["direct"]
    assert after > before + 0.1
    assert max(entry.get("eval_direct", 0) for entry in curve) == pytest.approx(after)
    assert [entry["step"] for entry in curve] == list(range(1, 9))
    assert {"loss", "sft", "kl", "info_nce", "triplet"} <= curve[0].keys()
    assert {"eval_direct", "eval_reasoned", "eval_thinking_tokens", "eval_emission_rate"} <= curve[3].keys()
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert [news["step"] for news in told if "loss" in news] == list(range(1, 9))
    assert all(news["stage"] == "stage1" and news["steps"] == 8 for news in told)
    assert not search.model.training


@pytest.mark.parametrize("samples", ["stage1.own_samples=0", "stage1.own_samples=1"])
def test_a_run_that_diverges_ends_at_that_step(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path, samples: str
) -> None:
    """And not at the next dev evaluation, with a model of NaN."""
    keys = ("stage1.learning_rate=1e30", "stage1.evaluate_every=4", "stage1.noisy_traces=0", samples)

    with pytest.raises(
        ModelError,
        match=r"stage1 has diverged: the gradient of step [23] is not finite; lower stage1\.learning_rate",
    ):
        train_stage1(search, toy, toy_recipe(*keys), tmp_path)

    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("overrides", "thinks"),
    [
        (("stage1.own_samples=1",), True),  # every query gets a thought of the model's own
        (("stage1.own_samples=0",), False),
        (("stage1.own_samples=1", "stage1.reasoned_share=0"), False),
    ],
)
def test_dev_is_reasoned_where_reasoned_queries_are_trained_without_a_trace(
    make_trainer: Callable[..., Stage1Trainer],
    toy: RetrievalDataset,
    overrides: tuple[str, ...],
    thinks: bool,
) -> None:
    trainer = make_trainer(*overrides, "stage1.noisy_traces=0", dataset=toy.without_reasoning())
    assert ("eval_reasoned" in trainer.evaluate()) == thinks


def test_data_on_disk_are_learnt_as_data_in_memory(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    queries = {key: replace(query, negatives=("d7", "d8")) for key, query in toy.queries.items()}
    replace(toy, queries=queries).save(tmp_path / "data")
    recipe = toy_recipe("stage1.steps=3", "stage1.evaluate_every=3", "stage1.hard_negatives=1")
    found = []
    for on_disk in (False, True):
        search = SearchR3(tiny_model, dtype="float32")
        dataset = load_dataset(tmp_path / "data", on_disk=on_disk)
        curve = train_stage1(search, dataset, recipe, tmp_path / str(on_disk))
        found.append((search.model.state_dict(), curve))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_every_pair_is_seen_once_an_epoch_in_another_order(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []

    def no_loss(self: Stage1Trainer, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        seen.extend(map(tuple, inputs["pairs"].tolist()))
        return 0.0 * next(model.parameters()).sum()

    monkeypatch.setattr(Stage1Trainer, "training_step", no_loss)
    scripted(monkeypatch, [0.0], [])
    some = dict(list(toy.split("stage1").items())[:32])
    less = replace(toy, qrels={**toy.qrels, "stage1": some})
    recipe = toy_recipe("stage1.batch_size=8", "stage1.steps=8", "stage1.evaluate_every=8")

    train_stage1(search, less, recipe, tmp_path)

    first, second = seen[:32], seen[32:]
    assert sorted(first) == sorted(second) == sorted(Pairs(less, "stage1").pairs)
    assert first != second


def test_nothing_is_printed(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_stage1(search, toy, toy_recipe("stage1.steps=1", "stage1.evaluate_every=1"), tmp_path)

    assert "loss" not in capsys.readouterr().out


def test_the_best_checkpoint_by_dev_is_what_remains(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.2, 0.9, 0.3, 0.4], weights)

    train_stage1(search, toy, toy_recipe("stage1.steps=4", "stage1.evaluate_every=1"), tmp_path)

    assert same(search.model.state_dict(), weights[1])
    assert not same(weights[1], weights[3])


@pytest.mark.parametrize(("reasoned_share", "kept"), [(0.5, 1), (0.0, 0)])
def test_a_model_that_learns_to_think_is_judged_with_its_thoughts_too(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reasoned_share: float,
    kept: int,
) -> None:
    weights: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.7, 0.6], weights, reasoned=[0.1, 0.5])  # it spoke before it could think

    asked = "stage1.steps=2", "stage1.evaluate_every=1", f"stage1.reasoned_share={reasoned_share}"
    train_stage1(search, toy, toy_recipe(*asked), tmp_path)

    assert same(search.model.state_dict(), weights[kept])


def test_the_last_step_is_a_candidate_too(
    search: SearchR3,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.2, 0.9], weights)

    train_stage1(search, toy, toy_recipe("stage1.steps=3", "stage1.evaluate_every=2"), tmp_path)

    assert same(search.model.state_dict(), weights[1])


@pytest.mark.parametrize("interrupted_at", [None, 3])
def test_training_stops_when_dev_no_longer_rises(
    interrupted_at: int | None,
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resumed or not: the patience that is left is in the checkpoint."""
    recipe = toy_recipe("stage1.steps=9", "stage1.evaluate_every=1", "stage1.patience=2")
    weights: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0], weights)
    if interrupted_at:
        with pytest.raises(KeyboardInterrupt):
            train_stage1(SearchR3(tiny_model), toy, recipe, tmp_path, interrupting(interrupted_at))

    curve = train_stage1(SearchR3(tiny_model), toy, recipe, tmp_path)

    assert [entry["step"] for entry in curve] == [1, 2, 3]


def interrupting(step: int) -> Callable[[dict[str, Any]], None]:
    """Stops a training when it tells that it has come to `step`."""

    def tell(news: dict[str, Any]) -> None:
        if news["step"] == step:
            raise KeyboardInterrupt

    return tell


def test_tensorboard_gets_its_events(
    search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = toy_recipe("report_to=tensorboard", "stage1.steps=2", "stage1.evaluate_every=2")
    train_stage1(search, toy, recipe, tmp_path)

    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert {"train/loss", "train/info_nce", "eval/ndcg@10"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2]


def test_an_unknown_tracker_is_refused() -> None:
    check_trackers([])
    with pytest.raises(RecipeError, match="report_to: tensorbord is not supported") as caught:
        check_trackers(["tensorbord"])
    assert "\n" not in str(caught.value)


def test_the_search_model_leaves_training_mode_alone(make_trainer: Callable[..., Stage1Trainer]) -> None:
    trainer = make_trainer()
    for training in (True, False):
        trainer.model.train(training)
        trainer.search_model().encode_document(["text"])
        trainer.search_model().generate(["text"], max_new_tokens=2)
        assert trainer.model.training == training


def test_an_adapter_leaves_the_base_as_it_is(search: SearchR3, toy_recipe: MakeRecipe) -> None:
    before = search.encode_query(["parse the date"])

    add_adapter(search, toy_recipe("model.lora={r: 4}"))

    trainable = sum(weight.numel() for weight in search.model.parameters() if weight.requires_grad)
    assert 0 < trainable < sum(weight.numel() for weight in search.model.parameters()) / 2
    assert (search.encode_query(["parse the date"]) == before).all()


# Passes and processes


def gradients(trainer: Stage1Trainer, rows: list[int]) -> tuple[float, dict[str, Tensor]]:
    trainer.model.zero_grad()
    torch.manual_seed(0)
    loss = loss_of(trainer, rows).item()
    return loss, {
        name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("lora", ["null", "{r: 4, dropout: 0.0}"])
def test_gradients_do_not_depend_on_the_size_of_a_pass(
    lora: str, search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    overrides = ("stage1.own_samples=0", "stage1.kl=0.5", "stage1.hard_negatives=1", f"model.lora={lora}")
    queries = {key: replace(query, negatives=("d7", "d8")) for key, query in toy.queries.items()}
    base = None
    if lora == "null":
        base = copy.deepcopy(search.model)
    else:
        add_adapter(search, toy_recipe(*overrides))
    found = []

    def trainer_of(tokens: str) -> Stage1Trainer:
        recipe = toy_recipe(*overrides, f"stage1.micro_tokens={tokens}")
        return Stage1Trainer(search, base, replace(toy, queries=queries), recipe, tmp_path, None)

    perturbed(trainer_of("null"))  # so that no part is 0
    for tokens in ("null", "200", "1"):
        trainer = trainer_of(tokens)
        found.append(gradients(trainer, list(range(8))))
        assert all(trainer._parts[name][-1] > 0 for name in ("sft", "kl", "info_nce", "triplet"))

    (loss, whole), *others = found
    assert max(grad.abs().max() for grad in whole.values()) > 0.01
    for other_loss, parts in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert parts.keys() == whole.keys()
        for name, grad in whole.items():
            torch.testing.assert_close(parts[name], grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("lora", ["null", "{r: 4, dropout: 0.0}"])
def test_the_trajectory_does_not_depend_on_the_size_of_a_pass(
    lora: str, tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Six steps of a batch in one pass, in some, and in one for each conversation."""
    keys = ("stage1.own_samples=0", "stage1.kl=0.5", "stage1.steps=6", "stage1.batch_size=8")
    keys = (
        *keys,
        "stage1.evaluate_every=6",
        "stage1.log_every=1",
        "stage1.warmup_share=0",
        f"model.lora={lora}",
    )
    found: list[tuple[list[float], dict[str, Tensor]]] = []
    for tokens in ("null", "300", "1"):
        search = SearchR3(tiny_model, dtype="float32")
        start = {name: weight.clone() for name, weight in search.model.state_dict().items()}
        curve = train_stage1(
            search, toy, toy_recipe(*keys, f"stage1.micro_tokens={tokens}"), tmp_path / tokens
        )
        model = search.model if lora == "null" else search.model.merge_and_unload()
        found.append(([row["loss"] for row in curve if "loss" in row], model.state_dict()))

    (losses, whole), *others = found
    moved = mean_difference(whole, start)
    assert len(losses) == 6 and moved > 3e-4
    for other_losses, weights in others:
        assert other_losses == pytest.approx(losses, rel=1e-4)
        assert mean_difference(weights, whole) < 1e-3 * moved


@pytest.mark.parametrize("tokens", ["null", "300"])
def test_the_passes_of_a_batch_are_of_like_size(
    tokens: str, make_trainer: Callable[..., Stage1Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("stage1.own_samples=0", "stage1.kl=0", f"stage1.micro_tokens={tokens}")
    monkeypatch.setattr(stage1, "tokens_per_pass", lambda device: 300)
    sizes = list[int]()

    def counted(model: Any, items: list[Item], *others: Any) -> Outputs:
        sizes.append(len(items) * max(len(item.ids) for item in items))
        return run(model, items, *others)

    monkeypatch.setattr(stage1, "run", counted)
    gradients(trainer, list(range(8)))

    assert len(sizes) >= 3 and max(sizes) <= 300
    assert min(sizes) > 0.6 * max(sizes)


@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_bf16_gradients_of_small_passes_are_close_to_those_in_float32(
    lora: str, search: SearchR3, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Both passes of the cache compute in bf16; weights and gradients are float32."""
    overrides = ("stage1.own_samples=0", "stage1.kl=0.5", f"model.lora={lora}", "stage1.micro_tokens=200")
    base = copy.deepcopy(search.model) if lora == "null" else None
    if lora != "null":
        add_adapter(search, toy_recipe(*overrides))
    found = []
    for precision in ("fp32", "bf16"):
        recipe = toy_recipe(*overrides, f"model.precision={precision}")
        trainer = Stage1Trainer(search, base, toy, recipe, tmp_path, None)
        if not found:
            perturbed(trainer)
        loss, grads = gradients(trainer, list(range(8)))
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        found.append((loss, {name: grad.clone() for name, grad in grads.items()}))

    (loss, exact), (rounded_loss, rounded) = found
    assert rounded_loss == pytest.approx(loss, rel=0.02) and rounded_loss != loss
    whole = torch.cat([grad.flatten() for grad in exact.values()])
    off = torch.cat([(rounded[name] - grad).flatten() for name, grad in exact.items()])
    assert off.norm() < 0.1 * whole.norm()  # a number in bf16 has 8 bits


def all_forms(trainer: Stage1Trainer, rows: list[int]) -> list[tuple[float, Tensor, Tensor]]:
    """Weight, vectors and negatives' mask of the direct and the reasoned queries, by one plain forward."""
    batch = trainer.maker.of([trainer.pairs.pairs[row] for row in rows], 0, False)
    vectors = run(trainer.model, batch.items, trainer.pad_id).vectors
    n, m, stage = len(batch.queries), len(batch.documents), trainer.stage
    ids = [trainer.pairs.document_ids[row] for row in batch.documents]
    allowed = allowed_negatives(ids, [trainer.pairs.relevant[query] for query in batch.queries])
    assert len(batch.reasoned) == n
    forms = (1 - stage.reasoned_share, vectors[:n]), (stage.reasoned_share, vectors[n + m :][:n])
    return [(weight, torch.cat([own, vectors[n : n + m]]), allowed) for weight, own in forms]


@pytest.mark.parametrize("tokens", ["null", "200"])
def test_at_several_widths_gradients_are_those_of_the_shortened_vectors(
    tokens: str, make_trainer: Callable[..., Stage1Trainer]
) -> None:
    """Whether they are cached or not."""
    only = ("stage1.sft=0", "stage1.own_samples=0", "stage1.triplet=0.5", f"stage1.micro_tokens={tokens}")
    trainer = make_trainer(*only, "stage1.matryoshka=[4, 16]", "stage1.matryoshka_weights=[2, 0.5]")
    rows, place = list(range(6)), torch.arange(6)

    loss, found = gradients(trainer, rows)

    trainer.model.zero_grad()
    expected = torch.zeros(())
    for share, vectors, allowed in all_forms(trainer, rows):
        for width, weight in ((32, 1.0), (4, 2.0), (16, 0.5)):
            short = vectors[:, :width] / vectors[:, :width].norm(dim=1, keepdim=True)
            both = (short[:6], short[6:], place)
            contrastive = info_nce(*both, trainer.stage.temperature, allowed)
            contrastive = contrastive + 0.5 * triplet_margin(*both, trainer.stage.margin, allowed)
            expected = expected + share * weight / 3.5 * contrastive
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_training_at_several_widths_makes_shortened_vectors_better(
    tiny_model: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def loss_at(width: int, matryoshka: str) -> float:
        search = SearchR3(tiny_model, dtype="float32")
        recipe = toy_recipe(
            *("stage1.steps=12", "stage1.evaluate_every=12", "stage1.batch_size=16", "stage1.kl=0"),
            *("stage1.reasoned_share=0", f"stage1.matryoshka={matryoshka}"),
        )
        train_stage1(search, toy, recipe, tmp_path / matryoshka)
        keys = list(toy.split("dev")) + list(toy.split("test"))  # whose documents share words, not texts
        queries = search.encode_query([toy.queries[key].text for key in keys], dim=width)
        documents = search.encode_document([toy.corpus[f"d{key[1:]}"].content for key in keys], dim=width)
        both = torch.from_numpy(queries), torch.from_numpy(documents)
        return info_nce(*both, torch.arange(len(keys)), 0.05).item()

    assert loss_at(4, "[4]") < 0.8 * loss_at(4, "[]")


def test_a_width_that_the_model_has_not_is_refused(make_trainer: Callable[..., Stage1Trainer]) -> None:
    assert make_trainer("stage1.matryoshka=[32]").widths == {32: 1.0}
    with pytest.raises(RecipeError, match=r"stage1.matryoshka: the model has 32 dimensions, 64 are asked"):
        make_trainer("stage1.matryoshka=[8, 64]")


def test_a_batch_comes_to_the_same_whatever_stands_beside_a_pair(
    make_trainer: Callable[..., Stage1Trainer],
) -> None:
    """So several processes, each with its part, make the batch that one makes."""
    maker = make_trainer("stage1.own_samples=0", "stage1.noisy_traces=0.5").maker
    pairs = maker.pairs.pairs[:6]
    whole, halves = maker.of(pairs, 3, False), [maker.of(part, 3, False) for part in (pairs[:3], pairs[3:])]
    assert [one for half in halves for one in half.queries] == whole.queries
    reasoned = [half.items[half.reasoned_from :][: len(half.reasoned)] for half in halves]
    assert [one for part in reasoned for one in part] == whole.items[whole.reasoned_from :][
        : len(whole.reasoned)
    ]
    assert maker.of(pairs, 4, False).items != whole.items


@pytest.mark.parametrize(
    ("mixed", "lora", "pairs"),
    [
        (False, "null", 33),  # the last batch of an epoch is dropped
        (False, "null", 12),  # fewer than a batch
        (True, "null", 33),
        pytest.param(False, "{r: 4}", 33, marks=pytest.mark.slow),
    ],
)
def test_processes_learn_what_one_does(
    mixed: bool,
    lora: str,
    pairs: int,
    tmp_path: Path,
    tiny_base: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    launch: Callable[..., None],
) -> None:
    """Three epochs and more on gloo; the batch, its negatives and the means are those of all."""
    other = "{source: other, instruction: Answer., temperature: 0.2, weight: 2}"
    recipe = toy_recipe(
        f"data.mixture=[{other if mixed else ''}]",
        *("stage1.own_samples=0", "stage1.kl=0.1", "stage1.steps=7", "stage1.batch_size=16"),
        *("stage1.micro_tokens=300", "stage1.evaluate_every=7", "stage1.matryoshka=[8]"),
        f"model.lora={lora}",
    )
    few = dict(list(toy.split("stage1").items())[:pairs])
    if mixed:
        rest = dict(list(toy.split("stage1").items())[pairs:])
        replace(toy, qrels={"stage1": rest}, instruction="Answer.").save(tmp_path / "other-0")
    toy = replace(toy, qrels={**toy.qrels, "stage1": few})
    toy.save(tmp_path / "data")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.dump()), encoding="utf-8")
    for size in (1, 2):
        launch(size, Path(__file__).with_name("parallel.py"), tmp_path, size)

    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    start = SearchR3.from_base(tiny_base, max_length=96).model.state_dict()
    moved = mean_difference(one, start)
    assert moved > 1e-3
    assert mean_difference(first, second) == 0
    assert mean_difference(one, first) < 1e-3 * moved
    curves = [json.loads((tmp_path / f"{size}-0.json").read_text(encoding="utf-8")) for size in (1, 2)]
    for a, b in zip(*curves, strict=True):
        for name in ("loss", "sft", "kl", "info_nce", "info_nce_other", "triplet", "grad_norm"):
            assert (name in a) == (name in b)
            assert b.get(name, 0) == pytest.approx(a.get(name, 0), rel=1e-3, abs=1e-6), name


def mean_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return fmean((a[name] - b[name]).abs().mean().item() for name in a if name in b)
