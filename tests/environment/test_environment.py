import numpy as np
import pytest

from searchr3.environment import (
    Certified,
    CorpusEnvironment,
    Frozen,
    Full,
    Neighbourhood,
    Random,
    RefreshPolicy,
    score_rollouts,
)
from searchr3.errors import DataError, SearchR3Error


def test_full_is_brute_force_encoding_at_every_step(world):
    environment = world.environment(Full())
    for world.step in (1, 2, 5):
        vectors, relevant = world.rollouts(world.step)
        report = environment.refresh(vectors, relevant, world.step)
        assert (environment.store.vectors == world.at(world.step)).all()
        assert report.share_reencoded == 1 and report.mean_age == 0
    scores, rows = (
        world.rollouts(5)[0] @ world.at(5).T,
        environment.rows_of([next(iter(r)) for r in relevant]),
    )
    ranks = 1 + (scores > scores[np.arange(len(rows)), rows, None]).sum(axis=1)
    assert environment.score(vectors, relevant).rank.tolist() == ranks.tolist()


def test_frozen_never_encodes(world):
    environment = world.environment(Frozen())
    for world.step in (1, 2, 3):
        report = environment.refresh(*world.rollouts(world.step), world.step)
        environment.score(*world.rollouts(world.step))
        assert report.documents == 0 and report.drift is None and report.mean_age == world.step
    assert world.encoded == []
    assert (environment.store.vectors == world.at(0)).all()


def test_neighbourhood_keeps_relevant_documents_fresh(world):
    environment = world.environment(Neighbourhood(k=4, budget=30))
    for world.step in (1, 2, 3):
        vectors, relevant = world.rollouts(world.step)
        report = environment.refresh(vectors, relevant, world.step)
        rows = environment.rows_of([document for grades in relevant for document in grades])
        assert (environment.store.vectors[rows] == world.at(world.step, rows)).all()
        assert report.documents == len(report.rows) <= 30
    assert len(world.encoded) == 90


def test_the_report_measures_drift_and_age(world):
    environment = world.environment(Neighbourhood(k=4, budget=30))
    world.step = 4
    report = environment.refresh(*world.rollouts(4), 4)
    cosine = (world.at(0, report.rows) * world.at(4, report.rows)).sum(axis=1)
    assert report.drift == pytest.approx(1 - cosine.mean(), abs=1e-5) and report.drift > 0.001
    assert report.mean_age == pytest.approx(4 * (1 - 30 / world.size))
    assert report.metrics() == {
        "documents": 30,
        "seconds": report.seconds,
        "share_reencoded": 30 / world.size,
        "share_tokens": pytest.approx(30 / world.size),
        "mean_age": report.mean_age,
        "drift": report.drift,
    }
    again = environment.refresh(*world.rollouts(4), 4)
    assert again.documents == 0 and "drift" not in again.metrics()


def test_long_documents_count_by_their_tokens(world):
    lengths = np.arange(1, world.size + 1)
    environment = world.environment(Random(30), lengths=lengths)
    world.step = 2
    report = environment.refresh(*world.rollouts(2), 2)
    assert report.share_tokens == pytest.approx(lengths[report.rows].sum() / lengths.sum())


def test_what_a_policy_has_to_say_is_in_the_report(world):
    policy = Certified(candidates=100, max_budget=100)
    environment = world.environment(policy)
    world.step = 2
    assert environment.refresh(*world.rollouts(2), 2).metrics()["bound"] == policy.certificate.bound


def test_unknown_vectors_are_encoded_once_when_first_needed(world):
    world.step = 7
    environment = world.environment(Neighbourhood(k=4, budget=30), known=False)
    assert world.encoded == []
    report = environment.refresh(*world.rollouts(7), 7)
    assert len(world.encoded) == world.size == report.documents
    assert (environment.store.vectors == world.at(7)).all() and (environment.store.version == 7).all()


def test_documents_are_encoded_and_stored_chunk_by_chunk(world, monkeypatch):
    monkeypatch.setattr("searchr3.environment.environment._CHUNK", 500)
    environment = world.environment(Full(), known=False)
    calls, encode = [], environment.encode

    def counted(texts):
        calls.append(len(texts))
        return encode(texts)

    environment.encode = counted
    assert (environment.store.vectors == world.at(0)).all() and calls == [500, 500, 200]
    world.step = 2
    report = environment.refresh(*world.rollouts(2), 2)
    assert calls[3:] == [500, 500, 200] and report.rows.tolist() == list(range(1200))
    assert (environment.store.vectors == world.at(2)).all() and (environment.store.version == 2).all()
    drift = 1 - (world.at(0) * world.at(2)).sum(axis=1).mean()
    assert report.drift == pytest.approx(drift, abs=1e-5)


def test_the_store_has_the_dtype_that_was_asked_for(world, tmp_path):
    whole = world.environment(Frozen(), dtype="float16")
    whole.save(tmp_path / "environment")
    for known in (False, True):
        environment = world.environment(Frozen(), known=known, dtype="float16")
        assert environment.store.dtype == "float16"
        assert environment.store.vectors.tobytes() == whole.store.vectors.tobytes()
        environment.load(tmp_path / "environment")
        assert environment.store.vectors.tobytes() == whole.store.vectors.tobytes()
    wider = world.environment(Frozen(), known=False)
    wider.load(tmp_path / "environment")
    assert wider.store.dtype == "float32" and (wider.store.vectors == whole.store.vectors).all()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_decide_and_score_together(make_world, on_ranks, size):
    """Also where one rank has more relevant documents for a rollout than the others."""

    def work(group):
        world = make_world(size=101)
        environment = world.environment(Neighbourhood(k=3, budget=10), known=False, candidates=5, group=group)
        found = []
        for world.step in range(3):
            vectors, relevant = world.rollouts(world.step, queries=5, group=1)
            relevant[4] |= {"d0001": 2, "d0007": 1}
            part = slice(group.rank * 5 // group.size, (group.rank + 1) * 5 // group.size)
            rows = environment.refresh(vectors[part], relevant[part], world.step).rows
            scores = environment.score(vectors[part], relevant[part])
            found.append((rows.tolist(), scores.reward.tolist(), scores.rank.tolist(), scores.hits.tolist()))
        return found, world.encoded

    ((expected, encoded),) = on_ranks(1, work)
    ranks = on_ranks(size, work)
    assert all(texts == encoded for _, texts in ranks)
    for step, (rows, *others) in enumerate(expected):
        assert all(found[step][0] == rows for found, _ in ranks)
        for place, whole in enumerate(others, start=1):
            assert [value for found, _ in ranks for value in found[step][place]] == whole


def test_score_uses_the_settings_and_the_stored_vectors(world):
    environment = world.environment(Frozen(), candidates=20, temperature=0.7)
    vectors, relevant = world.rollouts(1)
    scores = environment.score(vectors, relevant)
    expected = score_rollouts(environment.store, environment._batch(vectors, relevant), 20, 0.7)
    assert scores.reward.tolist() == expected.reward.tolist()
    assert scores.hits.shape == (48, 20) and scores.candidates.shape == (48, 21)
    again = environment.score(vectors.astype(np.float64), relevant)
    assert again.reward.tolist() == scores.reward.tolist() and (again.rank == scores.rank).all()


def test_grades_of_zero_or_less_are_not_relevant(world):
    environment = world.environment(Full())
    vectors, _ = world.rollouts(0)
    with_zero = environment.score(vectors[:1], [{"d0003": 1, "d0004": 0, "unheard of": 0}])
    assert with_zero.reward == environment.score(vectors[:1], [{"d0003": 1}]).reward


def test_bad_input_is_named_before_anything_is_encoded(world):
    environment = world.environment(Full(), known=False)
    vectors, relevant = world.rollouts(0)
    with pytest.raises(DataError, match="'d9999' is not in the corpus"):
        environment.refresh(vectors[:2], [{"d0000": 1}, {"d9999": 1}], 0)
    with pytest.raises(DataError, match="rollout 1 of the batch has no relevant document"):
        environment.refresh(vectors[:2], [{"d0000": 1}, {}], 0)
    with pytest.raises(ValueError, match="48 rollouts"):
        environment.refresh(vectors[:2], relevant, 0)
    with pytest.raises(SearchR3Error, match="NaN"):
        environment.refresh(vectors * np.nan, relevant, 0)
    assert world.encoded == []
    with pytest.raises(DataError, match="no document"):
        CorpusEnvironment({}, world.encode, Full())
    for settings in ({"candidates": 0}, {"temperature": -0.1}):
        with pytest.raises(ValueError, match="at least"):
            world.environment(Full(), **settings)


def test_an_encoder_that_loses_a_text_is_caught(world):
    environment = world.environment(Full())
    environment.encode = lambda texts: world.encode(texts)[1:]
    with pytest.raises(ValueError, match="1200 texts"):
        environment.refresh(*world.rollouts(1), 1)


def test_a_policy_may_look_at_the_new_vectors_before_it_asks_for_more(world):
    class UntilTwoAreFresh(RefreshPolicy):
        def rows(self, store, batch, step):
            while (store.version == step).sum() < 2:
                yield np.flatnonzero(store.version < step)[:1]

    environment = world.environment(UntilTwoAreFresh())
    world.step = 1
    report = environment.refresh(*world.rollouts(1), 1)
    assert report.rows.tolist() == [0, 1]
    assert (environment.store.vectors[:2] == world.at(1, [0, 1])).all()


@pytest.mark.parametrize("through_files", [False, True])
def test_a_run_goes_on_bit_for_bit_from_its_saved_state(make_world, tmp_path, through_files):
    def go_on(world, environment, steps):
        figures = []
        for world.step in steps:
            batch = world.rollouts(world.step)
            report = environment.refresh(*batch, world.step)
            scores = environment.score(*batch)
            figures.append((report.rows.tobytes(), scores.reward.tobytes(), scores.rank.tobytes()))
        return figures

    world, fresh = make_world(), make_world()
    environment = world.environment(Neighbourhood(k=6, budget=40))
    go_on(world, environment, range(1, 4))
    other = fresh.environment(Neighbourhood(k=6, budget=40), known=False)
    if through_files:
        environment.save(tmp_path / "environment")
        other.load(tmp_path / "environment")
    else:
        other.load_state_dict(environment.state_dict())
    mine, loaded = environment.state_dict(), other.state_dict()
    parts = {"kind", "store.ids", "store.vectors", "store.version", "policy.graph"}
    assert mine.keys() == loaded.keys() == parts
    assert all(np.asarray(mine[name]).tobytes() == np.asarray(loaded[name]).tobytes() for name in mine)
    assert go_on(world, environment, range(4, 7)) == go_on(fresh, other, range(4, 7))
    assert world.encoded[-120:] == fresh.encoded and len(fresh.encoded) == 120


def test_a_state_before_the_first_encoding_is_empty(world):
    environment = world.environment(Full(), known=False)
    assert environment.state_dict() == {}
    known = world.environment(Full())
    known.load_state_dict({})
    assert known.store.vectors.shape == (1200, 24) and len(world.encoded) == 1200


def test_a_state_of_another_corpus_is_refused(make_world):
    with pytest.raises(DataError, match="other documents"):
        make_world().environment(Full()).load_state_dict(
            make_world(size=1000).environment(Full()).state_dict()
        )


def test_a_state_of_another_policy_is_refused(make_world):
    state = make_world(size=50).environment(Neighbourhood(k=6)).state_dict()
    with pytest.raises(DataError, match="refreshed by Neighbourhood, this one is by Frozen"):
        make_world(size=50).environment(Frozen()).load_state_dict(state)


@pytest.mark.parametrize("part", ["ids", "vectors", "version"])
def test_a_state_of_which_a_part_is_lost_is_refused(make_world, part):
    state = make_world(size=50).environment(Full()).state_dict()
    del state[f"store.{part}"]
    with pytest.raises(DataError, match=f"lacks {part}"):
        make_world(size=50).environment(Full()).load_state_dict(state)


def test_texts_are_looked_up_when_they_are_encoded(world):
    """They may lie on the disk."""

    asked = []

    class Watched(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

        def values(self):
            raise AssertionError("all texts at once")

    documents = Watched({key: str(row) for row, key in enumerate(world.ids)})
    environment = CorpusEnvironment(documents, world.encode, Frozen(), vectors=world.at(0))
    environment.encoded(np.array([5, 3]))
    assert asked == ["d0005", "d0003"]
