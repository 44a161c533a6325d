"""A trained model measured on a test set, and when it is to think."""

from __future__ import annotations

from pathlib import Path

from searchr3.dataset import RetrievalDataset
from searchr3.evaluation import Results, evaluate
from searchr3.evaluation.adaptive import Measured, choose
from searchr3.evaluation.cache import Cache
from searchr3.model import SearchR3
from searchr3.training.precision import precision
from searchr3.training.recipe import Recipe


def measure(
    folder: Path, name: str, dataset: RetrievalDataset, recipe: Recipe, work: Path, split: str = "test"
) -> Results:
    """Evaluate a model; those that were taught to think also after a thought, the last also where it pays."""
    model = SearchR3(folder, batch_size=recipe.model.batch_size, dtype="float32")
    model.autocast = precision(recipe)
    with Cache(work / "cache") as cache:  # documents of dev and test are the same
        return evaluate(
            model,
            dataset,
            split,
            reasoning={"stage1": "both", "stage2": "all" if split == "test" else "both"}.get(name, "off"),
            baselines=(),
            max_new_tokens=recipe.model.max_new_tokens,
            name=name,
            cache=cache,
        )


def choose_rule(folder: Path, dataset: RetrievalDataset, recipe: Recipe, work: Path) -> None:
    """Choose on dev when a model thinks, and save the rule with it, as `searchr3 adapt` does."""
    dev = measure(folder, "stage2", dataset, recipe, work, "dev")
    where = f"{dataset.name} dev, {len(dev.query_ids):,} queries"
    choose(Measured.of(dev.run("direct"), dev.run("reasoned")), chosen_on=where).rule.save(folder)
