"""Which documents to encode again before a batch of rollouts is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor
from typing import NamedTuple, Protocol

import numpy as np

from searchr3.environment.state import State
from searchr3.environment.store import VectorStore
from searchr3.errors import DataError
from searchr3.group import Group


class Judged(NamedTuple):
    """The relevant documents of one rollout: their rows (r,) int64 and grades (r,) float32, all above 0."""

    rows: np.ndarray
    grades: np.ndarray


@dataclass(frozen=True)
class RolloutBatch:
    """What a policy may look at: the rollouts' vectors (n, d) float32 and the relevant documents of each."""

    vectors: np.ndarray
    relevant: list[Judged]


def gathered(batch: RolloutBatch, group: Group) -> RolloutBatch:
    """The rollouts of all ranks, rank after rank; collective."""
    if group.size == 1:
        return batch
    vectors = np.concatenate(group.gather(batch.vectors))
    counts = np.concatenate(group.gather(np.array([len(judged.rows) for judged in batch.relevant])))
    rows, grades = (
        np.split(np.concatenate(group.gather(np.concatenate(parts))), np.cumsum(counts)[:-1])
        for parts in zip(*batch.relevant, strict=True)
    )
    return RolloutBatch(vectors, [Judged(*judged) for judged in zip(rows, grades, strict=True)])


class RefreshPolicy(Protocol):
    """A refresh policy. Those without memory need only `rows`, if they inherit from this class."""

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        """Yield rows to encode, (r,) int64, without repetition; go on once the store holds their new vectors.

        So a policy can look at how far the first rows moved before it asks for more, and mend its own
        records afterwards.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the last refresh that only this policy knows, for a log."""
        return {}

    def state_dict(self) -> State:
        """What the policy remembers: arrays and JSON values."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take over what `state_dict` returned."""
        return None


class Full(RefreshPolicy):
    """Every document that is not of this step: the oracle."""

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        yield np.flatnonzero(store.staleness(step) > 0)


class Frozen(RefreshPolicy):
    """No document, ever."""

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        yield from ()


class Random(RefreshPolicy):
    """Documents drawn uniformly, without repetition within a step: what any cleverer policy must beat.

    Args:
        budget: as in `rows_within`.
        seed: of the draws, with the step: a resumed run draws what the uninterrupted one did.
    """

    def __init__(self, budget: float | int = 0.01, seed: int = 0) -> None:
        check_budget(budget)
        self.budget, self.seed = budget, seed

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        stale = np.flatnonzero(store.version != step)
        draw = np.random.default_rng((self.seed, step, len(store) - len(stale)))
        yield draw.permutation(stale)[: rows_within(self.budget, store, step)]


class Neighbourhood(RefreshPolicy):
    """The selective, graph-local update of Search-R3 (arXiv 2510.07048), as far as known; the order is ours.

    Encoded again are the relevant documents of the batch, always; then, within the budget, the documents
    that can change the ranks: the relevant documents' neighbours in a graph of the `k` nearest documents of
    each, and the rollouts' first `hits` hits by the stored vectors. These go in falling order of

        age(c) · Σ over the lists of all rollouts that hold c of 1/log2(1 + place of c in the list)

    ties by row, so that nothing is left to chance. The graph is built once, which costs m² inner products,
    and kept up to date locally: a document that was encoded again gets its neighbours afresh from the store.

    Args:
        k: neighbours of a document in the graph.
        budget: most rows a step, a share of the corpus (float up to 1) or a number of documents (int);
            None: no limit. The relevant documents count against it but are never left out.
        hits: hits of a rollout that are looked at.
    """

    def __init__(self, k: int = 16, budget: float | int | None = None, hits: int = 100) -> None:
        if k < 0 or hits < 0:
            raise ValueError(f"k is {k} and hits {hits}; neither may be negative")
        check_budget(budget)
        self.k, self.budget, self.hits = k, budget, hits
        self._graph: np.ndarray | None = None  # (m, k) int32, nearest first

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        graph = self._graph_of(store)
        age = np.maximum(store.staleness(step), 0)
        weight = np.zeros(len(store))
        for judged in batch.relevant:
            _add_discounted(weight, graph[judged.rows])
        _add_discounted(weight, store.top_k(batch.vectors, self.hits)[1])

        relevant = np.unique(np.concatenate([judged.rows for judged in batch.relevant]))
        relevant = relevant[age[relevant] > 0]
        priority = weight * age
        priority[relevant] = 0
        others = np.flatnonzero(priority)
        others = others[np.argsort(-priority[others], kind="stable")]
        room = max(0, rows_within(self.budget, store, step) - len(relevant))
        chosen = np.concatenate([relevant, others[:room]])
        yield chosen
        graph[chosen] = self._neighbours(store, chosen)

    def state_dict(self) -> State:
        return {} if self._graph is None else {"graph": self._graph}

    def load_state_dict(self, state: State) -> None:
        graph = state.get("graph")
        if graph is not None and graph.shape[1] != min(self.k, len(graph) - 1):
            raise DataError(
                f"the checkpoint's graph has {graph.shape[1]} neighbours a document, the recipe "
                f"k = {self.k}; resume with the same k"
            )
        self._graph = None if graph is None else graph.copy()

    def _graph_of(self, store: VectorStore) -> np.ndarray:
        if self._graph is None:
            self._graph = self._neighbours(store, np.arange(len(store)))
        return self._graph

    def _neighbours(self, store: VectorStore, rows: np.ndarray) -> np.ndarray:
        """The documents nearest to each of `rows`, itself left out, (len(rows), min(k, m − 1)) int32."""
        k = min(self.k, len(store) - 1)
        if k == 0:
            return np.empty((len(rows), 0), dtype=np.int32)
        found = store.top_k(store.take(rows), k + 1)[1]
        itself = found == rows[:, None]  # may be missing where there are more than k copies
        others_first = np.argsort(itself, axis=1, kind="stable")
        return np.take_along_axis(found, others_first, axis=1)[:, :k].astype(np.int32)


def check_budget(budget: float | int | None) -> None:
    """Raise ValueError unless `budget` is one that `rows_within` understands."""
    if budget is not None and (budget < 0 or (isinstance(budget, float) and budget > 1)):
        raise ValueError(
            f"budget is {budget}; give a share from 0.0 to 1.0, a whole number of documents, or None"
        )


def rows_within(budget: float | int | None, store: VectorStore, step: int) -> int:
    """How many rows `step` may still encode: a step may come in several batches.

    Args:
        budget: most rows a step, a share of the corpus (float up to 1, never exceeded but by a first
            document) or a number of documents (int); None: no limit.
    """
    if budget is None:
        return len(store)
    share = max(budget > 0, floor(budget * len(store) + 1e-9))  # 0.07 · 100 is a little below 7
    limit = share if isinstance(budget, float) else budget
    return max(0, limit - int((store.version == step).sum()))


def _add_discounted(weight: np.ndarray, lists: np.ndarray) -> None:
    """Add 1/log2(1 + place) to the weight (m,) of each row in each of the ranked lists (n, k)."""
    discount = 1 / np.log2(2 + np.arange(lists.shape[1]))
    np.add.at(weight, lists, np.broadcast_to(discount, lists.shape))
