import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.environment import Corrected, Corrector, Frozen, Random, audit


def drifted(rng, vectors, linear, noise):
    """Vectors after a linear drift of the whole space and one of each document's own."""
    moved = vectors + vectors @ linear + noise * rng.standard_normal(vectors.shape)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def vectors_of(rng, size, dim=16):
    found = rng.standard_normal((size, dim))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@given(st.integers(0, 10_000))
def test_a_linear_drift_is_undone_and_residuals_tell_what_is_left(seed):
    rng = np.random.default_rng(seed)
    old = vectors_of(rng, 600)
    new = drifted(rng, old, 0.05 * rng.standard_normal((16, 16)), noise=0.002)
    corrector = Corrector()
    residuals = corrector.fit(old[:200], new[:200])
    corrected = corrector(np.arange(200, 600), old[200:].astype(np.float32))
    left = np.linalg.norm(corrected - new[200:], axis=1).mean()
    assert left < 0.3 * np.linalg.norm(old[200:] - new[200:], axis=1).mean()
    assert np.linalg.norm(residuals, axis=1).mean() == pytest.approx(left, rel=0.5)


def test_residuals_are_those_of_fits_without_the_row():
    rng = np.random.default_rng(3)
    old = vectors_of(rng, 30)
    new = drifted(rng, old, 0.1 * rng.standard_normal((16, 16)), noise=0.02)
    corrector = Corrector()
    residuals = corrector.fit(old, new)
    ridge = corrector.ridge
    one = np.concatenate([old, np.ones((30, 1))], axis=1)
    for row in (0, 7, 29):
        rest = np.delete(np.arange(30), row)
        gram = one[rest].T @ one[rest] + ridge * np.eye(17)
        by_hand = np.linalg.solve(gram, one[rest].T @ (new - old)[rest])
        predicted = old[row] + one[row] @ by_hand
        assert residuals[row] == pytest.approx(new[row] - predicted / np.linalg.norm(predicted), abs=1e-8)


def test_where_nothing_is_to_be_learnt_little_is_done():
    rng = np.random.default_rng(1)
    old = vectors_of(rng, 400)
    new = drifted(rng, old, np.zeros((16, 16)), noise=0.05)
    corrector = Corrector()
    corrector.fit(old[:100], new[:100])
    corrected = corrector(np.arange(300), old[100:].astype(np.float32))
    before, after = (np.linalg.norm(side - new[100:], axis=1).mean() for side in (old[100:], corrected))
    assert after < 1.05 * before


def test_a_steady_drift_is_carried_on():
    """With few rows a step, the maps of earlier steps are worth more than those rows."""
    rng = np.random.default_rng(2)
    vectors, linear = vectors_of(rng, 1000, 64), 0.01 * rng.standard_normal((64, 64))
    left = {}
    for carries in (True, False):
        corrector, store, true = Corrector(), vectors.copy(), vectors.copy()
        draw = np.random.default_rng(5)
        for _ in range(20):
            true = drifted(draw, true, linear, 0.0)
            rows = draw.choice(1000, 20, replace=False)
            if not carries:
                corrector = Corrector()
            corrector.fit(store[rows], true[rows])
            store = corrector(np.arange(1000), store)
            store[rows] = true[rows]
        left[carries] = np.linalg.norm(store - true, axis=1).mean()
    assert left[True] < 0.8 * left[False]


@given(st.integers(1, 4))
def test_lengths_stay_and_few_rows_are_no_fault(rows):
    rng = np.random.default_rng(rows)
    old = 3 * vectors_of(rng, 50)
    corrector = Corrector()
    corrector.fit(old[:rows], old[:rows] + 0.1)
    moved = corrector(np.arange(50), old.astype(np.float32))
    assert np.linalg.norm(moved, axis=1) == pytest.approx(np.linalg.norm(old, axis=1), rel=1e-5)


def test_state_comes_back():
    rng = np.random.default_rng(0)
    old = vectors_of(rng, 40)
    first, second = Corrector(), Corrector()
    assert first.state_dict() == {}
    first.fit(old, drifted(rng, old, 0.05 * rng.standard_normal((16, 16)), 0.01))
    second.load_state_dict(first.state_dict())
    rows = np.arange(40)
    assert np.array_equal(first(rows, old.astype(np.float32)), second(rows, old.astype(np.float32)))
    fresh = drifted(rng, old, 0.05 * rng.standard_normal((16, 16)), 0.01)
    assert np.array_equal(first.fit(old, fresh), second.fit(old, fresh))


def test_corrected_vectors_are_nearer_than_stale_ones_and_encoded_ones_stay(make_world):
    drift = {}
    for name, policy in (
        ("random", Random(60)),
        ("corrected", Corrected(Random(60))),
        ("none", Corrected(Frozen())),
    ):
        world = make_world(size=1500, rate=0.03)
        environment = world.environment(policy)
        for step in range(1, 8):
            world.step = step
            vectors, relevant = world.rollouts(step)
            report = environment.refresh(vectors, relevant, step)
        assert np.array_equal(environment.store.take(report.rows), world.at(7, report.rows))
        drift[name] = audit(environment, vectors, relevant, 7, group=8).drift
    assert drift["corrected"] < 0.9 * drift["random"] < drift["none"]
