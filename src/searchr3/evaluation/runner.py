"""`evaluate`: rank the corpus for every query of a split, directly, after thinking, and by the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from searchr3.dataset.lazy import Lazy
from searchr3.errors import DataError, ModelError, first_line
from searchr3.evaluation.bm25 import BM25, Setting, as_run, tune
from searchr3.evaluation.results import Hit, Results, Run
from searchr3.ranking import top_k, trec_metrics

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

REASONING = ("off", "on", "both")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

_MODULES = "modules.json"  # what makes a folder one of sentence-transformers
_DOCUMENTS, _QUERIES = 1024, 256  # texts between two calls of `progress`


class Thought(Protocol):
    """What a model thought about one query."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def emitted(self) -> bool: ...


class Embedder(Protocol):
    """The part of `SearchR3` that an evaluation uses. Vectors are float32, (n, d), of unit length."""

    def generate(
        self, batch: Sequence[str], max_new_tokens: int, *, instruction: str | None = None
    ) -> Sequence[Thought]: ...
    def encode_query(
        self, queries: Sequence[str], reasoning: Any = False, *, instruction: str | None = None
    ) -> np.ndarray: ...
    def encode_document(self, documents: Sequence[str]) -> np.ndarray: ...


def evaluate(
    model: Embedder,
    dataset: RetrievalDataset,
    split: str = "test",
    reasoning: str = "both",
    baselines: Sequence[str | Run] = ("bm25",),
    depth: int = 100,
    max_new_tokens: int = 128,
    document_vectors: np.ndarray | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Results:
    """Measure a model and its baselines on the queries of one split. Reasoning traces are never seen.

    Args:
        model: gives the runs "direct" (no thinking) and "reasoned" (one greedy thought a query).
        split: whose queries; the whole corpus is ranked.
        reasoning: "off" (direct only), "on" (reasoned only) or "both".
        baselines: "bm25" (tuned on dev where there is one), the path or id of another model (direct), or a
            `Run` that an earlier evaluation of the same queries made.
        depth: hits a query; at least 100.
        max_new_tokens: most tokens of a thought.
        document_vectors: (documents, d) float32 in the order of the corpus, when they are known already.
        progress: called as the work goes on.
        name: of the model, for the report.

    Raises:
        DataError: no such split, or its qrels are empty.
        ModelError: a baseline cannot be loaded, or a vector is not finite.
        ValueError: `reasoning`, `depth` or the shape of `document_vectors` is wrong.
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning must be one of {', '.join(REASONING)}; got {reasoning!r}")
    if depth < 100:
        raise ValueError(f"depth must be at least 100, or recall@100 cannot be measured; got {depth}")
    check_baselines(baselines)
    bench = _Bench(dataset.without_reasoning(), split, depth, progress)
    others = [_baseline(baseline, bench) for baseline in dict.fromkeys(baselines)]
    if document_vectors is None:
        document_vectors = bench.encode_documents(model)
    elif len(document_vectors) != len(dataset.corpus):
        raise ValueError(
            f"{len(document_vectors)} document vectors for a corpus of {len(dataset.corpus)} documents"
        )
    runs = []
    if reasoning != "on":
        runs.append(bench.dense("direct", model, document_vectors))
    if reasoning != "off":
        runs.append(bench.reasoned(model, document_vectors, max_new_tokens))
    return Results(
        model=name or type(model).__name__,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=tuple(runs),
        baselines=tuple(others),
        document_vectors=document_vectors,
    )


class _Bench:
    """The queries and documents of one evaluation, and the ways of ranking them."""

    def __init__(self, dataset: RetrievalDataset, split: str, depth: int, progress: Progress | None) -> None:
        self.dataset = dataset
        self.qrels = dataset.split(split)
        if not self.qrels:
            raise DataError(f"{dataset.name}: split {split!r} judges no query; choose another split")
        self.depth = depth
        self.progress = progress
        self.ids = list(self.qrels)
        self.queries = [dataset.queries[query].text for query in self.ids]
        self.document_ids = list(dataset.corpus)
        corpus, ids = dataset.corpus, self.document_ids
        self.documents = Lazy(len(ids), lambda row: corpus[ids[row]].content)  # it may lie on disk

    def encode_documents(self, model: Any, what: str = "documents") -> np.ndarray:
        parts = self.steps(what, self.documents, _DOCUMENTS)
        return np.concatenate([model.encode_document(part) for part in parts])

    def dense(self, name: str, model: Any, document_vectors: np.ndarray, setting: str | None = None) -> Run:
        start = time.perf_counter()
        parts = self.steps(f"{name} queries", self.queries, _QUERIES)
        vectors = np.concatenate([model.encode_query(part, **self.dataset.task) for part in parts])
        return self.ranked(name, vectors, document_vectors, start, setting=setting)

    def reasoned(self, model: Embedder, document_vectors: np.ndarray, max_new_tokens: int) -> Run:
        start = time.perf_counter()
        thoughts: list[Thought] = []
        vectors = []
        for part in self.steps("thinking", self.queries, _QUERIES):
            new = list(model.generate(batch=part, max_new_tokens=max_new_tokens, **self.dataset.task))
            vectors.append(model.encode_query(part, reasoning=new, **self.dataset.task))
            thoughts.extend(new)
        of = dict(zip(self.ids, thoughts, strict=True))
        return self.ranked(
            "reasoned",
            np.concatenate(vectors),
            document_vectors,
            start,
            thinking_tokens={query: len(thought.token_ids) for query, thought in of.items()},
            emitted={query: bool(thought.emitted) for query, thought in of.items()},
            reasonings={query: thought.text for query, thought in of.items()},
        )

    def ranked(
        self, name: str, vectors: np.ndarray, document_vectors: np.ndarray, start: float, **extras: Any
    ) -> Run:
        scores, rows = top_k(vectors, document_vectors, self.depth)
        seconds = time.perf_counter() - start
        return self.measured(name, scores, rows, seconds, query_vectors=vectors, **extras)

    def bm25(self) -> Run:
        tuned = "dev" in self.dataset.qrels
        self.tell("bm25: tuning", 0, 1)
        setting = tune(self.dataset) if tuned else Setting()
        self.tell("bm25: ranking", 0, 1)
        index = BM25(self.documents, setting)
        start = time.perf_counter()
        scores, rows = index.search(self.queries, self.depth)
        seconds = time.perf_counter() - start
        self.tell("bm25: ranking", 1, 1)
        words = f"{setting}; {'chosen on dev' if tuned else 'not tuned: there is no dev split'}"
        return self.measured("bm25", scores, rows, seconds, setting=words)

    def measured(self, name: str, scores: np.ndarray, rows: np.ndarray, seconds: float, **extras: Any) -> Run:
        run = as_run(self.ids, self.document_ids, scores, rows)
        hits = {query: [Hit(*hit) for hit in found.items()] for query, found in run.items()}
        return Run(name, trec_metrics(run, self.qrels), hits, seconds, **extras)

    def steps(self, what: str, texts: Sequence[str], size: int) -> Iterable[Sequence[str]]:
        """`texts` in parts of `size`; progress is told before the first and after each."""
        self.tell(what, 0, len(texts))
        for start in range(0, len(texts), size):
            yield texts[start : start + size]
            self.tell(what, min(start + size, len(texts)), len(texts))

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, done, total)


def _baseline(baseline: str | Run, bench: _Bench) -> Run:
    if isinstance(baseline, Run):
        if baseline.values["ndcg@10"].keys() != set(bench.ids):
            raise ValueError(f"the run {baseline.name!r} is not of the same queries")
        return baseline
    if baseline == "bm25":
        return bench.bm25()
    model = _load(baseline)
    return bench.dense(baseline, model, bench.encode_documents(model, f"{baseline} documents"))


def check_baselines(baselines: Iterable[str | Run]) -> None:
    """Look at baselines before anything is trained or encoded. No weights are loaded.

    Raises:
        ModelError: one is nothing that `evaluate` can compare with.
    """
    for baseline in baselines:
        if isinstance(baseline, str) and baseline != "bm25":
            _is_ours(baseline)


def _is_ours(path: str) -> bool:
    """Whether a baseline is a searchr3 model; if not, it is one of sentence-transformers.

    Raises:
        ModelError: it is neither, or sentence-transformers is not installed.
    """
    from searchr3.loading import SETTINGS, hub_folder

    folder = Path(path)
    if not folder.exists():
        if "/" not in path:
            raise ModelError(f"baseline {path}: neither bm25, nor a folder, nor a Hub id (owner/name)")
        try:
            folder = hub_folder(path, [SETTINGS, _MODULES])
        except ModelError as error:
            raise ModelError(f"baseline {error}") from None
    if (folder / SETTINGS).is_file():
        return True
    if not (folder / _MODULES).is_file():  # it would be given a pooling that nobody trained it for
        raise ModelError(f"baseline {path}: neither a searchr3 nor a sentence-transformers model")
    if find_spec("sentence_transformers") is None:
        raise ModelError(f"baseline {path}: pip install 'searchr3[st]' to compare with it")
    return False


def _load(path: str) -> Any:
    """Another embedding model. sentence-transformers would load ours too, and pool it wrongly.

    Raises:
        ModelError: it cannot be loaded.
    """
    if _is_ours(path):
        from searchr3.model import SearchR3

        return SearchR3(path)
    try:
        return _SentenceTransformer(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"baseline {path}: cannot load it ({first_line(error)}); give bm25, a folder or a Hub id"
        ) from None


class _SentenceTransformer:
    """A sentence-transformers model; its own prompts for queries and documents are used, not the task's."""

    def __init__(self, path: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(path, model_kwargs={"use_safetensors": True})  # never a pickle

    def encode_query(self, queries: Sequence[str], instruction: str | None = None) -> np.ndarray:
        return self.model.encode_query(list(queries), normalize_embeddings=True, show_progress_bar=False)

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        return self.model.encode_document(list(documents), normalize_embeddings=True, show_progress_bar=False)
