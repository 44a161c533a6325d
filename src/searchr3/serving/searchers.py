"""What `/search` looks into: a run's corpus, or a store of the user's own documents."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from searchr3.errors import SearchR3Error
from searchr3.serving.backend import Refused, Unavailable

if TYPE_CHECKING:
    from searchr3.answers import Hit
    from searchr3.search.search import StoreSearch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked of the documents.

    Attributes:
        vector: the query's, (d,).
        k: most hits.
        thought: what was thought of the query; its words may be shown in the snippets.
        hybrid: fuse with full text.
        paths, types: only of these, if any are given; they are compared with names, never opened.
    """

    query: str
    vector: np.ndarray
    k: int
    thought: str = ""
    hybrid: bool = False
    paths: Sequence[str] = ()
    types: Sequence[str] = ()


class Searcher(Protocol):
    """Documents, and their vectors by the served model. Called from several threads at once.

    Where they cannot be reached now, all but `instruction` and `filters` raise `Unavailable`.
    """

    @property
    def documents(self) -> int:
        """How many there are."""

    @property
    def instruction(self) -> str | None:
        """The task that queries are given."""

    @property
    def filters(self) -> bool:
        """Whether it has full text, paths and types."""

    def check(self, hybrid: bool, paths: Sequence[str], types: Sequence[str]) -> None:
        """Before anything is thought: whether it can be asked so.

        Raises:
            Refused: it has no full text, paths or types, or a type is not known.
        """

    def find(self, asked: Question) -> Sequence[Hit]:
        """The best, best first."""

    def scores(
        self, vectors: np.ndarray, k: int, paths: Sequence[str] = (), types: Sequence[str] = ()
    ) -> np.ndarray:
        """The `k` best cosines, (n, k), falling, of query vectors (n, d); of these paths and types alone."""


class RunSearcher:
    """The corpus of a run.

    Raises:
        SearchR3Error: `run` is not a finished run, or `model` is not its own: each hit would be a wrong one.
    """

    filters = False

    def __init__(self, run: Path, model: str | None = None) -> None:
        from searchr3.runs.search import RunCorpus

        self.corpus = RunCorpus(run)
        self.model, self.max_new_tokens = self.corpus.model, self.corpus.max_new_tokens
        if model is not None and Path(model).resolve() != self.model.resolve():
            raise SearchR3Error(
                f"{run}: its vectors are those of {self.model}, not of {model}; leave out --model, or --run"
            )

    @property
    def documents(self) -> int:
        return len(self.corpus.vectors)

    @property
    def instruction(self) -> str | None:
        return self.corpus.dataset.instruction

    def check(self, hybrid: bool, paths: Sequence[str], types: Sequence[str]) -> None:
        if hybrid or paths or types:
            raise Refused(
                "a run's corpus has no full text, paths or types; leave out hybrid, paths and types, "
                "or serve a store made by `searchr3 index`"
            )

    def find(self, asked: Question) -> Sequence[Hit]:
        return self.corpus.hits(asked.vector, asked.k)

    def scores(
        self, vectors: np.ndarray, k: int, paths: Sequence[str] = (), types: Sequence[str] = ()
    ) -> np.ndarray:
        return self.corpus.nearest(vectors, k)[0]


class StoreSearcher:
    """A store of the user's own documents; what is indexed meanwhile is found."""

    instruction = None
    filters = True

    def __init__(self, search: StoreSearch) -> None:
        self.search = search

    @property
    def documents(self) -> int:
        with _told():
            return self.search.store.count()

    def check(self, hybrid: bool, paths: Sequence[str], types: Sequence[str]) -> None:
        from searchr3.search.search import known_kinds

        try:
            known_kinds(types)
        except SearchR3Error as error:
            raise Refused(str(error).removeprefix("--")) from None

    def find(self, asked: Question) -> Sequence[Hit]:
        from searchr3.search.search import as_hits

        with _told():
            rows = self.search.rows(
                asked.query, asked.vector, asked.k, asked.hybrid, asked.paths, asked.types
            )
        return as_hits(rows, f"{asked.query} {asked.thought}")

    def scores(
        self, vectors: np.ndarray, k: int, paths: Sequence[str] = (), types: Sequence[str] = ()
    ) -> np.ndarray:
        with _told():
            return self.search.scores(vectors, k, paths, types)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a store stands in the log; a client is told neither its place nor its words."""
    try:
        yield
    except SearchR3Error as error:
        log.error("the store cannot be searched: %s", error)
        raise Unavailable("the documents cannot be searched now; ask again later") from None
