"""Processes that may kill themselves: a job a line comes in, its exit code goes out.

Each job is a fork of this process, which has the libraries loaded and has not worked itself.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

trace: list[str] = []  # what was done so far, of what a kill may fall on


def die_at(moment: int | None, watched: Iterable[tuple[Any, str, Callable[..., None]]]) -> None:
    """Kill this process where it would do number `moment` of what is watched, with a half of it done.

    Args:
        watched: module or class, name of a function of it, and what half of it would be.
    """

    def dying(name: str, real: Callable[..., Any], half: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(trace) == moment:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            trace.append(name)
            return real(*arguments, **keywords)

        return call

    for module, name, half in watched:
        setattr(module, name, dying(name, getattr(module, name), half))


def nothing(*_: Any) -> None:
    """Half of what is done or not done."""


def half_deleted(path: Any, *_: Any) -> None:
    for file in [file for file in sorted(Path(path).rglob("*")) if file.is_file()][::2]:
        file.unlink()


def serve(work: Callable[[dict[str, Any]], None]) -> None:
    """Do the jobs that come in on standard input."""
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
