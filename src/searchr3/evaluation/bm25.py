"""BM25, the lexical baseline: bm25s, Lucene variant, identifiers split, stop words left out, words stemmed.

`tune` looks for the strongest setting on the dev queries, so that a model is compared with BM25 at its best.
"""

from __future__ import annotations

import logging
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain, pairwise
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
_BLOCK = 4_096  # documents that are counted at once


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
        documents = _Rows()
        for text in texts:
            documents.add(self._reader.read(_WORD.findall(text)))
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
    and b 0.75, then b, then k1. Of the documents only numbers of words are kept.

    Raises:
        DataError: the data set has no such split, or its qrels are empty.
    """
    qrels = dataset.split(split)
    ids = sorted(random.Random(seed).sample(sorted(qrels), min(_TUNING_QUERIES, len(qrels))))
    judged = {query: qrels[query] for query in ids}
    names = list(dataset.corpus)
    documents = _Words(document.content for document in dataset.corpus.values())
    queries = [_WORD.findall(dataset.queries[query].text) for query in ids]

    @lru_cache(maxsize=1)  # large, and soon read again
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


class _Rows:
    """Rows of numbers, four bytes each."""

    def __init__(self) -> None:
        self.numbers, self.ends = array("i"), array("q", [0])

    def add(self, row: Iterable[int]) -> None:
        self.numbers.extend(row)
        self.ends.append(len(self.numbers))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self.numbers[start:end].tolist() for start, end in pairwise(self.ends))


class _Words:
    """The words of texts as numbers.

    Attributes:
        number: of each word, in order of appearance.
        rows: the numbers of each text's words.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.number: dict[str, int] = {}
        self.rows = _Rows()
        for text in texts:
            self.rows.add(self.number.setdefault(word, len(self.number)) for word in _WORD.findall(text))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some texts at a time: their rows, the numbers of their words, and the place among these rows of
        the text that each word stands in.
        """
        numbers, ends = np.asarray(self.rows.numbers), np.asarray(self.rows.ends)
        for start in range(0, len(self.rows), _BLOCK):
            some = ends[start : start + _BLOCK + 1]
            rows = np.arange(start, start + len(some) - 1)
            yield rows, numbers[some[0] : some[-1]], np.repeat(rows - start, np.diff(some))


class _Read:
    """Documents and queries read in one way, for an index at any k1 and b.

    It knows how often each document holds the terms of the queries, and how long it is.
    """

    def __init__(self, documents: _Words, queries: Iterable[list[str]], way: Setting) -> None:
        reader = _Reader(way)
        self.queries = [reader.read(words) for words in queries]
        other = len(reader.terms)
        reader.learning, reader.other = False, other
        sizes, asked, terms = array("i"), array("i"), array("i")
        for word in documents.number:
            found = reader.read([word])
            known = [term for term in found if term < other]
            sizes.append(len(found))
            asked.append(len(known))
            terms.extend(known)
        size, per_word = len(documents.rows), np.asarray(asked)
        starts = np.cumsum(per_word, dtype=np.int64) - per_word
        self._lengths = np.zeros(size, dtype=np.int64)
        keys, counts = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
        for rows, numbers, texts in documents.blocks():
            self._lengths[rows] = np.bincount(texts, np.asarray(sizes)[numbers], len(rows))
            count = per_word[numbers]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            held = np.asarray(terms)[np.repeat(starts[numbers], count) + within].astype(np.int64)
            key, count = np.unique(held * size + np.repeat(rows[texts], count), return_counts=True)
            keys.append(key)
            counts.append(count.astype(np.int32))
        key = np.concatenate(keys)
        order = np.argsort(key)
        key = key[order]
        self._tf = np.concatenate(counts)[order]
        self._documents = (key % size).astype(np.int32)
        self._starts = np.searchsorted(key, np.arange(other + 1) * size)

    def index(self, setting: Setting) -> bm25s.BM25 | None:
        """What `_indexed` gives at the k1 and b of `setting`, for the terms of the queries."""
        import bm25s

        if not self._lengths.any():
            return None
        df = np.diff(self._starts)
        idf = np.repeat(np.log1p((len(self._lengths) - df + 0.5) / (df + 0.5)), df)
        norm = setting.k1 * (1 - setting.b + setting.b * self._lengths / self._lengths.mean())
        data = (idf * self._tf / (self._tf + norm[self._documents])).astype(np.float32)
        index = bm25s.BM25(method="lucene", backend="numpy")
        index.scores = {
            "data": data,
            "indices": self._documents,
            "indptr": self._starts,
            "num_docs": len(self._lengths),
        }
        index.nonoccurrence_array = None
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
        if self.learning:  # later it may be asked any number of new words
            self[word] = known
        return known

    def _id(self, term: str) -> int | None:
        if self.learning:
            return self.terms.setdefault(term, len(self.terms))
        return self.terms.get(term, self.other)


def _indexed(documents: _Rows, size: int, setting: Setting) -> bm25s.BM25 | None:
    """A bm25s index of documents given as term ids below `size`; None when no document holds a term."""
    import bm25s
    from bm25s.tokenization import Tokenized

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets itself to DEBUG
    if not documents.numbers:
        return None
    index = bm25s.BM25(k1=setting.k1, b=setting.b, method="lucene", backend="numpy")
    vocabulary = {str(i): i for i in range(size)}
    index.index(Tokenized(documents, vocabulary), show_progress=False)
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
