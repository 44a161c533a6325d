"""The input: JSON lines of documents or queries, checked once and cut into shards by their bytes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from searchr3.dataset.beir import document_of, id_field, jsonl_file, text_field
from searchr3.encoding.manifest import Shard
from searchr3.errors import DataError
from searchr3.files import json_object, open_bytes, read_errors

Progress = Callable[[str, int, int], None]
_TELL_EVERY = 1000  # lines between two calls of `progress`


class Line(NamedTuple):
    """A line that is not blank: its number from 1, its first byte and the one after it, what is on it."""

    number: int
    start: int
    end: int
    content: bytes


def input_file(path: str | Path, kind: str) -> Path:
    """The file of a JSON Lines file or a BEIR folder, with its whole path.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        path = jsonl_file(path, "corpus" if kind == "documents" else "queries")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    if not path.is_file():
        raise DataError(f"{path}: no regular file, but it is read more than once; save it as a file first")
    return path.resolve()


def lines_of(file: Iterable[bytes], number: int = 1, start: int = 0) -> Iterator[Line]:
    """The lines of a file that are not blank; the first has this number and starts at this byte."""
    for line, content in enumerate(file, number):
        if content.strip():
            yield Line(line, start, start + len(content), content)
        start += len(content)


def cut(lines: Iterable[tuple[Line, str]], size: int, ending: str) -> Iterator[Shard]:
    """Shards of `size` lines each, the last may have fewer, from lines and the ids on them."""
    remaining = iter(lines)
    first_row = 0
    for number in count():
        part = list(islice(remaining, size))
        if not part:
            return
        (first, first_id), (last, last_id) = part[0], part[-1]
        yield Shard(
            file=f"shards/{number:05}.{ending}",
            first_row=first_row,
            rows=len(part),
            start=first.start,
            end=last.end,
            line=first.number,
            first_id=first_id,
            last_id=last_id,
        )
        first_row += len(part)


def entry(content: bytes, kind: str, where: str) -> tuple[str, str]:
    """Id and text of a line; a document's text is its title and its text, one below the other.

    Raises:
        DataError: it is no JSON object, or lacks the id or the text.
    """
    row = json_object(content, where)
    key = id_field(row, where)
    return key, document_of(row, where).content if kind == "documents" else text_field(row, "text", where)


def scan(path: Path, kind: str, size: int, ending: str, progress: Progress | None = None) -> list[Shard]:
    """Check every line of the input in one pass, and cut it into shards of `size` lines.

    Memory: 8 bytes a line, besides the shards.

    Raises:
        DataError: a line is wrong, an id comes twice, or there is no line; file and line are named.
    """
    digests = array("Q")

    def checked(file: BinaryIO) -> Iterator[tuple[Line, str]]:
        packed = getattr(file, "fileobj", file)  # of a gzipped file the size of what is inside is unknown
        total = path.stat().st_size
        for line in lines_of(file):
            key, _ = entry(line.content, kind, f"{path}:{line.number}")
            digests.append(_digest(key))
            if progress and len(digests) % _TELL_EVERY == 0:
                progress("bytes of the input checked", packed.tell(), total)
            yield line._replace(content=b""), key

    with read_errors(path), open_bytes(path) as file:
        shards = list(cut(checked(file), size, ending))
    if not shards:
        raise DataError(f"{path}: is empty; write one object a line, with '_id' and 'text'")
    _refuse_twice(path, kind, digests)
    return shards


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _refuse_twice(path: Path, kind: str, digests: array[int]) -> None:
    """Raise DataError when an id comes twice. Digests that do not differ are looked at again, as ids."""
    ordered = np.sort(np.frombuffer(digests, dtype=np.uint64))
    alike = {int(one) for one in ordered[1:][ordered[1:] == ordered[:-1]]}
    if not alike:
        return
    seen: dict[str, int] = {}
    with read_errors(path), open_bytes(path) as file:
        for line in lines_of(file):
            key, _ = entry(line.content, kind, f"{path}:{line.number}")
            if _digest(key) in alike and seen.setdefault(key, line.number) != line.number:
                raise DataError(
                    f"{path}:{line.number}: the id {key!r} comes twice, first in line {seen[key]}; "
                    "ids must be unique"
                )


class Source:
    """Reads shards of a file that `scan` has cut. A gzipped file is read on from where the last shard ended.

    Args:
        path: the file.
        kind: "documents" or "queries".
    """

    def __init__(self, path: Path, kind: str):
        self.path, self.kind = path, kind
        self._file: BinaryIO | None = None

    def read(self, shard: Shard) -> tuple[list[str], list[str]]:
        """Ids and texts of a shard.

        Raises:
            DataError: the file is not the one that was cut.
        """
        with read_errors(self.path):
            if self._file is None:
                self._file = open_bytes(self.path)
            self._file.seek(shard.start)
            content = self._file.read(shard.end - shard.start)
        found = [
            entry(line.content, self.kind, f"{self.path}:{line.number}")
            for line in lines_of(content.split(b"\n"), shard.line)
        ]
        ids, texts = [key for key, _ in found], [text for _, text in found]
        if [len(ids), *ids[:1], *ids[-1:]] != [shard.rows, shard.first_id, shard.last_id]:
            raise DataError(f"{self.path}: changed while it was encoded; begin again in another folder")
        return ids, texts
