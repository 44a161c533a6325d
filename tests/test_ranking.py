"""Exact top-k with settled ties, and metrics equal to plain formulas."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.errors import DataError, ModelError
from searchr3.ranking import METRICS, greatest_length, highest, merged, top_k, trec_metrics


def peak_of_top_k(queries: np.ndarray, documents: np.ndarray, **limits: int) -> int:
    """Bytes at the peak of a search for ten hits, with other limits of `searchr3.ranking`."""
    with pytest.MonkeyPatch.context() as monkey:
        for name, limit in limits.items():
            monkey.setattr(f"searchr3.ranking.{name}", limit)
        tracemalloc.start()
        try:
            top_k(queries, documents, 10)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def brute(queries, documents, k):
    exact = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    rows = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, rows, axis=1), rows


@st.composite
def vectors(draw):
    """Queries and documents of small whole numbers, so that ties are many and float32 is exact."""
    n, m, d = draw(st.integers(1, 5)), draw(st.integers(1, 90)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-2, 3, (n, d)).astype(np.float32), rng.integers(-2, 3, (m, d)).astype(np.float32)


@pytest.mark.parametrize("device", ["faiss", "cpu"])
@settings(deadline=None)
@given(sides=vectors(), k=st.integers(1, 100), chunk=st.integers(1, 4))
def test_top_k_is_brute_force_with_ties_by_ascending_row(device, sides, k, chunk):
    scores, rows = top_k(*sides, k, chunk=chunk, device=device)
    expected_scores, expected_rows = brute(*sides, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("device", ["faiss", "cpu"])
def test_top_k_of_unit_vectors_does_not_depend_on_the_batch(device):
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 48)).astype(np.float32) for n in (40, 3000))
    documents[1500:] = documents[:1500]  # every document twice
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    scores, rows = top_k(queries, documents, 100, device=device)
    for some in (slice(0, 1), slice(3, 20)):
        one_scores, one_rows = top_k(queries[some], documents, 100, chunk=7, device=device)
        np.testing.assert_array_equal(one_rows, rows[some])
        np.testing.assert_array_equal(one_scores, scores[some])
    expected_scores, expected_rows = brute(queries, documents, 100)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("device", ["faiss", "cpu"])
def test_more_equal_documents_than_spare_candidates(device):
    rng = np.random.default_rng(1)
    documents = np.repeat(rng.normal(size=(3, 24)).astype(np.float32), 400, axis=0)[rng.permutation(1200)]
    queries = rng.normal(size=(9, 24)).astype(np.float32)
    np.testing.assert_array_equal(
        top_k(queries, documents, 10, device=device)[1], brute(queries, documents, 10)[1]
    )


def test_torch_merges_several_blocks_of_documents(monkeypatch):
    monkeypatch.setattr("searchr3.ranking._ROWS", 16)
    rng = np.random.default_rng(2)
    queries, documents = (rng.normal(size=(n, 8)).astype(np.float32) for n in (3, 500))
    for device in ("faiss", "cpu"):
        found = top_k(queries, documents, 20, device=device)
        np.testing.assert_array_equal(found[1], brute(queries, documents, 20)[1])


@pytest.mark.parametrize("device", ["faiss", "cpu"])
@given(sides=vectors(), k=st.integers(1, 100), scale=st.sampled_from([1.0, 0.3]))
def test_float16_documents_are_ranked_by_what_they_hold(device, sides, k, scale):
    queries, documents = sides[0], (scale * sides[1]).astype(np.float16)
    for found, expected in zip(
        top_k(queries, documents, k, device=device), brute(queries, documents, k), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_float16_documents_are_never_all_widened():
    documents = np.random.default_rng(4).normal(size=(40_000, 64)).astype(np.float16)
    queries = documents[:3].astype(np.float32)
    top_k(queries, documents[:100], 10)  # imports are not counted
    assert peak_of_top_k(queries, documents, _BLOCK=2**16, _ROWS=1024) < 0.2 * documents.size * 4


def test_faiss_is_left_as_it_was():
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    top_k(np.eye(40, dtype=np.float32), np.eye(40, dtype=np.float32), 3)
    assert faiss.cvar.distance_compute_blas_threshold == before


@given(sides=vectors(), k=st.integers(1, 100), cuts=st.lists(st.integers(0, 90), max_size=4))
def test_hits_of_parts_merge_into_those_of_the_whole(sides, k, cuts):
    queries, documents = sides
    edges = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [(start, brute(queries, documents[start:end], k)) for start, end in pairwise(edges)]
    parts = parts[::-1]  # in any order
    scores, rows = merged([found[0] for _, found in parts], [start + found[1] for start, found in parts], k)
    for found, expected in zip((scores, rows), brute(queries, documents, k), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_greatest_length(broken):
    assert greatest_length(np.array([[3, 4], [0, 1]], dtype=np.float16)) == 5
    assert greatest_length(np.empty((0, 2), dtype=np.float32)) == 0
    assert not np.isfinite(greatest_length(np.array([[1, 2], [broken, 0], [1, 1]], dtype=np.float32)))


def test_top_k_cuts_k_to_the_documents():
    scores, rows = top_k(np.eye(2, 3), np.eye(3), 10)
    assert scores.shape == rows.shape == (2, 3)
    assert rows.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    assert top_k(np.eye(2, 3), np.empty((0, 3)), 10)[1].shape == (2, 0)
    assert top_k(np.empty((0, 3)), np.eye(3), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("equal", [False, True])
def test_top_k_never_holds_the_whole_matrix(equal):
    rng = np.random.default_rng(3)
    documents = rng.normal(size=(20_000, 8)).astype(np.float32)
    if equal:  # every query has to be scanned
        documents[:] = documents[0]
    queries = rng.normal(size=(4000, 8)).astype(np.float32)[: 400 if equal else None]
    top_k(queries[:1], documents, 10)  # imports are not counted
    assert peak_of_top_k(queries, documents, _SCAN=2**20) < 0.5 * queries.shape[0] * documents.shape[0] * 4


def test_top_k_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        top_k(np.zeros((2, 3)), np.zeros((2, 4)), 1)
    for bad in (np.nan, np.inf):
        with pytest.raises(ModelError, match="document vector is not finite"):
            top_k(np.ones((1, 2)), np.array([[1.0, bad]]), 1)
    with pytest.raises(ModelError, match="query vector"):
        top_k(np.array([[np.nan, 0]]), np.ones((1, 2)), 1)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3).map(float), max_size=30), st.integers(0, 40))
def test_highest(scores, k):
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert highest(np.array(scores), k).tolist() == expected


def plain_metrics(scores, grades):
    """The formulas of trec_eval written out; equal scores by descending document id."""
    ranked = sorted(sorted(scores, reverse=True), key=lambda document: -scores[document])
    gains = [max(grades.get(document, 0), 0) for document in ranked]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    if not ideal:
        return dict.fromkeys(METRICS, 0.0)

    def dcg(values):
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(values[:10], start=1))

    def recall(k):
        return sum(gain > 0 for gain in gains[:k]) / len(ideal)

    reciprocal = next((1 / rank for rank, gain in enumerate(gains[:10], start=1) if gain > 0), 0.0)
    return {
        "ndcg@10": dcg(gains) / dcg(ideal),
        "recall@10": recall(10),
        "recall@100": recall(100),
        "mrr@10": reciprocal,
    }


_IDS = st.integers(0, 130).map(str)


@settings(deadline=None)
@given(
    st.dictionaries(_IDS, st.integers(-20, 20).map(float), max_size=130),
    st.dictionaries(_IDS, st.integers(-1, 3), max_size=25),
)
def test_metrics_are_the_plain_formulas(scores, grades):
    found = trec_metrics({"q": scores}, {"q": grades})
    expected = plain_metrics(scores, grades)
    assert found.keys() == set(METRICS)
    for metric in METRICS:
        assert found[metric]["q"] == pytest.approx(expected[metric], abs=1e-6), metric


def test_queries_that_found_nothing_count_zero_and_unjudged_ones_are_left_out():
    qrels = {"a": {"1": 1}, "b": {"1": 1}, "c": {"1": 0}, "d": {}, "e": {"1": 1}}
    found = trec_metrics({"a": {"1": 1.0}, "e": {}, "f": {"1": 1.0}, "c": {"1": 1.0}, "d": {"1": 1.0}}, qrels)
    for metric in METRICS:
        assert found[metric] == {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0}
    assert trec_metrics({}, qrels)["ndcg@10"] == dict.fromkeys(qrels, 0.0)


@pytest.mark.parametrize(("rank", "value"), [(1, 1.0), (9, 1 / 9), (10, 0.1), (11, 0.0)])
def test_reciprocal_rank_is_cut_at_ten(rank, value):
    run = {"q": {str(place): -float(place) for place in range(1, 30)}}
    assert trec_metrics(run, {"q": {str(rank): 1}})["mrr@10"]["q"] == pytest.approx(value)


def test_no_judgements_is_an_error():
    with pytest.raises(DataError, match="qrels"):
        trec_metrics({"q": {"d": 1.0}}, {})
