"""Mixtures: whose turn it is, which pairs stand in a batch, how each source is learnt."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import DataError, RecipeError
from searchr3.losses import allowed_negatives, info_nce
from searchr3.model import SearchR3
from searchr3.training.batches import NeighbourSampler
from searchr3.training.forward import run
from searchr3.training.mixture import MixedPairs, MixtureSampler, shares, sources_of, turns
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1

MakeRecipe = Callable[..., Recipe]
MIXTURE = "data.mixture=[{source: talk, instruction: Answer., temperature: 0.2}, {source: more, weight: 2}]"


def other(name: str, queries: int, instruction: str | None = None) -> RetrievalDataset:
    """A data set whose ids are those of `toy`, and whose documents are not."""
    corpus = {f"d{number}": Document("", f"{name} answers number {number}") for number in range(queries)}
    asked = {f"q{number}": Query(f"{name} asks {number}", f"thing {number}") for number in range(queries)}
    judged = {f"q{number}": {f"d{number}": 1} for number in range(queries)}
    splits = {split: {} for split in ("stage1", "stage2", "dev")}
    for number, key in enumerate(judged):
        splits[("stage1", "stage2", "dev", "stage1")[number % 4]][key] = judged[key]
    return RetrievalDataset(name, corpus, asked, splits, instruction=instruction)


@pytest.fixture
def others() -> list[RetrievalDataset]:
    return [other("talk", 24, "Answer."), other("more", 40)]


@st.composite
def parts(draw: st.DrawFn) -> np.ndarray:
    weights = np.array(draw(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6)))
    return weights / weights.sum()


@given(of_source=parts(), batches=st.integers(1, 300))
def test_at_any_time_sources_have_had_their_shares(of_source: np.ndarray, batches: int) -> None:
    counts = np.bincount(list(islice(turns(of_source), batches)), minlength=len(of_source))
    assert np.abs(counts - of_source * batches).max() < 2


def test_equal_sources_take_turns() -> None:
    assert list(islice(turns(np.full(3, 1 / 3)), 7)) == [0, 1, 2, 0, 1, 2, 0]


def test_shares_go_by_weight_and_size(
    toy: RetrievalDataset, others: list[RetrievalDataset], toy_recipe: MakeRecipe
) -> None:
    sources = sources_of(toy, others, toy_recipe(MIXTURE))
    sizes = [len(one.pairs) for one in sources]

    assert sizes[1:] == [18, 30]  # stage1 and stage2: of a further source both are for stage 1
    by_size = np.array([1, 1, 2]) * sizes
    assert shares(sources, 1) == pytest.approx(by_size / by_size.sum())
    assert shares(sources, 0) == pytest.approx([0.25, 0.25, 0.5])


@given(
    sizes=st.lists(st.integers(4, 20), min_size=1, max_size=4),
    size=st.integers(1, 4),
    batches=st.integers(0, 40),
    group=st.integers(1, 3),
)
def test_a_batch_is_of_one_source_whose_pairs_all_come_before_one_comes_again(
    sizes: list[int], size: int, batches: int, group: int
) -> None:
    texts = [[f"word{row % 3} {source}" for row in range(rows)] for source, rows in enumerate(sizes)]
    of_source = np.array(sizes) / sum(sizes)

    def order(batches: int) -> list[int]:
        samplers = [NeighbourSampler(own, group, 0) for own in texts]
        sampler = MixtureSampler(samplers, of_source, size, batches)
        rows = list(sampler)
        assert len(rows) == len(sampler)
        return rows

    rows = order(batches)
    starts = np.cumsum([0, *sizes])
    found = np.searchsorted(starts, rows, side="right").reshape(-1, size) - 1
    assert (found == found[:, :1]).all()
    assert found[:, 0].tolist() == list(islice(turns(of_source), batches))
    for source, own in enumerate(sizes):
        mine = [row for row in rows if starts[source] <= row < starts[source + 1]]
        first = mine[: own // size * size]
        assert len(set(first)) == len(first)
    assert order(batches + 3)[: len(rows)] == rows  # a function of the batch's number


def test_a_mixture_of_one_is_the_source_alone() -> None:
    texts = [f"word{row % 3} other{row}" for row in range(10)]
    alone, expected = NeighbourSampler(texts, 2, 3), []
    for epoch in range(3):
        alone.set_epoch(epoch)
        expected += list(alone)[:8]
    assert list(MixtureSampler([NeighbourSampler(texts, 2, 3)], np.ones(1), 4, 6)) == expected


def test_pairs_are_numbered_on_and_found_again(
    toy: RetrievalDataset, others: list[RetrievalDataset], toy_recipe: MakeRecipe
) -> None:
    sources = sources_of(toy, others, toy_recipe(MIXTURE))
    mixed = MixedPairs(sources)
    assert len(mixed) == sum(len(one.pairs) for one in sources)
    number = 0
    for source, one in enumerate(sources):
        own = [one.pairs[row].tolist() for row in range(len(one.pairs))]
        rows = torch.stack([mixed[number + row] for row in range(len(own))])
        assert mixed.of_one(rows) == (source, own)
        number += len(own)


def test_a_source_that_fills_no_batch_is_refused(toy: RetrievalDataset, toy_recipe: MakeRecipe) -> None:
    recipe = toy_recipe("stage1.batch_size=16", "data.mixture=[{source: few}]")
    with pytest.raises(RecipeError, match=r"'few' has 12 training pairs, but a batch .* wants 16"):
        sources_of(toy, [other("few", 16)], recipe)
    untrained = replace(other("few", 16), qrels={"test": {"q0": {"d0": 1}}})
    with pytest.raises(DataError, match="few: no split 'stage1'"):
        sources_of(toy, [untrained], recipe)


def test_two_sources_of_one_name_are_refused() -> None:
    load_recipe({}, ["data.mixture=[{source: a/x.jsonl.gz}, {source: b/x.jsonl, name: y}]"])
    with pytest.raises(RecipeError, match="data: two sources are called 'x'"):
        load_recipe({}, ["data.mixture=[{source: a/x.jsonl.gz}, {source: b/x}]"])
    with pytest.raises(RecipeError, match=r"unknown key 'data.mixture.0.wieght'; did you mean 'weight'"):
        load_recipe({}, ["data.mixture=[{source: a, wieght: 2}]"])
    with pytest.raises(RecipeError, match=r"data.mixture.0.source: field required"):
        load_recipe({}, ["data.mixture=[{weight: 2}]"])
    with pytest.raises(RecipeError, match=r"data.instruction: is blank; write a sentence"):
        load_recipe({}, ["data.instruction=' '"])


# Training


def trainer_of(search: SearchR3, dataset: RetrievalDataset, recipe: Recipe, *rest: Any) -> Stage1Trainer:
    return Stage1Trainer(search, None, dataset, recipe, *rest)


def test_each_source_is_learnt_with_its_instruction_and_temperature(
    tiny_model: Path,
    toy: RetrievalDataset,
    others: list[RetrievalDataset],
    toy_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    search = SearchR3(tiny_model, dtype="float32")
    recipe = toy_recipe(MIXTURE, "stage1.kl=0", "stage1.chat_prompts=0", "stage1.own_samples=0")
    toy = replace(toy, instruction="Find code.")
    trainer = trainer_of(search, toy, recipe, tmp_path, None, others)
    chat, first = search.conversation, 0
    for dataset, tau, task in zip(
        (toy, *others), (0.05, 0.2, 0.05), ("Find code.", "Answer.", None), strict=True
    ):
        rows = torch.stack([trainer.mixed[first + row] for row in range(5)])
        number, own = trainer.mixed.of_one(rows)
        source = trainer.sources[number]
        assert source.dataset is dataset
        batch = trainer.makers[number].of(own, 0, False)
        texts = [dataset.queries[source.pairs.query_ids[query]].text for query in batch.queries]

        trainer.training_step(trainer.model, {"pairs": rows})

        prompts = [one.ids for one in chat.queries(texts, task)]
        assert [item.ids[: len(ids)] for item, ids in zip(batch.items, prompts, strict=False)] == prompts
        reasoned = batch.items[batch.reasoned_from :][: len(batch.reasoned)]
        asked = chat.reasoning_prompts(texts, task)
        assert all(item.ids[: len(ids)] == ids for item, ids in zip(reasoned, asked, strict=True))
        vectors = run(trainer.model, batch.items, trainer.pad_id).vectors.detach()
        known = [source.pairs.document_ids[row] for row in batch.documents]
        allowed = allowed_negatives(known, [source.pairs.relevant[query] for query in batch.queries])
        documents = vectors[5:][: len(known)]
        forms = vectors[:5], vectors[5 + len(known) :][:5]
        losses = [info_nce(form, documents, torch.arange(5), tau, allowed).item() for form in forms]
        assert trainer._parts["info_nce"][-1] == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert trainer._parts[f"info_nce_{source.name}"] == trainer._parts["info_nce"][-1:]
        first += len(source.pairs)


def test_a_mixture_is_trained_in_its_shares_and_its_dev_scored(
    tiny_model: Path,
    toy: RetrievalDataset,
    others: list[RetrievalDataset],
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    step = Stage1Trainer.training_step

    def watched(self: Stage1Trainer, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        seen.append(self.mixed.of_one(inputs["pairs"])[0])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Stage1Trainer, "training_step", watched)
    recipe = toy_recipe(MIXTURE.replace("weight: 2", "weight: 2, dev_queries: 5"), *SHORT, "data.by_size=0")

    curve = train_stage1(SearchR3(tiny_model, dtype="float32"), toy, recipe, tmp_path, None, others)

    assert Counter(seen) == {0: 2, 1: 2, 2: 4}
    assert sum("info_nce_more" in row for row in curve) == 4
    assert 0 <= curve[-1]["eval_direct_more"] <= 1
    assert "eval_direct_talk" not in curve[-1]


SHORT = ("stage1.steps=8", "stage1.evaluate_every=4", "stage1.own_samples=0", "stage1.kl=0")


def test_an_interrupted_mixture_goes_on_as_if_it_had_not_been(
    tiny_model: Path,
    toy: RetrievalDataset,
    others: list[RetrievalDataset],
    toy_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    recipe = toy_recipe(MIXTURE, *SHORT)

    def trained(folder: str, *stops: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        for stop in stops:

            def tell(news: dict[str, Any], stop: int = stop) -> None:
                if news["step"] == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                train_stage1(
                    SearchR3(tiny_model, dtype="float32"), toy, recipe, tmp_path / folder, tell, others
                )
        search = SearchR3(tiny_model, dtype="float32")
        curve = train_stage1(search, toy, recipe, tmp_path / folder, None, others)
        return search.model.state_dict(), curve

    weights, curve = trained("whole")
    again, resumed = trained("parts", 6)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert resumed == curve
