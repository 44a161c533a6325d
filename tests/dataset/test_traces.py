"""Trace makers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.dataset.traces import TraceMaker, make_traces, noisy_trace
from searchr3.errors import DataError
from searchr3.words import split_identifiers

COMMON = "the file is read"


def data(**changes) -> RetrievalDataset:
    documents = {
        "d1": Document("", f"{COMMON} by parseHeader and parse_body 42 x"),
        "d2": Document("", f"{COMMON} after header body"),
        "d3": Document("", f"{COMMON} whole, parse nothing"),
        "d4": Document("Zebra", f"{COMMON} uniqueword"),
        "d5": Document("", f"{COMMON} secret header"),
    }
    fields = {
        "name": "data",
        "corpus": documents,
        "queries": {f"q{n}": Query(f"query {n}", "own words" if n == 3 else None) for n in range(1, 7)},
        "qrels": {
            "stage1": {"q1": {"d2": 1, "d1": 2}, "q3": {"d3": 1}, "q6": {"d2": 0}},
            "stage2": {"q2": {"d2": 1}},
            "dev": {"q4": {"d4": 1}},
            "test": {"q5": {"d5": 1}},
        },
    }
    return RetrievalDataset(**{**fields, **changes})


def test_the_most_telling_words_of_the_most_relevant_document_in_order():
    traced = make_traces(data(), words=3)
    assert traced.queries["q1"].reasoning == "parse header body"


def test_only_missing_traces_of_the_given_splits_are_made():
    traced = make_traces(data())
    reasoning = {key: query.reasoning for key, query in traced.queries.items()}
    assert reasoning["q1"] and reasoning["q3"] == "own words"
    assert [reasoning[key] for key in ("q2", "q4", "q5", "q6")] == [None] * 4
    assert make_traces(data(), splits=("stage1", "stage2")).queries["q2"].reasoning
    assert traced.corpus == data().corpus and traced.qrels == data().qrels


@pytest.mark.parametrize("kind", ["words", "beginning"])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_never_for_evaluation(split, kind):
    with pytest.raises(DataError, match=f"no traces for the split '{split}'"):
        make_traces(data(), splits=("stage1", split), kind=kind)


def test_a_beginning_is_that_of_the_most_relevant_document():
    traced = make_traces(data(), words=6, kind="beginning")
    reasoning = {key: query.reasoning for key, query in traced.queries.items()}
    assert reasoning == {
        **dict.fromkeys(("q2", "q4", "q5", "q6")),
        "q1": f"{COMMON} by parse",
        "q3": "own words",
    }


GRADES = st.dictionaries(st.sampled_from([f"d{n}" for n in range(1, 6)]), st.integers(0, 3), min_size=1)


@given(
    judged=st.dictionaries(st.sampled_from([f"q{n}" for n in range(1, 7)]), GRADES, max_size=6),
    held_out=st.frozensets(st.sampled_from([f"d{n}" for n in range(1, 6)])),
    words=st.integers(1, 9),
    kind=st.sampled_from(["words", "beginning"]),
)
def test_a_trace_is_of_a_relevant_training_document_alone(judged, held_out, words, kind):
    splits = ["stage1", "stage2", "dev", "test"]
    qrels = {split: {q: judged[q] for q in judged if int(q[1:]) % 4 == n} for n, split in enumerate(splits)}
    before = data(qrels=qrels, held_out=held_out)
    traced = make_traces(before, words=words, kind=kind)
    for key, query in traced.queries.items():
        if query == before.queries[key]:
            continue
        assert key in qrels["stage1"]
        best = max((grade, -n) for n, (d, grade) in enumerate(judged[key].items()) if d not in held_out)
        document = [*judged[key]][-best[1]]
        assert best[0] > 0
        own, content = split_identifiers(query.reasoning), before.corpus[document].content
        assert 0 < len(own) <= words and set(own) <= set(split_identifiers(content))
        assert kind == "words" or content.startswith(query.reasoning)


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match="no split 'stage3'"):
        make_traces(data(), splits=("stage3",))


def test_held_out_documents_do_not_count():
    texts = ["alpha beta", "alpha", "alpha", "beta", "beta", "beta"]
    changes = {
        "corpus": {f"d{n}": Document("", text) for n, text in enumerate(texts)},
        "qrels": {"stage1": {"q1": {"d0": 1}}},
    }
    assert make_traces(data(**changes), words=1).queries["q1"].reasoning == "alpha"
    changes["held_out"] = frozenset({"d4", "d5"})
    assert make_traces(data(**changes), words=1).queries["q1"].reasoning == "beta"


def test_words_of_too_few_documents_are_passed_over():
    """Neither the very rare nor the commonest: the most telling of those that can be foreseen."""
    corpus = ["common", *["common medium"] * 10, *["common rare"] * 4] * 10 + ["common"] * 850
    assert TraceMaker(corpus, rarest=0.05).trace("common rare medium", words=1) == "medium"
    assert TraceMaker(corpus, rarest=0.0).trace("common rare medium", words=1) == "rare"


def test_words_of_one_document_only_when_there_are_no_others():
    maker = TraceMaker(["shared lonely", "shared"])
    assert maker.trace("shared lonely") == "shared"
    assert maker.trace("lonely") == "lonely"
    assert maker.trace("7 x") == ""


@given(st.lists(st.text("abcXY_ 12", max_size=20), max_size=5), st.integers(1, 6))
def test_a_trace_is_a_subsequence_of_the_words(texts, words):
    maker = TraceMaker(texts)
    for text in texts:
        trace = maker.trace(text, words).split()
        assert len(trace) <= words and len(set(trace)) == len(trace)
        first = [split_identifiers(text).index(word) for word in trace]
        assert first == sorted(first)


words = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=12)


@given(words, words, st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_noise_invents_no_words(trace, other, seed, drop, swap):
    noisy = noisy_trace(" ".join(trace), [" ".join(other)], random.Random(seed), drop, swap).split()
    assert 1 <= len(noisy) <= len(trace)
    assert set(noisy) <= {*trace, *other}


@given(words, st.integers(0, 99))
def test_extremes_of_noise(trace, seed):
    text, rng = " ".join(trace), random.Random(seed)
    assert noisy_trace(text, ["other"], rng, drop=0, swap=0) == text
    assert noisy_trace(text, ["other"], rng, drop=0, swap=1).split() == ["other"] * len(trace)
    assert noisy_trace(text, ["other"], rng, drop=1, swap=0) == trace[0]
    assert noisy_trace(text, [], rng, drop=0, swap=1) == text
    assert noisy_trace("", ["other"], rng) == ""


def test_noise_is_as_strong_as_asked():
    trace = " ".join(["word"] * 5_000)
    noisy = noisy_trace(trace, ["wrong"], random.Random(0), drop=0.3, swap=0.1).split()
    assert len(noisy) == pytest.approx(3_500, abs=150)
    assert noisy.count("wrong") == pytest.approx(350, abs=70)
