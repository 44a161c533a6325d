import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.environment import Certified, Corrected, Corrector, Frozen, Random, audit


def drifted(rng, vectors, linear, noise):
    """Vectors after a linear drift of the whole space and one of each document's own."""
    moved = vectors + vectors @ linear + noise * rng.standard_normal(vectors.shape)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def vectors_of(rng, size, dim=16):
    found = rng.standard_normal((size, dim))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@given(st.integers(0, 10_000))
def test_a_linear_drift_is_undone_and_the_error_tells_what_is_left(seed):
    rng = np.random.default_rng(seed)
    old = vectors_of(rng, 600)
    new = drifted(rng, old, 0.05 * rng.standard_normal((16, 16)), noise=0.002)
    corrector = Corrector()
    corrector.fit(old[:200], new[:200])
    corrected = corrector(np.arange(200, 600), old[200:].astype(np.float32))
    left = (np.linalg.norm(corrected - new[200:], axis=1) ** 2).mean()
    assert left < 0.1 * (np.linalg.norm(old[200:] - new[200:], axis=1) ** 2).mean()
    assert left < 1.3 * corrector.error  # which counts the lengths too, that are known


@pytest.mark.parametrize("size", [12, 60])  # fewer and more rows than dimensions
def test_the_error_is_that_of_fits_without_the_row_and_the_least_of_all_choices(size):
    rng = np.random.default_rng(3)
    first, old = vectors_of(rng, 40), vectors_of(rng, size)
    linear = 0.1 * rng.standard_normal((16, 16))
    corrector = Corrector()
    corrector.fit(first, drifted(rng, first, linear, noise=0.02), step=1)
    before = corrector.state_dict()["map"]
    new = drifted(rng, old, 0.8 * linear, noise=0.02)
    corrector.fit(old, new, step=2)

    one = np.concatenate([old, np.ones((size, 1))], axis=1)

    def by_hand(ridge, carry):
        rest, errors = new - old - carry * one @ before, []
        for row in range(size):
            others = np.delete(np.arange(size), row)
            gram = one[others].T @ one[others] + ridge * np.eye(17)
            errors.append(rest[row] - one[row] @ np.linalg.solve(gram, one[others].T @ rest[others]))
        return (np.array(errors) ** 2).sum() / size

    assert corrector.carry > 0 and np.isfinite(corrector.ridge)
    assert corrector.error == pytest.approx(by_hand(corrector.ridge, corrector.carry))
    for ridge, carry in [(0.01, 0.0), (1.0, 0.5), (10.0, 1.0), (1.0, 0.0)]:
        assert corrector.error <= by_hand(ridge, carry) + 1e-12


def test_two_fits_within_a_step_are_carried_over_as_one():
    rng = np.random.default_rng(4)
    old = vectors_of(rng, 200)
    new = drifted(rng, old, 0.1 * rng.standard_normal((16, 16)), noise=0.001)
    corrector = Corrector()
    corrector.fit(old[:150], new[:150], step=1)
    whole = corrector.state_dict()["map"].copy()
    estimated = corrector(np.arange(200), old.astype(np.float32))
    corrector.fit(estimated[150:], new[150:], step=1)  # next to nothing is left
    again = corrector(np.arange(200), estimated)
    assert np.linalg.norm(again - estimated) < 0.2 * np.linalg.norm(estimated - old)
    assert np.linalg.norm(corrector.state_dict()["map"] - whole) < 0.2 * np.linalg.norm(whole)


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
    fresh = drifted(rng, old, 0.05 * rng.standard_normal((16, 16)), 0.01)
    moved = []
    for corrector in (first, second):
        corrector.fit(old, fresh)
        moved.append(corrector(np.arange(40), old.astype(np.float32)))
    assert np.array_equal(*moved)


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


def test_what_the_inner_policy_says_is_passed_on(world):
    inner = Certified(candidates=40, max_budget=100, calibration=0.5, correct=False)
    environment = world.environment(Corrected(inner), candidates=40)
    world.step = 3
    report = environment.refresh(*world.rollouts(3), 3)
    assert report.policy == {"bound": inner.certificate.bound}
