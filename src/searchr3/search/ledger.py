"""A store's facts and the records of its files, in one SQLite file: whole changes, whoever is killed when."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from searchr3.errors import SearchR3Error
from searchr3.files import disk_errors
from searchr3.search.store import Facts, FileRecord

_PATIENCE = 60.0  # seconds to wait for another process, which writes for some milliseconds
_ASKED = 500  # paths in one question
_TABLES = (
    "CREATE TABLE IF NOT EXISTS facts (id INTEGER PRIMARY KEY CHECK (id = 0), value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, root TEXT NOT NULL, version TEXT NOT NULL,
       chunks INTEGER NOT NULL, clean INTEGER NOT NULL) WITHOUT ROWID""",
)


class Ledger:
    """Facts and records on disk.

    Raises:
        SearchR3Error: the file is damaged, or cannot be written; so may all calls.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            # a server searches in several threads; each statement here is a transaction of its own
            self._base = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            for table in _TABLES:
                self._base.execute(table)

    def facts(self) -> Facts | None:
        with self._told():
            row = self._base.execute("SELECT value FROM facts").fetchone()
        if row is None:
            return None
        try:
            return Facts.model_validate_json(row[0])
        except ValidationError:
            raise SearchR3Error(
                f"{self.path}: made by another version of searchr3; index anew into another --store"
            ) from None

    def remember(self, facts: Facts) -> None:
        with self._told():
            self._base.execute("INSERT OR REPLACE INTO facts VALUES (0, ?)", (facts.model_dump_json(),))

    def files(self, paths: Collection[str] | None = None) -> dict[str, FileRecord]:
        found: list[tuple[str, str, str, int, int]] = []
        with self._told():
            if paths is None:
                found = self._base.execute("SELECT * FROM files ORDER BY path").fetchall()
            else:
                asked = sorted(set(paths))
                for some in (asked[i : i + _ASKED] for i in range(0, len(asked), _ASKED)):
                    marks = ",".join("?" * len(some))
                    found += self._base.execute(f"SELECT * FROM files WHERE path IN ({marks})", some)
        return {
            path: FileRecord(path, root, version, chunks, bool(clean))
            for path, root, version, chunks, clean in found
        }

    def put(self, records: Sequence[FileRecord]) -> None:
        rows = [(one.path, one.root, one.version, one.chunks, one.clean) for one in records]
        self._all("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def drop(self, paths: Sequence[str]) -> None:
        self._all("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def mark(self) -> tuple[int, int]:
        """Another one after any change, by this process or another."""
        with self._told():
            (version,) = self._base.execute("PRAGMA data_version").fetchone()
        return version, self._base.total_changes

    def close(self) -> None:
        self._base.close()

    def _all(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Do a statement for all rows, or for none."""
        if not rows:
            return
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._base.executemany(statement, rows)
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # a full disk may have ended it already
                    self._base.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with disk_errors(self.path):
                yield
        except sqlite3.Error as error:
            raise SearchR3Error(
                f"{self.path}: cannot be used ({error}); check the disk, or index anew into another --store"
            ) from error
