"""A small data set, and a model whose vectors are bags of words, so that an evaluation takes milliseconds."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from searchr3.dataset import Document, Query, RetrievalDataset

sys.path.append(str(Path(__file__).parent))  # for saved_sets

COLOURS = ["red", "green", "blue", "cyan", "pink", "grey", "gold", "teal"]


@dataclass(frozen=True)
class Thought:
    text: str
    token_ids: tuple[int, ...]
    emitted: bool


@dataclass
class BagOfWords:
    """Thinks "extra", twice for queries of odd length; leaves the embed token out where they hold "teal"."""

    dimension: int = 64
    said: str = "extra"
    seen: list[str] = field(default_factory=list)
    encoded: int = 0

    def generate(self, batch: Sequence[str], max_new_tokens: int) -> list[Thought]:
        self.seen += batch
        thoughts = []
        for text in batch:
            ids = tuple(range(1 + len(text) % 2))[:max_new_tokens]
            thoughts.append(Thought(" ".join([self.said] * len(ids)), ids, "teal" not in text))
        return thoughts

    def encode_query(self, queries: Sequence[str], reasoning: bool | Sequence[Thought] = False) -> np.ndarray:
        self.seen += queries
        if reasoning is False:
            return self.vectors(queries)
        return self.vectors(
            [f"{text} {thought.text}" for text, thought in zip(queries, reasoning, strict=True)]
        )

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        self.encoded += len(documents)
        return self.vectors(documents)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text):
                vectors[row, blake2b(word.encode(), digest_size=4).digest()[0] % self.dimension] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def model() -> BagOfWords:
    return BagOfWords()


@pytest.fixture
def make_data() -> Callable[..., RetrievalDataset]:
    """Data set of 150 documents of four colours each; the queries are colours of the wanted document."""

    def make(reasoning: str | None = None, name: str = "colours") -> RetrievalDataset:
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(COLOURS, 4)) for _ in range(150)]
        corpus = {f"d{i}": Document(f"title {i}", text) for i, text in enumerate(texts)}
        chosen = {f"q{i}": " ".join(texts[i].split()[: 2 + i % 3]) for i in range(60)}
        queries = {key: Query(text, reasoning) for key, text in chosen.items()}
        qrels = {
            "dev": {f"q{i}": {f"d{i}": 1} for i in range(20)},
            "test": {f"q{i}": {f"d{i}": 2, f"d{i + 60}": 1} for i in range(20, 60)},
        }
        return RetrievalDataset(name, corpus, queries, qrels)

    return make


@pytest.fixture
def data(make_data: Callable[..., RetrievalDataset]) -> RetrievalDataset:
    return make_data()
