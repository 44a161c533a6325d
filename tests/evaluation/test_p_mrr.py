"""p-MRR of each query: by hand, and its mean is MTEB's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.evaluation.p_mrr import p_mrr_of_queries

QRELS = {"q-og": {"a": 1, "b": 1, "c": 0}, "q-changed": {"a": 0, "b": 1}}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abc", "bca", 1 - 1 / 3),  # 1 → 3: fallen, as the changed instruction wants
        ("bca", "abc", 1 / 3 - 1),
        ("abc", "abc", 0.0),
        ("bca", "bc", 0.0),  # no longer found: the rank behind the last
    ],
)
def test_a_document_that_falls_counts_for_it(before: str, after: str, expected: float) -> None:
    hits = {
        "q-og": {document: -float(rank) for rank, document in enumerate(before)},
        "q-changed": {document: -float(rank) for rank, document in enumerate(after)},
    }
    assert p_mrr_of_queries(hits, QRELS) == pytest.approx([expected])


def test_a_document_that_is_no_longer_judged_has_changed() -> None:
    qrels = {"q-og": {"a": 1, "b": 1}, "q-changed": {"b": 1}}
    hits = {"q-og": {"a": 2.0, "b": 1.0}, "q-changed": {"a": 1.0, "b": 2.0}}
    assert p_mrr_of_queries(hits, qrels) == [0.5]


def test_a_query_without_a_change_or_without_its_second_form_is_left_out() -> None:
    hits = {query: {"a": 1.0} for query in ("q-og", "q-changed", "p-og")}
    assert p_mrr_of_queries(hits, {"q-og": {"a": 1}, "q-changed": {"a": 1}, "p-og": {"a": 1}}) == []


@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 5), documents=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_the_mean_is_mteb_s(seed: int, queries: int, documents: int) -> None:
    metrics = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    rng = np.random.default_rng(seed)
    ids = [f"d{number}" for number in range(documents)]
    names = [f"q{number}" for number in range(queries)]
    qrels = {
        f"{name}-{way}": {
            key: int(grade) for key, grade in zip(ids, rng.integers(0, 2, documents), strict=True)
        }
        for name in names
        for way in ("og", "changed")
    }
    hits = {query: {key: float(rng.integers(0, 4)) for key in ids if rng.random() < 0.8} for query in qrels}
    changed = {
        name: [key for key in ids if qrels[f"{name}-og"][key] != qrels[f"{name}-changed"][key]]
        for name in names
    }
    found = p_mrr_of_queries(hits, qrels)
    assert len(found) == sum(map(bool, changed.values()))
    assert all(-1 <= value <= 1 for value in found)
    if found:
        runs = [{key: one for key, one in hits.items() if key.endswith(way)} for way in ("-og", "-changed")]
        assert np.mean(found) == pytest.approx(metrics.calculate_pmrr(*runs, changed))
