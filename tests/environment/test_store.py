import numpy as np
import pytest

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
