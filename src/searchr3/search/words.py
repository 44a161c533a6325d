"""The words by which a text is found, and how two rankings become one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

from searchr3.words import split_identifiers

T = TypeVar("T", bound=Hashable)

LONGEST = 64  # characters of a word that has an English ending; longer ones are not kept in memory either
RRF = 60  # as in the paper: how little the first rank counts for more than the next ones


def index_words(text: str) -> list[str]:
    """The words of a text as full text knows them, in order: those of BM25 in an evaluation.

    Identifiers are split, all is lower case, stop words are left out, and English endings are cut.

    >>> index_words("The getFileNames of parsers")
    ['get', 'file', 'name', 'parser']
    """
    words = split_identifiers(text)
    return [stem for word in words if (stem := _stem(word) if len(word) <= LONGEST else word)]


def fused(rankings: Sequence[Sequence[T]]) -> list[tuple[T, float]]:
    """Several rankings as one, best first, by reciprocal rank fusion (Cormack et al., SIGIR 2009).

    score(d) = Σ over the rankings that hold d of 1 / (60 + rank(d)), ranks from 1. Scores of different kinds,
    such as cosines and those of BM25, need no common scale so. Ties go to what an earlier ranking has first.

    >>> fused([["a", "b"], ["b", "c"]])[0][0]
    'b'
    """
    scores: dict[T, float] = {}
    for ranking in rankings:
        for rank, one in enumerate(ranking, start=1):
            scores[one] = scores.get(one, 0.0) + 1 / (RRF + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    stop, stem = _english()
    return "" if word in stop else stem(word)


@cache
def _english() -> tuple[frozenset[str], Any]:
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN), Stemmer.Stemmer("english").stemWord
