"""Mines in a process that may kill itself: a job a line comes in, its exit code goes out.

The jobs are forks of this process, which has the libraries loaded and has not mined anything itself.
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

from searchr3.dataset import load_dataset
from searchr3.mining import Rule, Teacher, Work, blocks, mine, mining
from searchr3.model import SearchR3

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

    def half_deleted(path: Any, *_: Any) -> None:
        for file in [file for file in sorted(Path(path).rglob("*")) if file.is_file()][::2]:
            file.unlink()

    for module, name, half in (
        (os, "replace", nothing),
        (os, "fsync", nothing),
        (shutil, "rmtree", half_deleted),
        (SearchR3, "encode_document", nothing),
        (SearchR3, "encode_query", nothing),
    ):
        setattr(module, name, watched(name, getattr(module, name), half))


def work(job: dict[str, Any]) -> None:
    blocks.BLOCK, mining.PART = 60, 30
    dataset = load_dataset(job["data"])
    die_at(job["moment"])
    place = Work(Path(job["output"]), resume=job["resume"])
    mine(dataset, place, Rule(from_rank=2, to_rank=30, sampling="random"), Teacher(job["by"]))
    print(*trace, file=sys.stderr)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                work(json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
