"""Trains a stage in a process that may kill itself: a job a line comes in, its exit code goes out.

The jobs are forks of this process, which has the libraries loaded and has not trained anything itself.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from searchr3.dataset import load_dataset
from searchr3.model import SearchR3
from searchr3.training.recipe import load_recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1
from searchr3.training.stage2 import Stage2Trainer, train_stage2

trace: list[str] = []  # what was done so far, of what a kill may fall on


def die_at(moment: int | None) -> None:
    """Kill this process where it would do number `moment` of what is traced, with a half of it done."""

    def watched(name: str, real: Callable[..., Any], half: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(trace) == moment:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            trace.append(name)
            return real(*arguments, **keywords)

        return call

    def nothing(*_: Any) -> None:
        pass

    def half_a_file(_: Any, path: Any) -> None:
        Path(path).write_bytes(b"PK\x03\x04")

    def half_deleted(path: Any, *_: Any) -> None:
        for file in [file for file in sorted(Path(path).rglob("*")) if file.is_file()][::2]:
            file.unlink()

    for module, name, half in (
        (os, "replace", nothing),
        (os, "fsync", nothing),
        (torch, "save", half_a_file),
        (shutil, "rmtree", half_deleted),
        (Stage1Trainer, "training_step", nothing),
        (Stage2Trainer, "training_step", nothing),
    ):
        setattr(module, name, watched(name, getattr(module, name), half))


def train(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    dataset = load_dataset(job["data"])
    search = SearchR3(job["model"], dtype="float32")
    recipe = load_recipe(job["recipe"])
    die_at(job["moment"])
    if job["stage"] == "stage1":
        curve = train_stage1(search, dataset, recipe, folder / "stage1")
    else:
        curve = train_stage2(search, dataset, recipe, folder / "stage2", folder / "episodes.jsonl")
    done = list(trace)
    weights = {name: weight.clone() for name, weight in search.model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "result.json").write_text(json.dumps({"curve": curve, "trace": done}))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                train(json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
