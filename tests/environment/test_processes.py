"""Real processes on gloo do what a single one does: environment, store, saved state and shared encoding."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from searchr3.environment import VectorStore, load_state
from searchr3.group import ALONE

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(root, tiny_model):
    """The single process's own and common results."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    (root / "1").mkdir()
    return worker.work(ALONE, root / "1", tiny_model)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request, root, alone, tiny_model):
    """The results of each of so many processes."""
    folder = root / str(request.param)
    folder.mkdir()
    given = [str(request.param), str(folder), str(tiny_model)]
    running = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), *given]) for rank in range(request.param)
    ]
    try:
        assert [process.wait(280) for process in running] == [0] * request.param
    finally:
        for process in running:
            process.kill()
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(request.param)]


def test_processes_find_score_and_refresh_what_one_does(alone, ranks):
    own, common = alone
    for name, value in own.items():
        np.testing.assert_array_equal(np.concatenate([rank[name] for rank in ranks]), value, err_msg=name)
    for name, value in common.items():
        if not name.startswith(("forwards", "embedded")):
            for rank in ranks:
                np.testing.assert_array_equal(rank[name], value, err_msg=name)
    # so that the comparison says something
    assert 5 < len(common["refreshed 3"]) <= 21 and len(common["encoded"]) > 203
    assert own["rank 3"].max() > 20 and len(set(own["reward 3"].tolist())) > 5


def test_all_make_as_many_forwards_and_get_all_vectors(alone, ranks):
    _, common = alone
    # batches of 2: 1, 1 and 5 forwards alone, and where there are several one for their common beginning
    assert [int(common[f"forwards {texts}"]) for texts in (1, 2, 9)] == [1, 1, 6]
    for rank in ranks:
        expected = [1, 1, 1 - (-9 // (2 * len(ranks)))]
        assert [int(rank[f"forwards {texts}"]) for texts in (1, 2, 9)] == expected
        for texts in (1, 2, 9):
            name = f"embedded {texts}"
            np.testing.assert_allclose(rank[name], common[name], atol=1e-5)


def test_what_is_saved_does_not_show_how_many_saved_it(alone, ranks, root):
    for kind in ("environment", "half"):
        for file in ("state.json", "state.safetensors"):
            one, several = ((root / f"{size}" / kind / file).read_bytes() for size in (1, len(ranks)))
            assert one == several, (kind, file)
    saved = root / f"{len(ranks)}" / "half"
    state = load_state(saved)
    assert state["vectors"].dtype == np.float16
    assert VectorStore.load(saved).vectors.tobytes() == state["vectors"].tobytes()
