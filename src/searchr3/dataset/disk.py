"""Data sets that are larger than memory: documents, queries and judgements lie in temporary databases.

A database is SQLite's temporary kind: a nameless file in the system's folder for such (`TMPDIR`), which
disappears with the process. Memory holds at most 32 MB of each, however many rows there are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from searchr3.dataset.lazy import Lazy, View
from searchr3.dataset.types import Document, Query
from searchr3.errors import SearchR3Error

T = TypeVar("T")

LARGE = 2**28
"""Bytes of text from which a data set stays on disk unless told otherwise; in memory it takes more."""

MANY = 300_000
"""Documents from which a data set of the Hub, whose bytes are not known beforehand, stays on disk."""

_CACHE = 32 * 2**10  # KiB of each database that stay in memory
_json = json.JSONEncoder(ensure_ascii=False).encode
_UNZIPPED = 4  # bytes of text to a byte of gzip, roughly


class Table(MutableMapping[str, T]):
    """A dict on disk. Keys keep their order and have numbers, from 0; none is ever taken out.

    Args:
        pack: a value → what JSON can hold.
        unpack: the way back.
    """

    def __init__(self, pack: Callable[[T], Any], unpack: Callable[[Any], T]):
        self._pack, self._unpack = pack, unpack
        self._base = sqlite3.connect("", check_same_thread=False)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE}"):
            self._base.execute(f"PRAGMA {setting}")
        self._base.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key TEXT UNIQUE, value TEXT)")

    def __getitem__(self, key: str) -> T:
        found = self._one("SELECT value FROM rows WHERE key = ?", key)
        if found is None:
            raise KeyError(key)
        return self._unpack(json.loads(found))

    def __setitem__(self, key: str, value: T) -> None:
        text = _json(self._pack(value))
        with _full_disk():
            self._base.execute(
                "INSERT INTO rows (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, text),
            )

    def __delitem__(self, key: str) -> None:
        raise TypeError("rows of a table are never taken out: their numbers stay")

    def __contains__(self, key: object) -> bool:
        return self._one("SELECT 1 FROM rows WHERE key = ?", key) is not None

    def __len__(self) -> int:
        return self._one("SELECT max(number) FROM rows") or 0

    def __iter__(self) -> Iterator[str]:
        return (key for (key,) in self._base.execute("SELECT key FROM rows ORDER BY number"))

    def items(self) -> ItemsView[str, T]:
        return _Items(self)

    def key(self, number: int) -> str:
        """The key of a number below `len`."""
        found = self._one("SELECT key FROM rows WHERE number = ?", number + 1)
        if found is None:
            raise IndexError(number)
        return found

    def number(self, key: str) -> int | None:
        """The number of a key; None where there is no such."""
        found = self._one("SELECT number FROM rows WHERE key = ?", key)
        return None if found is None else found - 1

    def copy(self) -> Table[T]:
        """Another table of the same rows."""
        other = Table(self._pack, self._unpack)
        with _full_disk():
            rows = self._base.execute("SELECT number, key, value FROM rows ORDER BY number")
            other._base.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        return other

    def _one(self, query: str, *asked: Any) -> Any:
        try:
            found = self._base.execute(query, asked).fetchone()
        except UnicodeEncodeError:  # half a character: no key has one
            return None
        except sqlite3.OperationalError as error:  # to read, it may have to write out what memory held
            raise _no_room(error) from None
        return None if found is None else found[0]


class _Items(ItemsView[str, T]):
    """Keys and values in one pass."""

    _mapping: Table[T]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        table = self._mapping
        rows = table._base.execute("SELECT key, value FROM rows ORDER BY number")
        return ((key, table._unpack(json.loads(value))) for key, value in rows)


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _no_room(error) from None


def _no_room(error: sqlite3.OperationalError) -> SearchR3Error:
    return SearchR3Error(
        f"the folder for temporary files cannot be written ({error}); free some space, or set TMPDIR to "
        "another folder"
    )


@dataclass(frozen=True)
class Shelves:
    """Where a reader puts what it reads; each call makes an empty shelf."""

    documents: Callable[[], MutableMapping[str, Document]] = dict
    queries: Callable[[], MutableMapping[str, Query]] = dict
    judgements: Callable[[], MutableMapping[str, dict[str, int]]] = dict


MEMORY = Shelves()
DISK = Shelves(
    lambda: Table(lambda one: [one.title, one.text, dict(one.metadata)], lambda row: Document(*row)),
    lambda: Table(
        lambda one: [one.text, one.reasoning, one.negatives], lambda row: Query(row[0], row[1], tuple(row[2]))
    ),
    lambda: Table(lambda grades: grades, lambda row: row),
)


def shelves_for(files: Sequence[Path], on_disk: bool | None) -> Shelves:
    """Where the content of `files` is kept: as told, by default on disk if it is large."""
    if on_disk is None:
        there = [path for path in files if path.is_file()]
        sizes = (path.stat().st_size * (_UNZIPPED if path.suffix == ".gz" else 1) for path in there)
        on_disk = sum(sizes) >= LARGE
    return DISK if on_disk else MEMORY


def writable(mapping: Mapping[str, T]) -> MutableMapping[str, T]:
    """A copy to be changed, on disk where the mapping is."""
    return mapping.copy() if isinstance(mapping, Table) else dict(mapping)


def numbered(mapping: Mapping[str, Any]) -> tuple[Sequence[str], Callable[[str], int | None]]:
    """The keys by number, and the number of a key: None for one that is not there.

    Of a view on a table hidden keys keep their numbers, which nobody is told.
    """
    table = mapping.source if isinstance(mapping, View) else mapping
    if isinstance(table, Table):
        return Lazy(len(table), table.key), lambda key: table.number(key) if key in mapping else None
    keys = list(mapping)
    return keys, {key: number for number, key in enumerate(keys)}.get
