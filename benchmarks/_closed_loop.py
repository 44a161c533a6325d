"""Whole stage-2 runs under two refresh policies, seed by seed: does a fresher corpus make a better model?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.files import write_json
from searchr3.model import SearchR3
from searchr3.training.checkpoints import last_checkpoint, step_of
from searchr3.training.dev import DevSet
from searchr3.training.recipe import Recipe
from searchr3.training.stage2 import train_stage2

Outcome = dict[str, float]


def closed_loop(
    folder: Path,
    start: Path,
    dataset: RetrievalDataset,
    dev: DevSet,
    recipe: Recipe,
    policies: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, list[Outcome]]:
    """What each policy ends with, seed by seed. Finished runs are read from `folder`, interrupted ones go on.

    An outcome is `ndcg`, the mean of `direct` and `reasoned` nDCG@10 on `dev` at the last checkpoint; and, in
    units of the corpus, `tokens`, what the refreshes encoded, the first encoding included, and
    `contrastive_tokens`, what the contrastive term had to, for it takes no stale vector.
    """
    found: dict[str, list[Outcome]] = {policy: [] for policy in policies}
    for seed in seeds:  # seed by seed: a loop cut short still holds whole pairs
        for policy in policies:
            place = folder / f"{policy}-{seed}.json"
            if not place.is_file():
                print(f"closed loop: {policy}, seed {seed}", flush=True)
                environment = recipe.stage2.environment.model_copy(update={"policy": policy})
                stage = recipe.stage2.model_copy(update={"environment": environment, "log_every": 1})
                one = recipe.model_copy(update={"seed": seed, "stage2": stage})
                write_json(place, _run(place.with_suffix(""), start, dataset, dev, one))
            found[policy].append(json.loads(place.read_text(encoding="utf-8")))
    return found


def _run(folder: Path, start: Path, dataset: RetrievalDataset, dev: DevSet, recipe: Recipe) -> Outcome:
    search = SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")
    curve = train_stage2(search, dataset, recipe, folder)
    last = last_checkpoint(folder)
    if last is None or step_of(last) != recipe.stage2.steps:
        raise SearchR3Error(f"{folder}: no checkpoint of step {recipe.stage2.steps}; remove it and run again")
    search.reload(last)
    figures = dev.score(search, recipe.model.max_new_tokens)
    shutil.rmtree(folder)
    return {
        "ndcg": (figures["direct"] + figures["reasoned"]) / 2,
        "direct": figures["direct"],
        "reasoned": figures["reasoned"],
        "tokens": _total(curve, "environment_share_tokens"),
        "contrastive_tokens": _total(curve, "contrastive_share_tokens"),
    }


def _total(curve: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(row.get(name, 0.0) for row in curve)
