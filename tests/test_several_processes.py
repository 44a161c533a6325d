"""A whole run in two processes, by the command that the docs name."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import searchr3
from searchr3.dataset import RetrievalDataset

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(searchr3.__file__).parents[1])}
LONGEST = 280  # seconds

RECIPE = """\
data: {source: toy, dev_queries: 10, dev_documents: 40}
model: {base: base, max_length: 96, max_new_tokens: 4, precision: fp32}
stage1: {steps: 6, batch_size: 8, learning_rate: 0.003, evaluate_every: 3, log_every: 1, own_samples: 0}
stage2: {steps: 2, queries: 2, rollouts: 4, evaluate_every: 1, log_every: 1, contrastive: 0.3}
"""


def train(folder: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "searchr3", "train", "recipe.yaml"]
    return subprocess.run(
        [*command, *more], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONGEST
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy: RetrievalDataset, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("several")
    toy.save(folder / "toy")
    (folder / "base").symlink_to(tiny_base)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def test_two_processes_make_one_run(folder: Path) -> None:
    outcomes = {size: train(folder, size, "--output", f"run-{size}") for size in (1, 2)}

    assert all(one.returncode == 0 for one in outcomes.values()), outcomes[2].stderr
    runs = {size: folder / f"run-{size}" for size in outcomes}
    names = [sorted(path.name for path in run.iterdir()) for run in runs.values()]
    assert names[0] == names[1] and "report.html" in names[0]
    metrics = {
        size: json.loads((run / "metrics.json").read_text(encoding="utf-8")) for size, run in runs.items()
    }
    alone, shared = (metrics[size]["stages"]["stage1"] for size in runs)
    assert [run["name"] for run in alone["runs"]] == [run["name"] for run in shared["runs"]]
    losses = [[row["loss"] for row in metrics[size]["curves"]["stage1"] if "loss" in row] for size in runs]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-3)
    said = outcomes[2].stderr
    assert said.count("stage2 evaluation") == 1, "only the first process speaks"
    assert outcomes[2].stdout.count("Done in") == 1


def test_a_fault_is_told_once_and_leaves_nothing(folder: Path) -> None:
    outcome = train(folder, 2, "data.source=nowhere", "--output", "bad")
    assert outcome.returncode != 0
    assert outcome.stderr.count("nowhere: ") == 1
    assert "the first process failed" in outcome.stderr
    assert not (folder / "bad").exists()


def test_a_fault_of_any_process_ends_all() -> None:
    """Also where no launcher ends the others. Each says one line, and one of them what it was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("failing.py"), "train"],
            env={**meeting, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=LONGEST)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode for process in running)
    told = [[line for line in one.splitlines() if line.startswith("error")] for one in said]
    assert told[1] == ["error: process 1: data.jsonl:17: no text; give it one"]
    assert told[0] == [
        "error: process 0: another process of the run has ended, or does not answer; its own message says why"
    ]
    assert not any(word in text for text in said for word in ("Traceback", "gloo"))
