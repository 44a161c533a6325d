"""One process at a time: locks of the system, which end with the process that has them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from searchr3.errors import SearchR3Error
from searchr3.files import LOCK, disk_errors

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def hold(file: IO[Any], refusal: str) -> None:
    """Lock an open file for this process until it is closed.

    On a file system without locks nothing is locked: whether another process is there cannot be known.

    Raises:
        SearchR3Error: another process has it; `refusal` says so, and `file` is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            file.close()
            raise SearchR3Error(refusal) from None


@contextlib.contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the file `lock` for this process; it is made for that, and removed after.

    What a killed process leaves of it locks nobody out.

    Raises:
        SearchR3Error: another process has it (`refusal` says so), or it cannot be made.
    """
    with disk_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        hold(file, refusal)
        if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
            raise SearchR3Error(refusal)  # who had it has removed it just now, or another has made it anew
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for this process, see `locked`; it is made if need be, and goes if it stays empty."""
    try:
        with locked(folder / LOCK, refusal):
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
