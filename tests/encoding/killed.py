"""Encodes in a process that may kill itself: a job a line comes in, its count of moments or death goes out.

The jobs are forks of this process, which has the libraries loaded and has not encoded anything itself.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from searchr3.encoding import shard_files
from searchr3.encoding.job import encode_file

moments = 0  # what was done so far, of what a kill may fall on


def die_at(moment: int | None) -> None:
    """Kill this process where it would do number `moment` of what it does to the disk, half of it done."""

    def watched(module: Any, name: str, half: Callable[..., None] = lambda *_: None) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            global moments
            if moments == moment:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            moments += 1
            return real(*arguments, **keywords)

        setattr(module, name, call)

    watched(os, "replace")
    watched(os, "fsync")
    watched(os, "unlink")
    watched(shard_files, "save_file", lambda _, path: path.write_bytes(b"half"))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                die_at(job["moment"])
                encode_file(**job["wanted"])
                os.write(writing, str(moments).encode())
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        counted = os.read(reading, 99).decode()
        os.close(reading)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or counted, flush=True)


if __name__ == "__main__":
    main()
