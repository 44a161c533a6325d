"""Which pairs stand in one batch: groups of like documents, so that in-batch negatives are hard at no cost.

A random batch soon teaches nothing: its negatives are about something else. Here a batch is made of groups
of pairs whose documents share telling words. Groups are drawn anew each epoch.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from searchr3.words import split_identifiers

if TYPE_CHECKING:
    from trl import GRPOConfig

_DIMENSIONS = 1024
_WHOLE = 20_000  # so many rows are grouped among themselves
_BLOCK = 4_096  # of more rows, so many: bounds time and memory on millions
_SEEDS = 128  # rows whose neighbours are looked for in one pass over the others


def hashed_tf_idf(texts: Sequence[str], dimensions: int = _DIMENSIONS) -> np.ndarray:
    """Unit vectors of the words of each text, float32 of shape (n, dimensions).

    Word w adds `±(1 + ln tf(w)) · ln((1 + n) / df(w))` to the place that its hash names, with the hash's sign
    (Weinberger et al., 2009, arXiv 0902.2206).
    """
    counts = [Counter(split_identifiers(text)) for text in texts]
    frequency = Counter(word for count in counts for word in count)
    hashes = {word: zlib.crc32(word.encode()) for word in frequency}
    vectors = np.zeros((len(texts), dimensions), dtype=np.float32)
    for row, count in enumerate(counts):
        for word, times in count.items():
            sign = 1 if hashes[word] & 1 else -1
            weight = (1 + math.log(times)) * math.log((1 + len(texts)) / frequency[word])
            vectors[row, (hashes[word] >> 1) % dimensions] += sign * weight
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def group_neighbours(vectors: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide rows into groups of at most `size`: a random row and the nearest that have no group yet.

    Returns:
        arrays of row numbers; every row stands in exactly one.
    """
    groups = []
    waiting = rng.permutation(len(vectors))
    while len(waiting):
        rest, left = vectors[waiting], len(waiting)
        near = rest[:_SEEDS] @ rest.T  # of several seeds: to read the rows takes longer than their products
        free = np.ones(left, dtype=bool)
        for seed, scores in enumerate(near):
            if free[seed]:
                scores[seed] = np.inf  # the row itself
                chosen = _highest(scores, min(size, left))
                groups.append(waiting[chosen])
                free[chosen], near[:, chosen] = False, -np.inf
                left -= len(chosen)
        waiting = waiting[free]
    return groups


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores, the highest first, at a tie the earlier one."""
    least = np.partition(scores, -count)[-count]
    among = np.flatnonzero(scores >= least)
    return among[np.argsort(-scores[among], kind="stable")[:count]]


class NeighbourSampler(Sampler[int]):
    """Order of the pairs in an epoch: group after group, groups shuffled; fixed by seed and epoch.

    More pairs than a block are shuffled, and then read, grouped and shuffled block by block.

    Args:
        texts: the document of each pair.
        size: pairs in a group; 1 is a plain shuffle.
    """

    def __init__(self, texts: Sequence[str], size: int, seed: int):
        self.texts, self.size, self.seed, self.epoch = texts, size, seed, 0
        self._only_block: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer, also when it resumes in mid-epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.size == 1:
            return iter(rng.permutation(len(self)).tolist())
        return self._grouped(rng)

    def _grouped(self, rng: np.random.Generator) -> Iterator[int]:
        one = len(self) <= _WHOLE
        order = np.arange(len(self)) if one else rng.permutation(len(self))
        rows = _WHOLE if one else _BLOCK
        for start in range(0, len(order), rows):
            block = order[start : start + rows]
            groups = group_neighbours(self._vectors(block, keep=one), self.size, rng)
            for number in rng.permutation(len(groups)):
                yield from block[groups[number]].tolist()

    def _vectors(self, block: np.ndarray, keep: bool) -> np.ndarray:
        if self._only_block is not None:
            return self._only_block
        vectors = hashed_tf_idf([self.texts[int(row)] for row in block])
        if keep:
            self._only_block = vectors
        return vectors


class Cycle:
    """Endless batches of a sampler's rows, each named by its number: a resumed run goes on with the same."""

    def __init__(self, sampler: NeighbourSampler, size: int):
        self.sampler, self.size = sampler, min(size, len(sampler))
        self._epoch, self._place = -1, 0
        self._rows: Iterator[int] = iter(())

    def batch(self, number: int) -> list[int]:
        """Rows of batch `number` ≥ 0; none twice in an epoch, whose rest that fills no batch is left out."""
        epoch, place = divmod(number, len(self.sampler) // self.size)
        if epoch != self._epoch or place < self._place:
            self.sampler.set_epoch(epoch)
            self._epoch, self._place, self._rows = epoch, 0, iter(self.sampler)
        skipped = (place - self._place) * self.size
        self._place = place + 1
        return list(islice(self._rows, skipped, skipped + self.size))


class GenerationSampler(Sampler[int]):
    """The queries of each generation of a GRPO run, the whole run in one pass: a pure function of its number.

    So a resumed run goes on with the same queries, also after the first round through them, which TRL's own
    sampler does not. The order within a generation is the one that TRL expects of its sampler.

    Args:
        batches: the queries of each generation.
        generations: how many the run has.
        rollouts: each query comes so often in a row.
        repeats: each generation comes so often: the trainer's loader gives it to every micro-batch.
    """

    def __init__(self, batches: Cycle, generations: int, rollouts: int, repeats: int):
        self.batches, self.generations = batches, generations
        self.rollouts, self.repeats = rollouts, repeats

    @classmethod
    def of(cls, queries: int, args: GRPOConfig) -> GenerationSampler:
        """For a run with TRL's settings `args` on so many queries."""
        batches = Cycle(
            NeighbourSampler([""] * queries, 1, args.seed), args.generation_batch_size // args.num_generations
        )
        micro_batches = args.max_steps * args.gradient_accumulation_steps
        generations = math.ceil(micro_batches / args.steps_per_generation)
        return cls(batches, generations, args.num_generations, args.steps_per_generation)

    def __len__(self) -> int:
        return self.generations * self.repeats * self.batches.size * self.rollouts

    def __iter__(self) -> Iterator[int]:
        for number in range(self.generations):
            rows = [row for row in self.batches.batch(number) for _ in range(self.rollouts)]
            for _ in range(self.repeats):
                yield from rows
