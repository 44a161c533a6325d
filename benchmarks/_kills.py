"""An indexing that is killed again and again, and what its store holds afterwards.

A process indexes a folder and is killed with SIGKILL at a random moment; then the store is searched, files
are changed, added and deleted, and the next process begins, and is killed too. After the last one an indexing
that nobody kills brings the store up to date, and its rows are compared with the chunks of the files.

    python _kills.py MODEL STORE FOLDER        the process that is killed
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _documents import chunks_of_file, documents
from _timing import now

from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.search.chunks import SIZE
from searchr3.search.encoder import ModelEncoder, identify
from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore
from searchr3.search.search import StoreSearch
from searchr3.search.store import Filter


def kill_figures(work: Path, model: Path, kills: int, chunks: int) -> dict[str, float]:
    """What so many kills do to a store of about so many chunks."""
    search = SearchR3(model)
    encoder = ModelEncoder(search)
    folder, place = work / "killed", work / "killed-store"
    documents(folder, chunks, encoder)
    documents(work / "spare", chunks, encoder, skip=2000)
    spare = sorted((work / "spare").rglob("*.py"))
    rng, failed, met = random.Random(0), 0, 0
    start = now()
    worker(model, work / "unkilled-store", folder).wait()
    took = now() - start
    while met < kills:
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
    command = [sys.executable, __file__, *map(str, (model, place, folder))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


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
    model, place, folder = map(Path, sys.argv[1:])
    hush_transformers()
    encoder, facts = ModelEncoder(SearchR3(model)), identify(model, size=SIZE)
    print("ready", flush=True)
    index(LanceStore(place, create=True), facts, [folder], lambda: encoder, batch=32)


if __name__ == "__main__":
    main()
