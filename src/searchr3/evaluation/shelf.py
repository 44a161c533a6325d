"""One file of what a model computed, and how long it took: SQLite, for several processes at once.

Each `put` is one transaction, on the disk when it returns. The journal is SQLite's plain one, not WAL: a
model has one file, which may lie on a disk that several machines share.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from searchr3.errors import SearchR3Error
from searchr3.files import disk_errors

_PATIENCE = 60.0  # seconds to wait for another process, which writes for some milliseconds
_PRIMARY = 0xFF  # the part of SQLite's error codes that tells the kind
_TABLE = """CREATE TABLE IF NOT EXISTS entries
    (key BLOB PRIMARY KEY, value BLOB NOT NULL, seconds REAL NOT NULL, seal BLOB NOT NULL)"""


class Entry(NamedTuple):
    """What was computed, and the seconds that it took then."""

    value: bytes
    seconds: float


class Shelf:
    """Entries by key, on disk. An entry that was damaged there is as good as none.

    Raises:
        SearchR3Error: the file is damaged as a whole, or cannot be written; so may all calls.
    """

    def __init__(self, path: Path):
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._base = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(_TABLE)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, of those asked for."""
        found, damaged = {}, 0
        with self._told():
            for key in keys:
                row = self._base.execute(
                    "SELECT value, seconds, seal FROM entries WHERE key = ?", (key,)
                ).fetchone()
                if row and _whole(key, *row):
                    found[key] = Entry(row[0], row[1])
                else:
                    damaged += row is not None
        if damaged:
            logging.getLogger(__name__).warning(
                "%s: %d entries are damaged and are computed again; is the disk sound?", self.path, damaged
            )
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep all of them or none; the disk has them on return."""
        rows = [(key, *entry, _seal(key, *entry)) for key, entry in entries.items()]
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._base.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # a full disk may have ended it already
                    self._base.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._base.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite says into one line."""
        try:
            yield
        except sqlite3.Error as error:
            kind = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
            if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                fault = f"is damaged ({error}); remove the file, which costs nothing but time"
            else:
                fault = f"cannot be used ({error}); choose another place with --cache, or use --no-cache"
            raise SearchR3Error(f"{self.path}: the cache {fault}") from None


def _seal(key: bytes, value: bytes, seconds: float) -> bytes:
    """Changes with any bit of an entry: SQLite itself would not see one that changed within a row."""
    return blake2b(b"".join((key, value, struct.pack("<d", seconds))), digest_size=8).digest()


def _whole(key: bytes, value: object, seconds: object, seal: object) -> bool:
    return isinstance(value, bytes) and isinstance(seconds, float) and seal == _seal(key, value, seconds)
