"""The vectors of the corpus, each with the policy step that encoded it; in several processes, in shards."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.environment.state import Rows, State, load_state, save_state
from searchr3.errors import DataError, SearchR3Error
from searchr3.files import disk_errors
from searchr3.group import ALONE, Group, bounds, together
from searchr3.ranking import exact_scores, greatest_length, merged, top_k

MAPPED_ABOVE = 2**29  # bytes from which an array goes into a file

_CHUNK = 16_384  # documents handled at once
_GAPS = 2**22  # scores held at once when documents are counted


class VectorStore:
    """One vector and one version a document.

    In a group each rank holds the vectors of one range of rows. Then every method that reads or writes
    vectors is collective, `state_dict`, `save` and `load` too: all ranks call it, with the same rows and
    vectors. Only the questions of `top_k` and `ahead` are a rank's own.

    Args:
        ids: of all documents, unique; row i of everything else is the document `ids[i]`.
        vectors: (m, d), copied: an array, or what gives one when it is sliced.
        version: the policy step that encoded them, one for all or (m,).
        dtype: "float32", or "float16", which halves the memory; what it rounds is ranked as rounded.
        folder: where the file of a large store lies; by default the system's folder for such. The file has
            no name and disappears with the store, however the process ends.
        mapped: whether the vectors lie in such a file; by default if they take more than `MAPPED_ABOVE`.
        group: the processes that share the store.

    Attributes:
        ids: as given.
        vectors: (m, d), in a group those from row `first` on that this rank holds. Changed in place by
            `update` and `transform` only.
        version: (m,) int64, on every rank that of all.

    Raises:
        DataError: an id comes twice.
        ValueError: the shapes do not fit, or the dtype is another.
        SearchR3Error: a vector holds NaN or infinity, or there is no room for the file.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: Rows,
        version: int | np.ndarray = 0,
        dtype: str = "float32",
        folder: str | Path | None = None,
        mapped: bool | None = None,
        group: Group = ALONE,
    ) -> None:
        self.ids = list(ids)
        if len(set(self.ids)) < len(self.ids):
            twice = next(document for document, times in Counter(self.ids).items() if times > 1)
            raise DataError(f"document id {twice!r} comes twice; ids must be unique")
        if len(vectors.shape) != 2 or vectors.shape[0] != len(self.ids):
            raise ValueError(
                f"{len(self.ids)} ids need vectors ({len(self.ids)}, d), found {tuple(vectors.shape)}"
            )
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {dtype!r}; vectors are stored as float32 or float16")
        self.group, self._folder, self._mapped = group, folder, mapped
        self._bounds = bounds(len(self.ids), group.size)
        self.first, end = (int(row) for row in self._bounds[group.rank : group.rank + 2])
        self.vectors = _room((end - self.first, vectors.shape[1]), dtype, folder, mapped)
        broken = 0
        for start in range(self.first, end, _CHUNK):
            part = slice(start, min(start + _CHUNK, end))
            broken += self._put(slice(start - self.first, part.stop - self.first), vectors[part])
        self._all_finite(broken)
        self.version = np.empty(len(self.ids), dtype=np.int64)
        self.version[:] = version
        self._longest = self._greatest(greatest_length(self.vectors))  # no vector is longer

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @property
    def dtype(self) -> str:
        return self.vectors.dtype.name

    @cached_property
    def tie_order(self) -> np.ndarray:
        """(m,) int64: on equal scores the smaller goes first. As in trec_eval: ids by descending bytes."""
        order = np.empty(len(self), dtype=np.int64)
        # code points sort as UTF-8 bytes do
        order[sorted(range(len(self)), key=self.ids.__getitem__, reverse=True)] = np.arange(len(self))
        return order

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """The vectors of `rows`, (len(rows), d) float32, not to be written to."""
        if self.group.size == 1:
            return self.vectors[rows].astype(np.float32, copy=False)
        rows = np.arange(len(self))[rows]
        _, own = self._own(rows)
        parts = self.group.gather(self.vectors[own])
        owner = np.searchsorted(self._bounds[1:], rows, side="right")
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        vectors[np.argsort(owner, kind="stable")] = np.concatenate(parts)
        return vectors

    def update(self, rows: np.ndarray, vectors: np.ndarray, step: int | np.ndarray) -> None:
        """Replace the vectors of `rows`, encoded by the policy of `step`, one for all or (len(rows),).

        Raises:
            ValueError: the shape is not (len(rows), d).
            SearchR3Error: a vector holds NaN or infinity; the store stays as it was.
        """
        if vectors.shape != (len(rows), self.dim):
            raise ValueError(
                f"{len(rows)} rows need vectors ({len(rows)}, {self.dim}), found {vectors.shape}"
            )
        vectors = self._stored(vectors)
        _finite(_broken(vectors), len(vectors))
        places, own = self._own(np.arange(len(self))[rows])
        self.vectors[own] = vectors[places]
        self.version[rows] = step
        self._longest = max(self._longest, greatest_length(vectors))

    def transform(
        self, correct: Callable[[np.ndarray, np.ndarray], np.ndarray], skip: np.ndarray | None = None
    ) -> None:
        """Replace every vector by what `correct` makes of it; the versions stay.

        Args:
            correct: rows (c,) int64 and their vectors (c, d) float32, in chunks → (c, d). It may be called
                any number of times, in a group by each rank for its own rows.
            skip: rows that are left alone.

        Raises:
            ValueError: `correct` returned another shape.
            SearchR3Error: it returned NaN or infinity. The rows of that chunk and of those behind it stay
                as they were; what had been replaced before, remains so.
        """
        left_alone = np.zeros(len(self), dtype=bool)
        if skip is not None:
            left_alone[skip] = True
        broken = 0
        for start in range(0, len(self.vectors), _CHUNK):
            part = np.arange(start, min(start + _CHUNK, len(self.vectors)))
            part = part[~left_alone[part + self.first]]
            if len(part) and not broken:
                vectors = correct(part + self.first, self.vectors[part].astype(np.float32, copy=False))
                if vectors.shape != (len(part), self.dim):
                    raise ValueError(
                        f"{len(part)} rows need vectors ({len(part)}, {self.dim}), found {vectors.shape}"
                    )
                broken += self._put(part, vectors)
        self._longest = self._greatest(greatest_length(self.vectors))
        self._all_finite(broken)

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact best inner products (n, k), descending, and their rows; k is cut to m, ties by row.

        In a group n may differ between the ranks, k may not.
        """
        (queries,), own = together(self.group, np.asarray(queries, dtype=np.float32))
        k = max(0, min(k, len(self)))
        scores, rows = top_k(queries, self.vectors, k, longest=self._longest)
        if self.group.size > 1:
            short = ((0, 0), (0, k - rows.shape[1]))  # a shard may hold fewer than k
            scores, rows = merged(
                self.group.gather(np.pad(scores, short, constant_values=-np.inf)),
                self.group.gather(np.pad(rows + self.first, short, constant_values=len(self))),
                k,
            )
        return scores[own], rows[own]

    def goes_before(self, rows: np.ndarray, scores: np.ndarray, row: int, score: float) -> np.ndarray:
        """Which of `rows` with these `scores` trec_eval puts before `row` with its `score`, as bool."""
        tie = (scores == score) & (self.tie_order[rows] < self.tie_order[row])
        return ((scores > score) | tie) & (rows != row)

    def ahead(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How many documents go before one document of each query, ties as in trec_eval.

        In a group n may differ between the ranks, and may be 0.

        Args:
            queries: (n, d) float32.
            rows: (n,) int64, the document of each query.
            scores: (n,) float32, its exact score, as `top_k` gives it.

        Returns:
            (n,) int64, from 0 to m − 1.
        """
        (queries, rows, scores), own = together(self.group, queries, rows, scores)
        counts = np.zeros(len(queries), dtype=np.int64)
        # what float32 may err by; closer ones are compared again, exactly
        lengths = np.linalg.norm(queries, axis=1)[:, None]
        slack = ((self.dim + 2) * 2.0**-23 * self._longest * lengths).astype(np.float32)
        step = max(1, min(_CHUNK, _GAPS // max(1, len(queries))))
        for start in range(0, len(self.vectors) if len(queries) else 0, step):
            chunk = self.vectors[start : start + step]
            gaps = queries @ chunk.astype(np.float32, copy=False).T - scores[:, None]
            counts += (gaps > slack).sum(axis=1)
            close = np.abs(gaps) <= slack
            for i in np.flatnonzero(close.any(axis=1)):
                near = np.flatnonzero(close[i])
                exact = exact_scores(queries[i], chunk[near])
                before = self.goes_before(near + start + self.first, exact, rows[i], scores[i])
                counts[i] += before.sum()
        return np.sum(self.group.gather(counts[None]), axis=0)[0, own]

    def staleness(self, step: int) -> np.ndarray:
        """Age of each vector in policy steps at `step`, (m,) int64."""
        return step - self.version

    def state_dict(self, everywhere: bool = True) -> State:
        """Arrays and JSON values that `from_state` makes the same store of, in any number of processes.

        Without a group the arrays are not copied; in one, each rank gets all vectors.

        Args:
            everywhere: False: only the first rank gets the vectors, the others none.
        """
        wanted = everywhere or self.group.rank == 0
        vectors = self._whole(wanted) if self.group.size > 1 else self.vectors
        return {"ids": self.ids, "vectors": vectors, "version": self.version}

    @classmethod
    def from_state(cls, state: State, **settings: Any) -> VectorStore:
        """The store of `state_dict`, in its dtype unless `settings`, those of the class, name another.

        Raises:
            DataError: a part of it is missing, or a vector holds NaN or infinity, which no store keeps.
        """
        if missing := {"ids", "vectors", "version"} - state.keys():
            lost = ", ".join(sorted(missing))
            raise DataError(f"the saved state of the store lacks {lost}; go back to an earlier checkpoint")
        settings.setdefault("dtype", state["vectors"].dtype.name)
        try:
            return cls(state["ids"], state["vectors"], state["version"], **settings)
        except _NotFinite:
            raise DataError(
                "the saved vectors of the store are damaged: some hold NaN or infinity; "
                "go back to an earlier checkpoint"
            ) from None

    def save(self, folder: str | Path) -> None:
        """Write the store to `folder`, whole or not at all; in a group the first rank does."""
        save_state(folder, self.state_dict(everywhere=False), self.group)

    @classmethod
    def load(cls, folder: str | Path, /, **settings: Any) -> VectorStore:
        """Read what `save` wrote, in any number of processes; `settings` as for `from_state`.

        Raises:
            DataError: a file is missing or damaged.
        """
        return cls.from_state(load_state(folder, in_parts=["vectors"]), **settings)

    def _own(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which places of `rows` this rank holds, and where in its vectors they lie."""
        places = np.flatnonzero((rows >= self.first) & (rows < self.first + len(self.vectors)))
        return places, rows[places] - self.first

    def _stored(self, vectors: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and that is looked for
            return vectors.astype(self.vectors.dtype, copy=False)

    def _put(self, part: np.ndarray | slice, vectors: np.ndarray) -> int:
        """Store `vectors` at `part` of the own ones unless some are not finite; how many are not."""
        vectors = self._stored(vectors)
        broken = _broken(vectors)
        if not broken:
            self.vectors[part] = vectors
        return broken

    def _all_finite(self, broken: int) -> None:
        _finite(sum(int(part[0]) for part in self.group.gather(np.array([broken]))), len(self))

    def _greatest(self, own: float) -> float:
        return max(float(part[0]) for part in self.group.gather(np.array([own])))

    def _whole(self, wanted: bool) -> np.ndarray:
        """The vectors of all ranks, (m, d), or (0, d) where they are not wanted."""
        rows = len(self) if wanted else 0
        whole = _room((rows, self.dim), self.dtype, self._folder, self._mapped)
        for start in range(0, len(self), _CHUNK):
            vectors = self.take(slice(start, start + _CHUNK))
            whole[start : start + _CHUNK] = vectors[:rows]
        return whole


def _room(shape: tuple[int, int], dtype: str, folder: str | Path | None, mapped: bool | None) -> np.ndarray:
    """An array of zeros, in memory or in a nameless file."""
    size = prod(shape) * np.dtype(dtype).itemsize
    if not size or not (size > MAPPED_ABOVE if mapped is None else mapped):
        return np.zeros(shape, dtype)
    folder = Path(folder or tempfile.gettempdir())
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def _broken(vectors: np.ndarray) -> int:
    return int((~np.isfinite(vectors).all(axis=1)).sum())


class _NotFinite(SearchR3Error):
    """A vector holds NaN or infinity."""


def _finite(broken: int, vectors: int) -> None:
    if broken:
        raise _NotFinite(
            f"{broken} of {vectors} document vectors hold NaN or infinity: the model has diverged; "
            "train it at a lower learning rate"
        )
