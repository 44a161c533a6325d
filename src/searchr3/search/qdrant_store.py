"""A store in Qdrant: a collection of chunks with vectors and words, one of records beside it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from searchr3.errors import SearchR3Error, first_line
from searchr3.search.store import Facts, FileRecord, Filter, Found, Row
from searchr3.search.words import index_words

EXACT = 200_000  # points up to which every vector is looked at
_FACTS, _LEASE = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("facts", "lease"))
_LEASE_SECONDS = 600.0  # after which a writer that says nothing is held to be gone
_LISTED = 200
_PAGE = 1000
_SENT = 256  # points in one request, of which a server takes 32 MB
_VECTOR, _WORDS = "text", "words"
_K1, _B, _MEAN_WORDS = 1.2, 0.75, 100  # of BM25; Qdrant does not know the mean length
_PAYLOAD = ("path", "version", "number", "kind", "text", "heading", "first", "last", "page")


class QdrantStore:
    """A `Store` in the collections NAME and NAME-files of a Qdrant server.

    The words' BM25 is Qdrant's own: idf by the server, the rest of the formula in the points' sparse vectors,
    with a fixed mean length.
    """

    def __init__(self, client: QdrantClient, collection: str, name: str | None = None) -> None:
        self.client, self.chunks, self.records = client, collection, f"{collection}-files"
        self.name = name or collection
        self._owner, self._leased = "", 0.0  # while it writes: whose lease it is, and when it was renewed

    @classmethod
    def at(cls, url: str) -> QdrantStore:
        """The collection at `http://host:6333/collection`; its key is in QDRANT_API_KEY.

        Raises:
            SearchR3Error: the URL names no collection, or nothing answers there.
        """
        try:
            parts = urlsplit(url)
            host, port, collection = parts.hostname, parts.port, parts.path.strip("/")
        except ValueError:  # no such port, half an IPv6 address
            host = port = collection = None
        if not host or not collection or "/" in collection:
            raise SearchR3Error(
                f"{url}: give Qdrant's address and a collection, as http://localhost:6333/notes"
            )
        shown = f"[{host}]" if ":" in host else host
        server = f"{parts.scheme}://{shown}:{port or (443 if parts.scheme == 'https' else 6333)}"
        client = QdrantClient(
            url=server, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False
        )
        store = cls(client, collection, url)
        with store._told():
            client.get_collections()
        return store

    def facts(self) -> Facts | None:
        with self._told():
            if not self.client.collection_exists(self.records):
                return None
            found = self.client.retrieve(self.records, [_FACTS])
        if not found:
            return None
        try:
            return Facts.model_validate_json((found[0].payload or {})["facts"])
        except (KeyError, ValidationError):
            raise SearchR3Error(f"{self.name}: no collection of searchr3; choose another name") from None

    def remember(self, facts: Facts) -> None:
        known = self.facts()
        with self._told():
            if self.client.collection_exists(self.chunks):
                if not known and self.client.count(self.chunks).count:
                    raise SearchR3Error(f"{self.name}: a collection of something else; choose another name")
            elif known:
                raise SearchR3Error(
                    f"{self.name}: its chunks are gone; delete the collection {self.records} and index anew"
                )
            else:
                self.client.create_collection(
                    self.chunks,
                    vectors_config={
                        _VECTOR: models.VectorParams(size=facts.dimension, distance=models.Distance.DOT)
                    },
                    sparse_vectors_config={_WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                )
                for field in ("path", "version", "kind"):
                    self.client.create_payload_index(
                        self.chunks, field, field_schema=models.PayloadSchemaType.KEYWORD
                    )
            self._make_records()
            self._upsert(self.records, [_point(_FACTS, {"facts": facts.model_dump_json()})])

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        """A lease in the records, renewed by every sign.

        It is taken over when its process on this machine is gone, or after ten minutes without a sign.
        """
        with self._told():
            self._make_records()
        lease = self._lease()
        fresh = time.time() - float(lease.get("time", 0)) < _LEASE_SECONDS
        gone = lease and lease["host"] == socket.gethostname() and not _alive(int(lease["process"]))
        if lease and fresh and not gone:
            raise SearchR3Error(
                f"{self.name}: another `searchr3 index` is at work there, on {lease['host']}; wait for it"
                ", or ten minutes if it was killed"
            )
        self._owner = uuid.uuid4().hex
        self._take()
        try:
            yield self._sign
        finally:
            if self._lease().get("owner") == self._owner:
                with self._told():
                    self.client.delete(self.records, models.PointIdsList(points=[_LEASE]), wait=True)
            self._owner = ""

    def files(self, paths: Collection[str] | None = None) -> dict[str, FileRecord]:
        payloads: list[dict[str, Any]] = []
        with self._told():
            if paths is None:
                payloads = [payload for payload, _ in self._all(self.records, None) if "path" in payload]
            else:
                asked = sorted(set(paths))
                for some in (asked[i : i + _PAGE] for i in range(0, len(asked), _PAGE)):
                    found = self.client.retrieve(self.records, [_record_id(path) for path in some])
                    payloads += [point.payload or {} for point in found]
        records = [FileRecord(**payload) for payload in payloads]
        return {record.path: record for record in sorted(records, key=lambda record: record.path)}

    def put(self, records: Sequence[FileRecord]) -> None:
        self._sign()
        with self._told():
            self._upsert(self.records, [_point(_record_id(one.path), vars(one)) for one in records])

    def drop(self, paths: Sequence[str]) -> None:
        if paths:
            with self._told():
                ids: list[Any] = [_record_id(path) for path in paths]
                self.client.delete(self.records, models.PointIdsList(points=ids), wait=True)

    def add(self, rows: Sequence[Row]) -> None:
        with self._told():
            self._upsert(self.chunks, [_chunk_point(row) for row in rows])

    def rows(self, versions: Mapping[str, str]) -> list[Row]:
        found: list[Row] = []
        for some in _parts(versions):
            either = models.Filter(should=[_version(path, version) for path, version in some])
            with self._told():
                found += [_row(payload, vector) for payload, vector in self._all(self.chunks, either, True)]
        return sorted(found, key=lambda row: (row.path, row.number))

    def remove(self, versions: Mapping[str, str]) -> None:
        for some in _parts(versions):
            others = [
                models.Filter(must=[_is("path", path)], must_not=[_is("version", version)])
                for path, version in some
            ]
            with self._told():
                selector = models.FilterSelector(filter=models.Filter(should=list(others)))
                self.client.delete(self.chunks, selector, wait=True)

    def nearest(self, vector: np.ndarray, k: int, among: Filter) -> list[Found]:
        return self._query(vector.astype(float).tolist(), _VECTOR, k, among)

    def matching(self, words: Sequence[str], k: int, among: Filter) -> list[Found]:
        if not words:
            return []
        counts = Counter(_term(word) for word in words)
        query = models.SparseVector(indices=list(counts), values=[float(count) for count in counts.values()])
        return self._query(query, _WORDS, k, among)

    def settle(self) -> None:
        """Qdrant does so by itself."""

    def count(self) -> int:
        with self._told():
            return self.client.count(self.chunks, exact=True).count

    def close(self) -> None:
        self.client.close()

    def _query(self, query: Any, using: str, k: int, among: Filter) -> list[Found]:
        chosen: list[Any] = [
            models.FieldCondition(key=field, match=models.MatchAny(any=sorted(wanted)))
            for field, wanted in (("path", among.paths), ("kind", among.kinds))
            if wanted is not None
        ]
        if any(wanted is not None and not wanted for wanted in (among.paths, among.kinds)):
            return []
        with self._told():
            exact = using == _VECTOR and self.client.count(self.chunks, exact=False).count <= EXACT
            points = self.client.query_points(
                self.chunks, query=query, using=using, limit=k, with_payload=True, with_vectors=[_VECTOR],
                query_filter=models.Filter(must=chosen) if chosen else None,
                search_params=models.SearchParams(exact=True) if exact else None,
            ).points  # fmt: skip
        found = [Found(_row(point.payload or {}, point.vector), float(point.score)) for point in points]
        return sorted(found, key=lambda one: (-one.score, one.row.path, one.row.number))

    def _all(
        self, collection: str, among: models.Filter | None, vectors: bool = False
    ) -> Iterator[tuple[dict[str, Any], Any]]:
        offset: Any = None
        while True:
            points, offset = self.client.scroll(
                collection, among, limit=_PAGE, offset=offset, with_payload=True,
                with_vectors=[_VECTOR] if vectors else False,
            )  # fmt: skip
            yield from ((point.payload or {}, point.vector) for point in points)
            if offset is None:
                return

    def _make_records(self) -> None:
        if not self.client.collection_exists(self.records):
            self.client.create_collection(self.records, vectors_config={})

    def _upsert(self, collection: str, points: Sequence[models.PointStruct]) -> None:
        for start in range(0, len(points), _SENT):
            self.client.upsert(collection, list(points[start : start + _SENT]), wait=True)

    def _lease(self) -> dict[str, Any]:
        with self._told():
            found = self.client.retrieve(self.records, [_LEASE])
        return (found[0].payload or {}) if found else {}

    def _take(self) -> None:
        self._leased = time.time()
        lease = {"host": socket.gethostname(), "process": os.getpid(), "owner": self._owner}
        with self._told():
            self._upsert(self.records, [_point(_LEASE, {**lease, "time": self._leased})])

    def _sign(self) -> None:
        """Renew our lease, if it is time. SearchR3Error: it is another's by now."""
        if self._owner and time.time() - self._leased > _LEASE_SECONDS / 10:
            if self._lease().get("owner") != self._owner:
                raise SearchR3Error(
                    f"{self.name}: another `searchr3 index` has taken over, as this one gave no sign for ten "
                    "minutes; start it again when that one is done"
                )
            self._take()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client says, in one line."""
        try:
            yield
        except SearchR3Error:
            raise
        except Exception as error:  # of the client, of HTTP below it, of the server
            raise SearchR3Error(
                f"{self.name}: Qdrant does not do it ({first_line(error)}); check address, key and server"
            ) from error


def _point(key: str, payload: Mapping[str, Any]) -> models.PointStruct:
    return models.PointStruct(id=key, vector={}, payload=dict(payload))


def _chunk_point(row: Row) -> models.PointStruct:
    words = Counter(_term(word) for word in index_words(f"{row.heading}\n{row.text}"))
    length = _K1 * (1 - _B + _B * words.total() / _MEAN_WORDS)
    saturated = [count * (_K1 + 1) / (count + length) for count in words.values()]
    vector: dict[str, Any] = {
        _VECTOR: np.asarray(row.vector, dtype=np.float32).tolist(),
        _WORDS: models.SparseVector(indices=list(words), values=saturated),
    }
    key = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{row.path}\n{row.version}\n{row.number}"))
    return models.PointStruct(id=key, vector=vector, payload={name: getattr(row, name) for name in _PAYLOAD})


def _row(payload: Mapping[str, Any], vector: Any) -> Row:
    held = np.asarray(vector[_VECTOR], dtype=np.float32)
    return Row(**{name: payload[name] for name in _PAYLOAD}, vector=held)


def _record_id(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, path))


def _term(word: str) -> int:
    """A number for a word; of 4 billion, so that two words hardly ever share one."""
    return int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "big")


def _is(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _version(path: str, version: str) -> models.Filter:
    return models.Filter(must=[_is("path", path), _is("version", version)])


def _parts(versions: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    pairs = sorted(versions.items())
    return (pairs[i : i + _LISTED] for i in range(0, len(pairs), _LISTED))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
