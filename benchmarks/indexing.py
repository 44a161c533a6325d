"""Indexing own documents and searching them: what it costs over encoding alone, and what kills do to it.

    python benchmarks/indexing.py --output benchmarks/results/indexing.json

The documents are source files of the libraries installed here, as many as make 100,000 chunks, in a folder
on disk; the model is the bundled base with the embed token, untrained: what is measured does not hang on
what it has learnt.

`indexing_over_encoding`: wall time of `index` (reading, chunking, encoding, writing, making quick to search)
over that of `SearchR3.encode_document` alone on the same passages, both in this process, the model loaded.
The store must hold every passage with its vector afterwards; a sample is compared.

`search_p50_ms`: a whole question without thinking, in a process that has the store open: embedding the query,
searching all chunks, reading the hits. The first one, which reads all rows, stands by itself
(`search_first_ms`). `hybrid_p50_ms` with full text.

`chunks_lost_or_doubled`: a process indexes a smaller folder and is killed with SIGKILL at a random moment;
then the store is searched, files are changed, added and deleted, and the next process begins, and is killed
too. After the last one an indexing that nobody kills brings the store up to date, and its rows are compared
with the chunks of the files. `searches_failed` counts searches after a kill that raise, or show a file in
part.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from _result import arguments, write
from _timing import now

from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.preparation import bundled_base
from searchr3.progress import hush_transformers
from searchr3.search.chunks import SIZE, fitted
from searchr3.search.documents import File, find_files
from searchr3.search.encoder import ModelEncoder, identify
from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore
from searchr3.search.readers import read
from searchr3.search.search import StoreSearch
from searchr3.search.store import Filter

FULL = {"chunks": 100_000, "questions": 300, "kills": 20, "killed_chunks": 1500}
QUICK = {"chunks": 300, "questions": 20, "kills": 2, "killed_chunks": 100}


def documents(folder: Path, chunks: int, encoder: ModelEncoder, skip: int = 0) -> list[str]:
    """Copy source files into `folder` until they make so many chunks; returns the chunks' passages.

    Raises:
        SearchR3Error: there are not enough of them here.
    """
    passages: list[str] = []
    libraries = [Path(path) for path in sys.path if path.endswith("-packages")]
    sources = sorted(path for library in libraries for path in library.rglob("*.py"))
    random.Random(0).shuffle(sources)
    folder.mkdir(parents=True)
    for number, path in enumerate(sources):
        if number < skip:
            continue
        target = folder / f"{number // 1000:03}" / f"{number:06}.py"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        made = [passage for _, passage in chunks_of_file(target, encoder)]
        if len(passages) + len(made) > chunks:
            target.unlink()
            continue
        passages += made
        if len(passages) > 0.999 * chunks:
            return passages
    if len(passages) < 0.9 * chunks:
        raise SearchR3Error(f"the libraries here make {len(passages)} chunks, not {chunks}; install more")
    return passages


def chunks_of_file(path: Path, encoder: ModelEncoder) -> list[tuple[str, str]]:
    """Text and passage of each chunk of a file."""
    (one,) = find_files({str(path): path})
    if not isinstance(one, File):
        return []
    pairs: list[tuple[str, str]] = []
    try:
        for section in read(path.read_bytes(), one.kind.form):
            made = fitted(section, one.kind, SIZE, encoder.render)
            pairs += [(chunk.text, chunk.passage) for chunk, _ in made]
    except SearchR3Error:  # no text: `index` passes over it too
        return []
    return pairs


def speed(work: Path, model: Path, size: dict[str, int]) -> dict[str, float]:
    search = SearchR3(model)
    encoder = ModelEncoder(search)
    folder = work / "documents"
    passages = documents(folder, size["chunks"], encoder)
    search.encode_document(passages[:64])
    start = now()
    vectors = search.encode_document(passages)
    encoding = now() - start
    store = LanceStore(work / "store", create=True)
    start = now()
    summary = index(store, identify(model, size=SIZE), [folder], lambda: encoder)
    indexing = now() - start
    if (summary.chunks, summary.encoded) != (len(passages), len(passages)):
        raise SearchR3Error(f"{summary.chunks} chunks are in the store, not {len(passages)}")
    check(store, passages, vectors)
    start = now()
    again = index(store, identify(model, size=SIZE), [folder], lambda: encoder)
    unchanged = now() - start
    assert again.encoded == 0
    asked = StoreSearch(store, search)
    rng = random.Random(0)
    queries = [" ".join(rng.choice(passages).split()[:12]) for _ in range(size["questions"])]
    start = now()
    asked.ask(queries[0], reasoning=False)
    first = now() - start
    plain, hybrid = (milliseconds(asked, queries, mixed) for mixed in (False, True))
    store.close()
    return {
        "chunks": len(passages),
        "files": summary.files,
        "encoding_seconds": encoding,
        "indexing_seconds": indexing,
        "indexing_over_encoding": indexing / encoding,
        "unchanged_seconds": unchanged,
        "search_first_ms": 1000 * first,
        "search_p50_ms": median(plain),
        "search_p95_ms": float(np.quantile(plain, 0.95)),
        "hybrid_p50_ms": median(hybrid),
    }


def check(store: LanceStore, passages: Sequence[str], vectors: np.ndarray) -> None:
    """Raise SearchR3Error unless a sample of the passages' vectors are in the store."""
    for row in np.linspace(0, len(passages) - 1, 50).astype(int):
        found = store.nearest(vectors[row], 1, Filter())[0]
        if found.score < 0.9999:
            raise SearchR3Error(f"no vector like that of passage {row} is in the store")


def milliseconds(asked: StoreSearch, queries: Sequence[str], hybrid: bool) -> list[float]:
    times = []
    for query in queries:
        start = now()
        asked.ask(query, reasoning=False, hybrid=hybrid)
        times.append(1000 * (now() - start))
    return times


def kills(work: Path, model: Path, size: dict[str, int]) -> dict[str, float]:
    search = SearchR3(model)
    encoder = ModelEncoder(search)
    folder, place = work / "killed", work / "killed-store"
    documents(folder, size["killed_chunks"], encoder)
    documents(work / "spare", size["killed_chunks"], encoder, skip=2000)
    spare = sorted((work / "spare").rglob("*.py"))
    rng, failed, met = random.Random(0), 0, 0
    start = now()
    worker(model, work / "unkilled-store", folder).wait()
    took = now() - start
    while met < size["kills"]:
        process = worker(model, place, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, took))
        if process.poll() is not None:  # it was done before; the next are to be killed earlier
            took = 0.8 * took
            change(folder, spare, rng)
            continue
        process.kill()
        process.wait()
        met += 1
        failed += not searches(place, search)
        change(folder, spare, rng)
        print(f"kill {met}: {failed} searches failed so far", flush=True)
    store = LanceStore(place, create=True)
    index(store, identify(model, size=SIZE), [folder], lambda: encoder)
    expected = Counter(
        (str(path), number, text)
        for path in sorted(folder.rglob("*.py"))
        for number, (text, _) in enumerate(chunks_of_file(path, encoder))
    )
    rows = store.nearest(np.ones(search.dimension, dtype=np.float32), 10**6, Filter())
    held = Counter((one.row.path, one.row.number, one.row.text) for one in rows)
    store.close()
    return {
        "kills": met,
        "chunks_at_the_end": held.total(),
        "chunks_lost_or_doubled": (expected - held).total() + (held - expected).total(),
        "searches_failed": failed,
    }


def worker(model: Path, place: Path, folder: Path) -> subprocess.Popen[str]:
    """A process that indexes, once its model is loaded."""
    command = [sys.executable, __file__, "--output", "-", "--worker", str(model), str(place), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def work_alone(model: Path, place: Path, folder: Path) -> None:
    encoder, facts = ModelEncoder(SearchR3(model)), identify(model, size=SIZE)
    print("ready", flush=True)
    index(LanceStore(place, create=True), facts, [folder], lambda: encoder, batch=32)


def searches(place: Path, search: SearchR3) -> bool:
    """Whether the store can be searched, and shows files as a whole or not at all."""
    store = LanceStore(place, create=True)
    try:
        if store.facts() is None:  # killed before there was anything
            return True
        hits = StoreSearch(store, search).ask("read the lines of a file", 10**6, reasoning=False).hits
        shown = Counter(hit.metadata["path"] for hit in hits)
        whole = {path: one.chunks for path, one in store.files().items() if one.version and one.chunks}
        return dict(shown) == whole and len({hit.document_id for hit in hits}) == len(hits)
    except SearchR3Error as error:
        print(f"search failed: {error}", flush=True)
        return False
    finally:
        store.close()


def change(folder: Path, spare: Sequence[Path], rng: random.Random) -> None:
    """Another text for a third of the files; one goes, one comes."""
    files = sorted(folder.rglob("*.py"))
    for path in rng.sample(files, len(files) // 3):
        shutil.copyfile(rng.choice(spare), path)
    rng.choice(files).unlink()
    shutil.copyfile(rng.choice(spare), folder / f"new{rng.randrange(10**6)}.py")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--worker", nargs=3, type=Path, help="for this script itself")
    options = parser.parse_args()
    hush_transformers()
    if options.worker:
        work_alone(*options.worker)
        return
    size = QUICK if options.quick else FULL
    try:
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            SearchR3.from_base(bundled_base()).save_pretrained(work / "model")
            figures = kills(work, work / "model", size)
            figures |= speed(work, work / "model", size)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "indexing", figures)


if __name__ == "__main__":
    main()
