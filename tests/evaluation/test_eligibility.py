"""Rankings in which not every document may stand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Eligible
from searchr3.errors import DataError
from searchr3.evaluation import evaluate
from searchr3.evaluation.eligibility import Eligibility
from searchr3.ranking import highest


@given(
    st.integers(1, 30),
    st.sets(st.integers(0, 29)),
    st.booleans(),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_the_ranking_is_that_of_what_may_be_found(size, chosen, others, k, seed):
    scores = np.random.default_rng(seed).integers(0, 5, size).astype(np.float32)
    ids = [f"d{number}" for number in range(size)]
    eligible = {"q": Eligible(frozenset(f"d{number}" for number in chosen), others)}
    limits = Eligibility(eligible, ["other", "q"], ids)
    rows = highest(scores, k + limits.spare)
    found = np.stack([rows, rows]), np.stack([scores[rows], scores[rows]])
    limits.ordered(found[1], found[0], lambda query, some: scores[some])
    kept_scores, kept = limits.kept(found[1], found[0], k)

    allowed = [number for number in range(size) if (number in chosen) != others]
    expected = [allowed[place] for place in highest(scores[allowed], k)]
    assert kept[1][kept[1] >= 0].tolist() == expected
    assert kept_scores[1][: len(expected)].tolist() == scores[expected].tolist()
    assert kept[0].tolist() == highest(scores, k).tolist()  # the other query finds all


def test_evaluation_finds_only_what_may_be_found(model, data):
    whole = evaluate(model, data)
    first = {
        query: {run.hits[query][0].document for run in (*whole.runs, *whole.baselines)}
        for query in whole.query_ids
    }
    none = evaluate(
        model, replace(data, eligible={q: Eligible(frozenset(d), True) for q, d in first.items()})
    )
    few = evaluate(model, replace(data, eligible={q: Eligible(frozenset(d)) for q, d in first.items()}))
    for name in ("direct", "reasoned", "bm25"):
        for query, documents in first.items():
            assert not documents & {hit.document for hit in none.run(name).hits[query]}
            assert {hit.document for hit in few.run(name).hits[query]} <= documents
            assert few.run(name).hits[query][0] == whole.run(name).hits[query][0]
        assert len(none.run(name).hits[query]) == len(whole.run(name).hits[query])  # filled up again
        rest = [hit for hit in whole.run(name).hits[query] if hit.document not in first[query]]
        assert [hit for hit in none.run(name).hits[query] if hit in rest] == rest


def test_no_file_holds_it(data, tmp_path):
    with pytest.raises(DataError, match="only some documents may be found"):
        replace(data, eligible={"q20": Eligible(frozenset())}).save(tmp_path / "data")
