"""Intervals and tests: what must hold for any values, and agreement with theory where there is one."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.evaluation.statistics import (
    auroc,
    bootstrap_ci,
    holm,
    paired_difference,
    paired_differences,
    rank_correlation,
)

values = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=30).map(np.array)
FEW = 300


@given(values, st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_interval_holds_the_mean_and_moves_with_the_values(sample, shift):
    low, high = bootstrap_ci(sample, n=FEW)
    assert sample.min() - 1e-9 <= low <= high <= sample.max() + 1e-9
    moved = bootstrap_ci(sample + shift, n=FEW)
    assert moved == (pytest.approx(low + shift, abs=1e-9), pytest.approx(high + shift, abs=1e-9))
    scaled = bootstrap_ci(3 * sample, n=FEW)
    assert scaled == (pytest.approx(3 * low, abs=1e-9), pytest.approx(3 * high, abs=1e-9))


def test_interval_agrees_with_the_normal_one_on_many_values():
    sample = np.random.default_rng(0).random(2000)
    low, high = bootstrap_ci(sample)
    error = 1.96 * sample.std(ddof=1) / np.sqrt(len(sample))
    assert (low, high) == (
        pytest.approx(sample.mean() - error, abs=1e-3),
        pytest.approx(sample.mean() + error, abs=1e-3),
    )


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = rng.random((100, 400))  # 400 columns, each a sample of 100 from a mean of 0.5
    low, high = bootstrap_ci(samples, n=1000)
    assert 0.91 <= np.mean((low <= 0.5) & (high >= 0.5)) <= 0.98
    low, high = bootstrap_ci(samples, n=1000, level=0.5)
    assert 0.4 <= np.mean((low <= 0.5) & (high >= 0.5)) <= 0.6


def test_columns_are_as_if_alone_and_a_seed_is_a_result():
    table = np.random.default_rng(2).random((50, 2, 3))
    low, high = bootstrap_ci(table, n=FEW)
    assert low.shape == high.shape == (2, 3)
    for i, j in product(range(2), range(3)):
        assert bootstrap_ci(table[:, i, j], n=FEW) == (pytest.approx(low[i, j]), pytest.approx(high[i, j]))
    assert bootstrap_ci(table[:, 0, 0], n=FEW) == bootstrap_ci(table[:, 0, 0], n=FEW)
    assert bootstrap_ci(table[:, 0, 0], n=FEW) != bootstrap_ci(table[:, 0, 0], n=FEW, seed=1)


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_difference_turned_round_changes_its_sign_alone(a, random):
    b = np.array([random.random() for _ in a])
    there, back = paired_difference(a, b, n=FEW), paired_difference(b, a, n=FEW)
    assert there.mean == pytest.approx(a.mean() - b.mean(), abs=1e-9)
    assert back.mean == pytest.approx(-there.mean, abs=1e-9)
    assert back.ci95 == (pytest.approx(-there.ci95[1], abs=1e-9), pytest.approx(-there.ci95[0], abs=1e-9))
    assert back.p == there.p
    assert 0 < there.p <= 1
    assert there.significant == back.significant


@given(values)
@settings(max_examples=20, deadline=None)
def test_no_difference_is_no_evidence(a):
    found = paired_difference(a, a, n=FEW)
    assert (found.mean, found.ci95, found.p, found.significant) == (0, (0, 0), 1, False)


def test_p_is_that_of_all_sign_flips():
    a, b = np.random.default_rng(3).random((2, 9)) + np.array([[0.35], [0.0]])
    difference = a - b
    flips = np.array(list(product((-1, 1), repeat=9)))
    exact = np.mean(np.abs(flips @ difference) >= abs(difference.sum()) - 1e-12)
    assert 0.01 < exact < 0.5
    assert paired_difference(a, b).p == pytest.approx(exact, abs=0.015)


def test_chance_differences_are_rarely_significant_and_real_ones_are():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 120, 300))
    chance = paired_differences(a, b, n=1000)
    assert 0.01 <= np.mean([found.p < 0.05 for found in chance]) <= 0.1
    assert 0.01 <= np.mean([found.significant for found in chance]) <= 0.1
    real = paired_difference(a[:, 0] + 0.3, b[:, 0])
    assert real.significant and real.p < 0.001 and real.mean > 0


def test_wrong_values():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_ci(np.array([]))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_ci(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="same queries"):
        paired_difference(np.ones(3), np.ones(4))


p_values = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=12)


@given(p_values, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_corrected_ps_are_no_smaller_and_keep_their_order(ps, random):
    corrected = holm(ps)
    assert all(raw <= one <= 1 for raw, one in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [corrected[i] for i in order] == sorted(corrected)
    shuffled = random.sample(range(len(ps)), len(ps))
    assert holm([ps[i] for i in shuffled]) == [corrected[i] for i in shuffled]
    assert all(
        more >= less for more, less in zip(holm([*ps, 1.0]), corrected, strict=False)
    )  # a larger family


@given(p_values, st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=60)
def test_what_stays_below_is_what_stepping_down_rejects(ps, level):
    """Holm's own words: from the smallest on, until one is above level / (those that are left)."""
    rejected = set()
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    for place, i in enumerate(order):
        if ps[i] * (len(ps) - place) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected


def test_a_textbook_example_of_holm():
    # R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.3]) == [0.3] and holm([]) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_holm_refuses_what_is_no_p(wrong):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        holm([0.5, wrong])


pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=20)


@given(pairs)
@settings(max_examples=40)
def test_rank_correlation_is_that_of_scipy(rows):
    stats = pytest.importorskip("scipy.stats")
    a, b = zip(*rows, strict=True)
    found = rank_correlation(a, b)
    if len({*a}) == 1 or len({*b}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic)
        assert rank_correlation([x**3 for x in a], b) == pytest.approx(found)  # only the order counts


@given(pairs)
@settings(max_examples=40)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    scores, labels = [score for score, _ in rows], [label > 0 for _, label in rows]
    ones = [score for score, label in zip(scores, labels, strict=True) if label]
    zeros = [score for score, label in zip(scores, labels, strict=True) if not label]
    found = auroc(scores, labels)
    if not ones or not zeros:
        assert found is None
        return
    won = [(one > zero) + (one == zero) / 2 for one, zero in product(ones, zeros)]
    assert found == pytest.approx(np.mean(won))
    assert auroc([-score for score in scores], labels) == pytest.approx(1 - found)


def test_values_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        rank_correlation([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        auroc([1.0, 2.0], [True])
