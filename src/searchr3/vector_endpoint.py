"""Vectors from a server: how an answer of `POST /v1/embeddings` of OpenAI's API reference is read."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import httpx2
import numpy as np

from searchr3.endpoint import Endpoint


class VectorEndpoint(Endpoint[np.ndarray]):
    """An embeddings server to ask: vectors float32 (n, d), of unit length, in the order of the input."""

    def read(self, response: httpx2.Response) -> np.ndarray | str:
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(rows))):
                raise ValueError
            vectors = np.array([_numbers(row["embedding"]) for row in rows], dtype=np.float32)
            if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"no embeddings came back: {self.says(response)[:100]}"
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _numbers(embedding: str | Sequence[float]) -> np.ndarray | Sequence[float]:
    """A vector as it came: a list of numbers, or little-endian float32 in base64."""
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding
