"""BM25, the lexical baseline: bm25s, Lucene variant, identifiers split, stop words left out, words stemmed.

`tune` looks for the strongest setting on the dev queries, so that a model is compared with BM25 at its best.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from searchr3.ranking import highest, trec_metrics
from searchr3.words import split_identifiers

if TYPE_CHECKING:
    import bm25s

    from searchr3.dataset import RetrievalDataset

_WORD = re.compile(r"\w+")

K1 = (0.6, 0.9, 1.2, 1.6, 2.0, 3.0)
B = (0.3, 0.5, 0.75, 0.9, 1.0)
_TUNING_QUERIES = 400


@dataclass(frozen=True)
class Setting:
    """The numbers of BM25, and how words are read.

    Attributes:
        k1: how long repeating a word still pays.
        b: how much a long document is discounted, 0 to 1.
        stem: English (Porter 2) stems.
        whole: an identifier of several parts is indexed whole as well as split.
    """

    k1: float = 0.9
    b: float = 0.4
    stem: bool = True
    whole: bool = False

    def __str__(self) -> str:
        words = "identifiers split" + " and whole" * self.whole + ", stemmed" * self.stem
        return f"k1 {self.k1:g}, b {self.b:g}, {words}"


class BM25:
    """BM25 over `texts`.

    score(q, d) = Σ idf(t) · tf / (tf + k1 · (1 − b + b · |d| / mean |d|)) over the words t of q, each as
    often as q holds it; idf(t) = ln(1 + (N − df + 0.5) / (df + 0.5)). This is the variant "Lucene
    (accurate)" of Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020.
    """

    def __init__(self, texts: Iterable[str], setting: Setting = Setting()) -> None:
        self.setting = setting
        self._reader = _Reader(setting)
        documents = [self._reader.read(_WORD.findall(text)) for text in texts]
        self._reader.learning = False
        self._size = len(documents)
        self._index = _indexed(documents, len(self._reader.terms), setting)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best documents of each query that share a word with it.

        Returns:
            scores (n, k) float32, descending, ties by ascending row, and rows (n, k) int64. Where fewer
            than k documents match, the score is 0 and the row −1.
        """
        return _searched(self._index, [self._reader.read(_WORD.findall(query)) for query in queries], k)

    def scores(self, query: str) -> np.ndarray:
        """The score of every document for one query, (m,) float32; 0 where they share no word."""
        terms = self._reader.read(_WORD.findall(query))
        if self._index is None or not terms:
            return np.zeros(self._size, dtype=np.float32)
        return self._index.get_scores_from_ids(terms)


def tune(dataset: RetrievalDataset, split: str = "dev", seed: int = 0) -> Setting:
    """The setting with the highest nDCG@10 on `split`, at most 400 of its queries.

    One choice after the other: how words are read (stems or not, identifiers also whole or not) at k1 1.2
    and b 0.75, then b, then k1. The documents are read and indexed once for each way.

    Raises:
        DataError: the data set has no such split, or its qrels are empty.
    """
    qrels = dataset.split(split)
    ids = sorted(random.Random(seed).sample(sorted(qrels), min(_TUNING_QUERIES, len(qrels))))
    judged = {query: qrels[query] for query in ids}
    names = list(dataset.corpus)
    documents = [_WORD.findall(document.content) for document in dataset.corpus.values()]
    queries = [_WORD.findall(dataset.queries[query].text) for query in ids]

    @cache
    def read(stem: bool, whole: bool) -> _Read:
        return _Read(documents, queries, Setting(stem=stem, whole=whole))

    @cache
    def quality(setting: Setting) -> float:
        texts = read(setting.stem, setting.whole)
        scores, rows = _searched(texts.index(setting), texts.queries, 10)
        return float(np.mean([*trec_metrics(as_run(ids, names, scores, rows), judged)["ndcg@10"].values()]))

    ways = [Setting(1.2, 0.75, stem, whole) for stem in (True, False) for whole in (False, True)]
    best = max(ways, key=quality)
    best = max((replace(best, b=b) for b in B), key=quality)
    return max((replace(best, k1=k1) for k1 in K1), key=quality)


def as_run(
    queries: Sequence[str], documents: Sequence[str], scores: np.ndarray, rows: np.ndarray
) -> dict[str, dict[str, float]]:
    """Scores and rows (n, k), row −1 where there is no hit, as query id → document id → score."""
    return {
        query: {documents[row]: float(score) for score, row in zip(some, places, strict=True) if row >= 0}
        for query, some, places in zip(queries, scores, rows, strict=True)
    }


class _Read:
    """Documents and queries read in one way, for an index at any k1 and b without indexing again.

    Terms that no query holds share one id, which keeps the lengths of the documents.
    """

    def __init__(self, documents: Iterable[list[str]], queries: Iterable[list[str]], way: Setting) -> None:
        reader = _Reader(way)
        self.queries = [reader.read(words) for words in queries]
        reader.learning, reader.other = False, len(reader.terms)
        read = [reader.read(words) for words in documents]
        self._lengths = np.array([len(terms) for terms in read])
        self._base = _indexed(read, reader.other + 1, Setting(k1=1, b=0))

    def index(self, setting: Setting) -> bm25s.BM25 | None:
        """What `_indexed` gives at the k1 and b of `setting`."""
        if self._base is None:
            return None
        base, documents = self._base.scores, self._base.scores["indices"]
        df = np.diff(base["indptr"])
        idf = np.repeat(np.log1p((len(self._lengths) - df + 0.5) / (df + 0.5)), df)
        saturated = np.minimum(base["data"] / idf, 1 - 1e-7)  # tf / (tf + 1), as k1 is 1 and b is 0
        tf = np.rint(saturated / (1 - saturated))
        norm = setting.k1 * (1 - setting.b + setting.b * self._lengths / self._lengths.mean())
        index = copy(self._base)
        index.scores = base | {"data": (idf * tf / (tf + norm[documents])).astype(np.float32)}
        return index


class _Reader(dict[str, tuple[int, ...]]):
    """Words to term ids: split, lower-cased, without stop words, stemmed; the dict holds what is known.

    While `learning`, a new term gets a new id; later it gets the id `other`, or none when that is None.
    """

    def __init__(self, setting: Setting) -> None:
        import Stemmer
        from bm25s.stopwords import STOPWORDS_EN

        super().__init__()
        self.terms: dict[str, int] = {}
        self.learning = True
        self.other: int | None = None
        self._whole = setting.whole
        self._stop = frozenset(STOPWORDS_EN)
        self._stem = Stemmer.Stemmer("english").stemWord if setting.stem else str

    def read(self, words: list[str]) -> list[int]:
        """Term ids of `words`, in their order."""
        return list(chain.from_iterable(map(self.__getitem__, words)))

    def __missing__(self, word: str) -> tuple[int, ...]:
        parts = split_identifiers(word)
        if self._whole and len(parts) > 1:
            parts.append(word.lower())
        ids = [self._id(self._stem(part)) for part in parts if part not in self._stop]
        known = tuple(i for i in ids if i is not None)
        if self.learning or self.other is not None:  # a finished index may be asked any number of new words
            self[word] = known
        return known

    def _id(self, term: str) -> int | None:
        if self.learning:
            return self.terms.setdefault(term, len(self.terms))
        return self.terms.get(term, self.other)


def _indexed(documents: list[list[int]], size: int, setting: Setting) -> bm25s.BM25 | None:
    """A bm25s index of documents given as term ids below `size`; None when no document holds a term."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets itself to DEBUG
    if not any(documents):
        return None
    index = bm25s.BM25(k1=setting.k1, b=setting.b, method="lucene", backend="numpy")
    index.index((documents, {str(i): i for i in range(size)}), show_progress=False)
    return index


def _searched(index: bm25s.BM25 | None, queries: list[list[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.zeros((len(queries), k), dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for i, query in enumerate(queries):
        if index is None or not query:
            continue
        found = index.get_scores_from_ids(query)
        best = best_matching(found, k)
        scores[i, : len(best)], rows[i, : len(best)] = found[best], best
    return scores, rows


def best_matching(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the `k` highest of `scores` (m,) that are not 0, best first, ties by ascending row."""
    matching = np.flatnonzero(scores)
    return matching[highest(scores[matching], k)]
