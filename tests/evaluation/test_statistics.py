"""Intervals and tests: what must hold for any values, and agreement with theory where there is one."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.evaluation.statistics import (
    auroc,
    bootstrap_ci,
    direction,
    holm,
    paired_difference,
    paired_differences,
    pooled_differences,
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


def test_one_data_set_pooled_is_that_data_set():
    table = np.random.default_rng(3).normal(0.1, 0.3, (80, 2))
    for pooled, alone in zip(pooled_differences([table]), paired_differences(table, 0 * table), strict=True):
        assert pooled.mean == pytest.approx(alone.mean)
        assert pooled.ci95 == pytest.approx(alone.ci95, abs=0.005)
        assert pooled.p == pytest.approx(alone.p, abs=0.02)


def test_pooled_data_sets_count_the_same_whatever_their_size():
    rng = np.random.default_rng(4)
    large, small = rng.normal(0.0, 0.2, (900, 1)), rng.normal(0.2, 0.2, (100, 1))
    (found,) = pooled_differences([large, small])
    assert found.mean == pytest.approx((large.mean() + small.mean()) / 2)
    error = 1.96 * np.sqrt(large.var() / 900 + small.var() / 100) / 2  # independent of each other
    assert found.ci95 == pytest.approx((found.mean - error, found.mean + error), abs=2e-3)
    assert found.p < 0.001


def test_weights_say_what_a_data_set_counts():
    rng = np.random.default_rng(7)
    one, other = rng.normal(0.0, 0.2, (40, 1)), rng.normal(0.2, 0.2, (50, 1))
    (found,) = pooled_differences([one, other], weights=[0.25, 0.75])
    assert found.mean == pytest.approx(0.25 * one.mean() + 0.75 * other.mean())
    assert found.ci95[0] < found.mean < found.ci95[1]
    assert pooled_differences([one, other], weights=[0.5, 0.5]) == pooled_differences([one, other])


def test_data_sets_of_one_size_are_drawn_independently():
    table = np.random.default_rng(5).normal(0, 1, (200, 1))
    (alone,), (twice,) = pooled_differences([table]), pooled_differences([table, table])
    width = [one.ci95[1] - one.ci95[0] for one in (alone, twice)]
    assert width[1] == pytest.approx(width[0] / np.sqrt(2), rel=0.05)


@given(st.lists(values, min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_pooled_differences_turned_round_change_their_sign_alone(samples):
    (there,) = pooled_differences([each[:, None] for each in samples], n=FEW)
    (back,) = pooled_differences([-each[:, None] for each in samples], n=FEW)
    assert back.mean == pytest.approx(-there.mean) and back.p == there.p
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=1e-9)


def test_p_of_pooled_data_sets_is_that_of_all_their_sign_flips():
    """Flips of two data sets of one size are independent, and weighed as the data sets are."""
    rng = np.random.default_rng(12)
    one, other = rng.normal(0.2, 0.4, 5), rng.normal(0.3, 0.4, 5)
    flips = np.array(list(product((-1, 1), repeat=5)))
    means = 0.3 * (flips @ one)[:, None] / 5 + 0.7 * (flips @ other) / 5
    seen = 0.3 * one.mean() + 0.7 * other.mean()
    exact = np.mean(np.abs(means) >= abs(seen) - 1e-12)
    (found,) = pooled_differences([one[:, None], other[:, None]], weights=[0.3, 0.7])
    assert 0.02 < exact < 0.5
    assert found.p == pytest.approx(exact, abs=0.015)


def test_pooled_data_sets_without_a_difference_are_no_evidence():
    (found,) = pooled_differences([np.zeros((4, 1)), np.zeros((9, 1))], n=FEW)
    assert (found.mean, found.ci95, found.p) == (0, (0, 0), 1)


def test_p_is_never_below_what_the_flips_can_tell():
    """What was seen is one of the flips: p of n flips is 1 / (n + 1) at least."""
    sure = np.ones((60, 1))
    assert paired_differences(sure, 0 * sure, n=99)[0].p == 0.01
    assert pooled_differences([sure, sure], n=99)[0].p == 0.01


def test_chance_pooled_is_rarely_significant():
    rng = np.random.default_rng(6)
    tables = [rng.normal(0, 1, (size, 300)) for size in (30, 60)]
    found = pooled_differences(tables, n=1000)
    assert 0.02 <= np.mean([one.p <= 0.05 for one in found]) <= 0.09


def test_wrong_values():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_ci(np.array([]))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_ci(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="same queries"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="no data sets"):
        pooled_differences([])
    with pytest.raises(ValueError, match="at least one query"):
        pooled_differences([np.ones((3, 1)), np.ones((0, 1))])


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


@pytest.mark.parametrize("queries, sure", [(3, False), (5, False), (6, True)])
def test_very_few_queries_are_never_significant(queries, sure):
    """All differences have one sign, so that the interval leaves 0 out; p is 2^(1 − queries) at least."""
    above = paired_difference(np.linspace(0.5, 0.9, queries), np.full(queries, 0.1))

    assert above.ci95[0] > 0
    assert above.significant is sure


def test_what_is_significant_has_an_interval_on_one_side_of_0():
    assert direction((-0.1, 0.3), 0.01) == direction((0.0, 0.3), 0.01) == direction((-0.3, 0.0), 0.01) == 0


def test_values_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        rank_correlation([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        auroc([1.0, 2.0], [True])
