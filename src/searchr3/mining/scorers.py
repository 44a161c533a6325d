"""Who finds the candidates: BM25, or a searchr3 model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from searchr3.errors import SearchR3Error
from searchr3.evaluation.bm25 import BM25, best_matching
from searchr3.mining.blocks import encode_blocks
from searchr3.ranking import exact_scores

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


@dataclass(frozen=True)
class Hits:
    """The nearest documents of one query.

    Attributes:
        rows: (k,) int64, best first; fewer where no more were found.
        scores: (k,) theirs, descending.
        positives: (r,) scores of the rows that were asked for.
    """

    rows: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


class Scorer(Protocol):
    """Ranks a corpus."""

    def search(self, queries: Sequence[str], positives: Sequence[np.ndarray], k: int) -> Iterator[Hits]:
        """The `k` best documents of each query, and the scores of its rows in `positives`."""
        ...


class Encoder(Protocol):
    """The part of `SearchR3` that mining uses. Vectors are float32, (n, d), of unit length."""

    def encode_query(self, queries: Sequence[str], *, instruction: str | None = None) -> np.ndarray: ...
    def encode_document(self, documents: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class Teacher:
    """Names who ranks the corpus.

    Attributes:
        by: "bm25", or the folder or Hub id of a searchr3 model.
        instruction: task instruction for the model's queries; default: the data set's.
        prompts: file with the prompts of a checkpoint that is not ours.
        batch_size: most texts in one forward.
        device: such as "cuda:1"; by default the GPU when there is one.
    """

    by: str = "bm25"
    instruction: str | None = None
    prompts: Path | None = None
    batch_size: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        if self.by == "bm25" and not (self.instruction is None and self.prompts is None):
            raise SearchR3Error("bm25 takes no instruction and no prompts; name a model with --by MODEL")

    def files(self) -> list[Path]:
        """What decides the model's vectors: weights, configuration, tokenizer, prompts. None of BM25.

        Raises:
            ModelError: there is no such model.
        """
        if self.by == "bm25":
            return []
        from searchr3.loading import model_files, model_folder

        return model_files(model_folder(self.by)) + ([self.prompts] if self.prompts else [])

    def load(self) -> Encoder | None:
        """The model, None for BM25.

        Raises:
            ModelError: it cannot be used.
        """
        if self.by == "bm25":
            return None
        from searchr3.model import SearchR3

        return SearchR3(self.by, batch_size=self.batch_size, device=self.device, prompts=self.prompts)


class BM25Scorer:
    """BM25 with k1 0.9 and b 0.4, the usual ones for mining."""

    def __init__(self, documents: Sequence[str]) -> None:
        self.index = BM25(documents)

    def search(self, queries: Sequence[str], positives: Sequence[np.ndarray], k: int) -> Iterator[Hits]:
        for query, asked in zip(queries, positives, strict=True):
            scores = self.index.scores(query)
            rows = best_matching(scores, k)
            yield Hits(rows, scores[rows], scores[asked])


class ModelScorer:
    """Cosines of a model; queries are embedded without thinking.

    Args:
        model: encodes.
        documents: the corpus, one or more.
        folder: keeps the document vectors; those that it holds already are not encoded again.
        instruction: for the queries.
        progress: called as documents are encoded.

    Raises:
        SearchR3Error: a vector is not finite, or the disk is full.
    """

    def __init__(
        self,
        model: Encoder,
        documents: Sequence[str],
        folder: Path,
        instruction: str | None,
        progress: Progress,
    ) -> None:
        from searchr3.environment.store import VectorStore

        self.model, self.instruction = model, instruction
        vectors = encode_blocks(
            model.encode_document, documents, folder, lambda done, total: progress("documents", done, total)
        )
        self.store = VectorStore([str(row) for row in range(len(documents))], vectors, folder=folder)

    def search(self, queries: Sequence[str], positives: Sequence[np.ndarray], k: int) -> Iterator[Hits]:
        vectors = self.model.encode_query(queries, instruction=self.instruction)
        scores, rows = self.store.top_k(vectors, k)
        for vector, some, places, asked in zip(vectors, scores, rows, positives, strict=True):
            yield Hits(places, some, exact_scores(vector, self.store.take(asked)))


def make_scorer(
    teacher: Teacher, model: Any, documents: Sequence[str], folder: Path, progress: Progress
) -> Scorer:
    """The scorer of a teacher and what its `load` gave."""
    if model is None:
        progress("bm25: indexing", 0, 1)
        return BM25Scorer(documents)
    return ModelScorer(model, documents, folder, teacher.instruction, progress)
