"""The queries and documents of one evaluation, and the ways of ranking them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from searchr3.dataset.lazy import Lazy
from searchr3.errors import DataError
from searchr3.evaluation.bm25 import BM25, Setting, as_run, best_matching, tune
from searchr3.evaluation.cache import Cache
from searchr3.evaluation.eligibility import Eligibility
from searchr3.evaluation.results import Hit, Run, Thought
from searchr3.evaluation.thinking import think
from searchr3.ranking import exact_scores, top_k, trec_metrics

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

T = TypeVar("T")

_DOCUMENTS, QUERIES = 1024, 256  # texts between two calls of `progress`


class Words(Protocol):
    """Thoughts from text to token ids and back. Only controls, budgets and samples ask for it."""

    def thought_ids(self, texts: Sequence[str]) -> list[list[int]]: ...
    def thought_text(self, ids: Sequence[int]) -> str: ...


class Embedder(Protocol):
    """The part of `SearchR3` that an evaluation uses. Vectors are float32, (n, d), of unit length."""

    @property
    def conversation(self) -> Words: ...
    def generate(
        self,
        batch: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        *,
        instruction: str | None = None,
        seed: int | None = None,
    ) -> Sequence[Thought]: ...
    def encode_query(
        self, queries: Sequence[str], reasoning: Any = False, *, instruction: str | None = None
    ) -> np.ndarray: ...
    def encode_document(self, documents: Sequence[str]) -> np.ndarray: ...


class Bench:
    """The queries and documents of one evaluation, and the ways of ranking them."""

    def __init__(
        self,
        dataset: RetrievalDataset,
        split: str,
        depth: int,
        progress: Progress | None,
        cache: Cache | None = None,
    ) -> None:
        self.dataset = dataset
        self.qrels = dataset.split(split)
        if not self.qrels:
            raise DataError(f"{dataset.name}: split {split!r} judges no query; choose another split")
        if not any(grade > 0 for judged in self.qrels.values() for grade in judged.values()):
            raise DataError(
                f"{dataset.name}: split {split!r} judges no document to be an answer: all scores are 0; "
                "give the answers 1 or more"
            )
        self.depth = depth
        self.progress = progress
        self.cache = cache
        self.ids = list(self.qrels)
        self.queries = [dataset.queries[query].text for query in self.ids]
        self.document_ids = list(dataset.corpus)
        corpus, ids = dataset.corpus, self.document_ids
        self.documents = Lazy(len(ids), lambda row: corpus[ids[row]].content)  # it may lie on disk
        self.eligibility = Eligibility(dataset.eligible, self.ids, ids)

    def clock(self) -> float:
        """Seconds since no moment in particular; what a cache answers takes what it took to compute."""
        return time.perf_counter() + (self.cache.saved if self.cache else 0.0)

    def encode_documents(self, model: Any, what: str = "documents") -> np.ndarray:
        """Vectors of the whole corpus, (documents, d) float32; a large one is never held twice."""
        vectors, done = np.empty((0, 0), dtype=np.float32), 0
        for part in self.steps(what, self.documents, _DOCUMENTS):
            found = model.encode_document(part)
            if not done:
                vectors = np.empty((len(self.documents), found.shape[1]), dtype=np.float32)
            vectors[done : done + len(found)] = found
            done += len(found)
        return vectors

    def dense(
        self,
        name: str,
        model: Any,
        document_vectors: np.ndarray,
        texts: Sequence[str] | None = None,
        **extras: Any,
    ) -> Run:
        """The run of a model that embeds `texts`, one a query; by default the queries."""
        start = self.clock()
        parts = self.steps(f"{name} queries", self.queries if texts is None else texts, QUERIES)
        vectors = np.concatenate([model.encode_query(part, **self.dataset.task) for part in parts])
        return self.ranked(name, vectors, document_vectors, start, **extras)

    def reasoned(
        self, model: Embedder, document_vectors: np.ndarray, max_new_tokens: int, **extras: Any
    ) -> Run:
        start = self.clock()
        thoughts: list[Thought] = []
        vectors = []
        thinking = 0.0
        for part in self.steps("thinking", self.queries, QUERIES):
            new, found, seconds = think(model, part, max_new_tokens, self.clock, **self.dataset.task)
            thinking += seconds
            vectors.append(found)
            thoughts.extend(new)
        return self.ranked(
            "reasoned",
            np.concatenate(vectors),
            document_vectors,
            start,
            thoughts=dict(zip(self.ids, thoughts, strict=True)),
            thinking_seconds=thinking,
            **extras,
        )

    def ranked(
        self, name: str, vectors: np.ndarray, document_vectors: np.ndarray, start: float, **extras: Any
    ) -> Run:
        scores, rows = self.hits(vectors, document_vectors)
        seconds = self.clock() - start
        return self.measured(name, scores, rows, seconds, query_vectors=vectors, **extras)

    def hits(self, vectors: np.ndarray, document_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What vectors find, one a query: scores and rows for `measured`."""
        scores, rows = top_k(vectors, document_vectors, self.depth + self.eligibility.spare)
        self.eligibility.ordered(
            scores, rows, lambda query, some: exact_scores(vectors[query], document_vectors[some])
        )
        return scores, rows

    def embed_after(
        self, model: Embedder, thoughts: Sequence[Thought], what: str = "embedding after thoughts"
    ) -> np.ndarray:
        """Vectors of the queries, each after the thought given for it, (queries, d)."""
        vectors = []
        for part in self.steps(what, [*zip(self.queries, thoughts, strict=True)], QUERIES):
            texts, given = zip(*part, strict=True)
            vectors.append(model.encode_query(list(texts), reasoning=list(given), **self.dataset.task))
        return np.concatenate(vectors)

    @cached_property
    def bm25_setting(self) -> tuple[Setting, str]:
        """BM25's setting, tuned on dev where there is one, and in words."""
        tuned = "dev" in self.dataset.qrels
        self.tell("bm25: tuning", 0, 1)
        setting = tune(self.dataset) if tuned else Setting()
        return setting, f"{setting}; {'chosen on dev' if tuned else 'not tuned: there is no dev split'}"

    def bm25(self, name: str = "bm25", queries: Sequence[str] | None = None, **extras: Any) -> Run:
        """The ranking of BM25, a baseline; for other texts of the queries where they are given."""
        setting, words = self.bm25_setting
        self.tell(f"{name}: ranking", 0, 1)
        begun = self.clock()
        index = BM25(self.documents, setting)
        start = self.clock()
        scores, rows = self.lexical_hits(index, self.queries if queries is None else queries)
        seconds = self.clock() - start
        self.tell(f"{name}: ranking", 1, 1)
        about = {"kind": "baseline", "documents_seconds": start - begun, **extras}
        return self.measured(name, scores, rows, seconds, setting=words, **about)

    def lexical_hits(self, index: BM25, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What an index of the documents finds for `texts`, one a query: scores and rows for `measured`."""
        scores, rows = index.search(texts, self.depth + self.eligibility.spare)
        self.eligibility.ordered(
            scores, rows, lambda query, some: index.scores(texts[query])[some], best_matching
        )
        return scores, rows

    def measured(self, name: str, scores: np.ndarray, rows: np.ndarray, seconds: float, **extras: Any) -> Run:
        scores, rows = self.eligibility.kept(scores, rows, self.depth)
        run = as_run(self.ids, self.document_ids, scores, rows)
        hits = {query: _as_measured(found) for query, found in run.items()}
        return Run(name, trec_metrics(run, self.qrels), hits, seconds, **extras)

    def steps(self, what: str, texts: Sequence[T], size: int) -> Iterable[Sequence[T]]:
        """`texts` in parts of `size`; progress is told before the first and after each."""
        self.tell(what, 0, len(texts))
        for start in range(0, len(texts), size):
            yield texts[start : start + size]
            self.tell(what, min(start + size, len(texts)), len(texts))

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, done, total)


def _as_measured(found: Mapping[str, float]) -> list[Hit]:
    """The hits of a query in trec_eval's order: by score, of equal ones the greater id first."""
    order = sorted(found.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
    return [Hit(*hit) for hit in order]
