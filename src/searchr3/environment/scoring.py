"""Rewards of rollouts by the vectors of any store: the environment's own, or an oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from searchr3.environment.policies import RolloutBatch
from searchr3.environment.store import VectorStore
from searchr3.ranking import exact_scores
from searchr3.reward import soft_ndcg


@dataclass(frozen=True)
class Scores:
    """How n rollouts did. The candidates of each are its relevant documents, then the best of the others.

    Attributes:
        reward: (n,) float32, soft nDCG in [0, 1].
        rank: (n,) int64, rank of the best relevant document in the whole corpus, 1 the first, ties as in
            trec_eval.
        hits: (n, k) int64, the rows that score highest, best first, relevant or not.
        candidates: (n, c) int64 rows; −1 where a list is shorter than c.
        scores: (n, c) float32 of the candidates, 0 in the padding.
        grades: (n, c) float32 of the candidates.
    """

    reward: np.ndarray
    rank: np.ndarray
    hits: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    grades: np.ndarray


def score_rollouts(store: VectorStore, batch: RolloutBatch, candidates: int, temperature: float) -> Scores:
    """Rank each rollout's relevant documents among themselves and the others that score highest in `store`.

    Where the store is one of several processes each scores its own rollouts, all at the same time.

    Args:
        candidates: K, the number of others.
        temperature: of `searchr3.reward.soft_ndcg`, relative to the spread of the scores; 0 gives nDCG.
    """
    n, most = len(batch.vectors), max(len(judged.rows) for judged in batch.relevant)
    most = max(int(part[0]) for part in store.group.gather(np.array([most])))
    found_scores, found = store.top_k(batch.vectors, candidates + most)
    known = np.unique(np.concatenate([judged.rows for judged in batch.relevant]))
    known = np.unique(np.concatenate(store.group.gather(known)))
    documents = store.take(known)  # at once: all ranks take the same rows
    rows = np.full((n, most + candidates), -1, dtype=np.int64)
    scores, grades = np.zeros(rows.shape, dtype=np.float32), np.zeros(rows.shape, dtype=np.float32)
    for i, judged in enumerate(batch.relevant):
        r = len(judged.rows)
        others = np.flatnonzero(~np.isin(found[i], judged.rows))[:candidates]
        end = r + len(others)
        rows[i, :r], rows[i, r:end] = judged.rows, found[i, others]
        scores[i, :r] = exact_scores(batch.vectors[i], documents[np.searchsorted(known, judged.rows)])
        scores[i, r:end] = found_scores[i, others]
        grades[i, :r] = judged.grades
    reward = soft_ndcg(
        torch.from_numpy(scores),
        torch.from_numpy(grades),
        temperature,
        mask=torch.from_numpy(rows >= 0),
        tie_order=torch.from_numpy(store.tie_order[rows]),
    )
    # lexsort: the last key counts first
    first = np.lexsort((store.tie_order[rows], -scores, grades == 0))[:, :1]
    best, best_scores = (np.take_along_axis(values, first, axis=1)[:, 0] for values in (rows, scores))
    rank = 1 + np.array(
        [store.goes_before(*hits).sum() for hits in zip(found, found_scores, best, best_scores, strict=True)]
    )
    below = np.flatnonzero(best_scores <= found_scores[:, -1])  # the first hits do not tell
    if found.shape[1] < len(store):
        rank[below] = 1 + store.ahead(batch.vectors[below], best[below], best_scores[below])
    return Scores(reward.numpy(), rank, found[:, :candidates], rows, scores, grades)
