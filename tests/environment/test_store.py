import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.environment import VectorStore
from searchr3.errors import DataError, SearchR3Error


@pytest.fixture
def store():
    rng = np.random.default_rng(0)
    return VectorStore([f"d{i}" for i in range(50)], rng.standard_normal((50, 8)).astype(np.float32), 3)


def test_update_changes_the_named_rows_and_their_version_only(store):
    before = store.vectors.copy()
    rows = np.array([7, 2])
    new = np.ones((2, 8), dtype=np.float32) * [[1], [2]]
    store.update(rows, new, step=9)
    assert (store.take(rows) == new).all()
    others = np.setdiff1d(np.arange(50), rows)
    assert (store.vectors[others] == before[others]).all()
    assert store.version[rows].tolist() == [9, 9] and (store.version[others] == 3).all()
    assert store.staleness(10)[[7, 0]].tolist() == [1, 7]


def test_the_store_keeps_its_own_copy():
    vectors = np.zeros((2, 3), dtype=np.float32)
    store = VectorStore(["a", "b"], vectors)
    vectors[:] = 1
    assert not store.vectors.any()


def test_top_k_is_exact_and_sees_updates(store):
    queries = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    scores, rows = store.top_k(queries, 10)
    assert (rows == np.argsort(-(queries @ store.vectors.T), axis=1)[:, :10]).all()
    assert scores == pytest.approx(np.take_along_axis(queries @ store.vectors.T, rows, axis=1), abs=1e-5)
    store.update(np.array([4]), 100 * queries[:1], step=4)
    assert store.top_k(queries[:1], 1)[1].tolist() == [[4]]
    assert store.top_k(queries, 99)[1].shape == (5, 50)


def test_tie_order_is_by_descending_id():
    store = VectorStore(["b", "é", "B", "10", "9"], np.zeros((5, 1), dtype=np.float32))
    by_order = sorted(range(5), key=store.tie_order.tolist().__getitem__)
    assert [store.ids[row] for row in by_order] == ["é", "b", "B", "9", "10"]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverged_model_is_refused_and_the_store_stays(store, broken):
    before = store.vectors.copy()
    with pytest.raises(SearchR3Error, match="1 of 2 document vectors hold NaN or infinity"):
        store.update(np.array([0, 1]), np.array([[1.0] * 8, [broken] * 8], dtype=np.float32), step=4)
    assert (store.vectors == before).all() and (store.version == 3).all()


def test_bad_input_is_named():
    with pytest.raises(DataError, match="'a' comes twice"):
        VectorStore(["a", "b", "a"], np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"\(2, d\)"):
        VectorStore(["a", "b"], np.zeros((3, 2), dtype=np.float32))
    store = VectorStore(["a", "b"], np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        store.update(np.array([1]), np.zeros((1, 3), dtype=np.float32), step=1)


def test_saved_and_loaded_bit_for_bit(store, tmp_path):
    store.update(np.array([5]), np.full((1, 8), 0.1, dtype=np.float32), step=12)
    store.save(tmp_path / "store")
    loaded = VectorStore.load(tmp_path / "store")
    assert loaded.ids == store.ids
    assert loaded.vectors.tobytes() == store.vectors.tobytes()
    assert loaded.version.tobytes() == store.version.tobytes()
    assert loaded.vectors.dtype == np.float32 and loaded.version.dtype == np.int64


def test_damage_of_what_was_saved_is_not_taken_for_a_diverged_model(store, tmp_path):
    store.save(tmp_path / "store")
    file = tmp_path / "store" / "state.safetensors"
    whole = file.read_bytes()
    place = whole.index(store.vectors.tobytes())
    file.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
    with pytest.raises(DataError, match=r"saved vectors .* damaged: .* earlier checkpoint"):
        VectorStore.load(tmp_path / "store")


# --- float16 and files


def brute(queries, vectors, k):
    exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    rows = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, rows, axis=1), rows


@pytest.fixture(params=["float32", "float16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_stored_is_ranked_exactly(dtype, mapped, tmp_path, monkeypatch):
    """In float16 by the rounded values; in a file as in memory."""
    monkeypatch.setattr("searchr3.ranking._BLOCK", 8 * 300)  # several blocks
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 8)).astype(np.float32)
    vectors[1000:1500] = vectors[:500]
    store = VectorStore([f"{i}" for i in range(2000)], vectors, 2, dtype, tmp_path, mapped)
    assert store.dtype == dtype and (store.vectors == vectors.astype(dtype)).all()
    assert list(tmp_path.iterdir()) == []  # the file has no name
    store.update(np.array([7, 1999]), vectors[[8, 9]], step=3)
    queries = rng.standard_normal((30, 8)).astype(np.float32)
    for k in (1, 50, 1990):
        scores, rows = store.top_k(queries, k)
        expected_scores, expected_rows = brute(queries, store.vectors, k)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(scores, expected_scores)
    taken = store.take(np.array([7, 3]))
    assert taken.dtype == np.float32 and (taken == vectors[[8, 3]].astype(dtype)).all()


def test_only_a_large_store_lies_in_a_file(monkeypatch, tmp_path):
    held = []
    monkeypatch.setattr(np, "memmap", lambda *given, **settings: held.append(given) or np.zeros((4, 3), "f4"))
    for above, files in ((47, 1), (48, 1)):
        monkeypatch.setattr("searchr3.environment.store.MAPPED_ABOVE", above)
        VectorStore(list("abcd"), np.zeros((4, 3)), folder=tmp_path / "deep" / "er")
        assert len(held) == files


def test_a_place_without_room_is_one_clear_line(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SearchR3Error, match="no space left on the disk"):
        VectorStore(list("ab"), np.zeros((2, 3)), folder=tmp_path, mapped=True)


def test_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="float32 or float16"):
        VectorStore(["a"], np.zeros((1, 2)), dtype="float64")


def test_what_float16_cannot_hold_is_refused():
    store = VectorStore(["a", "b"], np.zeros((2, 2)), dtype="float16")
    with pytest.raises(SearchR3Error, match="1 of 2 document vectors"):
        store.update(np.array([0, 1]), np.array([[1, 2], [1e5, 0]]), step=1)
    assert not store.vectors.any()


def test_the_bound_on_lengths_follows_what_is_stored(store):
    """Rounding is bounded by the greatest length: copies at a great length must still tie by row."""
    query = np.random.default_rng(2).standard_normal((1, 8)).astype(np.float32)
    store.update(np.arange(50), np.repeat(1e6 * query, 50, axis=0), step=4)
    assert store.top_k(query, 5)[1].tolist() == [[0, 1, 2, 3, 4]]
    store.transform(lambda rows, vectors: vectors * 1e3)
    assert store.top_k(query, 5)[1].tolist() == [[0, 1, 2, 3, 4]]
    assert store.ahead(query, np.array([9]), store.top_k(query, 1)[0][0]).tolist() == [0]  # "9" > "8" > …


# --- transform


def test_transform_replaces_all_but_the_skipped_rows(store, monkeypatch):
    monkeypatch.setattr("searchr3.environment.store._CHUNK", 7)
    before, sizes = store.vectors.copy(), []
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0].astype(np.float32)

    def correct(rows, vectors):
        assert (vectors == before[rows]).all() and vectors.dtype == np.float32
        sizes.append(len(rows))
        return vectors @ turn

    skip = np.array([3, 49, 20])
    store.transform(correct, skip)
    others = np.setdiff1d(np.arange(50), skip)
    np.testing.assert_allclose(store.vectors[others], before[others] @ turn, rtol=1e-6, atol=1e-6)
    assert (store.vectors[skip] == before[skip]).all() and (store.version == 3).all()
    assert sum(sizes) == 47 and max(sizes) <= 7


def test_a_transform_that_diverges_stops_before_it_is_stored(store, monkeypatch):
    monkeypatch.setattr("searchr3.environment.store._CHUNK", 10)
    before = store.vectors.copy()
    with pytest.raises(SearchR3Error, match="10 of 50 document vectors hold NaN"):
        store.transform(lambda rows, vectors: vectors * (np.nan if 25 in rows else 2))
    assert (store.vectors[:20] == 2 * before[:20]).all() and (store.vectors[20:] == before[20:]).all()
    with pytest.raises(ValueError, match=r"10 rows need vectors \(10, 8\)"):
        store.transform(lambda rows, vectors: vectors[:, :4])


# --- saved and loaded


@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_comes_back_in_its_dtype_or_another(dtype, mapped, tmp_path, monkeypatch):
    monkeypatch.setattr("searchr3.environment.store._CHUNK", 30)
    vectors = np.random.default_rng(4).standard_normal((100, 8)).astype(np.float32)
    store = VectorStore([f"é{i}" for i in range(100)], vectors, np.arange(100), dtype, mapped=mapped)
    store.save(tmp_path / "store")
    for settings in ({}, {"mapped": True, "folder": tmp_path / "files"}):
        loaded = VectorStore.load(tmp_path / "store", **settings)
        assert loaded.dtype == dtype and loaded.ids == store.ids
        assert loaded.vectors.tobytes() == store.vectors.tobytes()
        assert loaded.version.tobytes() == store.version.tobytes()
    for other in ("float16", "float32"):
        assert (
            VectorStore.load(tmp_path / "store", dtype=other).vectors == vectors.astype(dtype).astype(other)
        ).all()


# --- several ranks


@st.composite
def shards(draw):
    """A number of ranks, vectors of small whole numbers, and so many queries for each rank."""
    size, rows = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    vectors = np.random.default_rng(draw(st.integers(0, 99))).integers(-2, 3, (rows, 3)).astype(np.float32)
    return size, vectors, draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))


@given(shards(), st.integers(1, 50), st.sampled_from(["float32", "float16"]))
def test_shards_answer_as_the_whole(on_ranks, given_, k, dtype):
    size, vectors, counts = given_
    m = len(vectors)
    rng = np.random.default_rng(k)
    queries = rng.integers(-2, 3, (sum(counts), 3)).astype(np.float32)
    rows, fresh = rng.integers(m, size=5), rng.integers(-2, 3, (5, 3)).astype(np.float32)
    own_rows = rng.integers(m, size=len(queries))

    def work(group):
        store = VectorStore([f"d{i}" for i in range(m)], vectors, 1, dtype, group=group)
        start = 0 if group.size == 1 else sum(counts[: group.rank])
        part = slice(start, None if group.size == 1 else start + counts[group.rank])
        store.update(rows, fresh, 2)
        store.transform(lambda rows, vectors: vectors + rows[:, None] % 2, skip=rows[:2])
        scores, hits = store.top_k(queries[part], k)
        exact = np.einsum("nd,nd->n", queries, store.take(own_rows))[part]
        ahead = store.ahead(queries[part], own_rows[part], exact)
        same = store.top_k(vectors[:2], k)
        state = store.state_dict()
        again = VectorStore.from_state(state, group=group)
        assert again.vectors.tobytes() == store.vectors.tobytes()
        return (
            [np.concatenate(each) for each in ([scores], [hits], [ahead])],
            [store.take(rows), store.take(slice(1, 30, 3)), *same, state["vectors"], store.version],
        )

    ((asked, known),) = on_ranks(1, work)
    found = on_ranks(size, work)
    for place, expected in enumerate(asked):
        np.testing.assert_array_equal(np.concatenate([own[place] for own, _ in found]), expected)
    for _, others in found:
        for one, expected in zip(others, known, strict=True):
            np.testing.assert_array_equal(one, expected)


def test_a_broken_vector_is_everyones_error(on_ranks):
    def work(group):
        store = VectorStore(list("abcdef"), np.ones((6, 2)), group=group)
        messages = []
        for broken in (
            lambda: store.transform(lambda rows, vectors: vectors / (rows != 5)[:, None]),
            lambda: store.update(np.array([1]), np.full((1, 2), np.nan), 1),
            lambda: VectorStore(list("ab"), np.array([[1.0], [np.inf]]), group=group),
        ):
            with pytest.raises(SearchR3Error, match="NaN or infinity") as caught, np.errstate(all="ignore"):
                broken()
            messages.append(str(caught.value).partition(":")[0])
        return messages

    first, *others = on_ranks(3, work)
    assert all(messages == first for messages in others)
    assert first[0].startswith("1 of 6") and first[2].startswith("1 of 2")


# --- memory


@pytest.mark.slow
@pytest.mark.parametrize(("way", "limit"), [("float32", 2.0), ("float16", 1.4), ("load", 2.0)])
def test_a_million_documents_fit_into_two_gigabytes(way, limit, tmp_path):
    benchmark = Path(__file__).parents[2] / "benchmarks" / "_topk.py"
    command = [sys.executable, str(benchmark), way, "--folder", str(tmp_path)]
    if way == "load":
        subprocess.run([sys.executable, str(benchmark), "float32", "--folder", str(tmp_path)], check=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout.split()[-1]) < limit
