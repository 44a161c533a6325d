"""A small data set, and a model whose vectors are bags of words, so that an evaluation takes milliseconds."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pytest

from searchr3.dataset import Document, Query, RetrievalDataset

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


class Tokens:
    """Token ids of words, one each, as they come; "." is a word too."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def thought_ids(self, texts: Sequence[str]) -> list[list[int]]:
        found = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
        self.words += [word for words in found for word in words if word not in self.words]
        return [[self.words.index(word) for word in words] for words in found]

    def thought_text(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[index] for index in ids)


class Thinker(BagOfWords):
    """Thinks its query's words backwards, and one colour more a letter; samples them at random.

    It stops by itself unless the query holds "teal" or the words do not fit. Vectors come from token ids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conversation = Tokens()
        self.asked: list[dict] = []

    def generate(self, batch, max_new_tokens, temperature=0.0, *, instruction=None, seed=None):
        self.asked.append({"batch": list(batch), "temperature": temperature, "seed": seed})
        self.seen += batch
        rng = np.random.default_rng(seed)
        thoughts = []
        for text in batch:
            words = [*reversed(text.split()), *(COLOURS[ord(letter) % 8] for letter in text)]
            words = words[: 3 + len(text) % 5]
            if temperature:
                words = rng.permutation(words)[: rng.integers(1, len(words) + 1)].tolist()
            (ids,) = self.conversation.thought_ids([" ".join(words)])
            emitted = "teal" not in text and len(ids) < max_new_tokens
            short = tuple(ids[:max_new_tokens])
            thoughts.append(Thought(self.conversation.thought_text(short), short, emitted))
        return thoughts

    def encode_query(self, queries, reasoning=False, *, instruction=None):
        self.seen += queries
        if reasoning is False:
            return self.vectors(queries)
        said = [self.conversation.thought_text(thought.token_ids) for thought in reasoning]
        return self.vectors([f"{text} {words}" for text, words in zip(queries, said, strict=True)])


@pytest.fixture
def thinker() -> Thinker:
    return Thinker()
