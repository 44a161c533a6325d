import numpy as np
import pytest

from searchr3.environment import Frozen, Full, Neighbourhood, audit
from searchr3.environment.fidelity import advantage_spearman


def test_a_fresh_corpus_has_no_fault(world):
    environment = world.environment(Full())
    world.step = 3
    vectors, relevant = world.rollouts(3)
    environment.refresh(vectors, relevant, 3)
    found = audit(environment, vectors, relevant, 3, group=8)
    assert found.reward_error == 0 and found.drift == pytest.approx(0, abs=1e-6)
    assert found.advantage_spearman == pytest.approx(1) and found.advantage_cosine == pytest.approx(1)
    assert found.top10_overlap == 1 and found.age_p100 == 0 and found.documents == world.size


def test_the_whole_audit_is_what_a_fresh_environment_says(world):
    stale, fresh = world.environment(Frozen()), world.environment(Full())
    world.step = 5
    vectors, relevant = world.rollouts(5)
    fresh.refresh(vectors, relevant, 5)
    ours, oracle = stale.score(vectors, relevant), fresh.score(vectors, relevant)
    found = audit(stale, vectors, relevant, 5, group=8)
    assert found.reward_error == pytest.approx(np.abs(ours.reward - oracle.reward).mean())
    assert found.advantage_spearman == advantage_spearman(ours.reward, oracle.reward, 8) < 1
    shared = [len(set(a[:10]) & set(b[:10])) / 10 for a, b in zip(ours.hits, oracle.hits, strict=True)]
    assert found.top10_overlap == pytest.approx(np.mean(shared))
    drift = 1 - (world.at(0) * world.at(5)).sum(axis=1)
    assert found.drift == pytest.approx(drift.mean(), abs=1e-6)
    assert (found.drift_ci, found.missed) == (0, 0)
    error = np.abs(ours.reward - oracle.reward).reshape(-1, 8).mean(axis=1)
    assert found.reward_error_ci == pytest.approx(1.96 * error.std(ddof=1) / len(error) ** 0.5)
    assert found.age_p10 == found.age_p100 == 5


def test_the_environment_stays_as_it_was(world):
    environment = world.environment(Neighbourhood(4, budget=50))
    for step in (1, 2):
        world.step = step
        vectors, relevant = world.rollouts(step)
        environment.refresh(vectors, relevant, step)
    before, version = environment.store.take(slice(None)).copy(), environment.store.version.copy()
    for sample in (None, 200):
        audit(environment, vectors, relevant, 2, group=8, sample=sample)
        assert np.array_equal(environment.store.take(slice(None)), before)
        assert np.array_equal(environment.store.version, version)


def test_a_failed_audit_leaves_the_environment_alone(world, monkeypatch):
    environment = world.environment(Frozen(), candidates=20)
    world.step = 4
    vectors, relevant = world.rollouts(4)
    before = environment.store.take(slice(None)).copy()
    score, calls = environment.score, []

    def fails_the_second_time(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return score(*arguments)

    monkeypatch.setattr(environment, "score", fails_the_second_time)
    with pytest.raises(RuntimeError, match="memory"):
        audit(environment, vectors, relevant, 4, group=8)
    assert np.array_equal(environment.store.take(slice(None)), before)


def test_a_sample_agrees_with_the_whole_within_its_interval(make_world):
    world = make_world(size=3000, rate=0.05)
    environment = world.environment(Frozen(), candidates=30)
    world.step = 4
    vectors, relevant = world.rollouts(4, queries=12)
    whole = audit(environment, vectors, relevant, 4, group=8)
    world.encoded.clear()
    part = audit(environment, vectors, relevant, 4, group=8, sample=400)
    assert part.documents == len(world.encoded) < whole.documents
    assert abs(part.drift - whole.drift) < 2 * part.drift_ci and 0 < part.drift_ci < 0.02
    assert abs(part.reward_error - whole.reward_error) < 0.002  # it saw what the rollouts see
    assert part.reward_error_ci > 0 and 0 <= part.missed < 0.05
    assert part.advantage_spearman == pytest.approx(whole.advantage_spearman, abs=0.02)


def test_metrics_leave_out_what_is_not_defined(world):
    environment = world.environment(Full(), candidates=5)
    vectors = np.repeat(world.at(0, [7]), 8, axis=0)
    found = audit(environment, vectors, [{world.ids[7]: 1}] * 8, 0, group=8)
    assert np.isnan(found.advantage_spearman) and "advantage_spearman" not in found.metrics()
    assert found.metrics()["reward_error"] == 0


def test_relevant_documents_beyond_all_hits_are_looked_at_not_missed(make_world):
    world = make_world(size=600)
    environment = world.environment(Frozen(), candidates=1)
    vectors, relevant = world.at(0, [5, 6]), [{world.ids[300]: 1}, {world.ids[400]: 1}]
    found = audit(environment, vectors, relevant, 0, group=2, sample=599)
    assert found.missed == 0 and found.documents <= 600
