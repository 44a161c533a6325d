"""Many workers give what one gives, and lose nothing when they are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from searchr3 import load_vectors
from searchr3.encoding import ray_engine
from searchr3.encoding.job import encode_file
from searchr3.encoding.ray_engine import ATTEMPTS, RayEngine, Share, Worker
from searchr3.encoding.worker import Work
from searchr3.errors import SearchR3Error

# not by importing it: the engine sets what Ray reads then
needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed")


def listening(parent: psutil.Process) -> set[str]:
    """Addresses at which the processes below one can be reached."""
    sockets = [one for child in parent.children(recursive=True) for one in child.net_connections("inet")]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


def of_ray(parent: psutil.Process) -> list[psutil.Process]:
    """The workers below a process that have taken up their work."""
    return [
        child for child in parent.children(recursive=True) if "MapWorker" in " ".join(child.cmdline()[:1])
    ]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=150)[1]  # two of Ray take a minute to notice


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SearchR3Error, match=r"pip install 'searchr3\[ray\]'"):
        RayEngine()


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(
            SearchR3Error, match=r"RAY_ADDRESS 127.*no cluster answers \(Connection refused\)"
        ):
            ray_engine._cluster(None).__enter__()


@pytest.fixture
def work_and_shards(encode: Callable) -> tuple[Work, list[Any]]:
    """What the engine is given."""
    given: list[Any] = []

    def stopped(*arguments: Any) -> None:
        given.extend(arguments[:2])
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encode(engine=stopped)
    work, shards = given
    return work, shards


def test_a_shard_that_kills_its_workers_is_given_up(work_and_shards: tuple[Work, list[Any]]) -> None:
    work, shards = work_and_shards
    place, other = ({"shard": shard.model_dump_json()} for shard in shards[:2])
    worker = Worker(work)
    for _ in range(ATTEMPTS):
        assert worker(place) == {"rows": 10, "error": ""}
    assert "5 workers died over it" in worker(place)["error"]
    assert worker(other)["error"] == ""


def test_what_goes_wrong_in_a_worker_is_told(
    work_and_shards: tuple[Work, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, shards = work_and_shards
    monkeypatch.setattr(ray_engine, "Encoder", lambda _: 1 / 0)
    told = Worker(work)({"shard": shards[0].model_dump_json()})["error"]
    assert told == "shards/00000.safetensors: ZeroDivisionError in a worker: division by zero"


@pytest.mark.parametrize(
    ("engine", "nodes", "share"),
    [
        ((None, None), [{"CPU": 2.0}], Share(1, 2, 0)),
        ((None, None), [{"CPU": 16.0}], Share(4, 4, 0)),
        ((2, None), [{"CPU": 2.0}], Share(2, 1, 0)),
        ((None, None), [{"CPU": 64.0, "GPU": 8.0}], Share(8, 1, 1)),
        ((None, 0.5), [{"CPU": 64.0, "GPU": 1.0}], Share(2, 1, 0.5)),
        ((None, 0), [{"CPU": 8.0, "GPU": 1.0}], Share(2, 4, 0)),
        ((1, None), [{"CPU": 4.0}, {"CPU": 4.0}, {}], Share(1, 4, 0)),
        ((50, None), [{"CPU": 64.0}], Share(9, 7, 0)),
    ],
)
def test_workers_share_the_machines(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[Any, Any], nodes: list[dict[str, float]], share: Share
) -> None:
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    assert RayEngine(*engine)._share([*alive, dead], shards=9) == share


@pytest.mark.parametrize(
    ("engine", "words"),
    [((3, None), "has 2 cores"), ((1, 1), "there are 0 GPUs"), ((None, 2), "there are 0 GPUs")],
)
def test_more_than_there_is_is_refused(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[Any, Any], words: str
) -> None:
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    with pytest.raises(SearchR3Error, match=words):
        RayEngine(*engine)._share([{"Alive": True, "Resources": {"CPU": 2.0}}], shards=9)


@needs_ray
def test_workers_killed_in_mid_run_lose_nothing(
    encode: Callable, tmp_path: Path, expected: tuple[list[str], np.ndarray]
) -> None:
    killed: list[psutil.Process] = []
    reached: set[str] = set()
    told: list[int] = []

    def news(what: str, done: int, total: int) -> None:
        told.append(done)
        if what == "encoded" and not killed:
            reached.update(listening(psutil.Process()))
            killed.extend(of_ray(psutil.Process()))
            for worker in killed:
                worker.kill()

    done = encode(engine=RayEngine(workers=2), shard_size=3, format="parquet", progress=news)
    assert reached <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert killed
    assert gone(killed)
    assert done.shards == 14
    assert told[-1] == 42
    ids, vectors = load_vectors(tmp_path / "vectors", verify=True)
    assert ids == expected[0]
    np.testing.assert_allclose(vectors, expected[1], atol=1e-5)
    assert not of_ray(psutil.Process()), "the cluster is gone"


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_command_killed_or_interrupted_goes_on(
    how: signal.Signals,
    tiny_model: Path,
    source: Path,
    tmp_path: Path,
    expected: tuple[list[str], np.ndarray],
) -> None:
    folder = tmp_path / "vectors"
    command = ["encode", str(tiny_model), str(source), "--output", str(folder), "--shard-size", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "searchr3", *command, "--engine", "ray", "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell in the background ignores it
    )
    limit = time.monotonic() + 300
    while not list(folder.glob("shards/*.safetensors")) and time.monotonic() < limit:
        time.sleep(0.01)
    assert running.poll() is None
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(how)
    _, said = running.communicate(timeout=120)
    assert gone(children), "nothing of the cluster is left"
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert said.splitlines()[-1] == "interrupted; the same command continues"
    finished = len(list(folder.glob("shards/*.safetensors")))
    assert 0 < finished < 42
    done = encode_file(tiny_model, source, folder, shard_size=1)
    assert done.shards == 42 - finished
    ids, vectors = load_vectors(folder, verify=True)
    assert ids == expected[0]
    np.testing.assert_allclose(vectors, expected[1], atol=1e-5)
