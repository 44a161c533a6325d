"""Exact nearest documents by inner product, and the field's metrics for a ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from searchr3.errors import DataError, ModelError

if TYPE_CHECKING:
    from searchr3.dataset import Qrels

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")

_SPARE = 32  # candidates beyond k, so that ties and rounding near rank k can be settled
_ROWS = 16_384  # documents handled at once outside faiss, which bounds its own memory
_BLOCK = 2**24  # numbers in one block of documents that is put elsewhere: on a GPU, or into float32
_SCAN = 2**25  # scores held at once when queries are scanned in full
_BLAS = 20  # queries from which on faiss multiplies matrices; left alone it may take ten times as long


def top_k(
    queries: np.ndarray,
    documents: np.ndarray,
    k: int,
    chunk: int = 256,
    device: str | None = None,
    longest: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` documents with the highest inner product for each query, exactly.

    faiss (CPU) or torch (GPU) proposes candidates in float32; they are scored again in float64 and rounded
    to float32, so that scores, order and ties depend neither on the batch nor on the device. Ties are
    broken by ascending row. Memory is bounded by `chunk` × (k + a few) × d numbers and one block of
    documents, never by n × m.

    Args:
        queries: (n, d) float32.
        documents: (m, d) float32, or float16, which is ranked by the values that it holds.
        k: hits a query; cut to m.
        chunk: queries handled at once.
        device: a torch device that proposes the candidates; by default "cuda" where there is one, else
            faiss is used.
        longest: what no document is longer than, if known; else all documents are read once more to find it.

    Returns:
        scores (n, k) float32, descending, and rows (n, k) int64.

    Raises:
        ValueError: the shapes do not fit each other.
        ModelError: a vector holds NaN or infinity.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if documents.dtype != np.float16:
        documents = np.ascontiguousarray(documents, dtype=np.float32)
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} must be (n, d) and (m, d)")
    longest = greatest_length(documents) if longest is None else longest
    for what, length in (("query", greatest_length(queries)), ("document", longest)):
        if not np.isfinite(length):
            raise ModelError(
                f"a {what} vector is not finite: the model has diverged; lower its learning rate"
            )
    k = max(0, min(k, len(documents)))
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    if k == 0:
        return scores, rows
    device = device or _default_device()
    # a float32 inner product over d terms errs by at most about d · 2⁻²⁴ · |q| |x|
    errors = queries.shape[1] * 2.0**-24 * _lengths(queries) * longest
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        scores[part], rows[part] = _settled(queries[part], documents, k, device, errors[part])
    return scores, rows


def greatest_length(vectors: np.ndarray) -> float:
    """The greatest Euclidean length in (m, d), 0 of none; NaN or infinite where a vector is not finite."""
    lengths = [_lengths(vectors[start : start + _ROWS]).max() for start in range(0, len(vectors), _ROWS)]
    return float(np.max(lengths, initial=0.0))


def exact_scores(query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Inner products of one query (d,) with (m, d), summed in float64, rounded to float32: copies tie."""
    return (documents.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)


def merged(scores: Sequence[np.ndarray], rows: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows (n, k) of the `k` best of several lists of hits, each (n, any), ties by row."""
    all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    order = np.lexsort((all_rows, -all_scores))[:, :k]
    return np.take_along_axis(all_scores, order, axis=1), np.take_along_axis(all_rows, order, axis=1)


def highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the `k` highest of `scores` (m,), best first, ties by ascending position.

    >>> highest(np.array([1.0, 3.0, 3.0, 2.0]), 3)
    array([1, 2, 3])
    """
    if 0 < k < len(scores):
        threshold = np.partition(scores, -k)[-k]
        places = np.flatnonzero(scores >= threshold)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]


def trec_metrics(run: Mapping[str, Mapping[str, float]], qrels: Qrels) -> dict[str, dict[str, float]]:
    """`METRICS` for every query of `qrels`, as trec_eval computes them: linear gains, ties by descending id.

    A query that `run` does not hold, or that has no relevant document, counts 0; a query that `qrels` does
    not hold is left out. recall@k is over all relevant documents; mrr@10 is trec_eval's recip_rank where
    the first relevant rank is 10 or better, else 0.

    Args:
        run: query id → document id → score.
        qrels: query id → document id → grade, relevant where > 0.

    Returns:
        metric → query id → value in [0, 1].

    Raises:
        DataError: `qrels` is empty.
    """
    import pytrec_eval

    if not qrels:
        raise DataError("no judged queries to measure; choose a split whose qrels are not empty")
    judged = {
        # grades below 0 count as 0 in every metric here, and trec_eval may loop for ever on them
        query: {d: max(0, int(grade)) for d, grade in grades.items()}
        for query, grades in qrels.items()
        if grades
    }
    found = {
        query: {d: float(s) for d, s in hits.items()}
        for query, hits in run.items()
        if hits and query in judged
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10,100", "recip_rank"})
    measured = evaluator.evaluate(found) if found else {}
    values: dict[str, dict[str, float]] = {metric: dict.fromkeys(qrels, 0.0) for metric in METRICS}
    for query, figures in measured.items():
        first = figures["recip_rank"]
        values["ndcg@10"][query] = figures["ndcg_cut_10"]
        values["recall@10"][query] = figures["recall_10"]
        values["recall@100"][query] = figures["recall_100"]
        values["mrr@10"][query] = first if first > 1 / 10.5 else 0.0
    return values


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "faiss"


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32))


def _settled(
    queries: np.ndarray, documents: np.ndarray, k: int, device: str, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of one chunk, scored again; queries whose rank `k` stays too close to call are scanned."""
    wanted = min(len(documents), k + _SPARE)
    # ascending, so that a stable sort settles ties
    candidates = np.sort(_candidates(queries, documents, wanted, device), axis=1)
    exact = np.empty(candidates.shape, dtype=np.float32)
    for i, row in enumerate(candidates):
        exact[i] = exact_scores(queries[i], documents[row])
    order = np.argsort(-exact, axis=1, kind="stable")
    scores, rows = np.take_along_axis(exact, order, axis=1), np.take_along_axis(candidates, order, axis=1)
    if wanted < len(documents):
        # a document that was left out scores at most as much as the last candidate, but for rounding
        unsure = np.flatnonzero(scores[:, k - 1] - scores[:, -1] <= 2 * errors)
        step = max(1, _SCAN // len(documents))
        for some in (unsure[i : i + step] for i in range(0, len(unsure), step)):
            scores[some, :k], rows[some, :k] = _scanned(queries[some], documents, k)
    return scores[:, :k], rows[:, :k]


def _scanned(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the `k` best documents, every document scored in float64."""
    exact = np.empty((len(queries), len(documents)), dtype=np.float32)
    for start in range(0, len(documents), _ROWS):
        part = slice(start, start + _ROWS)
        exact[:, part] = queries.astype(np.float64) @ documents[part].astype(np.float64).T
    rows = np.stack([highest(row, k) for row in exact])
    return np.take_along_axis(exact, rows, axis=1), rows


def _candidates(queries: np.ndarray, documents: np.ndarray, k: int, device: str) -> np.ndarray:
    """Rows of the `k` documents that score highest in float32, (n, k)."""
    if device == "faiss" and documents.dtype == np.float32:
        return _candidates_faiss(queries, documents, k)[1]
    step = max(1, min(4 * _ROWS, _BLOCK // max(1, documents.shape[1])))
    scores = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(documents), step):
        block = documents[start : start + step]
        few = min(k, len(block))
        if device == "faiss":
            best, places = _candidates_faiss(queries, block.astype(np.float32), few)
        else:
            best, places = _candidates_torch(queries, block, few, device)
        scores, rows = merged([scores, best], [rows, places + start], k)
    return rows


def _candidates_faiss(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    if len(queries) >= _BLAS:  # 0: always. Versions differ in what they compare it with
        faiss.cvar.distance_compute_blas_threshold = 0
    try:
        return faiss.knn(queries, documents, k, metric=faiss.METRIC_INNER_PRODUCT)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def _candidates_torch(
    queries: np.ndarray, documents: np.ndarray, k: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    asked, there = (torch.from_numpy(vectors).to(device).float() for vectors in (queries, documents))
    scores, rows = (asked @ there.T).topk(k, dim=1)
    return scores.cpu().numpy(), rows.cpu().numpy()
