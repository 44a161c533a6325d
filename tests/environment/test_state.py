import numpy as np
import pytest

from searchr3.environment import load_state, save_state
from searchr3.errors import DataError


def test_arrays_and_values_come_back_as_they_were(tmp_path):
    state = {
        "a.vectors": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "a.none": np.empty((0, 4), dtype=np.int32),
        "a.ids": ["x", "é"],
        "b": {"seed": 3},
    }
    save_state(tmp_path / "s", state)
    loaded = load_state(tmp_path / "s")
    assert loaded.keys() == state.keys()
    assert (loaded["a.vectors"] == state["a.vectors"]).all()
    assert loaded["a.none"].shape == (0, 4) and loaded["a.none"].dtype == np.int32
    assert loaded["a.ids"] == ["x", "é"] and loaded["b"] == {"seed": 3}
    assert sorted(file.name for file in (tmp_path / "s").iterdir()) == ["state.json", "state.safetensors"]


def test_large_arrays_are_read_in_parts(tmp_path):
    values = np.arange(12, dtype=np.float16).reshape(6, 2)
    save_state(tmp_path / "s", {"large": values, "small": values})
    loaded = load_state(tmp_path / "s", in_parts=["large", "not there"])
    assert isinstance(loaded["small"], np.ndarray) and not isinstance(loaded["large"], np.ndarray)
    assert loaded["large"].shape == (6, 2) and loaded["large"].dtype == np.float16
    for part in (slice(None), slice(2, 5), slice(4, 99), slice(3, 3)):
        np.testing.assert_array_equal(loaded["large"][part], values[part])


def test_in_a_group_the_first_rank_writes(tmp_path, on_ranks):
    def work(group):
        save_state(tmp_path / "s", {"rank": group.rank, "x": np.zeros(1)}, group)
        return load_state(tmp_path / "s")["rank"]

    assert on_ranks(3, work) == [0, 0, 0]


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(tmp_path):
    save_state(tmp_path / "s", {"x": np.zeros(1)})
    save_state(tmp_path / "s", {"x": np.ones(1)})
    assert load_state(tmp_path / "s")["x"].tolist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_a_failed_save_leaves_the_old_state(tmp_path):
    save_state(tmp_path / "s", {"x": np.zeros(1)})
    with pytest.raises(TypeError):
        save_state(tmp_path / "s", {"x": np.ones(1), "y": object()})
    assert load_state(tmp_path / "s")["x"].tolist() == [0]
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path, name):
    save_state(tmp_path / "s", {"x": np.zeros(1)})
    file = tmp_path / "s" / name
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=name) as caught:
        load_state(tmp_path / "s")
    assert "\n" not in str(caught.value)
    if name == "state.json":
        file.write_text("[]")
        with pytest.raises(DataError, match=name):
            load_state(tmp_path / "s")
    file.unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        load_state(tmp_path / "s")
