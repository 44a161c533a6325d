"""Rewards of rollouts by the vectors of any store: the environment's own, or an oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from searchr3.environment.policies import RolloutBatch
from searchr3.environment.store import VectorStore
from searchr3.reward import soft_ndcg

_CHUNK = 16_384  # documents compared at once, so that no n × m matrix is ever held


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

    Args:
        candidates: K, the number of others.
        temperature: of `searchr3.reward.soft_ndcg`, relative to the spread of the scores; 0 gives nDCG.
    """
    n, most = len(batch.vectors), max(len(judged.rows) for judged in batch.relevant)
    found_scores, found = store.top_k(batch.vectors, candidates + most)
    rows = np.full((n, most + candidates), -1, dtype=np.int64)
    scores, grades = np.zeros(rows.shape, dtype=np.float32), np.zeros(rows.shape, dtype=np.float32)
    for i, judged in enumerate(batch.relevant):
        r = len(judged.rows)
        others = np.flatnonzero(~np.isin(found[i], judged.rows))[:candidates]
        end = r + len(others)
        rows[i, :r], rows[i, r:end] = judged.rows, found[i, others]
        scores[i, :r] = _exact(store, judged.rows, batch.vectors[i])
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
    rank = np.array(
        [1 + _ahead(store, *hits) for hits in zip(found, found_scores, best, best_scores, strict=True)]
    )
    below = np.flatnonzero(best_scores <= found_scores[:, -1])  # the first hits do not tell
    if found.shape[1] < len(store):
        rank[below] = _corpus_ranks(store, batch.vectors[below], best[below], best_scores[below])
    return Scores(reward.numpy(), rank, found[:, :candidates], rows, scores, grades)


def _exact(store: VectorStore, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Inner products as `ranking.top_k` gives them: float64, rounded to float32, so that copies tie."""
    return (store.take(rows).astype(np.float64) @ query.astype(np.float64)).astype(np.float32)


def _corpus_ranks(
    store: VectorStore, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Rank in the whole corpus of one document for each query: (n, d), its row (n,) and score (n,) → (n,)."""
    ranks = np.ones(len(queries), dtype=np.int64)
    lengths = np.linalg.norm(queries, axis=1)
    for start in range(0, len(store), _CHUNK):
        chunk = store.take(slice(start, start + _CHUNK))
        gaps = queries @ chunk.T - scores[:, None]
        # what float32 may err by; closer ones are compared again, exactly
        slack = store.dim * 2.0**-23 * (lengths * np.linalg.norm(chunk, axis=1).max())[:, None]
        ranks += (gaps > slack).sum(axis=1)
        for i, close in enumerate(np.abs(gaps) <= slack):
            near = start + np.flatnonzero(close)
            ranks[i] += _ahead(store, near, _exact(store, near, queries[i]), rows[i], scores[i])
    return ranks


def _ahead(store: VectorStore, rows: np.ndarray, scores: np.ndarray, row: int, score: float) -> int:
    """How many of `rows` with these `scores` go before `row` with its `score`."""
    tie = (scores == score) & (store.tie_order[rows] < store.tie_order[row])
    return int((((scores > score) | tie) & (rows != row)).sum())
