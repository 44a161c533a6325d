"""Timings that can be compared: arms in turn, medians, the parts of a step, memory.

A ratio is of medians over rounds. Its spread goes from the least to the greatest ratio of a single round,
whose arms stood next to each other in time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback

T = TypeVar("T")


def in_turn(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each arm gives in each round.

    Each round begins with another arm: what slows the machine for a while, or warms it, falls on all.
    """
    found: dict[str, list[T]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            found[name].append(arms[name]())
    return found


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """`name`, the ratio of the medians, and the least and greatest ratio of one round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {name: median(ours) / median(theirs), f"{name}_least": min(each), f"{name}_most": max(each)}


def now() -> float:
    """Seconds, once the accelerator has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(TrainerCallback):
    """Seconds of each step but the first, from one step's end to the next's: loading included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(now())

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


class Clock:
    """Seconds spent in watched methods, step by step, by label."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._running: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def watch(self, owner: Any, method: str, label: str) -> Iterator[None]:
        """Time all calls of `owner.method` in this context; `owner` is a class or an object."""
        own = vars(owner).get(method)
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return plain(*args, **kwargs)
            finally:
                self._running[label] += now() - start

        setattr(owner, method, timed)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)

    def close_step(self) -> None:
        """What was spent since the last call is one step's."""
        self.steps.append(dict(self._running))
        self._running.clear()


def forget_peak() -> float:
    """MiB resident now; the peak begins anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak() -> float:
    """Most MiB resident since `forget_peak`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def on_cores(cores: Sequence[int]) -> dict[str, str]:
    """The environment of a process that has these cores alone; it calls `keep_to_cores` before torch."""
    return {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "BENCH_CORES": ",".join(map(str, cores))}
