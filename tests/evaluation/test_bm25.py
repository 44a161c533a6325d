"""BM25 against its formula; how words are read; tuning on dev alone."""

import math
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import DataError
from searchr3.evaluation.bm25 import BM25, K1, B, Setting, _Read, _searched, _Words, as_run, tune
from searchr3.ranking import trec_metrics

PLAIN = Setting(stem=False)
words = st.lists(st.sampled_from(["red", "green", "blue", "cyan", "pink"]), max_size=8)


def plain_scores(query, documents, k1, b):
    length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts = Counter(document)
        score = 0.0
        for term in query:
            df = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            saturation = k1 * (1 - b + b * len(document) / length)
            score += idf * counts[term] / (counts[term] + saturation) if counts[term] else 0.0
        scores.append(score)
    return scores


@settings(deadline=None)
@given(
    st.lists(words, min_size=1, max_size=7).filter(any),
    words,
    st.floats(0.1, 3),
    st.floats(0, 1),
    st.integers(1, 9),
)
def test_scores_are_the_lucene_formula(documents, query, k1, b, k):
    index = BM25([" ".join(document) for document in documents], Setting(k1, b, stem=False))
    (scores,), (rows,) = index.search([" ".join(query)], k)
    expected = plain_scores(query, documents, k1, b)
    matching = [row for row, score in enumerate(expected) if score > 0]
    assert len(scores) == len(rows) == k
    found = rows[rows >= 0]
    assert len(found) == min(k, len(matching))
    assert set(found) <= set(matching)
    np.testing.assert_allclose(scores[: len(found)], sorted(expected, reverse=True)[: len(found)], rtol=1e-5)
    np.testing.assert_allclose(scores[: len(found)], [expected[row] for row in found], rtol=1e-5)
    assert not scores[len(found) :].any() and (rows[len(found) :] == -1).all()
    np.testing.assert_allclose(index.scores(" ".join(query)), expected, rtol=1e-5)


def first(texts, query, setting=PLAIN):
    return BM25(texts, setting).search([query], 1)[1][0, 0]


def test_identifiers_are_split():
    texts = ["nothing of it", "def getFileName_v2(HTTPServer): pass"]
    for query in ("file name", "GET", "http server", "file_name", "FileName"):
        assert first(texts, query) == 1, query


def test_whole_identifiers_tell_apart_what_their_parts_cannot():
    texts = ["name file get", "get_file_name", "file get name"]
    assert first(texts, "get_file_name") == 0  # all three hold the same parts
    assert first(texts, "get_file_name", Setting(stem=False, whole=True)) == 1


def test_stems_and_stop_words():
    texts = ["nothing", "parses dates"]
    assert first(texts, "parsing a date", Setting(stem=True)) == 1
    assert first(texts, "parsing a date") == -1
    assert first(["the one", "of two"], "the of") == -1


def test_ties_are_by_ascending_row_and_unknown_words_find_nothing():
    index = BM25(["same text", "other", "same text", "same text"], PLAIN)
    scores, rows = index.search(["same", "", "unheard"], 10)
    assert rows[0].tolist() == [0, 2, 3] + [-1] * 7
    assert scores[0, 0] == scores[0, 2] > 0
    assert (rows[1:] == -1).all() and not scores[1:].any()


@pytest.mark.parametrize("texts", [["the", ""], ["…"]])
def test_a_corpus_without_words_finds_nothing(texts):
    assert BM25(texts).search(["word"], 3)[1].tolist() == [[-1, -1, -1]]


def test_as_run_leaves_out_missing_hits():
    run = as_run(["q", "r"], ["a", "b"], np.array([[2.0, 1.0], [0.0, 0.0]]), np.array([[1, 0], [-1, -1]]))
    assert run == {"q": {"b": 2.0, "a": 1.0}, "r": {}}


def dataset(texts, queries, **splits):
    corpus = {f"d{i}": Document("", text) for i, text in enumerate(texts)}
    return RetrievalDataset("toy", corpus, {key: Query(text) for key, text in queries.items()}, splits)


def test_tuning_reads_words_as_dev_wants_them():
    queries = {"q": "parsing dates", "r": "parsing dates"}
    texts = ["parses a date", "dates"]
    assert tune(dataset(texts, queries, dev={"q": {"d0": 1}})).stem
    texts = ["parse date", "parsing dates often enough", "parse date"]
    assert not tune(dataset(texts, queries, dev={"q": {"d1": 1}}, test={"r": {"d0": 1}})).stem
    assert tune(dataset(["get_file", "file get", "x"], {"q": "get_file"}, dev={"q": {"d0": 1}})).whole


def test_tuning_takes_what_is_best_on_dev_one_choice_after_the_other():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(2, 30))) for _ in range(60)]
    queries = {f"q{i}": " ".join(rng.choice(text.split(), 3)) for i, text in enumerate(texts)}
    data = dataset(texts, queries, dev={f"q{i}": {f"d{i}": 1} for i in range(60)})

    def quality(setting):
        run = as_run([*queries], [*data.corpus], *BM25(texts, setting).search([*queries.values()], 10))
        return np.mean([*trec_metrics(run, data.split("dev"))["ndcg@10"].values()])

    chosen = tune(data)
    by_b = {b: quality(replace(chosen, b=b, k1=1.2)) for b in B}
    by_k1 = {k1: quality(replace(chosen, k1=k1)) for k1 in K1}
    assert len({*by_b.values()}) > 2 and len({*by_k1.values()}) > 2
    assert by_b[chosen.b] == max(by_b.values())
    assert by_k1[chosen.k1] == max(by_k1.values())


def test_tuning_is_the_same_again_and_needs_a_split():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 5)) for _ in range(40)]
    queries = {f"q{i}": text for i, text in enumerate(texts)}
    data = dataset(texts, queries, dev={f"q{i}": {f"d{i}": 1} for i in range(30)})
    assert tune(data) == tune(data)
    with pytest.raises(DataError, match="no split 'test'"):
        tune(data, "test")


@settings(deadline=None)
@given(
    st.lists(words, min_size=1, max_size=7),
    words,
    st.floats(0.1, 3),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
)
def test_tuning_ranks_as_the_full_index_does(documents, query, k1, b, stem, whole):
    setting = Setting(k1, b, stem, whole)
    documents = [*documents, ["blue_cyan", "greens"] * 20]
    texts = [" ".join(document) for document in documents]
    read = _Read(_Words(texts), [query, ["blue_cyan", "Green"]], setting)
    scores, rows = _searched(read.index(setting), read.queries, 9)
    index = BM25(texts, setting)
    expected_scores, expected_rows = index.search([" ".join(query), "blue_cyan Green"], 9)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_array_equal(rows >= 0, expected_rows >= 0)


def test_tuning_holds_numbers_not_words():
    """A string takes sixty bytes; and a block of documents is counted at once."""
    words = [f"word{number}" for number in range(500)]

    class Made(dict):  # texts that nobody holds
        def __getitem__(self, key):
            row = int(key[1:])
            return Document("", " ".join(words[(row * place) % 500] for place in range(100)))

        def values(self):
            return map(self.__getitem__, self)

    corpus = Made.fromkeys(f"d{row}" for row in range(1500))
    data = RetrievalDataset("made", corpus, {"q": Query("word3 word7")}, {"dev": {"q": {"d7": 1}}})
    tracemalloc.start()
    tune(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / (1500 * 100) < 45
