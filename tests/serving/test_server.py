"""The command: a real process that ends well, and the lines that it says where it cannot start."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

import searchr3.serving
from searchr3.cli import app
from searchr3.serving.settings import KEYS

from .conftest import KEY


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchr3.cli.commands.hush_libraries", lambda: None)
    monkeypatch.delenv(KEYS, raising=False)


@pytest.fixture
def process(tiny_model: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "searchr3", "serve", "--model", str(tiny_model), "--port", "0"]
    environment = {**os.environ, KEYS: KEY}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen(command, **pipes, env=environment)
    yield started
    started.kill()


def test_sigterm_lets_it_finish_what_it_accepted(process: subprocess.Popen[str]) -> None:
    assert process.stdout and process.stderr
    told = process.stdout.readline()
    assert told.startswith("tiny-model at http://127.0.0.1:")
    address = told.split()[2].rstrip(",")
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=120, trust_env=False) as client:

        def think(number: int) -> httpx2.Response:
            body = {"model": "tiny-model:think", "input": f"query {number}", "max_thinking_tokens": 60}
            return client.post("embeddings", json=body)

        assert think(0).status_code == 200
        with ThreadPoolExecutor(8) as pool:
            accepted = [pool.submit(think, number) for number in range(40)]
            while sum(one.done() for one in accepted) < 3:
                pass
            process.send_signal(signal.SIGTERM)
            answers = []
            for one in accepted:
                try:
                    answers.append(one.result())
                except httpx2.NetworkError:  # the port, or an idle connection, was closed by then
                    answers.append(None)
        statuses = [answer.status_code if answer else None for answer in answers]
    assert statuses.count(200) >= 8 and set(statuses) <= {200, 503, None}
    assert process.wait(60) == 0
    log = process.stderr.read()
    # what was accepted was answered, and who waited for it got it
    assert log.count("POST /v1/embeddings 200 ") == 1 + statuses.count(200)
    assert log.count("POST /v1/embeddings") == log.count("embeddings 200 ") + log.count("embeddings 503 ")
    assert not any(secret in log for secret in ("query", KEY, "Traceback"))


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_lines_of_a_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused("--model", tmp_path, "--port", port)
    assert line == (
        f"error: 127.0.0.1:{port}: cannot be listened at (Address already in use); "
        "choose another --port, or --port 0 for any"
    )
    assert "which model? give --model MODEL" in refused()
    assert "set SEARCHR3_API_KEYS" in refused("--model", tmp_path, "--host", "0.0.0.0")
    assert "seconds: " in refused("--model", tmp_path, "--max-seconds", "-1")
    assert "not a model folder" in refused("--model", tmp_path, "--port", 0)
    assert "no store; make one with" in refused("--store", tmp_path, "--port", 0)
    assert "leave out --run" in refused("--store", tmp_path, "--run", tmp_path)
    assert "not a run folder" in refused("--run", tmp_path, "--port", 0)
    assert "no-such-host.invalid:8000: cannot be listened at" in refused(
        "--model", tmp_path, "--host", "no-such-host.invalid", "--allow-unauthenticated"
    )
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "searchr3.serving.server")
    monkeypatch.delattr(searchr3.serving, "server")
    assert refused("--model", tmp_path) == "error: uvicorn is not installed; pip install 'searchr3[serve]'"
