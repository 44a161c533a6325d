import numpy as np
import pytest

from searchr3.environment import Frozen, Full, Judged, Neighbourhood, RolloutBatch, VectorStore
from searchr3.errors import DataError


def wanted(policy, store, batch, step):
    """Rows that a policy asks for, each list answered with the same vectors under the new version."""
    found = [np.empty(0, dtype=np.int64)]
    for rows in policy.rows(store, batch, step):
        store.update(rows, store.take(rows), step)
        found.append(rows)
    return np.concatenate(found)


@pytest.fixture
def line():
    """Twenty documents on an arc, in order: the neighbours of a document are those next to it."""
    angle = np.linspace(0, np.pi / 2, 20)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return VectorStore([f"d{i:02d}" for i in range(20)], vectors)


def one(store, relevant, query=0):
    grades = np.ones(len(relevant), dtype=np.float32)
    return RolloutBatch(store.take([query]), [Judged(np.array(relevant), grades)])


def test_full_asks_for_all_that_is_stale(line):
    line.update(np.array([4, 5]), line.take([4, 5]), step=2)
    assert wanted(Full(), line, one(line, [0]), 2).tolist() == [i for i in range(20) if i not in (4, 5)]
    assert wanted(Full(), line, one(line, [0]), 2).tolist() == []


def test_frozen_asks_for_nothing(line):
    assert wanted(Frozen(), line, one(line, [0]), 5).tolist() == []


def test_neighbourhood_asks_for_relevant_documents_their_neighbours_and_the_hits(line):
    policy = Neighbourhood(k=2, hits=3)
    assert set(wanted(policy, line, one(line, [10], query=0), 1)) == {10, 9, 11, 0, 1, 2}


def test_relevant_documents_come_first_even_beyond_the_budget(line):
    for budget, expected in [(0, 3), (2, 3), (3, 3), (4, 4), (0.25, 5)]:
        line.version[:] = 0
        rows = wanted(Neighbourhood(k=2, budget=budget, hits=3), line, one(line, [10, 12, 15]), 1)
        assert rows[:3].tolist() == [10, 12, 15] and len(rows) == expected


def test_the_budget_is_one_for_all_batches_of_a_step(line):
    policy = Neighbourhood(k=2, budget=4, hits=5)
    assert len(wanted(policy, line, one(line, [10]), 1)) == 4
    assert wanted(policy, line, one(line, [15]), 1).tolist() == [15]
    assert len(wanted(policy, line, one(line, [15]), 2)) == 4


def test_what_is_fresh_is_not_asked_for_again(line):
    policy = Neighbourhood(k=2, hits=3)
    batch = one(line, [10])
    assert len(wanted(policy, line, batch, 1)) == 6
    assert len(wanted(policy, line, batch, 1)) == 0


def test_older_and_higher_documents_come_first(line):
    line.version[:] = [5] * 10 + [0] * 10
    line.version[1] = 0
    policy = Neighbourhood(k=0, budget=3, hits=6)
    # ages 6, 1, 1, … at places 1, 2, 3, … of the hits: row 1 (age 6, place 2) before row 0 (age 1, place 1)
    assert wanted(policy, line, one(line, [19], query=0), 6).tolist() == [19, 1, 0]


def test_the_graph_follows_what_was_encoded_again(line):
    """Document 10 moves to the start of the arc: its neighbours are then found there."""
    policy = Neighbourhood(k=2, hits=0)
    batch = one(line, [10])
    for rows in policy.rows(line, batch, 1):
        assert set(rows) == {9, 10, 11}
        new = line.take(rows)
        new[rows == 10] = line.take([0])
        line.update(rows, new, 1)
    assert set(wanted(policy, line, batch, 2)) == {10, 0, 1}


def test_copies_do_not_count_as_themselves():
    store = VectorStore(list("abcdef"), np.ones((6, 2), dtype=np.float32))
    rows = wanted(Neighbourhood(k=2, hits=0), store, one(store, [5]), 1)
    assert len(rows) == 3 and 5 in rows


def test_a_corpus_of_one(line):
    store = VectorStore(["a"], np.ones((1, 2), dtype=np.float32))
    assert wanted(Neighbourhood(), store, one(store, [0]), 1).tolist() == [0]


@pytest.mark.parametrize("settings", [{"k": -1}, {"hits": -1}, {"budget": -1}, {"budget": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=str(next(iter(settings.values())))):
        Neighbourhood(**settings)


def test_state_of_another_k_is_refused(line):
    policy = Neighbourhood(k=3)
    wanted(policy, line, one(line, [0]), 1)
    with pytest.raises(DataError, match="3 neighbours"):
        Neighbourhood(k=4).load_state_dict(policy.state_dict())


# --- on a corpus whose encoder drifts


def spearman(a, b):
    def ranks(values):
        _, place, times = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(times) - times / 2)[place]  # equal values share their mean rank

    return np.corrcoef(ranks(a), ranks(b))[0, 1]


def fidelity(world, policy, steps=12):
    """Spearman of the rewards less their group's mean against the oracle's, and rows encoded a step."""
    environment, oracle = world.environment(policy), world.environment(Full())
    mine, true, rows = [], [], []
    for world.step in range(1, steps + 1):
        vectors, relevant = world.rollouts(world.step)
        rows.append(environment.refresh(vectors, relevant, world.step).documents)
        oracle.refresh(vectors, relevant, world.step)
        for rewards, scored in ((mine, environment), (true, oracle)):
            groups = scored.score(vectors, relevant).reward.reshape(-1, 8)
            rewards.append(groups - groups.mean(axis=1, keepdims=True))
    return spearman(np.ravel(mine), np.ravel(true)), rows


def test_neighbourhood_within_a_budget_beats_frozen(make_world):
    frozen, none = fidelity(make_world(), Frozen())
    near, rows = fidelity(make_world(), Neighbourhood(k=16, budget=0.05))
    everything, _ = fidelity(make_world(), Neighbourhood(k=16))
    assert max(none) == 0 and 0 < max(rows) <= 0.05 * 1200
    assert frozen < 0.6 and near > frozen + 0.25 and everything > 0.99


def test_neighbourhood_is_deterministic(make_world):
    def rows():
        world = make_world()
        environment = world.environment(Neighbourhood(k=8, budget=40))
        reports = []
        for world.step in range(1, 4):
            reports.append(environment.refresh(*world.rollouts(world.step), world.step).rows.tolist())
        return reports

    assert rows() == rows()
