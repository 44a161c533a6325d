"""A store at hand, and a model whose vectors are bags of words, so that indexing takes milliseconds."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from searchr3.search.index import index
from searchr3.search.search import StoreSearch
from searchr3.search.store import Facts, Store
from searchr3.search.summary import Summary

DIMENSION = 128


class Thought(NamedTuple):
    text: str
    token_ids: tuple[int, ...]
    emitted: bool


@dataclass
class WordModel:
    """An encoder and a model of queries; a passage of more than `most` words is too long for it."""

    most: int = 120
    said: str = ""
    encoded: list[str] = field(default_factory=list)
    on_batch: Callable[[int], None] = lambda size: None

    def render(self, passages: Sequence[str]) -> list[str | None]:
        return [text if len(re.findall(r"\w+", text)) <= self.most else None for text in passages]

    def encode(self, rendered: Sequence[str]) -> np.ndarray:
        self.on_batch(len(rendered))
        self.encoded += rendered
        return vectors(rendered)

    def generate(self, batch: Sequence[str], max_new_tokens: int, instruction: str | None) -> list[Thought]:
        return [Thought(self.said, tuple(range(len(self.said.split()))), True) for _ in batch]

    def think(
        self, queries: Sequence[str], max_new_tokens: int, instruction: str | None
    ) -> tuple[list[Thought], np.ndarray]:
        thoughts = self.generate(queries, max_new_tokens, instruction)
        return thoughts, self.encode_query(queries, instruction, thoughts)

    def encode_query(
        self, queries: Sequence[str], instruction: str | None, reasoning: Sequence[Thought] | bool = False
    ) -> np.ndarray:
        thoughts = [thought.text for thought in reasoning] if reasoning else [""] * len(queries)
        return vectors([f"{query} {thought}" for query, thought in zip(queries, thoughts, strict=True)])


def vectors(texts: Sequence[str]) -> np.ndarray:
    found = np.full((len(texts), DIMENSION), 1e-3, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            found[row, blake2b(word.encode(), digest_size=4).digest()[0] % DIMENSION] += 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def some_facts(**others: object) -> Facts:
    values = {"model": "words", "digest": "d", "prompts": {}, "max_length": 100, "dimension": DIMENSION}
    return Facts(**{**values, "size": 200, **others})


@dataclass
class Desk:
    """A store with the word model, in a folder of the test's own, which is the working folder."""

    store: Store
    model: WordModel
    folder: Path

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def index(self, *paths: str, batch: int = 8, encoder=None, **facts: object) -> Summary:
        self.model.encoded.clear()
        return index(self.store, some_facts(**facts), paths, encoder or (lambda: self.model), batch=batch)

    def find(self, query: str, **options: object) -> list[str]:
        answer = StoreSearch(self.store, self.model).ask(query, **{"reasoning": False, **options})
        return [hit.metadata["path"] for hit in answer.hits]

    def texts(self) -> dict[str, str]:
        """What is in the store of each file, rows of any version, put together."""
        held: dict[str, str] = {}
        for record in self.store.files().values():
            rows = self.store.rows({record.path: record.version})
            held[record.path] = "\n".join(row.text for row in rows)
        return held
