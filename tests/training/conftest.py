"""For the tests of training: several processes that work as one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE = 280  # seconds


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """`launch(size, script, *arguments)` runs a script of this folder in so many processes of one run."""

    def together(size: int, script: str, *arguments: object, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        places = [
            {**meeting, "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            for rank in range(size)
        ]
        running = [
            subprocess.Popen(command, env={**os.environ, **environment, **(place if size > 1 else {})})
            for place in places
        ]
        try:
            assert [process.wait(PATIENCE) for process in running] == [0] * size
        finally:
            for process in running:
                process.kill()

    return together
