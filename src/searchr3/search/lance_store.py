"""A store in a folder on this disk: rows and full text in LanceDB, records in SQLite beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import torch
from lancedb.index import FTS
from lancedb.query import MatchQuery

from searchr3.errors import SearchR3Error, first_line
from searchr3.files import LOCK, check_writable, disk_errors, full_disk, occupied
from searchr3.locks import hold
from searchr3.ranking import highest
from searchr3.search.ledger import Ledger
from searchr3.search.store import Facts, Filter, Found, Row
from searchr3.search.words import index_words

LEDGER = "files.sqlite"
IN_MEMORY = 2**29  # bytes of vectors that are searched in memory, exactly: half a million of 256 numbers
_TABLE = "chunks"
_LISTED = 200  # paths in one condition
_KEPT = timedelta(minutes=10)  # how long what was replaced stays on the disk, for those who are reading it
_COLUMNS = ("path", "version", "number", "kind", "text", "heading", "first", "last", "page", "vector")
_TYPES = (pa.string(), pa.string(), pa.int32(), pa.string(), pa.string(), pa.string(), pa.int32(), pa.int32())


class _Held:
    """All rows in memory: a table without its vectors, and these as a matrix."""

    def __init__(self, table: pa.Table) -> None:
        self.vectors = _matrix(table)
        self.table = table.drop_columns(["vector"]).combine_chunks()
        self._codes = {name: _codes(self.table[name]) for name in ("path", "kind")}

    def nearest(self, vector: np.ndarray, k: int, among: Filter) -> list[Found]:
        # by torch's threads, which have just embedded the query: numpy's or faiss' would be in their way
        query = torch.from_numpy(np.array(vector, dtype=np.float32))
        scores = torch.mv(torch.from_numpy(self.vectors), query).numpy()
        rows = self._chosen(among)
        best = highest(scores, k) if rows is None else rows[highest(scores[rows], k)]
        found = _as_rows(self.table.take(best), self.vectors[best])
        return [Found(row, score) for row, score in zip(found, scores[best].tolist(), strict=True)]

    def _chosen(self, among: Filter) -> np.ndarray | None:
        """Numbers of the rows that a filter lets through; None: all."""
        chosen = None
        for name, wanted in (("path", among.paths), ("kind", among.kinds)):
            if wanted is not None:
                codes, values = self._codes[name]
                known = np.array([value in wanted for value in values], dtype=bool)
                let = known[codes] if len(known) else np.zeros(len(codes), dtype=bool)
                chosen = let if chosen is None else chosen & let
        return None if chosen is None else np.flatnonzero(chosen)


class LanceStore:
    """A `Store` in the folder `place`.

    Up to half a GB of vectors are held in memory, with their texts, once a search was made, and searched
    exactly: ten times quicker than by LanceDB, which reads them for each question. More are left to it, with
    an index that `settle` makes.

    Raises:
        SearchR3Error: there is none and `create` is False, or the folder is something else.
    """

    def __init__(self, place: str | Path, create: bool = False) -> None:
        self.folder = Path(place)
        self.name = str(place)
        there = (self.folder / LEDGER).is_file()
        if not there and not create:
            raise SearchR3Error(
                f"{place}: no store; make one with `searchr3 index PATH --store {place} --model MODEL`"
            )
        if not there and occupied(self.folder):
            raise SearchR3Error(f"{place}: exists already and is no store; choose another --store")
        if create:
            check_writable(self.folder)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(self.folder / LEDGER)
        self._base = lancedb.connect(self.folder, read_consistency_interval=timedelta(0))
        self._opened: Any = None
        self._held: _Held | None = None
        self._read_at: tuple[int, int] | None = None  # the ledger's mark then
        self._lock = Lock()
        self.facts, self.files = self._ledger.facts, self._ledger.files
        self.put, self.drop = self._ledger.put, self._ledger.drop

    def remember(self, facts: Facts) -> None:
        with self._told():
            if self.facts() is None and _TABLE not in self._base.list_tables().tables:
                self._base.create_table(_TABLE, schema=_schema(facts.dimension))
            if not self._table.list_indices():
                self._table.create_index("words", config=_full_text())
        self._ledger.remember(facts)

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        with disk_errors(self.folder):
            lock = (self.folder / LOCK).open("w")
        with lock:
            hold(lock, f"{self.name}: another `searchr3 index` is at work there; wait for it")
            yield lambda: None

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            with self._told():
                self._table.add(_as_table(rows, self._table.schema))

    def rows(self, versions: Mapping[str, str]) -> list[Row]:
        found: list[Row] = []
        for some in _parts(versions):
            with self._told():
                part = (
                    self._table.search().where(_either(some, "=")).select([*_COLUMNS]).limit(None).to_arrow()
                )
            found += _as_rows(part)
        return sorted(found, key=lambda row: (row.path, row.number))

    def remove(self, versions: Mapping[str, str]) -> None:
        for some in _parts(versions):
            with self._told():
                self._table.delete(_either(some, "!="))

    def nearest(self, vector: np.ndarray, k: int, among: Filter) -> list[Found]:
        with self._told():
            if (held := self._all_rows()) is not None:
                return held.nearest(vector, k, among)
            query = self._table.search(vector).distance_type("dot").refine_factor(4).limit(k)
            return self._found(query, among, lambda part: 1 - part["_distance"].to_numpy())

    def matching(self, words: Sequence[str], k: int, among: Filter) -> list[Found]:
        if not words:
            return []
        with self._told():
            query = self._table.search(MatchQuery(" ".join(words), "words"), query_type="fts").limit(k)
            return self._found(query, among, lambda part: part["_score"].to_numpy())

    def settle(self) -> None:
        with self._told():
            self._table.optimize(cleanup_older_than=_KEPT)
            facts = self.facts()
            large = facts and self.count() * facts.dimension * 4 > IN_MEMORY
            if large and not any("vector" in index.columns for index in self._table.list_indices()):
                from lancedb.index import IvfPq

                self._table.create_index("vector", config=IvfPq(distance_type="dot"))

    def count(self) -> int:
        with self._told():
            return self._table.count_rows()

    def close(self) -> None:
        self._ledger.close()
        self._held = self._opened = None

    @property
    def _table(self) -> Any:
        if self._opened is None:
            if _TABLE not in self._base.list_tables().tables:
                raise SearchR3Error(f"{self.name}: its chunks are gone; remove the folder and index anew")
            self._opened = self._base.open_table(_TABLE)
        return self._opened

    def _all_rows(self) -> _Held | None:
        """All rows as they are now; None if they are too many to be held."""
        with self._lock:
            mark = self._ledger.mark()
            if mark != self._read_at:
                self._held = None  # before the new ones are read: both would need the memory of both
                facts = self.facts()
                if facts and self._table.count_rows() * facts.dimension * 4 <= IN_MEMORY:
                    self._held = _Held(self._table.search().select([*_COLUMNS]).limit(None).to_arrow())
                self._read_at = mark
            return self._held

    def _found(self, query: Any, among: Filter, scores: Any) -> list[Found]:
        conditions = [
            f"{column} IN ({', '.join(map(_quoted, sorted(wanted)))})" if wanted else "false"
            for column, wanted in (("path", among.paths), ("kind", among.kinds))
            if wanted is not None
        ]
        if conditions:
            query = query.where(" AND ".join(conditions), prefilter=True)
        part = query.to_arrow()
        found = [Found(row, float(score)) for row, score in zip(_as_rows(part), scores(part), strict=True)]
        return sorted(found, key=lambda one: (-one.score, one.row.path, one.row.number))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """LanceDB's errors in one line."""
        try:
            with disk_errors(self.folder):
                yield
        except SearchR3Error:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            if full_disk(error):
                raise
            raise SearchR3Error(
                f"{self.name}: cannot be used ({first_line(error)}); "
                "check the disk, or index anew into another --store"
            ) from error


def _schema(dimension: int) -> pa.Schema:
    fields = [*zip(_COLUMNS[:8], _TYPES, strict=True), ("page", pa.bool_())]
    return pa.schema([*fields, ("vector", pa.list_(pa.float32(), dimension)), ("words", pa.string())])


def _full_text() -> FTS:
    """Words are split by us, so that they are the same in every store."""
    return FTS(
        base_tokenizer="whitespace",
        lower_case=False,
        stem=False,
        remove_stop_words=False,
        ascii_folding=False,
        with_position=False,
        max_token_length=None,
    )


def _as_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _COLUMNS[:-1]}
    flat = np.concatenate([np.asarray(row.vector, dtype=np.float32) for row in rows])
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, len(rows[0].vector))
    columns["words"] = [" ".join(index_words(f"{row.heading}\n{row.text}")) for row in rows]
    return pa.table(columns, schema=schema)


def _as_rows(part: pa.Table, vectors: np.ndarray | None = None) -> list[Row]:
    columns = [part[name].to_pylist() for name in _COLUMNS[:-1]]
    vectors = _matrix(part) if vectors is None else vectors
    return [Row(*values) for values in zip(*columns, vectors, strict=True)]


def _matrix(part: pa.Table) -> np.ndarray:
    column = part["vector"]
    found = np.empty((len(part), column.type.list_size), dtype=np.float32)
    start = 0
    for chunk in column.chunks:
        found[start : start + len(chunk)] = chunk.flatten().to_numpy().reshape(len(chunk), -1)
        start += len(chunk)
    return found


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The different values of a column, and for each row the place of its own among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _parts(versions: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    pairs = sorted(versions.items())
    return (pairs[i : i + _LISTED] for i in range(0, len(pairs), _LISTED))


def _either(versions: Collection[tuple[str, str]], sign: str) -> str:
    return " OR ".join(
        f"(path = {_quoted(path)} AND version {sign} {_quoted(version)})" for path, version in versions
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
