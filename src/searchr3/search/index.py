"""Bringing a store up to date with folders: only what has changed is encoded, and what is gone goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.errors import DataError, SearchR3Error
from searchr3.search.chunks import Chunk, fitted
from searchr3.search.documents import File, Skipped, find_files
from searchr3.search.encoder import Encoder, refuse_other
from searchr3.search.readers import read
from searchr3.search.roots import Plan, below, plan
from searchr3.search.store import Facts, FileRecord, Row, Store
from searchr3.search.summary import Summary, counted

Progress = Callable[[str, int, int], None]

BATCH = 256  # chunks that are encoded and written together: what Ctrl-C loses at most
_WINDOW = 4  # batches that are looked at, so that those of a batch are of like length: less is padded
_COPIED = 100  # files whose rows are copied together
_READING = 1  # version of how files are read and chunked: another one means that all are read anew


@dataclass
class _Job:
    """A file whose chunks are to be encoded.

    Attributes:
        old: its record so far, if any.
        record: that which it gets once all its chunks are in the store.
        left: chunks that are not, as far as is known; `read` once all are.
    """

    file: File
    old: FileRecord | None
    record: FileRecord
    left: int = 0
    read: bool = False
    marked: bool = False

    @property
    def rerooted(self) -> bool:
        """Whether only its root is another one."""
        return self.old is not None and self.old.version == self.record.version


def index(
    store: Store,
    facts: Facts,
    paths: Sequence[str | Path],
    encoder: Callable[[], Encoder[Any]],
    progress: Progress | None = None,
    batch: int = BATCH,
) -> Summary:
    """Bring a store up to date with files and folders, see `documents.find_files`.

    What is not below these paths stays as it is. Whoever is killed at any moment leaves a store that is
    right to search; the next indexing goes on with what was written.

    Args:
        facts: of its model, and how to chunk; those that it is to remember.
        encoder: loads the model; called only if something is to be encoded.
        progress: called with what is done, how much of it, and how much there is.
        batch: chunks that are encoded and written together.

    Raises:
        SearchR3Error: a path is not there, another process writes, or the store cannot be used.
    """
    with store.writing() as sign:

        def at_work(what: str, done: int, of: int) -> None:
            sign()
            if progress:
                progress(what, done, of)

        if there := store.facts():  # another process may have been at work until now
            refuse_other(there, facts, store.name)
        looked = plan(there.roots if there else {}, paths)
        return _Indexing(store, facts, looked, encoder, at_work, batch).run()


def forget(store: Store, paths: Sequence[str | Path]) -> Summary:
    """Take files and folders out of a store, by their names in it; they need not exist.

    Raises:
        SearchR3Error: there is nothing of that name.
    """
    with store.writing():
        facts, records = store.facts(), store.files()
        names = {Path(path).as_posix().removeprefix("./").rstrip("/") or "/" for path in map(str, paths)}
        gone: list[FileRecord] = []
        for name in sorted(names):
            held = [one for path, one in records.items() if path == name or below(path, name)]
            if not held and not (facts and name in facts.roots):
                raise SearchR3Error(
                    f"{name}: nothing of that name in {store.name}; `searchr3 search` shows names"
                )
            gone += held
        _remove(store, gone)
        if facts:
            roots = {root: at for root, at in facts.roots.items() if not _within(root, names)}
            store.remember(facts.model_copy(update={"roots": roots}))
        store.settle()
        return counted(store, Summary(removed=len(gone)))


class _Indexing:
    def __init__(
        self,
        store: Store,
        facts: Facts,
        looked: Plan,
        encoder: Callable[[], Encoder[Any]],
        progress: Progress,
        batch: int,
    ) -> None:
        self.store, self.facts, self.looked, self.batch = store, facts, looked, batch
        self.progress = progress
        self.summary = Summary()
        self._load, self._loaded = encoder, list[Encoder[Any]]()
        self._buffer: list[tuple[_Job, int, Chunk, Any]] = []

    @property
    def encoder(self) -> Encoder[Any]:
        if not self._loaded:
            self._loaded.append(self._load())
        return self._loaded[0]

    def run(self) -> Summary:
        store, known = self.store, self.store.files()
        jobs, found = self._changed(known)
        versions = {one.version for one in known.values()}
        if any(job.record.version not in versions for job in jobs):
            _ = self.encoder  # a model that cannot be used is told before anything is changed
        store.remember(self.facts.model_copy(update={"roots": self.looked.roots}))
        covered = {path: one for path, one in known.items() if self.looked.covers(path, one.root)}
        gone = [one for path, one in covered.items() if path not in found]
        new = self._copied(jobs, known)  # from what is gone too: it may only have moved
        _remove(store, gone)
        self.summary.removed = len(gone)
        self._encode(new)
        self._sweep()
        moved = {name for name, at in self.looked.roots.items() if not Path(at).exists()}
        self.summary.missing = sorted(moved)
        if self.summary.added or self.summary.changed or gone:
            self.progress("made quick to search", 0, 1)
            store.settle()
        return counted(store, self.summary)

    def _changed(self, known: Mapping[str, FileRecord]) -> tuple[list[_Job], set[str]]:
        """The files to be encoded, and the names of all that stay in the store."""
        jobs: list[_Job] = []
        found: set[str] = set()
        seen = 0
        for one in find_files(self.looked.walks):
            if isinstance(one, Skipped):
                self._skip(one.name, one.why)
                if one.lost:  # nothing says that it has changed
                    found |= {path for path in known if path == one.name or below(path, one.name)}
                continue
            if one.name in found:
                continue
            try:
                version = self._version(one, one.place.read_bytes())
            except OSError as error:
                self._skip(one.name, f"cannot be read ({error.strerror})")
                found.add(one.name)
                continue
            found.add(one.name)
            seen += 1
            self.progress("files compared", seen, max(seen, len(known)))
            old, root = known.get(one.name), self.looked.root_of(one.root)
            if old and old.version == version and old.root == root:
                self.summary.unchanged += 1
            else:
                jobs.append(_Job(one, old, FileRecord(one.name, root, version, 0, True)))
        return jobs, found

    def _copied(self, jobs: Sequence[_Job], known: Mapping[str, FileRecord]) -> list[_Job]:
        """The jobs that are left once rows of files with the same content were taken over."""
        source = {one.version: one.path for one in known.values() if one.version}
        alike = [job for job in jobs if job.record.version in source]
        for start in range(0, len(alike), _COPIED):
            some = alike[start : start + _COPIED]
            rows: dict[str, list[Row]] = {}
            # one that is in the store with another root keeps its rows
            wanted = {source[job.record.version]: job.record.version for job in some}
            for row in self.store.rows(wanted):
                rows.setdefault(row.version, []).append(row)
            for job in some:
                self._mark([job])
                there = self._there(job)
                held = rows.get(job.record.version, [])
                kind = job.file.kind.name
                self.store.add(
                    [replace(row, path=job.file.name, kind=kind) for row in held if row.number not in there]
                )
                job.record = replace(job.record, chunks=len(held))
                self.summary.reused += 0 if job.rerooted else len(held)
            self._finish(some)
            self.progress("files taken over", start + len(some), len(alike))
        return [job for job in jobs if job.record.version not in source]

    def _encode(self, jobs: Sequence[_Job]) -> None:
        for number, job in enumerate(jobs):
            self.progress("files encoded", number, len(jobs))
            try:
                raw = job.file.place.read_bytes()
                job.record = replace(job.record, version=self._version(job.file, raw))  # as it is now
                chunks = list(self._chunks(job.file, raw))
            except (DataError, OSError) as error:
                why = error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
                self._skip(job.file.name, why)
                if job.old and isinstance(error, DataError):  # its old text is no longer there
                    _remove(self.store, [job.old])
                    self.summary.removed += 1
                continue
            job.record = replace(job.record, chunks=len(chunks))
            there = self._there(job)
            todo = [(place, *one) for place, one in enumerate(chunks) if place not in there]
            job.left = len(todo)
            if not todo:
                self._mark([job])
                self._finish([job])
            for place, chunk, rendered in todo:
                self._buffer.append((job, place, chunk, rendered))
                if len(self._buffer) >= _WINDOW * self.batch:
                    self._flush()
        self._flush()
        if jobs:
            self.progress("files encoded", len(jobs), len(jobs))

    def _chunks(self, file: File, raw: bytes) -> Iterator[tuple[Chunk, Any]]:
        for section in read(raw, file.kind.form):
            yield from fitted(section, file.kind, self.facts.size, self.encoder.render)

    def _flush(self) -> None:
        """Encode and write what has come together, batch by batch."""
        waiting = sorted(self._buffer, key=lambda one: len(one[2].text))
        self._buffer = []
        for start in range(0, len(waiting), self.batch):
            self._write(waiting[start : start + self.batch])

    def _write(self, waiting: Sequence[tuple[_Job, int, Chunk, Any]]) -> None:
        """One batch; files whose chunks are all there now are searched so."""
        vectors = self.encoder.encode([rendered for *_, rendered in waiting])
        jobs = list({id(job): job for job, *_ in waiting}.values())
        self._mark(jobs)
        pairs = zip(waiting, vectors, strict=True)
        rows = [_row(job, number, chunk, vector) for (job, number, chunk, _), vector in pairs]
        self.store.add(rows)
        self.summary.encoded += len(rows)
        for job, *_ in waiting:
            job.left -= 1
        self._finish([job for job in jobs if not job.left])

    def _mark(self, jobs: Sequence[_Job]) -> None:
        """Note that rows of new versions may be there, before they are."""
        new = [job for job in jobs if not job.marked]
        self.store.put(
            [
                replace(job.old, clean=False)
                if job.old
                else replace(job.record, version="", chunks=0, clean=False)
                for job in new
            ]
        )
        for job in new:
            job.marked = True

    def _finish(self, jobs: Sequence[_Job]) -> None:
        """From here on the new rows are searched."""
        self.store.put([replace(job.record, clean=job.old is None) for job in jobs])
        for job in jobs:
            if job.rerooted:
                self.summary.unchanged += 1
            elif job.old is None or not job.old.version:
                self.summary.added += 1
            else:
                self.summary.changed += 1

    def _there(self, job: _Job) -> set[int]:
        """Numbers of the chunks that an indexing which was killed has left."""
        if job.old is None or (job.old.clean and job.old.version != job.record.version):
            return set()
        return {row.number for row in self.store.rows({job.file.name: job.record.version})}

    def _sweep(self) -> None:
        """Remove rows that no record speaks of, where there may be some."""
        records = self.store.files().values()
        unclean = [one for one in records if not one.clean and self.looked.covers(one.path, one.root)]
        self.store.remove({one.path: one.version for one in unclean})
        self.store.put([replace(one, clean=True) for one in unclean if one.version])
        self.store.drop([one.path for one in unclean if not one.version])

    def _version(self, file: File, raw: bytes) -> str:
        """A name of a file's content and of how it is chunked; not of its place."""
        how = f"{_READING} {file.kind.name} {self.facts.size}\n"
        return sha256(how.encode() + raw).hexdigest()[:32]

    def _skip(self, name: str, why: str) -> None:
        self.summary.skipped[name] = why


def _row(job: _Job, number: int, chunk: Chunk, vector: np.ndarray) -> Row:
    return Row(
        job.file.name,
        job.record.version,
        number,
        job.file.kind.name,
        chunk.text,
        chunk.heading,
        chunk.first,
        chunk.last,
        chunk.page,
        vector,
    )


def _remove(store: Store, records: Sequence[FileRecord]) -> None:
    """Take files out: they are no longer searched from the first step on."""
    if records:
        store.put([replace(one, version="", clean=False) for one in records])
        store.remove({one.path: "" for one in records})
        store.drop([one.path for one in records])


def _within(root: str, names: set[str]) -> bool:
    return any(root == name or below(root, name) for name in names)
