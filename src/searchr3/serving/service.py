"""What the routes ask: vectors of texts, with or without thinking, and the documents nearest to a query."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from searchr3.search.snippet import marked
from searchr3.search.words import index_words
from searchr3.serving.backend import Ask, Backend, Kind, Said
from searchr3.serving.replies import ApiError
from searchr3.serving.schemas import EmbeddingRequest, Reasoning, SearchRequest, ShownHit
from searchr3.serving.searchers import Question, Searcher
from searchr3.serving.settings import Settings

TYPICAL = 32  # characters a token at the most, in a text of any sense: longer ones are not even tokenized
NAMED: dict[str, tuple[Kind, Reasoning]] = {
    "document": ("document", "off"),
    "query": ("query", "off"),
    "think": ("query", "on"),
    "auto": ("query", "auto"),
}
"""What NAME:… means, for clients that can say no more than a model's name."""


class Rule(Protocol):
    """When to think, if `reasoning` is auto."""

    def thinks_about(self, vectors: np.ndarray, documents: Documents) -> np.ndarray:
        """(n,) bool for direct query vectors (n, d) and a function from them and k to the k best scores."""


class Documents(Protocol):
    """A search that gives scores."""

    def __call__(self, vectors: np.ndarray, k: int) -> np.ndarray: ...


@dataclass(frozen=True)
class How:
    """How texts are embedded; `documents`: what auto judges by."""

    kind: Kind
    reasoning: Reasoning
    instruction: str | None
    max_new_tokens: int
    documents: Documents | None = None


@dataclass(frozen=True)
class Vectors:
    """What became of texts.

    Attributes:
        rows: unit vectors, (n, d) float32.
        said: what was thought before each, None where nothing was.
        read: tokens that were read for them.
    """

    rows: np.ndarray
    said: list[Said | None]
    read: int

    @property
    def thinking(self) -> int:
        """Tokens that were thought."""
        return sum(one.tokens for one in self.said if one)


@dataclass(frozen=True)
class Answer:
    """What a search found, how the query was embedded, and where the time went."""

    query: Vectors
    hits: list[ShownHit]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Service:
    """A model and perhaps documents, and what they are called.

    Attributes:
        name: by which requests mean this model.
        searcher: what is searched, if anything.
        rule: when to think, if the model has such a rule.
        instruction: of queries that bring none of their own.
    """

    backend: Backend
    name: str
    settings: Settings
    searcher: Searcher | None = None
    rule: Rule | None = None
    instruction: str | None = None

    def names(self) -> list[str]:
        """All names that a request may give."""
        return [self.name, *(f"{self.name}:{end}" for end in NAMED)]

    def named(self, model: str) -> tuple[Kind, Reasoning] | None:
        """What the ending of a model's name says, None without one.

        Raises:
            ApiError: another model.
        """
        name, _, end = model.rpartition(":")
        if model == self.name:
            return None
        if name == self.name and end in NAMED:
            return NAMED[end]
        raise ApiError(
            404,
            f"no model {model!r} here; it is {self.name!r}, also with :{', :'.join(NAMED)}",
            "model",
            "model_not_found",
        )

    def how(self, request: EmbeddingRequest) -> How:
        """How a request wants its texts embedded.

        Raises:
            ApiError: it contradicts itself, or asks for what there is not.
        """
        named = self.named(request.model)
        asks = request.reasoning is not None or bool(request.instruction)
        kind, reasoning = named or ("query" if asks else "document", "off")
        kind, reasoning = request.input_type or kind, request.reasoning or reasoning
        if named and (kind, reasoning) != named:
            raise ApiError(
                422, f"{request.model!r} says otherwise than input_type and reasoning; leave one out", "model"
            )
        if kind == "document" and reasoning != "off":
            raise ApiError(
                422,
                "documents are never thought about; leave out reasoning, or send input_type query",
                "reasoning",
            )
        if kind == "document" and request.instruction:
            raise ApiError(422, "documents have no instruction; send input_type query", "instruction")
        return self._how(kind, reasoning, request.instruction, request.max_thinking_tokens)

    def _how(
        self,
        kind: Kind,
        reasoning: Reasoning,
        instruction: str | None,
        tokens: int | None,
        paths: Sequence[str] = (),
        types: Sequence[str] = (),
    ) -> How:
        most = self.settings.new_tokens
        if tokens is not None and tokens > most:
            raise ApiError(422, f"max_thinking_tokens: must be at most {most} here", "max_thinking_tokens")
        if reasoning == "auto" and (self.rule is None or self.searcher is None):
            lacks = (
                "the model has no rule for it"
                if self.rule is None
                else "there are no documents to judge it by"
            )
            raise ApiError(422, f"auto: {lacks}; send on or off", "reasoning")
        wanted = self.instruction if instruction is None else instruction
        thinking = min(self.settings.thinking_tokens, most) if tokens is None else tokens
        # auto judges the ranking that will be shown, that of the chosen files
        documents = partial(self.searcher.scores, paths=paths, types=types) if self.searcher else None
        return How(kind, reasoning, (wanted or None) if kind == "query" else None, thinking, documents)

    def check_texts(self, texts: Sequence[str], field: str) -> None:
        """Raise ApiError where there are too many, or one is much too long to be tokenized."""
        if len(texts) > self.settings.batch:
            raise ApiError(
                422, f"{len(texts)} texts, the most is {self.settings.batch}; send fewer at once", field
            )
        most = TYPICAL * self.settings.text_tokens
        for text in texts:
            if len(text) > most:
                raise ApiError(422, f"a text of {len(text)} characters, the most is {most}; split it", field)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise ApiError where a vector has not so many."""
        if dimensions is not None and dimensions > self.backend.dimension:
            raise ApiError(
                422, f"dimensions: must be at most {self.backend.dimension}, the model's", "dimensions"
            )

    async def vectors(self, texts: Sequence[str], how: How) -> Vectors:
        """The vectors of texts, in their order."""
        if how.reasoning == "on":
            found = _nothing(len(texts), self.backend.dimension)
            thinking: Sequence[int] = range(len(texts))
        else:
            found, thinking = await self._direct(texts, how)
        asks = [Ask(texts[row], how.max_new_tokens, how.instruction) for row in thinking]
        said = await self.backend.say(asks) if asks else []
        for row, one in zip(thinking, said, strict=True):
            found = _with(found, row, one)
        return found

    async def stream(self, text: str, how: How) -> AsyncGenerator[str | Vectors, None]:
        """The reasoning about one text as it is said, and at last its vector."""
        found, thinking = _nothing(1, self.backend.dimension), [0]
        if how.reasoning != "on":
            found, thinking = await self._direct([text], how)
        if thinking:
            ask = Ask(text, how.max_new_tokens, how.instruction)
            async with aclosing(self.backend.stream(ask)) as events:
                async for event in events:
                    if isinstance(event, str):
                        yield event
                    else:
                        found = _with(found, 0, event)
        yield found

    async def documents(self) -> int | None:
        """How many documents can be searched, None without any; they may be far away, so a thread counts.

        Raises:
            Unavailable: they cannot be reached now.
        """
        return await asyncio.to_thread(getattr, self.searcher, "documents") if self.searcher else None

    async def search(self, request: SearchRequest) -> AsyncGenerator[str | Answer, None]:
        """The reasoning about a query as it is said, if `stream`, and at last what was found.

        Raises:
            ApiError: there is nothing to search, or it asks for too much.
        """
        searcher = self.searcher
        if searcher is None:
            raise ApiError(404, "this server has no documents; start it with --store or --run")
        self.check_texts([request.query], "query")
        searcher.check(request.hybrid, request.paths, request.types)
        more = (request.max_thinking_tokens, request.paths, request.types)
        how = self._how("query", request.reasoning, request.instruction, *more)
        started = time.perf_counter()
        if request.stream:
            async with aclosing(self.stream(request.query, how)) as events:
                async for event in events:
                    if isinstance(event, str):
                        yield event
                    else:
                        found = event
        else:
            found = await self.vectors([request.query], how)
        embedded = time.perf_counter()
        thought = found.said[0].text if found.said[0] else ""
        hits = await asyncio.to_thread(_hits, searcher, request, found.rows[0], thought)
        seconds = {"embedding": embedded - started, "search": time.perf_counter() - embedded}
        yield Answer(found, hits, seconds)

    async def _direct(self, texts: Sequence[str], how: How) -> tuple[Vectors, list[int]]:
        """The vectors without thinking, and the rows that the rule of auto then wants to be thought about."""
        done = await self.backend.embed(texts, how.kind, how.instruction)
        found = Vectors(done.vectors, [None] * len(texts), done.tokens)
        if how.reasoning == "off":
            return found, []
        assert self.rule and how.documents
        thinks = await asyncio.to_thread(self.rule.thinks_about, done.vectors, how.documents)
        return found, [int(row) for row in np.flatnonzero(thinks)]


def _hits(searcher: Searcher, request: SearchRequest, vector: np.ndarray, thought: str) -> list[ShownHit]:
    """What is found for a query's vector (d,), and where words of query and thought stand in it."""
    words = index_words(f"{request.query} {thought}")
    more = (thought, request.hybrid, request.paths, request.types)
    found = searcher.find(Question(request.query, vector, request.k, *more))
    return [ShownHit(**vars(hit), marks=list(marked(hit.snippet, words))) for hit in found]


def _nothing(n: int, dimension: int) -> Vectors:
    return Vectors(np.zeros((n, dimension), dtype=np.float32), [None] * n, 0)


def _with(found: Vectors, row: int, said: Said) -> Vectors:
    """`found`, with the thought and the vector of a row."""
    found.rows[row], found.said[row] = said.vector, said
    return Vectors(found.rows, found.said, found.read + said.prompt_tokens)
