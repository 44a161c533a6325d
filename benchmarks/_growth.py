"""How many rows a refresh must encode as the corpus grows: the same rollouts in 10k, 100k and 1M documents.

Up to what is installed the documents and their drift are real. Beyond it they are simulated: document x is
`a + η (b − c)`, to unit length, for three real documents drawn at random, at every step. So it lies near a,
as an edited copy would, and drifts as a, b and c together; how far, next to the real ones, is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from _replay import Timed
from _trajectory import Trajectory

from searchr3.environment import CorpusEnvironment, Frozen, RefreshPolicy
from searchr3.environment.fidelity import advantage_spearman, cosine

EDIT = 0.4  # η
_CHUNK = 65_536


class Corpus:
    """`size` documents at any audited step: first real ones, those that the rollouts want among them."""

    def __init__(self, trajectory: Trajectory, steps: Sequence[int], size: int, seed: int = 0) -> None:
        draw = np.random.default_rng((seed, size))
        ids = {key for step in steps for one in trajectory.rollouts(step)[1] for key in one}
        place = {key: row for row, key in enumerate(trajectory.ids)}
        wanted = np.array(sorted(place[key] for key in ids))
        others = draw.permutation(np.setdiff1d(np.arange(len(place)), wanted))
        self.real = np.concatenate([wanted, others])[:size]
        self.parents = draw.integers(len(self.real), size=(max(0, size - len(self.real)), 3))
        self.trajectory, self.size = trajectory, size
        self.ids = [trajectory.ids[row] for row in self.real]
        self.ids += [f"simulated-{row}" for row in range(len(self.parents))]

    def at(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows` at an audited step, (r, d) float32."""
        source = self.trajectory.corpus(step)[self.real]
        found = np.empty((len(rows), source.shape[1]), dtype=np.float32)
        known = rows < len(self.real)
        found[known] = source[rows[known]]
        a, b, c = (source[parent] for parent in self.parents[rows[~known] - len(self.real)].T)
        edited = a + EDIT * (b - c)
        found[~known] = edited / np.linalg.norm(edited, axis=1, keepdims=True)
        return found

    def whole(self, step: int) -> np.ndarray:
        chunks = (np.arange(start, min(start + _CHUNK, self.size)) for start in range(0, self.size, _CHUNK))
        found = np.empty((self.size, self.trajectory.corpus(step).shape[1]), dtype=np.float32)
        for rows in chunks:
            found[rows] = self.at(step, rows)
        return found


def fidelity(
    trajectory: Trajectory,
    steps: Sequence[int],
    size: int,
    policies: Sequence[Callable[[], RefreshPolicy]],
) -> Iterator[tuple[float, float, float]]:
    """For each policy: rows a step, mean Spearman over `steps` after the first, seconds a step.

    Seconds are without encoding. One refresh stands for all the training steps between two audited ones, so
    the drift that it meets is as many times larger.
    """
    corpus, group = Corpus(trajectory, steps, size), trajectory.recipe.stage2.rollouts
    stage = trajectory.recipe.stage2

    def environment(policy: RefreshPolicy, vectors: np.ndarray, step: int) -> CorpusEnvironment:
        texts = {key: str(row) for row, key in enumerate(corpus.ids)}
        known = stage.environment.candidates, stage.reward.temperature
        return CorpusEnvironment(texts, lambda _: vectors[:0], policy, *known, vectors, step)

    oracle = {
        step: environment(Frozen(), corpus.whole(step), step).score(*trajectory.rollouts(step)).reward
        for step in steps[1:]
    }
    start = corpus.whole(steps[0])
    for make in policies:
        played = environment(make(), start, steps[0])
        rows, found, seconds = [], [], []
        for step in steps[1:]:
            played.encode = encode = Timed(lambda rows, step=step: corpus.at(step, rows))
            report = played.refresh(*trajectory.rollouts(step), step)
            rows.append(report.documents)
            seconds.append(report.seconds - encode.seconds)
            scores = played.score(*trajectory.rollouts(step))
            found.append(advantage_spearman(scores.reward, oracle[step], group))
        yield float(np.mean(rows)), float(np.mean(found)), float(np.mean(seconds))


def drift(trajectory: Trajectory, steps: Sequence[int], size: int) -> dict[str, float]:
    """Mean 1 − cosine of a document's vectors at successive audited steps: of real and simulated ones."""
    corpus = Corpus(trajectory, steps, size)
    some = {"real": np.arange(len(corpus.real)), "simulated": np.arange(len(corpus.real), size)}
    found = {}
    for name, rows in some.items():
        rows = rows[:: max(1, len(rows) // 10_000)]
        moved = [
            1 - cosine(corpus.at(a, rows), corpus.at(b, rows)).mean() for a, b in pairwise(steps) if len(rows)
        ]
        found |= {f"drift_{name}_{size}": float(np.mean(moved))} if moved else {}
    return found


def rows_needed(rows: Sequence[float], spearman: Sequence[float], wanted: float = 0.99) -> float | None:
    """From where on the curve of Spearman over rows stays at `wanted`, by linear interpolation in log rows.

    None where its end is below; the least of `rows` where it is nowhere below, an upper bound then.
    """
    order = np.argsort(rows)
    x, y = np.log(np.asarray(rows)[order]), np.asarray(spearman)[order]
    below = np.flatnonzero(y < wanted)
    if not len(below):
        return float(np.exp(x[0]))
    last = int(below[-1])
    if last == len(y) - 1:
        return None
    share = (wanted - y[last]) / (y[last + 1] - y[last])
    return float(np.exp(x[last] + share * (x[last + 1] - x[last])))
