"""Several data sets in one training: each batch is of one source, and sources take turns by their shares.

In-batch negatives of another task would be easy ones, and would teach to tell tasks apart, not documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.lazy import Lazy
from searchr3.training.batches import Cycle, NeighbourSampler
from searchr3.training.pairs import Pairs, check_pairs
from searchr3.training.recipe import Recipe

TRAINING_SPLITS = ("stage1", "stage2")
"""What a further source gives to stage 1: stage 2 takes none of it."""


@dataclass(frozen=True)
class Source:
    """A data set and how stage 1 learns from it.

    Attributes:
        name: in the curve.
        weight: of its share of the batches.
        temperature: τ of InfoNCE.
    """

    name: str
    dataset: RetrievalDataset
    pairs: Pairs
    weight: float
    temperature: float

    def contents(self) -> Sequence[str]:
        """The document of each pair."""
        pairs, corpus = self.pairs, self.dataset.corpus
        return Lazy(len(pairs), lambda row: corpus[pairs.document_ids[pairs.pairs[row][1]]].content)


def training_splits(dataset: RetrievalDataset) -> list[str]:
    """The splits of a further source that stage 1 learns from: those for training that it has."""
    return [split for split in TRAINING_SPLITS if split in dataset.qrels] or ["stage1"]


def sources_of(dataset: RetrievalDataset, others: Sequence[RetrievalDataset], recipe: Recipe) -> list[Source]:
    """The recipe's sources, the main one first.

    Args:
        others: the data sets of `data.mixture`, in its order.

    Raises:
        DataError: a source has nothing to train on.
        RecipeError: a source of several has fewer pairs than a batch.
    """
    data, stage = recipe.data, recipe.stage1
    found = []
    for asked, one in zip((data, *data.mixture), (dataset, *others), strict=True):
        pairs = Pairs(one, *(["stage1"] if asked is data else training_splits(one)))
        if others:
            check_pairs(pairs, asked.label, stage.batch_size)
        found.append(Source(asked.label, one, pairs, asked.weight, asked.temperature or stage.temperature))
    return found


def shares(sources: Sequence[Source], by_size: float) -> np.ndarray:
    """The share of the batches of each source, `weight · pairs^by_size` over their sum; float64, (s,)."""
    parts = np.array([one.weight * len(one.pairs) ** by_size for one in sources], dtype=np.float64)
    return parts / parts.sum()


def turns(of_source: np.ndarray) -> Iterator[int]:
    """Which source makes batch 0, 1, 2, …: the one that is furthest behind its share, at a tie the first.

    Args:
        of_source: shares of the s sources, > 0, in sum 1.
    """
    taken = np.zeros(len(of_source))
    number = 0
    while True:
        number += 1
        source = int(np.argmax(of_source * number - taken))
        taken[source] += 1
        yield source


class MixedPairs(torch.utils.data.Dataset):
    """The pairs of all sources. They, their queries and documents are numbered on from source to source."""

    def __init__(self, sources: Sequence[Source]):
        self.pairs = [one.pairs for one in sources]
        sizes = [(len(one), len(one.query_ids), len(one.document_ids)) for one in self.pairs]
        self.starts = np.cumsum([(0, 0, 0), *sizes], axis=0)

    def __len__(self) -> int:
        return int(self.starts[-1, 0])

    def __getitem__(self, index: int) -> Tensor:
        source = int(np.searchsorted(self.starts[:, 0], index, side="right")) - 1
        start, *first = self.starts[source].tolist()
        return self.pairs[source][index - start] + torch.tensor(first)

    def of_one(self, rows: Tensor) -> tuple[int, list[list[int]]]:
        """(n, 2) numbers of one source's queries and documents → which source, and its own numbers."""
        source = int(np.searchsorted(self.starts[:, 1], int(rows[0, 0]), side="right")) - 1
        return source, (rows - torch.from_numpy(self.starts[source, 1:])).tolist()


class MixtureSampler(Sampler[int]):
    """Batches of one source each, the whole run in one pass: a pure function of the batch's number.

    Args:
        samplers: of each source's pairs; none has fewer than a batch.
        of_source: shares of the batches.
        size: pairs in a batch.
        batches: how many the run has.
    """

    def __init__(self, samplers: Sequence[NeighbourSampler], of_source: np.ndarray, size: int, batches: int):
        self.samplers, self.of_source, self.size, self.batches = samplers, of_source, size, batches

    def __len__(self) -> int:
        return self.batches * self.size

    def __iter__(self) -> Iterator[int]:
        cycles = [Cycle(sampler, self.size) for sampler in self.samplers]
        starts = np.cumsum([0, *map(len, self.samplers)]).tolist()
        taken = [0] * len(cycles)
        for source in islice(turns(self.of_source), self.batches):
            for row in cycles[source].batch(taken[source]):
                yield starts[source] + row
            taken[source] += 1
