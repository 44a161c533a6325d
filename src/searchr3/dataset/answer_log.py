"""Answers that were paid for, kept line by line as they come, whatever happens to the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from searchr3.errors import DataError
from searchr3.files import disk_errors, json_text
from searchr3.locks import hold


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that its writer was stopped in is left out.

    Raises:
        DataError: another line is not what `AnswerLog` writes.
    """
    if not path.exists():
        return []
    with disk_errors(path):
        content = path.read_bytes()
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], str) for name in ("query", "asked")):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{path}:{number}: no answer of `searchr3 traces`; remove the line") from None
        rows.append(row)
    return rows


class AnswerLog:
    """Appends rows to a JSONL file; a context manager that one process holds at a time.

    A row is in the system's hands when `append` returns, so that a killed process loses none of them.

    Raises:
        SearchR3Error: another process writes the file, or it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> AnswerLog:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        hold(self._file, f"{self.path}: another searchr3 writes to it; wait for its end")
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)  # without a line that was cut
        return self

    def append(self, row: dict[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json_text(row).encode() + b"\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with disk_errors(self.path), self._file:  # to close it writes what a full disk has not taken
            if os.fstat(self._file.fileno()).st_size:
                os.fsync(self._file.fileno())
            else:
                self.path.unlink(missing_ok=True)
