"""Trains a stage in processes that may kill themselves, at a moment or after some seconds; see dying.py."""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from searchr3.dataset import load_dataset
from searchr3.model import SearchR3
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1
from searchr3.training.stage2 import Stage2Trainer, train_stage2

sys.path.append(str(Path(__file__).parents[1]))
from dying import die_at, half_deleted, nothing, serve, trace


def half_a_file(_: Any, path: Any) -> None:
    Path(path).write_bytes(b"PK\x03\x04")


WATCHED = (
    (os, "replace", nothing),
    (os, "fsync", nothing),
    (torch, "save", half_a_file),
    (shutil, "rmtree", half_deleted),
    (Stage1Trainer, "training_step", nothing),
    (Stage2Trainer, "training_step", nothing),
)


def train(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    dataset = load_dataset(job["data"])
    search = SearchR3(job["model"], dtype="float32")
    recipe = load_recipe(job["recipe"])
    die_at(job["moment"], WATCHED)
    if job["seconds"] is not None:
        threading.Timer(job["seconds"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    if job["stage"] == "stage1":
        curve = train_stage1(search, dataset, recipe, folder / "stage1")
    else:
        curve = train_stage2(search, dataset, recipe, folder / "stage2", folder / "episodes.jsonl")
    done = list(trace)
    weights = {name: weight.clone() for name, weight in search.model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "result.json").write_text(json.dumps({"curve": curve, "trace": done}))


if __name__ == "__main__":
    serve(train)
