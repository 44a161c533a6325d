"""`searchr3 traces` with a server: the question first, the key, and what a killed run leaves."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from searchr3.cli import app
from searchr3.dataset import Document, Query, RetrievalDataset, load_dataset
from searchr3.dataset.answer_log import read_answers

SECRET = "sk-very-secret-0123456789"
COUNT = 30


@pytest.fixture(autouse=True)
def keyless(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set there, without keys of whoever runs the test."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.01)
    keys = range(COUNT)
    RetrievalDataset(
        "mine",
        {f"d{n}": Document("", f"the document of number {n} with its secret ending") for n in keys},
        {f"q{n}": Query(f"number {n}") for n in keys},
        {"stage1": {f"q{n}": {f"d{n}": 1} for n in keys[:-1]}, "test": {f"q{COUNT - 1}": {"d0": 1}}},
    ).save("mine")


def command(server, *more: str) -> list[str]:
    return ["traces", "mine", "--output", "traced", "--endpoint", server.url, "--model", "m", *more]


def run(server, *more: str) -> Result:
    return CliRunner().invoke(app, command(server, *more))


def process(server, *more: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "searchr3", *command(server, *more)],
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell in the background ignores it
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "text": True, **options},
    )


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    *progress, error = result.stderr.splitlines()
    assert error.startswith("error: ") and len(progress) <= 1
    for word in words:
        assert word in error


def test_traces_are_asked_for_and_written(chat_server):
    result = run(chat_server, "--yes", "--price-in", "1", "--price-out", "2")
    assert result.exit_code == 0, result.output
    for words in ("requests:       29", "cost:", "key: none", "traced: 29 of 30 queries have a trace"):
        assert words in result.stdout
    assert "2,900 prompt and 290 answer tokens" in result.stderr
    traced = load_dataset("traced")
    assert traced.queries["q3"].reasoning == "concepts of number 3"
    assert traced.queries[f"q{COUNT - 1}"].reasoning is None
    assert "secret ending" not in str(chat_server.requests), "blind unless asked otherwise"


def test_options_reach_the_request(chat_server):
    Path("prompt.txt").write_text("Say {words} words on {document}\nQuery: {query}")
    options = "--show-document --prompt prompt.txt --words 5 --max-tokens 77 --temperature 0 --limit 2"
    result = run(chat_server, "--yes", *options.split(), "--set", "seed=3", "--set", "temperature=null")
    assert result.exit_code == 0, result.output
    body = {key: value for key, value in chat_server.requests[0].items() if key != "messages"}
    assert body == {"model": "m", "max_tokens": 77, "seed": 3}
    content = chat_server.requests[0]["messages"][0]["content"]
    assert content == "Say 5 words on the document of number 0 with its secret ending\nQuery: number 0"
    assert len(chat_server.requests) == 2


def test_nothing_is_asked_before_somebody_agrees(chat_server):
    result = run(chat_server)
    assert_one_line(result, "--yes")
    assert "requests:       29" in result.stdout
    assert run(chat_server, "--dry-run").exit_code == 0
    assert chat_server.requests == []
    assert [path.name for path in Path().iterdir()] == ["mine"]


@pytest.mark.parametrize(("answer", "code", "asked"), [("n", 1, 0), ("y", 0, 29)])
def test_a_person_is_asked(chat_server, answer, code, asked):
    ours, theirs = pty.openpty()
    try:
        asking = process(chat_server, stdin=theirs)
        os.write(ours, f"{answer}\n".encode())
        out, _ = asking.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Ask?" in out and out.index("requests:") < out.index("Ask?")
    assert (asking.returncode, len(chat_server.requests)) == (code, asked)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "http://localhost:1"], "--model"),
        (["--model", "m"], "--endpoint"),
        (["--dry-run"], "--endpoint"),
        (["--endpoint", "localhost:1", "--model", "m"], "http://"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--price-in", "1"], "--price-out"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--yes"], "cannot be reached"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--split", "test"], "'test'"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--prompt", "none.txt"], "none.txt"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--set", "top_p=.nan"], "JSON can hold"),
    ],
)
def test_wrong_options_are_one_line(arguments, words):
    result = CliRunner().invoke(app, ["traces", "mine", "--output", "traced", *arguments])
    assert_one_line(result, words)
    assert not Path("traced").exists()


@pytest.mark.parametrize(
    "option", ["--timeout", "--temperature", "--max-failed", "--price-in", "--price-out"]
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_wrong_usage(chat_server, option, value):
    result = run(chat_server, "--yes", option, value)
    assert result.exit_code == 2 and option in result.stderr
    assert not chat_server.requests


# The key


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    "echo",
    [
        lambda body, head: {"says": f"it is {head}", "status": 200},
        lambda body, head: {"status": 401, "json": {"error": {"message": f"no such key: {head}"}}},
        lambda body, head: {"status": 400, "text": f"filter: content_filter {head}"},
        lambda body, head: {"status": 500, "text": head},
        lambda body, head: {"text": head},
    ],
)
def test_the_key_is_nowhere(chat_server, monkeypatch, tmp_path, echo, debug):
    """Whatever the server does with it."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    chat_server.script = lambda number, body: echo(body, chat_server.heads[number]["authorization"])
    result = CliRunner().invoke(app, [*debug, *command(chat_server, "--yes", "--limit", "2")])
    assert chat_server.heads[0]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in result.output and SECRET not in result.stderr
    assert SECRET.encode() not in everything(tmp_path)


def test_the_key_of_another_variable(chat_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the-usual-one")
    monkeypatch.setenv("BOX_KEY", SECRET)
    result = run(chat_server, "--yes", "--key-variable", "BOX_KEY")
    assert "key: BOX_KEY" in result.stdout
    assert {head["authorization"] for head in chat_server.heads} == {f"Bearer {SECRET}"}
    monkeypatch.delenv("BOX_KEY")
    assert_one_line(
        run(chat_server, "--yes", "--output", "other", "--key-variable", "BOX_KEY"), "--key-variable"
    )


# Interrupted


def rows() -> list[dict]:
    return read_answers(Path("traced.answers.jsonl"))


def wait_for_rows(count: int) -> None:
    for _ in range(1_200):
        if len(rows()) >= count:
            return
        time.sleep(0.05)
    pytest.fail("no answers came")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_asks_only_for_what_is_missing(chat_server, end):
    chat_server.script = lambda *_: {"delay": 0.1}
    asking = process(chat_server, "--yes", "--concurrency", "2")
    wait_for_rows(6)
    asking.send_signal(end)
    _, errors = asking.communicate(timeout=30)
    if end == signal.SIGINT:
        assert asking.returncode == 130
        assert errors.splitlines()[-1] == "interrupted; the same command continues"
    assert not Path("traced").exists()
    kept = {row["query"] for row in rows()}
    assert 6 <= len(kept) < 29
    with Path("traced.answers.jsonl").open("a") as log:  # as if killed in the middle of a line
        log.write(json.dumps({"query": "q28", "asked": "0", "answer": "half a li"})[:-9])

    chat_server.requests.clear()
    chat_server.script = lambda *_: {}
    result = run(chat_server, "--yes")
    assert result.exit_code == 0, result.output
    assert f"requests:       {29 - len(kept)}; {len(kept)} answered already" in result.stdout
    asked = {f"q{query.split()[1]}" for query in chat_server.queries}
    assert len(chat_server.requests) == len(asked) == 29 - len(kept)
    assert not asked & kept
    queries = load_dataset("traced").queries
    assert all(queries[f"q{n}"].reasoning == f"concepts of number {n}" for n in range(29))
    assert {row["query"] for row in rows()} == {f"q{n}" for n in range(29)}


def test_what_is_left_of_a_killed_run_is_only_the_log(chat_server):
    chat_server.script = lambda *_: {"delay": 0.1}
    asking = process(chat_server, "--yes", "--concurrency", "2")
    wait_for_rows(3)
    second = run(chat_server, "--yes")
    asking.kill()
    asking.communicate(timeout=30)
    assert_one_line(second, "another searchr3 writes to it")
    assert sorted(path.name for path in Path().iterdir()) == ["mine", "traced.answers.jsonl"]
