"""The one line of an error."""

import errno
import os
from pathlib import Path

import pytest

from searchr3.cli.terminal import one_line
from searchr3.errors import SearchR3Error
from searchr3.files import write_text

RESUME = "; once there is room, the same command with --resume continues"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("command", "end"), [("train", RESUME), ("quickstart", RESUME), ("compare", "")])
def test_a_full_disk_names_the_place_and_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, end: str
) -> None:
    fault = "no space left on the disk; free some or choose another place"
    bare = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/x.bin")
    assert one_line(bare, command) == f"error: runs/mine/x.bin: {fault}{end}"
    torch = RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")
    assert one_line(torch, command) == f"error: {fault}{end}"
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(SearchR3Error) as ours:
        write_text(tmp_path / "out.txt", "x")
    assert one_line(ours.value, command) == f"error: {tmp_path}/out.txt: {fault}{end}"


def test_other_errors_do_not_speak_of_resuming() -> None:
    assert one_line(SearchR3Error("x.jsonl:1: empty; fill it"), "train") == "error: x.jsonl:1: empty; fill it"


class OutOfMemoryError(RuntimeError):
    """Called as torch's is."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore follows."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_full_memory_is_told_with_the_keys_that_mend_it(error: Exception) -> None:
    said = one_line(error, "train")
    assert said.startswith("error: the memory is full (") and "stage1.micro_tokens" in said
    assert "More follows" not in said and "traceback" not in said
    assert "stage1" not in one_line(error, "encode")


def test_an_empty_number_of_processes_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    assert one_line(SearchR3Error("x"), "train") == "error: x"


def test_of_several_processes_each_says_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert one_line(SearchR3Error("x.jsonl:1: empty")) == "error: process 1: x.jsonl:1: empty"


def test_a_name_that_no_disk_takes_is_one_line() -> None:
    with pytest.raises(OSError) as caught:
        Path("n" * 300).exists()
    assert one_line(caught.value) == f"error: {'n' * 300}: the name is too long; choose a shorter one"


def test_an_error_does_not_steer_the_terminal() -> None:
    assert one_line(SearchR3Error("an id \x1b[31m\u202e\nis wrong")) == "error: an id  [31m  is wrong"
