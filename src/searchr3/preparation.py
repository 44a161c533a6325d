"""What a recipe names, made ready before anything is trained: a fault is told while it costs nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.dataset.traces import make_traces
from searchr3.errors import RecipeError, SearchR3Error

if TYPE_CHECKING:
    from searchr3.model import SearchR3
    from searchr3.training.recipe import Recipe


def refuse_a_base_that_knows(recipe: Recipe) -> None:
    """The bundled base has read all packages but for the functions that the split by hash holds out."""
    if recipe.data.split_by == "package" and recipe.model.base == "bundled":
        raise RecipeError(
            "data.split_by: the bundled base has seen functions of the packages to be held out; make a base "
            "with `python -m searchr3.training.base OUTPUT --split-by package` and set model.base to it"
        )


def make_dataset(recipe: Recipe) -> RetrievalDataset:
    """The recipe's data, looked over, with built-in traces for the stage-1 queries that bring none."""
    data = recipe.data
    dataset = load_dataset(data.source, data.max_documents, data.split_by)
    from searchr3.training.common import check_data  # torch, which a fault in the data need not wait for

    check_data(dataset, recipe)
    if not (recipe.stage1.steps and data.trace_words):
        return dataset
    return make_traces(dataset, ("stage1",), data.trace_words)


def check_names(recipe: Recipe) -> None:
    """Look at the launcher, and at the trackers, the baselines and the engine that a recipe names."""
    from searchr3.evaluation import check_baselines
    from searchr3.training.common import check_trackers
    from searchr3.training.parallel import check_launcher
    from searchr3.training.rollout_engine import check_installed

    check_launcher(os.environ, lora=recipe.model.lora is not None)
    check_trackers(recipe.report_to)
    check_installed(recipe.stage2.generation)
    check_baselines(recipe.evaluation.baselines)


def make_base_model(recipe: Recipe) -> SearchR3:
    """The recipe's base model, with the embed token, fit to be trained as the recipe says."""
    from searchr3.conversation import Prompts
    from searchr3.model import SearchR3

    settings = recipe.model
    prompts = Prompts.load(settings.prompts) if settings.prompts else None
    source = bundled_base() if settings.base == "bundled" else settings.base
    model = SearchR3.from_base(source, prompts=prompts, max_length=settings.max_length)
    render = model.conversation
    for kind in (render.documents, render.reasoning_prompts, render.chat_prompts):
        kind([""])  # a template too long for max_length is told now
    if settings.lora:
        _check_adapter(model, recipe)
    return model


def _check_adapter(model: SearchR3, recipe: Recipe) -> None:
    """Put the adapter on a model of the same shape but without weights, to see whether it fits."""
    import torch

    from searchr3.model import SearchR3
    from searchr3.training.adapter import add_adapter

    with torch.device("meta"):
        shape = type(model.model)(model.model.config)
    try:
        add_adapter(SearchR3.from_parts(shape, model.tokenizer), recipe)
    except ValueError as error:
        raise RecipeError(f"model.lora: {' '.join(str(error).split())}") from None


def bundled_base() -> Path:
    """Folder of the tiny base in the package.

    Raises:
        SearchR3Error: this installation lacks it.
    """
    folder = Path(__file__).parent / "base"
    if not (folder / "model.safetensors").is_file():
        raise SearchR3Error(
            f"{folder}: the tiny base is missing; make it with: python -m searchr3.training.base {folder}"
        )
    return folder
