"""Where benchmarks of stage 2 begin: the quickstart's data and its stage-1 model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import SearchR3Error
from searchr3.training.recipe_file import load_recipe


def beginning(
    work: Path, overrides: Sequence[str], stage1: Path | None = None, data: Path | None = None
) -> tuple[RetrievalDataset, Path]:
    """Data and stage-1 model: those given, or those of the quickstart, made in `work`."""
    model = stage1 or work / "start" / "stage1"
    data = data or model.parent / "data"
    if not stage1 and not model.is_dir():
        from searchr3.runs.preparation import limited, make_base_model, make_dataset
        from searchr3.training.stage1 import train_stage1

        recipe = load_recipe("quickstart", overrides)
        dataset = load_dataset(data) if data.is_dir() else make_dataset(recipe)
        if not data.is_dir():
            dataset.save(data)
        search, checkpoints = make_base_model(recipe), work / "start" / "checkpoints"
        print(f"stage 1: {recipe.stage1.steps} steps", flush=True)
        train_stage1(search, limited(dataset, recipe), recipe, checkpoints)
        search.save_pretrained(model)
        shutil.rmtree(checkpoints)
    for folder in (model, data):
        if not folder.is_dir():
            raise SearchR3Error(f"{folder}: no such folder; name one with a finished stage 1 and its data")
    return load_dataset(data), model
