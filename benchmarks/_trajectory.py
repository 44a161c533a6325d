"""Trajectories of stage 2: what a replay needs of every step, and the vectors of any document at any step.

A folder holds `meta.json`, `data/`, and for each step `rollouts-N.safetensors` (the vectors of the rollouts,
the rows and grades of their relevant documents) and `weights-N.safetensors` (the policy that made them).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _result import commit
from safetensors.numpy import load_file, save_file

from searchr3.dataset import RetrievalDataset
from searchr3.environment import RefreshPolicy, RolloutBatch, VectorStore
from searchr3.errors import SearchR3Error
from searchr3.files import write_json
from searchr3.model import SearchR3
from searchr3.training.precision import precision
from searchr3.training.recipe import Recipe
from searchr3.training.refresh import refresh_policy
from searchr3.training.stage2 import train_stage2

KEPT = np.float16  # of vectors on disk: rounding to 11 bits is far below what a step of training moves


class Recorder(RefreshPolicy):
    """The recipe's own policy, and a note of what every step looked like."""

    def __init__(self, inner: RefreshPolicy, folder: Path, search: SearchR3) -> None:
        self.inner, self.folder, self.search = inner, folder, search

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        weights = self.search.model.state_dict()
        put(self.folder / f"weights-{step:04d}.safetensors", {k: v.cpu().numpy() for k, v in weights.items()})
        judged = batch.relevant
        put(
            self.folder / f"rollouts-{step:04d}.safetensors",
            {
                "vectors": batch.vectors,
                "counts": np.array([len(one.rows) for one in judged]),
                "rows": np.concatenate([one.rows for one in judged]),
                "grades": np.concatenate([one.grades for one in judged]),
            },
        )
        yield from self.inner.rows(store, batch, step)

    def metrics(self) -> dict[str, float]:
        return self.inner.metrics()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def put(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
    os.replace(partial, path)


def record(folder: Path, start: Path, dataset: RetrievalDataset, recipe: Recipe) -> None:
    """Run stage 2 from the model in `start` and note every step. Goes on where it was interrupted."""
    meta = folder / "meta.json"
    if meta.is_file():
        known = json.loads(meta.read_text(encoding="utf-8"))["recipe"]
        if known != json.loads(json.dumps(recipe.dump())):
            raise SearchR3Error(f"{folder}: was recorded with another recipe; choose another with --work")
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    search = SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")
    if not meta.is_file():
        texts = [document.content for document in dataset.training_corpus().values()]
        tokens = [len(one.ids) for one in search.conversation.documents(texts)]
        about = {"commit": commit(), "recipe": recipe.dump()}
        write_json(meta, {**about, "ids": list(dataset.training_corpus()), "tokens": tokens})
    stage = recipe.stage2
    policy = refresh_policy(stage.environment, stage.reward.temperature, recipe.seed)
    recorder = Recorder(policy, folder, search)
    train_stage2(search, dataset, recipe, folder / "checkpoints", policy=recorder)
    (folder / "done").touch()


class Trajectory:
    """A recorded trajectory: its rollouts, and its corpus as the policy of any step encodes it."""

    def __init__(self, folder: Path, start: Path, texts: Sequence[str]) -> None:
        self.folder, self.texts = folder, list(texts)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.recipe = Recipe.model_validate(meta["recipe"])
        self.ids: list[str] = meta["ids"]
        self.tokens = np.array(meta["tokens"])
        self.steps = len(list(folder.glob("rollouts-*.safetensors")))
        self.search = SearchR3(start, batch_size=self.recipe.model.batch_size, dtype="float32")
        self.search.autocast = precision(self.recipe)
        self._loaded: int | None = None
        self._fresh: dict[int, dict[int, np.ndarray]] = {}
        self._grown: set[int] = set()
        self._corpus: tuple[int, np.ndarray] | None = None
        if len(self.ids) != len(self.texts):
            raise SearchR3Error(f"{folder}: was recorded on other data; choose another folder with --work")

    def rollouts(self, step: int) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Vectors (n, d) and relevant documents of each rollout."""
        found = load_file(self.folder / f"rollouts-{step:04d}.safetensors")
        relevant, start = [], 0
        for count in found["counts"]:
            part = slice(start, start + int(count))
            keys = [self.ids[row] for row in found["rows"][part]]
            relevant.append(dict(zip(keys, found["grades"][part].tolist(), strict=True)))
            start += int(count)
        return found["vectors"], relevant

    def corpus(self, step: int) -> np.ndarray:
        """All documents as the policy of `step` encodes them, (m, d) float32. Kept on disk."""
        place = self.folder / f"corpus-{step:04d}.safetensors"
        if not place.is_file():
            vectors = self._encode(step, range(len(self.texts)))
            put(place, {"vectors": vectors.astype(KEPT)})
        if self._corpus is None or self._corpus[0] != step:
            self._corpus = step, load_file(place)["vectors"].astype(np.float32)
        return self._corpus[1]

    def fresh(self, step: int, rows: Sequence[int]) -> np.ndarray:
        """Documents `rows` as the policy of `step` encodes them, (r, d) float32. Kept, as policies agree."""
        if step not in self._fresh:
            self._fresh[step] = self._read(step)
        known = self._fresh[step]
        missing = [row for row in rows if row not in known]
        if missing:
            known.update(zip(missing, self._encode(step, missing).astype(KEPT), strict=True))
            self._grown.add(step)
        return np.stack([known[row] for row in rows]).astype(np.float32)

    def seconds_a_document(self, count: int = 512) -> float:
        """What encoding costs, measured on documents spread over the corpus."""
        rows = np.linspace(0, len(self.texts) - 1, min(count, len(self.texts)), dtype=int).tolist()
        self._encode(0, rows[:32])  # the first forward is slower
        started = time.perf_counter()
        self._encode(0, rows)
        return (time.perf_counter() - started) / len(rows)

    def keep(self) -> None:
        """Write to disk what `fresh` has encoded."""
        for step in self._grown:
            known = self._fresh[step]
            rows = np.array(sorted(known))
            put(self._place(step), {"rows": rows, "vectors": np.stack([known[row] for row in rows])})
        self._grown.clear()

    def _place(self, step: int) -> Path:
        return self.folder / f"fresh-{step:04d}.safetensors"

    def _read(self, step: int) -> dict[int, np.ndarray]:
        if (self.folder / f"corpus-{step:04d}.safetensors").is_file():
            found = load_file(self.folder / f"corpus-{step:04d}.safetensors")["vectors"]
            return dict(enumerate(found))
        if not self._place(step).is_file():
            return {}
        found = load_file(self._place(step))
        return dict(zip(found["rows"].tolist(), found["vectors"], strict=True))

    def _encode(self, step: int, rows: Sequence[int]) -> np.ndarray:
        if self._loaded != step:
            weights = load_file(self.folder / f"weights-{step:04d}.safetensors")
            self.search.model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
            self._loaded = step
        return self.search.encode_document([self.texts[row] for row in rows])
