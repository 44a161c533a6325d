"""What indexing costs over encoding alone, and what a search of all that costs.

One `index` of all documents. After each slice of chunks it rests, and where the slice is one of every second,
`encode_document` encodes the very passages of the slice anew: so both were measured within seconds of each
other, whatever else the machine did in that hour. A slice is noted once it is measured. An indexing that was
interrupted goes on, as `index` does, and what it had done of a slice counts for neither side. The ratio is
the median over the slices that were encoded alone, and what making the whole store quick to search takes is
added. That of the sums stands beside (`_whole`): it has the first look at all files and the last one at the
store in it, and whatever else the machine did meanwhile.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _documents import documents
from _timing import now

from searchr3.errors import SearchR3Error
from searchr3.files import new_folder, write_json
from searchr3.model import SearchR3
from searchr3.search.chunks import SIZE
from searchr3.search.encoder import ModelEncoder, identify
from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore
from searchr3.search.search import StoreSearch

SLICES = 98  # of 1,020 of 100,000 chunks: with batches of 256 just the window that `index` sorts by length


class Slices(ModelEncoder):
    """Encodes for `index`, and notes what each slice of `size` chunks took, by `index` and alone."""

    def __init__(self, model: SearchR3, size: int, notes: Path) -> None:
        super().__init__(model)
        self.size, self.notes = size, notes
        self.done: list[dict[str, float]] = json.loads(notes.read_text()) if notes.is_file() else []
        self.passages: list[str] = []
        self.vectors: list[np.ndarray] = []
        self.start = now()

    def render(self, passages: Sequence[str]) -> Sequence[Any]:
        rendered = super().render(passages)
        return [None if one is None else (text, one) for text, one in zip(passages, rendered, strict=True)]

    def encode(self, rendered: Sequence[Any]) -> np.ndarray:
        vectors = super().encode([one for _, one in rendered])
        self.passages += [text for text, _ in rendered]
        self.vectors.append(vectors)
        if len(self.passages) >= self.size:
            self.rest()
        return vectors

    def rest(self) -> None:
        """Note the slice that is done, if there is one; every second one is encoded alone too."""
        if self.passages:
            self._note()
        self.start = now()

    def settled(self) -> None:
        """Note what was done after the last slice: the store was made quick to search."""
        write_json(self.notes, [*self.done, {"chunks": 0.0, "settling": now() - self.start}])

    def _note(self) -> None:
        one = {"chunks": float(len(self.passages)), "indexing": now() - self.start}
        if len(self.done) % 2 == 0:
            start = now()
            alone = self.model.encode_document(self.passages)
            one["encoding"] = now() - start
            if not (alone * np.concatenate(self.vectors)).sum(axis=1).min() > 0.9999:
                raise SearchR3Error("the vectors in the store are not those of encode_document")
        self.done.append(one)
        write_json(self.notes, self.done)
        print(f"indexing: slice {len(self.done)}, {one}", flush=True)
        self.passages.clear()
        self.vectors.clear()


def indexing_figures(work: Path, model: Path, chunks: int, questions: int) -> dict[str, float]:
    """Cost of indexing so many chunks, and of searching them."""
    search = SearchR3(model)
    folder = work / "documents"
    if not folder.is_dir():
        with new_folder(folder) as place:
            documents(place / "code", chunks, ModelEncoder(search))
    store = LanceStore(work / "store", create=True)
    facts = identify(model, size=SIZE)
    search.encode_document(["warm"] * 64)
    encoder = Slices(search, chunks // SLICES, work / "slices.json")

    def told(what: str, *_: int) -> None:
        if what == "made quick to search":
            encoder.rest()

    if index(store, facts, [folder], lambda: encoder, told).encoded:
        encoder.settled()
    start = now()
    again = index(store, facts, [folder], lambda: encoder)
    unchanged = now() - start
    if again.encoded or again.chunks != store.count():
        raise SearchR3Error(f"{store.count()} rows are in the store, {again.chunks} chunks in the files")
    return {
        "chunks": again.chunks,
        "files": again.files,
        **costs(json.loads(encoder.notes.read_text())),
        "unchanged_seconds": unchanged,
        **searched(store, search, folder, questions),
    }


def costs(slices: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds of indexing, of encoding all alone, reckoned from the slices that were, and the ratio.

    Raises:
        SearchR3Error: it was interrupted at its very end.
    """
    *slices, last = slices
    if "settling" not in last:
        raise SearchR3Error("how long the store took to be made quick to search is not known; begin anew")
    paired = [one for one in slices if "encoding" in one]
    each = [one["indexing"] / one["encoding"] for one in paired]
    chunks = sum(one["chunks"] for one in slices)
    settling = last["settling"]
    encoding = chunks * median(one["encoding"] / one["chunks"] for one in paired)
    all_of_it = chunks * sum(one["encoding"] for one in paired) / sum(one["chunks"] for one in paired)
    indexing = sum(one["indexing"] for one in slices) + settling
    return {
        "slices": len(slices),
        "slices_encoded_alone": len(paired),
        "indexing_seconds": indexing,
        "settling_seconds": settling,
        "encoding_seconds": encoding,
        "indexing_over_encoding": median(each) + settling / encoding,
        "indexing_over_encoding_whole": indexing / all_of_it,
        "indexing_over_encoding_least": min(each),
        "indexing_over_encoding_most": max(each),
    }


def searched(store: LanceStore, search: SearchR3, folder: Path, questions: int) -> dict[str, float]:
    """Milliseconds of whole questions without thinking, in a process that has the store open."""
    asked, rng = StoreSearch(store, search), random.Random(0)
    files = sorted(folder.rglob("*.py"))
    texts = [rng.choice(files).read_text(errors="replace").split() for _ in range(questions)]
    queries = [" ".join(words[len(words) // 2 :][:12]) or "read a file" for words in texts]
    start = now()
    asked.ask(queries[0], reasoning=False)
    first = now() - start
    times: dict[bool, list[float]] = {False: [], True: []}
    for query in queries:
        for hybrid, some in times.items():
            start = now()
            asked.ask(query, reasoning=False, hybrid=hybrid)
            some.append(1000 * (now() - start))
    store.close()
    return {
        "search_first_ms": 1000 * first,
        "search_p50_ms": median(times[False]),
        "search_p95_ms": float(np.quantile(times[False], 0.95)),
        "hybrid_p50_ms": median(times[True]),
    }
