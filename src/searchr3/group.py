"""Several processes that work as one: each holds a part of the rows, and they gather what all must know.

Every method that gathers is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from searchr3.errors import SearchR3Error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_PATIENCE = timedelta(days=2)  # others wait while the first evaluates; who dies is noticed anyway
_WRITING = timedelta(hours=2)  # so long may the first write a checkpoint, while the others' GPUs wait
_FAREWELL = 10  # seconds for an orderly end
_LOST = ("gloo/transport", "closed by peer", "reset by peer", "remote process exited", "likely closed")


class Group(Protocol):
    """The processes of a run.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The array of every rank, in order; dtype and shape agree on all ranks but for the first length."""
        ...


class Alone:
    """The one process of a run without others."""

    rank, size = 0, 1

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array]


ALONE = Alone()


class Processes:
    """The processes of `torch.distributed`, through memory of the CPU.

    Args:
        process_group: one that carries CPU tensors, such as gloo's; None for the default one.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        import torch.distributed as dist

        self.process_group = process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        import torch
        import torch.distributed as dist

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(array)]), self.process_group)
        counts = [int(length) for length in lengths]
        width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        own = torch.zeros(max(counts) * width, dtype=torch.uint8)  # bytes: whatever the dtype
        parts = [torch.empty_like(own) for _ in counts]
        if len(own):
            own.numpy()[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            dist.all_gather(parts, own, self.process_group)
        return [
            part[: count * width].numpy().view(array.dtype).reshape(count, *array.shape[1:])
            for part, count in zip(parts, counts, strict=True)
        ]


def start_group() -> Group:
    """`current_group` of the processes that a launcher (`accelerate launch`, torchrun) has started."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=_WRITING)  # starts torch.distributed
    return current_group()


def current_group() -> Group:
    """The processes of this run; collective where there are several, at the first call."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return _over_gloo(dist.group.WORLD)


@lru_cache(maxsize=1)
def _over_gloo(world: ProcessGroup) -> Processes:
    """One for all who ask: each is a connection between every two processes."""
    import torch.distributed as dist

    return Processes(dist.new_group(backend="gloo", timeout=_PATIENCE))


def bounds(rows: int, size: int) -> np.ndarray:
    """Where the parts of `rows` rows begin, dealt to `size` ranks; the last entry is `rows`, (size + 1,).

    >>> bounds(10, 3).tolist()
    [0, 3, 6, 10]
    """
    return np.arange(size + 1, dtype=np.int64) * rows // size


def most(group: Group, count: int) -> int:
    """The greatest of the ranks' counts; collective."""
    return max(int(one[0]) for one in group.gather(np.array([count])))


def first_says(group: Group, number: int) -> int:
    """The first rank's number, for what all must decide alike; collective."""
    return int(group.gather(np.array([number]))[0][0])


def joined(group: Group, array: np.ndarray) -> np.ndarray:
    """The rows of all ranks, in their order; collective."""
    return np.concatenate(group.gather(array))


def together(group: Group, *arrays: np.ndarray) -> tuple[list[np.ndarray], slice]:
    """What all ranks ask, rank after rank, and where the questions of this rank lie.

    Where all ranks ask the same it is asked once, and each gets all of it.

    Args:
        arrays: of one first length; those of one place have one dtype on all ranks.
    """
    if group.size == 1:
        return list(arrays), slice(None)
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    marks = group.gather(np.frombuffer(digest.digest(), dtype=np.uint8))
    if all((mark == marks[0]).all() for mark in marks):
        return list(arrays), slice(None)
    parts = [group.gather(array) for array in arrays]
    start = sum(len(part) for part in parts[0][: group.rank])
    return [np.concatenate(part) for part in parts], slice(start, start + len(arrays[0]))


def on_first(group: Group, work: Callable[[], None]) -> None:
    """Let the first rank do `work` while the others wait.

    Raises:
        SearchR3Error: on the other ranks, if it failed there.
    """
    failed = np.zeros(1, dtype=bool)
    try:
        if group.rank == 0:
            failed[:] = True
            work()
            failed[:] = False
    finally:
        first = group.gather(failed)[0]
    if group.rank and first.any():
        raise SearchR3Error("the first process failed; its own message says why")


def is_lost(error: BaseException) -> bool:
    """Whether an error only says that another process does not answer any more."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and isinstance(error, getattr(distributed, "DistNetworkError", ())):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def end_in_time() -> None:
    """See to it that this process, which is about to end with a fault, has ended in ten seconds.

    While others wait for it, libraries may wait for them in turn, and the launcher ends the others only when
    this one has ended. Does nothing in a run of one process.
    """
    distributed = sys.modules.get("torch.distributed")
    started = distributed and distributed.is_available() and distributed.is_initialized()
    if started and hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the system's own: it needs no interpreter
        signal.alarm(_FAREWELL)
