"""What a recipe names, made ready before anything is trained: a fault is told while it costs nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3.dataset import Qrels, RetrievalDataset, load_dataset
from searchr3.dataset.lazy import View
from searchr3.dataset.splits import first_of, query_key
from searchr3.dataset.traces import make_traces
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.files import write_json
from searchr3.training.base_facts import FACTS, HELD_OUT, MAKE, python_splits, read_facts, was_taught

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from searchr3.model import SearchR3
    from searchr3.training.recipe import Recipe, SourceRecipe


YOURS = "your-data"  # what stands in a packaged recipe where the user's data are named


def facts_of_base(recipe: Recipe, copy: Path | None = None) -> dict[str, Any]:
    """What the `base.json` of a recipe's base says, see `read_facts`.

    Args:
        copy: a run's own copy of the base, which is asked first: the base may have moved, or be another now.
    """
    name = recipe.model.base
    own = read_facts(copy) if copy else {}
    return own or read_facts(bundled_base() if name == "bundled" else Path(name))


def keep_facts(recipe: Recipe, copy: Path) -> None:
    """Put the base's `base.json` into a run's own copy of the base, where there is one and it is missing."""
    if not (copy / FACTS).is_file() and (facts := facts_of_base(recipe)):
        write_json(copy / FACTS, facts)


def refuse_a_base_that_knows(recipe: Recipe, dataset: RetrievalDataset | None = None) -> None:
    """Look into the base's `base.json` whether it has seen what the recipe holds out.

    Args:
        dataset: the recipe's data, once they are read.

    Raises:
        RecipeError: the base has read functions, or was taught queries, that are dev or test here.
    """
    data, name, facts = recipe.data, recipe.model.base, facts_of_base(recipe)
    base = "the bundled base" if name == "bundled" else f"the base {name}"
    if data.source == "python" and python_splits(facts) - {data.split_by}:
        raise RecipeError(
            f"data.split_by: {base} has seen functions that the split by {data.split_by} holds out; make a "
            f"base with `{MAKE} --split-by {data.split_by}` and set model.base to it"
        )
    if dataset is not None and was_taught(facts, dataset):
        raise RecipeError(
            f"data.source: {base} was taught with another division of {dataset.name}, so it may know queries "
            f"that are dev or test here; make a base with `{MAKE} --data {data.source} --pairs`, or without "
            "--pairs, and set model.base to it"
        )


def make_dataset(recipe: Recipe) -> RetrievalDataset:
    """The recipe's data, looked over, with built-in traces for the stage-1 queries that bring none.

    All training queries are there, see `limited`.
    """
    data = recipe.data
    if data.source == YOURS and not Path(YOURS).exists():
        raise RecipeError(
            "data.source: this recipe leaves the data to you; add data.source=FOLDER, a folder in BEIR's "
            "layout or a .jsonl file of triples (docs/train-on-your-data.md says how they look)"
        )
    dataset = _told(load_dataset(data.source, data.max_documents, data.split_by, data.on_disk), data)
    from searchr3.training.common import check_data  # torch, which a fault in the data need not wait for

    check_data(dataset, recipe)
    refuse_a_base_that_knows(recipe, dataset)
    if not (recipe.stage1.steps and data.trace_words):
        return dataset
    return make_traces(dataset, ("stage1",), data.trace_words, data.trace)


def limited(dataset: RetrievalDataset, recipe: Recipe) -> RetrievalDataset:
    """The data set with no more training queries than the recipe wants of it, looked over.

    Raises:
        DataError: a split is missing, or has nothing to learn from.
        RecipeError: what is left is too little for a step.
    """
    from searchr3.training.common import check_data

    qrels = dict(dataset.qrels)
    wanted = {"stage1": recipe.data.stage1_queries, "stage2": recipe.data.stage2_queries}
    for split, most in wanted.items():
        if most is not None and split in qrels:
            judged = qrels[split]
            qrels[split] = {key: judged[key] for key in first_of(judged, most, "labels")}
    dataset = replace(dataset, qrels=qrels)
    check_data(dataset, recipe)
    return dataset


def make_sources(
    recipe: Recipe, main: RetrievalDataset, folder: Path | None = None
) -> list[RetrievalDataset]:
    """The further data sets of a mixture, looked over, with built-in traces for what is trained on.

    Args:
        main: its dev and test queries are not trained on, whichever source has them too.
        folder: those that it holds already, by name, are taken from there as they are.

    Raises:
        DataError: one cannot be used.
        RecipeError: one is too small for a batch.
    """
    from searchr3.training.mixture import training_splits
    from searchr3.training.pairs import Pairs, check_pairs

    found = []
    sources = recipe.data.mixture if recipe.stage1.steps else ()
    measured = {query_key(main.queries[key].text) for split in HELD_OUT for key in main.qrels.get(split, ())}
    for asked in sources:
        if folder and (folder / asked.label).is_dir():
            found.append(load_dataset(folder / asked.label, on_disk=asked.on_disk))
            continue
        dataset = _told(load_dataset(asked.source, on_disk=asked.on_disk), asked)
        dataset = _without(dataset, training_splits(dataset), measured)
        splits = training_splits(dataset)
        check_pairs(Pairs(dataset, *splits), asked.label, recipe.stage1.batch_size)
        if asked.dev_queries:
            dataset.split("dev")
        words = recipe.data.trace_words
        found.append(make_traces(dataset, splits, words, recipe.data.trace) if words else dataset)
    return found


def _without(dataset: RetrievalDataset, splits: Sequence[str], measured: set[str]) -> RetrievalDataset:
    """The data set whose `splits` judge no query of the `measured` ones (as `query_key`s)."""
    texts = dataset.queries
    known = {split: dataset.qrels.get(split, {}) for split in splits}
    same = {
        split: frozenset(key for key in qrels if query_key(texts[key].text) in measured)
        for split, qrels in known.items()
    }
    less: dict[str, Qrels] = {split: View(known[split], keys) for split, keys in same.items() if keys}
    if not less:
        return dataset
    return replace(
        dataset, qrels={split: qrels for split, qrels in {**dataset.qrels, **less}.items() if qrels}
    )


def _told(dataset: RetrievalDataset, asked: SourceRecipe) -> RetrievalDataset:
    """The data set with the recipe's instruction, where it has one."""
    return replace(dataset, instruction=asked.instruction or dataset.instruction)


def check_names(recipe: Recipe, processes: int = 1) -> None:
    """Look at the launcher, and at the trackers, the baselines and the engine that a recipe names.

    Also at whether its batches can be divided: that of stage 2 would be told only when stage 1 has ended.
    """
    from searchr3.evaluation import check_baselines
    from searchr3.training.common import check_trackers
    from searchr3.training.parallel import check_batches, check_launcher
    from searchr3.training.rollout_engine import check_installed

    check_batches(recipe, processes)
    check_launcher(os.environ, lora=recipe.model.lora is not None)
    check_trackers(recipe.report_to)
    check_installed(recipe.stage2.generation)
    check_baselines(recipe.evaluation.baselines)


def make_base_model(recipe: Recipe, weights: bool = True) -> SearchR3:
    """The recipe's base model, with the embed token, fit to be trained as the recipe says.

    Its weights are of the type that they were published in.

    Args:
        weights: False gives its shape alone, on the meta device.
    """
    from searchr3.conversation import Prompts
    from searchr3.model import SearchR3

    settings = recipe.model
    prompts = Prompts.load(settings.prompts) if settings.prompts else None
    source = bundled_base() if settings.base == "bundled" else settings.base
    model = SearchR3.from_base(source, "auto", prompts, settings.max_length, weights=weights)
    render = model.conversation
    for kind in (render.documents, render.reasoning_prompts, render.chat_prompts):
        kind([""])  # a template too long for max_length is told now
    if settings.gradient_checkpointing and not model.model.supports_gradient_checkpointing:
        raise RecipeError(f"model.gradient_checkpointing: {settings.base} cannot do so; set it to false")
    for one in (recipe.data, *recipe.data.mixture):
        render.reasoning_prompts([""], one.instruction)
        render.queries([""], one.instruction)
    _check_context(model, recipe)
    recipe.stage1.widths(model.dimension)
    if settings.lora:
        trained_shape(model, recipe)  # layers that are not there are told now
    return model


def _check_context(model: SearchR3, recipe: Recipe) -> None:
    """Raise RecipeError where a conversation may be longer than the model was made for."""
    from searchr3.generation import context_length

    settings, context = recipe.model, context_length(model.model)
    longest = settings.max_length + settings.max_new_tokens + 1  # behind the thought comes the embed token
    if context and longest > context:
        raise RecipeError(
            f"model.max_length: {settings.max_length} tokens and {settings.max_new_tokens} of reasoning are "
            f"more than the {context} of {settings.base}; set them lower"
        )


def trained_shape(model: SearchR3, recipe: Recipe) -> PreTrainedModel:
    """What is trained, on the meta device: of the model's shape, with the recipe's adapter.

    Raises:
        RecipeError: the adapter does not fit.
    """
    from searchr3.loading import on_meta
    from searchr3.model import SearchR3
    from searchr3.training.adapter import add_adapter

    shape = SearchR3.from_parts(on_meta(model.model.config), model.tokenizer)
    if recipe.model.lora:
        try:
            add_adapter(shape, recipe)
        except (ValueError, re.error) as error:  # a text of layers is a pattern
            raise RecipeError(f"model.lora: {' '.join(str(error).split())}") from None
    return shape.model


def bundled_base() -> Path:
    """Folder of the tiny base in the package.

    Raises:
        SearchR3Error: this installation lacks it.
    """
    folder = Path(__file__).parents[1] / "base"
    if not (folder / "model.safetensors").is_file():
        raise SearchR3Error(
            f"{folder}: the tiny base is missing; make it with: python -m searchr3.training.base {folder}"
        )
    return folder
