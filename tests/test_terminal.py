"""The one line of an error."""

import errno
import os
from pathlib import Path

import pytest

from searchr3.errors import SearchR3Error
from searchr3.files import write_text
from searchr3.terminal import one_line

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
