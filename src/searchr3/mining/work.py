"""The folder of a mining that goes on, `.NAME.mining` beside the output `NAME`, and when it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.files import (
    check_writable,
    disk_errors,
    occupied,
    put_folder,
    refuse_occupied,
    write_json,
)
from searchr3.locks import locked

SUMMARY = "mining.json"  # in the output: with what settings it was mined, and what came of it
_SETTINGS = "settings.json"


class Work:
    """What is done of a mining, and its output.

    The folder holds the settings, the document vectors and the chosen negatives in parts. Each file is whole
    or not there, and depends on nothing but the settings.

    Args:
        output: folder of the mined data set.
        resume: go on with an interrupted mining.
        overwrite: begin anew where one was interrupted, and replace an output that mining made.

    Raises:
        SearchR3Error: neither is asked for and one of them is needed, or the place cannot be written.
    """

    def __init__(self, output: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.output, self.resume, self.overwrite = output, resume, overwrite
        self._place = Path(os.path.abspath(output))
        self.folder = self._place.with_name(f".{self._place.name}.mining")
        begun = (self.folder / _SETTINGS).is_file()
        if begun and not (resume or overwrite):
            raise SearchR3Error(
                f"{output}: mining was interrupted; continue it with --resume or begin anew with --overwrite"
            )
        if occupied(output):
            if not (resume or overwrite):
                refuse_occupied(output)
            if not (output / SUMMARY).is_file():
                raise SearchR3Error(
                    f"{output}: not made by `searchr3 mine`, so it stays; choose another folder"
                )
        check_writable(output)

    def held(self) -> AbstractContextManager[None]:
        """The work for this process alone.

        Raises:
            SearchR3Error: another process is at work there.
        """
        refusal = f"{self.output}: another `searchr3 mine` is at work there; wait for its end"
        return locked(self.folder.with_name(f"{self.folder.name}.lock"), refusal)

    def admit(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Look at what is there of a mining with `settings`; the figures of one that is finished, else None.

        Raises:
            SearchR3Error: what is there was made with other settings.
        """
        if self.resume and self.output.is_dir() and (self.output / SUMMARY).is_file():
            summary = _read(self.output / SUMMARY)
            if summary.get("settings") == settings:
                shutil.rmtree(self.folder, ignore_errors=True)
                return dict(summary["figures"])
            if not self.overwrite:
                refuse_occupied(self.output)
        begun = self.folder / _SETTINGS
        if self.resume and begun.is_file():
            _refuse_other(self.output, _read(begun), settings)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, unless a mining goes on."""
        if not (self.folder / _SETTINGS).is_file():
            write_json(self.folder / _SETTINGS, settings)

    def part(self, number: int) -> Path:
        """File for the negatives of one part of the queries."""
        return self.folder / f"queries-{number:06}.jsonl"

    def finish(self, dataset: RetrievalDataset, summary: Mapping[str, Any]) -> None:
        """Write the output, whole or not at all, and remove the folder."""
        data = self.folder / "data"
        with disk_errors(self.output):
            shutil.rmtree(data, ignore_errors=True)  # of a mining that was killed here
            dataset.save(data)
            write_json(data / SUMMARY, summary)
            put_folder(data, self._place)
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    raise SearchR3Error(f"{file}: damaged; begin anew with --overwrite")


def _refuse_other(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    other = next((key for key in now if before.get(key) != now[key]), None)
    if other is None:
        return
    digests = {"data": "other data", "model": "a model with other weights, tokenizer or prompts"}
    what = digests.get(other) or f"{other.replace('_', '-')} {before.get(other)}, not {now[other]}"
    raise SearchR3Error(
        f"{output}: the interrupted mining had {what}; resume it as it was begun, "
        "or begin anew with --overwrite"
    )


def data_digest(dataset: RetrievalDataset) -> str:
    """A stable name of all that a data set holds."""
    hasher = hashlib.blake2b(digest_size=16)

    def add(rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            hasher.update(json.dumps(row).encode() + b"\n")

    add([[dataset.name, sorted(dataset.held_out)]])
    add([key, one.title, one.text, dict(one.metadata)] for key, one in dataset.corpus.items())
    add([key, one.text, one.reasoning, one.negatives] for key, one in dataset.queries.items())
    add([split, list(qrels.items())] for split, qrels in dataset.qrels.items())
    return hasher.hexdigest()
