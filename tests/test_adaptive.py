"""The signals of a ranking's doubt, the rule that thinks by them, and where it is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.adaptive import DEPTH, RULE, SIGNALS, Adaptive, known_rule, load_rule, uncertainty
from searchr3.errors import ModelError
from searchr3.loading import model_files
from searchr3.model import SearchR3

QUERIES = ["parse the date strictly", "sort", "merge a list in place", "count words", "load the file lazily"]
DOCUMENTS = ["parse_date", "sort_list in place", "merge files", "count lines", "load", "split strings"]


def rankings(least: int = 1):
    """(n, k) cosines, falling, apart by more than rounding or equal."""
    row = st.lists(st.integers(-1000, 1000), min_size=12, max_size=12).map(lambda row: sorted(row)[::-1])
    rows = st.lists(row, min_size=1, max_size=4).map(lambda rows: np.array(rows) / 1000)
    return st.tuples(rows, st.integers(least, 12)).map(lambda both: both[0][:, : both[1]])


@given(rankings(), st.sampled_from(list(SIGNALS)))
def test_doubt_has_bounds_and_sees_the_first_ten_only(scores: np.ndarray, signal: str) -> None:
    found = uncertainty(scores, signal)

    assert found.shape == (len(scores),)
    assert np.isfinite(found).all() and (found >= 0).all() and (found <= 2).all()
    if signal in ("margin", "entropy"):
        assert (found <= 1 + 1e-9).all()
    np.testing.assert_array_equal(found, uncertainty(scores[:, :DEPTH], signal))
    one_by_one = np.concatenate([uncertainty(row[None], signal) for row in scores])
    np.testing.assert_allclose(found, one_by_one, atol=1e-12)


@given(rankings(), st.sampled_from(["margin", "entropy"]), st.floats(0.1, 9), st.floats(-3, 3))
def test_the_shape_alone_counts_for_some(scores: np.ndarray, signal: str, scale: float, up: float) -> None:
    flat = scores[:, :DEPTH].std(axis=1) == 0  # what rounding makes of equal numbers is another matter
    scores = scores[~flat]
    np.testing.assert_allclose(
        uncertainty(scores * scale + up, signal), uncertainty(scores, signal), atol=1e-6
    )


@given(rankings(2), st.sampled_from(["margin", "score", "spread"]), st.floats(0.05, 1))
def test_a_better_best_document_leaves_less_doubt(scores: np.ndarray, signal: str, by: float) -> None:
    sure = scores.copy()
    sure[:, 0] += by

    before, after = uncertainty(scores, signal), uncertainty(sure, signal)

    assert (after <= before + 1e-9).all()
    if signal != "margin":  # where one stands out alone already, it cannot more
        assert (after < before).all() or (before == 0).any()


def test_ten_equal_scores_are_the_greatest_doubt_and_one_high_one_the_least() -> None:
    equal, alone = np.full((1, 10), 0.7), np.array([[0.9] + [0.1] * 9])
    for signal in ("margin", "entropy", "spread"):
        assert uncertainty(equal, signal) == pytest.approx(1)
    assert uncertainty(alone, "margin") == pytest.approx(0)
    assert uncertainty(alone, "score") == pytest.approx(0.1)
    assert uncertainty(alone, "spread") == pytest.approx(1 - 0.24)
    assert uncertainty(alone, "entropy") < 0.85
    assert uncertainty(equal[:, :1], "margin") == uncertainty(equal[:, :1], "entropy") == 1


def test_doubt_by_hand() -> None:
    two, three = np.array([[0.9, 0.5]]), np.array([[0.9, 0.6, 0.3]])
    share = 1 / (1 + np.exp(-2))  # the second is two standard deviations below the first
    rest = 1 - share
    assert uncertainty(two, "entropy") == pytest.approx(-(share * np.log2(share) + rest * np.log2(rest)))
    z = 0.3 / np.sqrt(0.06)
    assert uncertainty(three, "margin") == pytest.approx(1 - z / np.sqrt(2))


def test_the_rule_thinks_where_the_doubt_is_at_least_its_threshold() -> None:
    scores = np.array([[0.9, 0.1], [0.5, 0.1], [0.2, 0.1]])
    assert Adaptive("score", 0.5).thinks(scores).tolist() == [False, True, True]
    assert Adaptive("score", 0).thinks(scores).all()
    assert not Adaptive("score", None).thinks(scores).any()


@pytest.mark.parametrize("signal", ["", "Margin", "hits"])
def test_unknown_signals_are_refused(signal: str) -> None:
    with pytest.raises(ValueError, match="one of margin, entropy, score, spread"):
        Adaptive(signal, 0.5)
    with pytest.raises(ValueError, match="one of margin"):
        uncertainty(np.ones((1, 3)), signal)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), "0.5"])
def test_thresholds_that_mean_nothing_are_refused(threshold: object) -> None:
    with pytest.raises(ValueError, match="0 or more, or None"):
        Adaptive("margin", threshold)  # type: ignore[arg-type]


def test_scores_of_another_shape_are_refused() -> None:
    for scores in (np.ones(3), np.ones((2, 0))):
        with pytest.raises(ValueError, match=r"scores must be \(n, k\)"):
            uncertainty(scores, "margin")


def test_where_nothing_is_found_there_is_nothing_to_think_about() -> None:
    """A store that is empty, or of which filters leave nothing."""
    rule = Adaptive("margin", 0.0)
    assert not rule.thinks_about(np.ones((2, 3)), lambda vectors, k: np.ones((len(vectors), 0))).any()


@pytest.mark.parametrize("threshold", [0.25, None])
def test_a_rule_is_saved_beside_the_weights(threshold: float | None, tmp_path: Path) -> None:
    assert load_rule(tmp_path) is None
    Adaptive("score", 0.9).save(tmp_path)
    rule = Adaptive("margin", threshold, "colours, dev")
    rule.save(tmp_path)
    assert load_rule(tmp_path) == rule
    assert [path.name for path in tmp_path.iterdir()] == [RULE]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"signal": "x", "threshold": 1}', '{"signal": []}']
)
def test_a_damaged_rule_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / RULE).write_text(content)
    with pytest.raises(ModelError) as caught:
        load_rule(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / RULE}: not a rule of adaptive thinking (")
    assert "searchr3 adapt" in str(caught.value) and "\n" not in str(caught.value)


# -- in the model


@pytest.fixture
def search(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model)


def test_the_unsure_think_and_the_others_do_not(search: SearchR3) -> None:
    documents = search.encode_document(DOCUMENTS)
    direct = search.encode_query(QUERIES)
    said = search.generate(QUERIES, max_new_tokens=4)
    reasoned = search.encode_query(QUERIES, said)
    doubts = uncertainty(np.sort(direct @ documents.T, axis=1)[:, ::-1], "score")
    rule = Adaptive("score", float(np.median(doubts)))
    unsure = doubts >= rule.threshold
    assert 0 < unsure.sum() < len(QUERIES)

    vectors, thoughts = search.encode_adaptive(QUERIES, documents, rule, max_new_tokens=4)

    for row, thought in enumerate(thoughts):
        assert thought == (said[row] if unsure[row] else None)
    np.testing.assert_allclose(vectors, np.where(unsure[:, None], reasoned, direct), atol=1e-5)
    search.adaptive = rule
    auto = search.encode_query(QUERIES, reasoning="auto", documents=documents, max_new_tokens=4)
    np.testing.assert_array_equal(auto, vectors)

    def index(queries: np.ndarray, k: int) -> np.ndarray:
        return np.sort(queries @ documents.T, axis=1)[:, ::-1][:, :k]

    assert search.encode_adaptive(QUERIES, index, rule, max_new_tokens=4)[1] == thoughts


@pytest.mark.parametrize(("threshold", "all_of_them"), [(None, False), (0.0, True)])
def test_never_and_always(search: SearchR3, threshold: float | None, all_of_them: bool) -> None:
    documents = search.encode_document(DOCUMENTS)
    rule = Adaptive("margin", threshold)

    vectors, thoughts = search.encode_adaptive(QUERIES, documents, rule, max_new_tokens=3)

    assert [thought is not None for thought in thoughts] == [all_of_them] * len(QUERIES)
    same = search.encode_query(QUERIES, all_of_them, max_new_tokens=3)
    np.testing.assert_allclose(vectors, same, atol=1e-5)
    assert search.encode_adaptive([], documents, rule)[0].shape == (0, search.dimension)


def test_fewer_dimensions_are_searched_with_as_many(search: SearchR3) -> None:
    short = search.encode_document(DOCUMENTS, dim=8)
    rule = Adaptive("margin", 0.5)
    assert search.encode_adaptive(QUERIES, short, rule, dim=8, max_new_tokens=2)[0].shape == (len(QUERIES), 8)
    with pytest.raises(ValueError, match=r"must be \(n, d\) and \(m, d\)"):
        search.encode_adaptive(QUERIES, short, rule, max_new_tokens=2)


def test_what_is_missing_is_said_in_one_line(search: SearchR3) -> None:
    documents = search.encode_document(DOCUMENTS)
    with pytest.raises(ModelError, match="has no rule of when to think; choose one with `searchr3 adapt"):
        search.encode_query(QUERIES, reasoning="auto", documents=documents)
    search.adaptive = Adaptive("margin", 0.5)
    with pytest.raises(ValueError, match=r"needs documents=, the vectors of what will be searched"):
        search.encode_query(QUERIES, reasoning="auto")
    with pytest.raises(ValueError, match="at least one document"):
        search.encode_query(QUERIES, reasoning="auto", documents=documents[:0])
    with pytest.raises(ValueError, match="one thought"):
        search.encode_query(QUERIES, reasoning="auto", documents=documents, samples=2)
    with pytest.raises(ValueError, match='True, False, "auto"'):
        search.encode_query(QUERIES, reasoning="maybe")  # type: ignore[arg-type]
    assert known_rule(search, Adaptive("score", None)) == Adaptive("score", None)


def test_a_rule_travels_with_its_weights_and_with_no_others(search: SearchR3, tmp_path: Path) -> None:
    search.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / RULE).exists()
    search.adaptive = Adaptive("entropy", 0.5, "here")
    search.save_pretrained(tmp_path / "model")
    again = SearchR3(tmp_path / "model")
    assert again.adaptive == search.adaptive
    assert json.loads((tmp_path / "model" / RULE).read_text())["chosen_on"] == "here"
    assert SearchR3.from_base(tmp_path / "model").adaptive is None  # it will be another model
    again.reload(tmp_path / "plain")
    assert again.adaptive is None
    # vectors that were encoded before the rule was chosen are still this model's
    assert RULE not in {file.name for file in model_files(tmp_path / "model")}
