"""Another embedding model behind a server that speaks OpenAI's embeddings.

The protocol is `POST /v1/embeddings` of OpenAI's API reference, which vLLM, Text Embeddings Inference,
Ollama, llama.cpp and most providers speak as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from searchr3.endpoint import NoAnswer, TooLong, ask_all
from searchr3.errors import EndpointError, ModelError
from searchr3.server_address import address, find_key
from searchr3.vector_endpoint import VectorEndpoint

PROBE = "What does this server make of a text that it was asked about before?"
BATCH = 32  # texts a request: what servers take unless told otherwise
_LEAST = 16  # characters: a text that is too long even so is not the matter
_MANY = 8  # different texts: no model gives all of them one vector


class Spec(NamedTuple):
    """What `http://localhost:8000/v1#bge-m3` names: where a server is, and the model's name there."""

    url: str
    model: str

    @classmethod
    def read(cls, text: str) -> Spec:
        """The parts of a baseline.

        Raises:
            ModelError: there is no model.
            EndpointError: the address is none.
        """
        base, _, model = text.partition("#")
        if not model:
            raise ModelError(f"baseline {text}: name the server's model behind a #, as in {base}#bge-m3")
        return cls(address(base, "/embeddings", "--baseline"), model)


def is_endpoint(baseline: str) -> bool:
    """Whether a baseline is the address of a server."""
    return baseline.startswith(("http://", "https://"))


class EmbeddingEndpoint(VectorEndpoint):
    """The server of a baseline."""

    option = "--baseline"
    mends: ClassVar[Mapping[int, str]] = {
        400: "see what the server says of the model",
        401: "check the key",
        402: "add credit to the account",
        403: "check what the key may use",
        404: "check address and model of --baseline URL#MODEL",
        429: "add credit to the account",
    }


class ServedModel:
    """An embedding model behind a server, as a baseline.

    Texts are sent as they are: a model that wants a prefix for queries must get it from its server. A text
    that the server finds too long is halved until it is not, as a local model would cut it.

    Args:
        spec: such as `http://localhost:8000/v1#bge-m3`.
        key_variable: the environment variable with the key; see `find_key`.
        attempts: how often one request is tried.

    Attributes:
        shortened: `hash`es of the texts that were too long.
    """

    def __init__(self, spec: str, key_variable: str | None = None, attempts: int = 7) -> None:
        self.spec = Spec.read(spec)
        self.key = find_key(self.spec.url, key_variable)
        self.attempts = attempts
        self.shortened: set[int] = set()
        self._widths: set[int] = set()

    def digest(self) -> str:
        """A name of what a cache keeps of it: server and model. What stands behind them may change."""
        return hashlib.sha256(f"{self.spec.url}#{self.spec.model}".encode()).hexdigest()[:32]

    def probe(self) -> np.ndarray | None:
        """The vector of one text, always the same, float32 (d,); None while the server cannot be used."""
        try:
            return self._encode([PROBE])[0]
        except EndpointError:
            return None
        finally:
            self.shortened.discard(hash(PROBE))  # of no data set

    def encode_query(self, queries: Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        return self._encode(queries)

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        return self._encode(documents)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        try:
            return asyncio.run(self._all([text or " " for text in texts]))  # most take no empty text
        except NoAnswer as why:
            raise EndpointError(f"{self.spec.url}: model {self.spec.model}: {why}") from None

    async def _all(self, texts: list[str]) -> np.ndarray:
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        async with EmbeddingEndpoint(self.spec.url, self.key, attempts=self.attempts) as endpoint:
            found = await ask_all(parts, partial(self._some, endpoint), endpoint.concurrency)
        self._widths |= {vectors.shape[1] for vectors in found}
        if len(self._widths) != 1:
            raise NoAnswer(f"vectors of different widths came back ({sorted(self._widths)})")
        vectors = np.concatenate(found)
        if len({*texts}) >= _MANY and not np.ptp(vectors, axis=0).any():
            raise NoAnswer(f"one and the same vector came back for {len(texts)} texts")
        return vectors

    async def _some(self, endpoint: EmbeddingEndpoint, texts: list[str]) -> np.ndarray:
        body = json.dumps({"model": self.spec.model, "input": texts}, ensure_ascii=False)
        try:
            vectors = await endpoint.ask(body)
        except TooLong:
            if len(texts) == 1:
                return await self._shorter(endpoint, texts[0])
            half = len(texts) // 2
            halves = [await self._some(endpoint, some) for some in (texts[:half], texts[half:])]
            return np.concatenate(halves)
        if len(vectors) != len(texts):
            raise NoAnswer(f"{len(vectors)} vectors came back for {len(texts)} texts")
        return vectors

    async def _shorter(self, endpoint: EmbeddingEndpoint, text: str) -> np.ndarray:
        self.shortened.add(hash(text))
        while True:
            text = text[: len(text) // 2]
            try:
                body = json.dumps({"model": self.spec.model, "input": [text]}, ensure_ascii=False)
                return await endpoint.ask(body)
            except TooLong:
                if len(text) < _LEAST:
                    raise
