"""How many rows a refresh must encode as the corpus grows: the same rollouts in 10k, 100k and 1M documents.

Up to what is installed the documents and their drift are real. Beyond it they are simulated: document x is
`a + η (b − c)`, to unit length, for three real documents drawn at random, at every step. So it lies near a,
as an edited copy would, and drifts as a, b and c together; how far, next to the real ones, is published.
Every training step is played, with its own drift; only what a policy asks for is encoded between the audited
steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from _replay import Timed
from _trajectory import Trajectory

from searchr3.environment import CorpusEnvironment, Frozen, RefreshPolicy
from searchr3.environment.fidelity import advantage_spearman, cosine

EDIT = 0.4  # η
WANTED = 0.99  # Spearman
_CHUNK = 65_536


class Corpus:
    """`size` documents at any step: first real ones, those that the rollouts of `steps` want among them."""

    def __init__(
        self, trajectory: Trajectory, steps: Sequence[int], audited: Sequence[int], size: int, seed: int = 0
    ) -> None:
        draw = np.random.default_rng((seed, size))
        ids = {key for step in steps for one in trajectory.rollouts(step)[1] for key in one}
        place = {key: row for row, key in enumerate(trajectory.ids)}
        wanted = np.array(sorted(place[key] for key in ids))
        others = draw.permutation(np.setdiff1d(np.arange(len(place)), wanted))
        self.real = np.concatenate([wanted, others])[:size]
        self.parents = draw.integers(len(self.real), size=(max(0, size - len(self.real)), 3))
        self.trajectory, self.audited, self.size = trajectory, set(audited), size
        self.ids = [trajectory.ids[row] for row in self.real]
        self.ids += [f"simulated-{row}" for row in range(len(self.parents))]

    def at(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows` as the policy of `step` encodes them, (r, d) float32."""
        known = rows < len(self.real)
        parents = self.parents[rows[~known] - len(self.real)]
        sources, place = np.unique(np.concatenate([rows[known], parents.ravel()]), return_inverse=True)
        source = self._real(step, self.real[sources])
        here = int(known.sum())
        found = np.empty((len(rows), source.shape[1]), dtype=np.float32)
        found[known] = source[place[:here]]
        a, b, c = (source[parent] for parent in place[here:].reshape(-1, 3).T)
        edited = a + EDIT * (b - c)
        found[~known] = edited / np.linalg.norm(edited, axis=1, keepdims=True)
        return found

    def _real(self, step: int, rows: np.ndarray) -> np.ndarray:
        if step in self.audited:
            return self.trajectory.corpus(step)[rows]
        return self.trajectory.fresh(step, rows.tolist())

    def whole(self, step: int) -> np.ndarray:
        chunks = (np.arange(start, min(start + _CHUNK, self.size)) for start in range(0, self.size, _CHUNK))
        found = np.empty((self.size, self.trajectory.corpus(step).shape[1]), dtype=np.float32)
        for rows in chunks:
            found[rows] = self.at(step, rows)
        return found


def fidelity(
    trajectory: Trajectory,
    steps: int,
    audited: Sequence[int],
    size: int,
    policies: Sequence[Callable[[], RefreshPolicy]],
) -> Iterator[tuple[float, float, float]]:
    """For each policy: rows a step, mean Spearman over the `audited` steps, seconds a step without encoding.

    The corpus is as of step 0; all steps from 1 to `steps` are played.
    """
    group, stage = trajectory.recipe.stage2.rollouts, trajectory.recipe.stage2
    played = range(1, steps + 1)
    corpus = Corpus(trajectory, played, [0, *audited], size)

    def environment(policy: RefreshPolicy, vectors: np.ndarray, step: int) -> CorpusEnvironment:
        texts = {key: str(row) for row, key in enumerate(corpus.ids)}
        known = stage.environment.candidates, stage.reward.temperature
        return CorpusEnvironment(texts, lambda _: vectors[:0], policy, *known, vectors, step)

    oracle = {
        step: environment(Frozen(), corpus.whole(step), step).score(*trajectory.rollouts(step)).reward
        for step in audited
    }
    start = corpus.whole(0)
    for make in policies:
        refreshed = environment(make(), start, 0)
        rows, found, seconds = [], [], []
        for step in played:
            refreshed.encode = encode = Timed(lambda rows, step=step: corpus.at(step, rows))
            report = refreshed.refresh(*trajectory.rollouts(step), step)
            rows.append(report.documents)
            seconds.append(report.seconds - encode.seconds)
            if step in oracle:
                scores = refreshed.score(*trajectory.rollouts(step))
                found.append(advantage_spearman(scores.reward, oracle[step], group))
        trajectory.keep()
        yield float(np.mean(rows)), float(np.mean(found)), float(np.mean(seconds))


def drift(trajectory: Trajectory, audited: Sequence[int], size: int) -> dict[str, float]:
    """Mean 1 − cosine of a document's vectors at successive audited steps: of real and simulated ones."""
    corpus = Corpus(trajectory, audited, audited, size)
    some = {"real": np.arange(len(corpus.real)), "simulated": np.arange(len(corpus.real), size)}
    found = {}
    for name, rows in some.items():
        rows = rows[:: max(1, len(rows) // 10_000)]
        moved = [
            1 - cosine(corpus.at(a, rows), corpus.at(b, rows)).mean()
            for a, b in pairwise(audited)
            if len(rows)
        ]
        found |= {f"drift_{name}_{size}": float(np.mean(moved))} if moved else {}
    return found


def curve_of(places: Iterable[Path]) -> list[list[float]]:
    """The points that are measured, fewest rows first, up to the first that is as good as wanted."""
    found: list[list[float]] = []
    for place in places:
        if not place.is_file() or (found and found[-1][1] >= WANTED):
            break
        found.append(json.loads(place.read_text(encoding="utf-8")))
    return found


def rows_needed(rows: Sequence[float], spearman: Sequence[float], wanted: float = WANTED) -> float | None:
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
