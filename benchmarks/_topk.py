"""The store's exact top-k against faiss' flat index, and the memory of a million documents.

`measure` is called by benchmarks/environment.py. By itself the file prints the peak of one way of filling a
store, in GB, measured in a process of its own:

python benchmarks/_topk.py float32 | float16 | load [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from searchr3.environment import VectorStore

_CHUNK = 16_384
Hits = tuple[np.ndarray, np.ndarray]  # scores and rows, (n, k)


def measure(
    documents: int = 1_000_000, dim: int = 256, queries: int = 256, k: int = 100, repeats: int = 5
) -> dict[str, float]:
    """Seconds of both sides, their ratio and agreement on random unit vectors, and the store's peaks.

    faiss is taken at its best: by its own choice of algorithm, or multiplying matrices, whichever is quicker
    in a first round. Then the sides take turns, with the same number of threads. Identical means: scores
    that differ by 1e-6 at most at every rank, and the same documents, but where neighbours are closer than
    that: there faiss' float32 rounding decides its order, and the store's is that of float64.
    """
    figures = _turns(documents, dim, queries, k, repeats)
    with tempfile.TemporaryDirectory() as folder:
        for way in ("float32", "float16", "load"):
            figures[f"store_peak_gb_{way}"] = _measured(way, folder, documents, dim, queries, k)
    return figures


def _turns(documents: int, dim: int, queries: int, k: int, repeats: int) -> dict[str, float]:
    import faiss

    store = _store(documents, dim, "float32")
    index = faiss.IndexFlatIP(dim)
    index.add(store.vectors)
    asked = next(_unit(queries, dim, seed=1))
    own_choice = faiss.cvar.distance_compute_blas_threshold

    def flat(threshold: int) -> Hits:
        faiss.cvar.distance_compute_blas_threshold = threshold
        try:
            return index.search(asked, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = own_choice

    ours, (hits, _) = [], _timed(lambda: store.top_k(asked, k))
    first = {threshold: _timed(lambda threshold=threshold: flat(threshold)) for threshold in (0, own_choice)}
    best = min(first, key=lambda threshold: first[threshold][1])
    theirs = []
    for _ in range(repeats):
        ours.append(_timed(lambda: store.top_k(asked, k))[1])
        theirs.append(_timed(lambda: flat(best))[1])
    return {
        "topk_seconds": statistics.median(ours),
        "faiss_seconds": statistics.median(theirs),
        "faiss_default_seconds": first[own_choice][1],
        "topk_vs_faiss_ratio": statistics.median(ours) / statistics.median(theirs),
        "topk_identical": float(all(_same(hits, found) for found, _ in first.values())),
        "topk_ranks_as_faiss": float((hits[1] == first[best][0][1]).mean()),
    }


def _timed(side: Callable[[], Hits]) -> tuple[Hits, float]:
    started = time.perf_counter()
    found = side()
    return found, time.perf_counter() - started


def _same(ours: Hits, theirs: Hits) -> bool:
    """Whether the scores agree at every rank, and the documents but for neighbours in a tie of float32."""
    scores, rows = ours
    close = np.abs(np.diff(scores, axis=1)) <= 1e-6
    tied = np.pad(close, ((0, 0), (0, 1)), constant_values=True) | np.pad(close, ((0, 0), (1, 0)))
    return bool((np.abs(scores - theirs[0]) <= 1e-6).all() and (tied | (rows == theirs[1])).all())


def _unit(rows: int, dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for start in range(0, rows, _CHUNK):
        vectors = rng.standard_normal((min(_CHUNK, rows - start), dim), dtype=np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _store(documents: int, dim: int, dtype: str) -> VectorStore:
    """Filled as an environment does it, chunk by chunk."""
    nothing = np.broadcast_to(np.float32(0), (documents, dim))
    store = VectorStore([f"d{row}" for row in range(documents)], nothing, dtype=dtype)
    start = 0
    for vectors in _unit(documents, dim):
        store.update(np.arange(start, start + len(vectors)), vectors, step=0)
        start += len(vectors)
    return store


def _measured(way: str, folder: str, *sizes: int) -> float:
    command = [sys.executable, __file__, way, "--folder", folder, "--sizes", *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak() -> float:
    """Most resident memory of this process so far, in GB of 10⁹ bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says of a new process may be its parent's
        (line,) = (one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes, on a Mac


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("way", choices=["float32", "float16", "load"], help="fill and save, or load, a store")
    parser.add_argument("--folder", type=Path, required=True, help="where it is saved and loaded")
    parser.add_argument("--sizes", type=int, nargs=4, default=(1_000_000, 256, 256, 100), metavar="N")
    given = parser.parse_args()
    documents, dim, queries, k = given.sizes
    saved = given.folder / "float32"
    store = VectorStore.load(saved) if given.way == "load" else _store(documents, dim, given.way)
    store.top_k(next(_unit(queries, dim, seed=1)), k)
    if given.way != "load":
        store.save(given.folder / given.way)
    print(_peak())


if __name__ == "__main__":
    main()
