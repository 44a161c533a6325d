import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from searchr3.environment.fidelity import advantage_cosine, advantage_spearman, cosine

rewards = arrays(np.float64, 12, elements=st.integers(0, 20).map(lambda value: value / 20))


@given(rewards, rewards)
def test_spearman_is_scipys_of_the_centred_rewards(a, b):
    centred = [
        np.round((x.reshape(-1, 4) - x.reshape(-1, 4).mean(1, keepdims=True)).ravel(), 9) for x in (a, b)
    ]
    found = advantage_spearman(a, b, group=4)
    if any(np.ptp(x) == 0 for x in centred):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(*centred)[0], abs=1e-9)


@given(rewards, rewards, arrays(np.float64, 3, elements=st.floats(-1, 1)))
def test_what_is_the_same_for_a_whole_group_does_not_count(a, b, shift):
    moved = a + np.repeat(np.round(shift, 3), 4)
    for measure in (advantage_spearman, advantage_cosine):
        assert measure(moved, b, 4) == pytest.approx(measure(a, b, 4), abs=1e-6, nan_ok=True)


@given(rewards, rewards)
def test_both_are_symmetric_within_bounds_and_one_for_equal_rewards(a, b):
    for measure in (advantage_spearman, advantage_cosine):
        found = measure(a, b, 4)
        assert np.isnan(found) or -1 - 1e-9 <= found <= 1 + 1e-9
        assert found == pytest.approx(measure(b, a, 4), nan_ok=True)
        same = measure(a, a, 4)
        assert np.isnan(same) or same == pytest.approx(1)


def test_a_group_without_variance_counts():
    # the second group has none by the oracle; a reward that sees some there is wrong
    oracle = np.array([0.1, 0.2, 0.5, 0.5])
    assert advantage_spearman(np.array([0.1, 0.2, 0.5, 0.5]), oracle, 2) == pytest.approx(1)
    assert advantage_spearman(np.array([0.1, 0.2, 0.9, 0.1]), oracle, 2) < 0.7


def test_cosine_of_rows():
    a, b = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), np.array([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert cosine(a, b).tolist() == [1, 0, 0]
