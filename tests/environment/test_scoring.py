import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.environment import Judged, RolloutBatch, VectorStore, score_rollouts
from searchr3.reward import soft_ndcg


def batch_of(vectors, relevant):
    return RolloutBatch(
        np.asarray(vectors, dtype=np.float32),
        [Judged(np.array(list(r)), np.array(list(r.values()), dtype=np.float32)) for r in relevant],
    )


def trec_eval_ranks(store, scores):
    """Rank of every row, ties by descending id."""
    order = sorted(range(len(store)), key=lambda row: (scores[row], store.ids[row]), reverse=True)
    ranks = np.empty(len(store), dtype=int)
    ranks[order] = np.arange(1, len(store) + 1)
    return ranks


@st.composite
def corpora(draw):
    """A store of short integer vectors, so with many copies and ties, and rollouts with graded documents."""
    size = draw(st.integers(1, 25))
    ids = draw(st.lists(st.text("abB19", min_size=1, max_size=3), min_size=size, max_size=size, unique=True))
    small = st.tuples(st.integers(-1, 1), st.integers(-1, 1))
    vectors = np.array(draw(st.lists(small, min_size=size, max_size=size)), dtype=np.float32)
    queries = draw(st.lists(small, min_size=1, max_size=3))
    grades = st.dictionaries(st.integers(0, size - 1), st.integers(1, 3), min_size=1, max_size=5)
    return VectorStore(ids, vectors), batch_of(queries, [draw(grades) for _ in queries])


@settings(deadline=None)
@given(corpora())
def test_hard_reward_over_the_whole_corpus_is_trec_evals_ndcg(corpus):
    store, batch = corpus
    scores = score_rollouts(store, batch, candidates=25, temperature=0)
    for i, judged in enumerate(batch.relevant):
        qrels = {store.ids[row]: int(grade) for row, grade in zip(*judged, strict=True)}
        run = dict(zip(store.ids, (store.vectors @ batch.vectors[i]).tolist(), strict=True))
        expected = pytrec_eval.RelevanceEvaluator({"q": qrels}, {"ndcg"}).evaluate({"q": run})["q"]["ndcg"]
        assert scores.reward[i] == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(corpora(), st.integers(1, 30))
def test_rank_is_that_of_the_best_relevant_document_in_the_whole_corpus(corpus, candidates):
    store, batch = corpus
    scores = score_rollouts(store, batch, candidates, temperature=0.2)
    for i, judged in enumerate(batch.relevant):
        ranks = trec_eval_ranks(store, store.vectors @ batch.vectors[i])
        assert scores.rank[i] == ranks[judged.rows].min()


def test_rank_is_exact_far_down_a_corpus_of_several_chunks():
    rng = np.random.default_rng(0)
    store = VectorStore([str(i) for i in range(20_000)], rng.standard_normal((20_000, 6)).astype(np.float32))
    store.update(np.array([19_999]), store.take(np.array([3])), step=0)  # a copy in the last chunk
    queries = rng.standard_normal((4, 6)).astype(np.float32)
    relevant = [{3: 1}, {19_999: 1}, {500: 1}, {17_000: 1, 17_001: 2}]
    rank = score_rollouts(store, batch_of(queries, relevant), candidates=5, temperature=0.2).rank
    for i, query in enumerate(queries):
        exact = (store.vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        assert rank[i] == trec_eval_ranks(store, exact)[list(relevant[i])].min()
    assert rank.max() > 1000


def test_the_two_ways_to_the_rank_agree():
    """Documents found in the first hits, ranked by a walk through the corpus instead."""
    rng = np.random.default_rng(1)
    store = VectorStore([str(i) for i in range(300)], rng.standard_normal((300, 4)).astype(np.float32))
    queries = rng.standard_normal((30, 4)).astype(np.float32)
    rows = store.top_k(queries, 20)[1][np.arange(30), rng.integers(20, size=30)]
    scores = score_rollouts(store, batch_of(queries, [{int(row): 1} for row in rows]), 50, 0.2)
    own = scores.scores[:, 0]
    assert (1 + store.ahead(queries, rows, own)).tolist() == scores.rank.tolist()
    # nor does a document outrank itself, should its score come out a bit higher the second time
    assert (1 + store.ahead(queries, rows, np.nextafter(own, -9))).tolist() == scores.rank.tolist()


def test_candidates_are_the_relevant_and_the_best_others():
    store = VectorStore(list("abcdef"), np.array([[6], [5], [4], [3], [2], [1]], dtype=np.float32))
    scores = score_rollouts(
        store, batch_of([[1], [1]], [{5: 2, 0: 1}, {1: 3}]), candidates=2, temperature=0.2
    )
    assert scores.candidates.tolist() == [[5, 0, 1, 2], [1, 0, 2, -1]]
    assert scores.scores.tolist() == [[1, 6, 5, 4], [5, 6, 4, 0]]
    assert scores.grades.tolist() == [[2, 1, 0, 0], [3, 0, 0, 0]]
    assert scores.hits.tolist() == [[0, 1], [0, 1]]
    assert scores.rank.tolist() == [1, 2]
    alone = soft_ndcg(torch.tensor([5.0, 6.0, 4.0]), torch.tensor([3, 0, 0]), 0.2)
    assert scores.reward[1] == pytest.approx(float(alone))
    assert scores.reward.dtype == np.float32


def test_a_corpus_smaller_than_the_candidates():
    store = VectorStore(["a", "b"], np.eye(2, dtype=np.float32))
    scores = score_rollouts(store, batch_of([[1, 0.5]], [{1: 1}]), candidates=100, temperature=0.2)
    assert scores.rank.tolist() == [2] and scores.hits.tolist() == [[0, 1]]
    assert scores.reward[0] == pytest.approx(1 / np.log2(3))
