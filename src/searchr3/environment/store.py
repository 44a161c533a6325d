"""The vectors of the corpus, each with the policy step that encoded it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from searchr3.environment.state import State, load_state, save_state
from searchr3.errors import DataError, SearchR3Error
from searchr3.ranking import top_k


class VectorStore:
    """One float32 vector and one version a document.

    Attributes:
        ids: document ids; row i of everything else is the document `ids[i]`.
        vectors: (m, d) float32. Changed in place by `update` only.
        version: (m,) int64, the policy step that encoded each row.
    """

    def __init__(self, ids: Sequence[str], vectors: np.ndarray, version: int | np.ndarray = 0) -> None:
        """Take a copy of `vectors` (m, d).

        Raises:
            DataError: an id comes twice.
            ValueError: the shapes do not fit.
            SearchR3Error: a vector holds NaN or infinity.
        """
        self.ids = list(ids)
        if len(set(self.ids)) < len(self.ids):
            twice = next(document for document, times in Counter(self.ids).items() if times > 1)
            raise DataError(f"document id {twice!r} comes twice; ids must be unique")
        if vectors.ndim != 2 or len(vectors) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids need vectors ({len(self.ids)}, d), found {vectors.shape}")
        self.vectors = np.array(vectors, dtype=np.float32, order="C")
        _finite(self.vectors)
        self.version = np.empty(len(self.ids), dtype=np.int64)
        self.version[:] = version

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def tie_order(self) -> np.ndarray:
        """(m,) int64: on equal scores the smaller goes first. As in trec_eval: ids by descending bytes."""
        order = np.empty(len(self), dtype=np.int64)
        # code points sort as UTF-8 bytes do
        order[sorted(range(len(self)), key=self.ids.__getitem__, reverse=True)] = np.arange(len(self))
        return order

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """The vectors of `rows`, (len(rows), d) float32, not to be written to."""
        return self.vectors[rows]

    def update(self, rows: np.ndarray, vectors: np.ndarray, step: int) -> None:
        """Replace the vectors of `rows`, encoded by the policy of `step`.

        Raises:
            ValueError: the shape is not (len(rows), d).
            SearchR3Error: a vector holds NaN or infinity; the store stays as it was.
        """
        if vectors.shape != (len(rows), self.dim):
            raise ValueError(
                f"{len(rows)} rows need vectors ({len(rows)}, {self.dim}), found {vectors.shape}"
            )
        _finite(vectors)
        self.vectors[rows] = vectors
        self.version[rows] = step

    def transform(self, correct, skip=None):  # TEMP
        keep = self.vectors[skip].copy() if skip is not None else None
        for a in range(0, len(self), 16384):
            r = np.arange(a, min(a + 16384, len(self)))
            self.vectors[r] = correct(r, self.vectors[r])
        if skip is not None:
            self.vectors[skip] = keep

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact best inner products (n, k), descending, and their rows; k is cut to m, ties by row."""
        return top_k(queries, self.vectors, k)

    def staleness(self, step: int) -> np.ndarray:
        """Age of each vector in policy steps at `step`, (m,) int64."""
        return step - self.version

    def state_dict(self) -> State:
        """Arrays (not copied) and JSON values that `from_state` makes the same store of."""
        return {"ids": self.ids, "vectors": self.vectors, "version": self.version}

    @classmethod
    def from_state(cls, state: State) -> VectorStore:
        return cls(state["ids"], state["vectors"], state["version"])

    def save(self, folder: str | Path) -> None:
        """Write the store to `folder`, whole or not at all."""
        save_state(folder, self.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> VectorStore:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing or damaged.
        """
        return cls.from_state(load_state(folder))


def _finite(vectors: np.ndarray) -> None:
    broken = int((~np.isfinite(vectors).all(axis=1)).sum())
    if broken:
        raise SearchR3Error(
            f"{broken} of {len(vectors)} document vectors hold NaN or infinity: the model has diverged; "
            "train it at a lower learning rate"
        )
