from dataclasses import dataclass, field

import numpy as np
import pytest

from searchr3.environment import CorpusEnvironment


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@dataclass
class World:
    """A corpus in clusters and an encoder that drifts: topics, and each document a little, wander off."""

    size: int = 1200
    rate: float = 0.1
    dim: int = 24
    step: int = 0
    encoded: list[str] = field(default_factory=list)  # every text that `encode` was asked for

    def __post_init__(self):
        rng = np.random.default_rng(0)
        topic = rng.integers(40, size=self.size)
        topics, courses = rng.standard_normal((2, 40, self.dim))
        own, own_course = rng.standard_normal((2, self.size, self.dim))
        self.start = topics[topic] + 0.8 * own
        self.course = courses[topic] + 0.6 * own_course
        self.ids = [f"d{row:04d}" for row in range(self.size)]

    def at(self, step, rows=slice(None)):
        return unit(self.start[rows] + self.rate * step * self.course[rows])

    def encode(self, texts):
        self.encoded += texts
        return self.at(self.step, [int(text) for text in texts])

    def environment(self, policy, known=True, **settings):
        documents = {document: str(row) for row, document in enumerate(self.ids)}
        vectors = self.at(0) if known else None
        return CorpusEnvironment(documents, self.encode, policy, vectors=vectors, **settings)

    def rollouts(self, step, queries=6, group=8):
        """Rollouts near the vector of one relevant document a query at `step`, and their judgements."""
        rng = np.random.default_rng(step)
        rows = np.repeat(rng.integers(self.size, size=queries), group)
        noise = 0.16 * rng.standard_normal((len(rows), self.dim))
        return unit(self.at(step, rows) + noise), [{self.ids[row]: 1} for row in rows]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def make_world():
    return World
