"""Whole stage-2 runs under two refresh policies, seed by seed: does a fresher corpus make a better model?"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from searchr3.dataset import RetrievalDataset
from searchr3.environment import RefreshPolicy, RolloutBatch, VectorStore
from searchr3.files import write_json
from searchr3.model import SearchR3
from searchr3.training import stage2
from searchr3.training.dev import DevSet
from searchr3.training.recipe import Recipe


class Counting(RefreshPolicy):
    """Another policy, and how many documents it asked for."""

    def __init__(self, inner: RefreshPolicy) -> None:
        self.inner, self.documents = inner, 0

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        for rows in self.inner.rows(store, batch, step):
            self.documents += len(rows)
            yield rows

    def state_dict(self):
        return {**self.inner.state_dict(), "counted": self.documents}

    def load_state_dict(self, state) -> None:
        state = dict(state)
        self.documents = state.pop("counted", 0)
        self.inner.load_state_dict(state)


def closed_loop(
    folder: Path,
    start: Path,
    dataset: RetrievalDataset,
    dev: DevSet,
    recipe: Recipe,
    policies: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, list[dict[str, float]]]:
    """Results of each policy, seed by seed: final dev nDCG@10 (the mean of direct and reasoned) and documents
    encoded. A finished run is read from `folder`, an interrupted one goes on from its checkpoint."""
    found: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
    for seed in seeds:
        for policy in policies:
            place = folder / f"{policy}-{seed}.json"
            if not place.is_file():
                environment = recipe.stage2.environment.model_copy(update={"policy": policy})
                stage = recipe.stage2.model_copy(update={"environment": environment})
                one = recipe.model_copy(update={"seed": seed, "stage2": stage})
                write_json(place, _run(place.with_suffix(""), start, dataset, dev, one))
            found[policy].append(json.loads(place.read_text(encoding="utf-8")))
    return found


def _run(
    folder: Path, start: Path, dataset: RetrievalDataset, dev: DevSet, recipe: Recipe
) -> dict[str, float]:
    search = SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")
    policy = Counting(stage2.refresh_policy(recipe.stage2))
    began = time.perf_counter()
    curve = stage2.train_stage2(search, dataset, recipe, folder, policy=policy, keep_best=False)
    seconds = time.perf_counter() - began
    figures = dev.score(search, recipe.model.max_new_tokens)
    shutil.rmtree(folder)
    rewards = [row["reward_ndcg"] for row in curve if "reward_ndcg" in row]
    return {
        "ndcg": (figures["direct"] + figures["reasoned"]) / 2,
        "direct": figures["direct"],
        "reasoned": figures["reasoned"],
        "documents": policy.documents,
        "reward": float(np.mean(rewards[-max(1, len(rewards) // 4) :])),
        "seconds": seconds,
    }
