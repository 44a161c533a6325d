"""Mines in processes that may kill themselves, see dying.py."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from searchr3.dataset import load_dataset
from searchr3.mining import Rule, Teacher, Work, blocks, mine, mining
from searchr3.model import SearchR3

sys.path.append(str(Path(__file__).parents[1]))
from dying import die_at, half_deleted, nothing, serve, trace

WATCHED = (
    (os, "replace", nothing),
    (os, "fsync", nothing),
    (shutil, "rmtree", half_deleted),
    (SearchR3, "encode_document", nothing),
    (SearchR3, "encode_query", nothing),
)


def work(job: dict[str, Any]) -> None:
    blocks.BLOCK, mining.PART = 60, 30
    dataset = load_dataset(job["data"])
    die_at(job["moment"], WATCHED)
    place = Work(Path(job["output"]), resume=job["resume"])
    mine(dataset, place, Rule(from_rank=2, to_rank=30, sampling="random"), Teacher(job["by"]))
    print(*trace, file=sys.stderr)


if __name__ == "__main__":
    serve(work)
