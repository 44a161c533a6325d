"""Reasoning traces made from the data: the words that the wanted document is likely to hold.

The published enrichment prompt asks a large model for the key terms, synonyms and topics of a query. For a
tiny model, which cannot chat, the words of the relevant document stand in; or its beginning, so that the
model learns to draft the document that it looks for (as HyDE lets a large model do, arXiv 2212.10496).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from searchr3.dataset.disk import writable
from searchr3.dataset.types import RetrievalDataset
from searchr3.errors import DataError
from searchr3.words import beginning, split_identifiers

Kind = Literal["words", "beginning"]
"""Of a trace: the most telling words of the relevant document, or its first ones as they stand there."""


class TraceMaker:
    """Picks the most telling words of a text by tf-idf over a corpus.

    weight(word) = (1 + ln tf) · ln((1 + N) / df), with N documents of which df hold the word. Words of fewer
    than max(2, `rarest` · N) documents are passed over while there are others: nobody can learn to foresee
    them.
    """

    def __init__(self, corpus: Iterable[str], rarest: float = 0.001):
        self.documents = 0
        self.frequency: Counter[str] = Counter()
        for text in corpus:
            self.documents += 1
            self.frequency.update(set(split_identifiers(text)))
        self.least = max(2, rarest * self.documents)

    def trace(self, text: str, words: int = 8) -> str:
        """The `words` most telling words of `text` in order of appearance, separated by spaces."""
        counts = Counter(word for word in split_identifiers(text) if len(word) > 1 and not word.isdigit())
        shared = [word for word in counts if self.frequency[word] >= self.least]
        order = {word: position for position, word in enumerate(counts)}
        ranked = sorted(shared or counts, key=lambda word: (-self._weight(word, counts[word]), order[word]))
        return " ".join(sorted(ranked[:words], key=order.__getitem__))

    def _weight(self, word: str, count: int) -> float:
        return (1 + math.log(count)) * math.log((1 + self.documents) / max(self.frequency[word], 1))


def queries_without_trace(
    dataset: RetrievalDataset, splits: Sequence[str] = ("stage1",)
) -> dict[str, list[str]]:
    """Queries of `splits` that have no reasoning → their relevant documents, the most relevant first.

    Documents that are held out are passed over; a query without a relevant one is left out.

    Raises:
        DataError: a split does not exist, or is dev or test: their answers must not be written down.
    """
    _check_splits(dataset, splits)
    return dict(_without_trace(dataset, splits))


def _without_trace(dataset: RetrievalDataset, splits: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for split in splits:
        for key, judged in dataset.split(split).items():
            relevant = sorted(
                (one for one, grade in judged.items() if grade > 0 and one not in dataset.held_out),
                key=judged.__getitem__,
                reverse=True,
            )
            if relevant and not dataset.queries[key].reasoning:
                yield key, relevant


def _check_splits(dataset: RetrievalDataset, splits: Sequence[str]) -> None:
    for split in splits:
        if split in ("dev", "test"):
            raise DataError(
                f"{dataset.name}: no traces for the split {split!r}: it is for evaluation; leave it out"
            )
        dataset.split(split)


def make_traces(
    dataset: RetrievalDataset, splits: Sequence[str] = ("stage1",), words: int = 8, kind: Kind = "words"
) -> RetrievalDataset:
    """Give the queries of `splits` that have no reasoning a trace from their most relevant document.

    The corpus statistics come from the training corpus. Traces that are there stay.

    Args:
        words: most words of a trace.

    Raises:
        DataError: a split does not exist, or is dev or test.
    """
    _check_splits(dataset, splits)
    make = beginning
    if kind == "words":
        make = TraceMaker(document.content for document in dataset.training_corpus().values()).trace
    queries = writable(dataset.queries)
    for key, relevant in _without_trace(dataset, splits):
        trace = make(dataset.corpus[relevant[0]].content, words)
        queries[key] = replace(queries[key], reasoning=trace or None)
    return replace(dataset, queries=queries)


def noisy_trace(
    trace: str, others: Sequence[str], rng: random.Random, drop: float = 0.2, swap: float = 0.2
) -> str:
    """The trace as a poor model would write it: words missing, and words of other traces in their place.

    Args:
        trace: words separated by spaces.
        others: traces of other queries, or single words, to take wrong words from.
        rng: the source of chance.
        drop: probability that a word is left out; at least one word stays.
        swap: probability that a word that stays is replaced by a word of one of `others`.
    """
    words = trace.split()
    kept = [word for word in words if rng.random() >= drop] or words[:1]
    if not others:
        return " ".join(kept)
    return " ".join(
        _any_word(rng.choice(others), word, rng) if rng.random() < swap else word for word in kept
    )


def _any_word(text: str, default: str, rng: random.Random) -> str:
    words = text.split()
    return rng.choice(words) if words else default
