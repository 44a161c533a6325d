from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from searchr3.environment import Certified, Frozen, Random, audit
from searchr3.environment.certified import LEAST, _Seen, _student


def run(world, policy, steps=range(1, 9), **settings):
    """Refresh at every step; per step the report, the certificate and an audit."""
    environment = world.environment(policy, candidates=40, **settings)
    for step in steps:
        world.step = step
        vectors, relevant = world.rollouts(step)
        report = environment.refresh(vectors, relevant, step)
        yield (
            report,
            getattr(policy, "certificate", None),
            audit(environment, vectors, relevant, step, group=8),
        )


def certified(**settings):
    return Certified(**{"candidates": 40, "temperature": 0.2, "epsilon": 0.0, "max_budget": 60} | settings)


@pytest.mark.parametrize("correct", [True, False])
def test_rewards_are_nearer_to_the_truth_than_with_as_many_random_rows(make_world, correct):
    error = {}
    for name, policy in (
        ("certified", certified(correct=correct)),
        ("random", Random(60)),
        ("frozen", Frozen()),
    ):
        found = [found.reward_error for _, _, found in run(make_world(size=2000, rate=0.04), policy)]
        error[name] = np.mean(found)
    assert error["certified"] < 0.5 * error["random"] and error["random"] <= error["frozen"]


@pytest.mark.parametrize(("correct", "epsilon"), [(True, 0.0), (False, 0.0), (True, 0.005), (True, 0.01)])
def test_the_bound_holds_as_often_as_it_says_wherever_it_stops(make_world, correct, epsilon):
    held, met = [], []
    for seed in range(4):
        some = {"max_budget": 200, "calibration": 0.4, "seed": seed}  # a bound wants its sample
        policy = certified(correct=correct, delta=0.1, epsilon=epsilon, **some)
        for _, certificate, found in run(make_world(size=1500 + 200 * seed, rate=0.03), policy):
            held.append(found.reward_error <= certificate.bound)
            met.append(certificate.met)
    assert np.mean(held) >= 0.9
    assert any(met) == (epsilon > 0)


def test_it_stops_once_the_bound_is_met(make_world):
    spent = {}
    for epsilon in (0.0, 0.01, 0.5):
        policy = certified(epsilon=epsilon, max_budget=300, calibration=0.3)
        for report, certificate, _ in run(make_world(rate=0.02), policy, steps=range(1, 5)):
            assert certificate.met == (certificate.bound <= epsilon)
            assert certificate.rows == report.documents <= 300
        spent[epsilon] = report.documents
    assert spent[0.0] >= spent[0.01] >= spent[0.5] and spent[0.0] > spent[0.5]


def test_no_more_than_the_budget_but_always_the_relevant_documents(make_world):
    world = make_world()
    environment = world.environment(certified(max_budget=30))
    for step in (1, 2):
        world.step = step
        vectors, relevant = world.rollouts(step)
        wanted = environment.rows_of(sorted({key for one in relevant for key in one}))
        report = environment.refresh(vectors, relevant, step)
        assert report.documents <= 30 and set(wanted) <= set(report.rows)
        again = environment.refresh(vectors, relevant, step)  # the same step, nothing left to spend
        assert again.documents == 0
    for budget, documents in (
        (1, len(wanted)),
        (len(wanted), len(wanted)),
        (len(wanted) + 3, len(wanted) + 3),
    ):
        tight = world.environment(certified(max_budget=budget))
        report = tight.refresh(vectors, relevant, 2)
        assert set(wanted) <= set(report.rows) and report.documents == documents


def test_what_tells_too_little_gives_no_bound(make_world):
    """Hard nDCG moves in jumps that a sample seldom sees; a sample of few documents sees nothing."""
    for settings in ({"temperature": 0.0}, {"max_budget": 16}):
        policy = certified(**settings)
        for report, certificate, _ in run(make_world(rate=0.005), policy, steps=range(1, 4)):
            assert certificate.bound == np.inf and not certificate.met and policy.metrics() == {}
            assert report.documents == policy.max_budget


@pytest.mark.parametrize("size", [3, 9, 30])
def test_a_corpus_smaller_than_the_candidates_is_all_encoded(make_world, size):
    policy = certified(max_budget=None)
    for report, certificate, found in run(make_world(size=size), policy, steps=range(1, 3)):
        assert report.documents == size and certificate.bound == 0
        assert found.reward_error == pytest.approx(0, abs=1e-6)


def test_with_the_whole_corpus_as_budget_all_that_counts_is_fresh(make_world):
    policy = certified(max_budget=None, calibration=0.05)
    for _, certificate, found in run(make_world(size=600, rate=0.05), policy, steps=range(1, 4)):
        assert certificate.bound == pytest.approx(0, abs=1e-6)
        assert found.advantage_spearman > 0.97


def test_runs_are_repeatable_and_resumable(make_world):
    whole = make_world(size=900)
    environment = whole.environment(certified())
    rows, state = [], None
    for step in range(1, 7):
        whole.step = step
        rows.append(environment.refresh(*whole.rollouts(step), step).rows)
        if step == 3:
            state = {
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in environment.state_dict().items()
            }
    resumed = make_world(size=900)
    environment = resumed.environment(certified())
    environment.load_state_dict(state)
    for step in range(4, 7):
        resumed.step = step
        assert np.array_equal(environment.refresh(*resumed.rollouts(step), step).rows, rows[step - 1])


@pytest.mark.parametrize(
    "wrong", [{"delta": 0.0}, {"delta": 1.0}, {"epsilon": -0.1}, {"calibration": 1.5}, {"max_budget": 1.5}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Certified(**wrong)


@pytest.mark.parametrize("freedom", [LEAST - 1, 30, 1000])
@pytest.mark.parametrize("share", [0.1, 0.05, 0.025, 0.001])
def test_the_interval_is_students(share: float, freedom: int) -> None:
    assert _student(share, freedom) == pytest.approx(stats.t.isf(share, freedom), rel=4e-3)


@pytest.mark.parametrize("blind", [0, 1])
def test_ranks_that_round_differently_encode_the_same_in_as_many_rounds(
    on_ranks, make_world, monkeypatch, blind
):
    """To one of them no candidate looks stale: it would look for no sample."""
    real = _Seen.of.__func__

    def rounded(cls, store, *others):
        seen = real(cls, store, *others)
        return replace(seen, rows=seen.rows[:0]) if store.group.rank == blind else seen

    monkeypatch.setattr(_Seen, "of", classmethod(rounded))
    worlds = [make_world(size=300), make_world(size=300)]

    def work(group):
        world = worlds[group.rank]
        environment = world.environment(certified(max_budget=80, correct=False), candidates=40, group=group)
        world.step = 1
        report = environment.refresh(*world.rollouts(1), 1)
        return report.rows.tolist(), environment.store.take(np.arange(300)).tolist(), len(world.encoded)

    first, second = on_ranks(2, work)
    assert first == second
    assert (first[2] > 8) == (blind == 1)
