"""Encode again what the rewards hang on, until what is left cannot move them by much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from searchr3.environment.corrector import Corrector
from searchr3.environment.policies import RefreshPolicy, RolloutBatch, check_budget, rows_within
from searchr3.environment.scoring import Scores, score_rollouts
from searchr3.environment.state import State, nested, unnested
from searchr3.environment.store import VectorStore
from searchr3.reward import rank_slope, score_spread, soft_ndcg

MEMORY = 8.0  # steps after which an error has grown to most of its final size, as measured on the quickstart

LEAST = 16  # documents from which a bound can be had: effects are few and large


@dataclass(frozen=True)
class Certificate:
    """What a refresh can say of the rewards that follow.

    Attributes:
        bound: upper bound on the mean error of the batch's rewards, infinity for none; holds in a share
            1 − delta of the steps, if the assumptions of `Certified` do.
        rows: documents encoded, those of the calibration sample included.
        met: whether the bound is within epsilon; if not, the budget came first.
    """

    bound: float
    rows: int
    met: bool


class Certified(RefreshPolicy):
    """Encode again until a bound on the expected error of the rewards is small enough.

    A step goes like this.

    1. The relevant documents and a uniform draw from the corpus are encoded. The map from stale to fresh is
       fitted on these and applied to all others, see `Corrector`.
    2. A calibration sample U is drawn uniformly from the candidates of all rollouts that are still stale,
       and encoded. `e_u` is how far the score of each was off.
    3. The other candidates are put in order of what they may do. An error e in candidate c moves the soft
       rank of the relevant document d for rollout i by

           | sigmoid((s(c) − s(d) + a e) / T) − sigmoid((s(c) − s(d)) / T) |

       and the reward by that times `rank_slope`; summed over rollouts and relevant documents, and averaged
       over the errors in U, this is a document's part. `a` takes the error from the age of u to that of c:
       errors grow as sqrt(1 − exp(−age / 8)).
    4. Documents are encoded in falling order of their parts, until the budget is spent. N candidates are
       left then. Those of U whose parts are as small, U′, are a uniform sample of what is left. With Y_u the
       mean over the rollouts of what the fresh score of u alone did to the reward, rewards are expected to
       err by at most

           N · mean of Y_u over U′,

       and the bound is the upper end of its one-sided 1 − delta interval (Student's).
    5. With epsilon > 0 encoding ends sooner where half of U finds a bound under epsilon; the other half,
       which had no say in where, says what the bound is there. If that is above epsilon, the budget is
       spent and it says again; each time at half of delta.

    It assumes that (1) no document from beyond the candidates comes among them, (2) what several scores do
    together is at most the sum of what each does, (3) the mean over U′ is normal. The third
    is the weakest: effects are skewed, so the interval covers their sum less often than it should (0.82 for
    0.90 in a simulation), but that sum overstates the error of the rewards. From fewer than 16 documents, or
    where none of them had any effect, as at temperature 0, there is no bound (infinity). How often the bound
    holds is measured: `benchmarks/environment.py`.

    Args:
        candidates, temperature: of the reward, as in `CorpusEnvironment`.
        epsilon: error of the mean reward that is good enough; 0 spends the whole budget.
        delta: share of the steps in which the bound may fail.
        max_budget: most rows a step, a share of the corpus (float) or a number of documents (int). The
            relevant documents count against it but are never left out.
        calibration: share of the budget that each draw takes.
        correct: whether the documents that are not encoded are corrected.
        seed: of the draws.

    Attributes:
        certificate: of the last refresh.
    """

    def __init__(
        self,
        candidates: int = 100,
        temperature: float = 0.2,
        epsilon: float = 0.0,
        delta: float = 0.05,
        max_budget: float | int | None = 0.01,
        calibration: float = 0.2,
        correct: bool = True,
        seed: int = 0,
    ) -> None:
        check_budget(max_budget)
        if not 0 < delta < 1 or epsilon < 0 or not 0 <= calibration <= 1:
            raise ValueError(
                f"epsilon is {epsilon}, at least 0; delta {delta}, between 0 and 1; "
                f"calibration {calibration}, from 0 to 1"
            )
        self.candidates, self.temperature = candidates, temperature
        self.epsilon, self.delta, self.max_budget = epsilon, delta, max_budget
        self.calibration, self.seed = calibration, seed
        self.corrector = Corrector() if correct else None
        self.certificate: Certificate | None = None

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        room = rows_within(self.max_budget, store, step)
        draw = np.random.default_rng((self.seed, step, room))
        draws = max(2, int(self.calibration * room))  # rows of each draw
        stale = store.version != step
        relevant = np.unique(np.concatenate([judged.rows for judged in batch.relevant]))
        first = relevant[stale[relevant]]
        if self.corrector:
            others = np.setdiff1d(np.flatnonzero(stale), first)
            size = min(draws, max(0, room - len(first)), len(others))
            first = np.concatenate([first, draw.choice(others, size, replace=False)])
        old = store.take(first).copy()
        yield first
        self._correct(store, first, old, step)

        room = max(0, room - len(first))
        seen = _Seen.of(store, batch, step, self.candidates, self.temperature)
        sample = draw.choice(seen.rows, min(draws, room, len(seen.rows)), replace=False)
        sample = store.group.gather(sample)[0]  # ranks may round differently, but must go on alike
        if not len(sample):  # nothing is stale, or nothing may be looked at
            rest = len(seen.rows)
            self.certificate = Certificate(np.inf if rest else 0.0, len(first), not rest)
            return
        old = store.take(sample).copy()
        yield sample
        last, bound = self._last(store, seen, sample, store.take(sample) - old, room - len(sample))
        yield last
        rows = len(first) + len(sample) + len(last)
        self.certificate = Certificate(bound, rows, bound <= self.epsilon)

    def metrics(self) -> dict[str, float]:
        found = self.certificate
        return {"bound": found.bound} if found and np.isfinite(found.bound) else {}

    def state_dict(self) -> State:
        return nested("corrector", self.corrector.state_dict()) if self.corrector else {}

    def load_state_dict(self, state: State) -> None:
        if self.corrector:
            self.corrector.load_state_dict(unnested("corrector", state))

    def _correct(self, store: VectorStore, rows: np.ndarray, old: np.ndarray, step: int) -> None:
        if self.corrector and len(rows) > 1:
            self.corrector.fit(old, store.take(rows), step)
            store.transform(self.corrector, skip=np.flatnonzero(store.version == step))

    def _last(
        self, store: VectorStore, seen: _Seen, sample: np.ndarray, moved: np.ndarray, room: int
    ) -> tuple[np.ndarray, float]:
        """What to encode after the sample, at most `room` rows, and the bound then.

        Args:
            moved: (|U|, d), how far the sample's vectors were off.
        """
        order, parts = (store.group.gather(one)[0] for one in seen.order(seen.errors(sample, moved)))
        mine = np.isin(order, sample)
        effects = seen.effects(order[mine], store.take(order[mine]))
        most = min(room, len(order) - len(sample))
        enough, bound = self._enough(parts[~mine], parts[mine], effects, most)
        return order[~mine][:enough], bound

    def _enough(
        self, parts: np.ndarray, sampled: np.ndarray, effects: np.ndarray, most: int
    ) -> tuple[int, float]:
        """How many documents to encode, at most `most`, and the bound then.

        Args:
            parts: of the documents that are not in the sample, falling, (r,).
            sampled: the sample's parts, falling, (|U|,).
            effects: the sample's Y, (|U|,).
        """

        def bound(taken: int, of: slice) -> float:
            if taken == len(parts):
                return 0.0
            return self._bound(len(parts) - taken, effects[of][sampled[of] <= parts[taken]])

        if not self.epsilon:
            return most, bound(most, slice(None))
        chooses, says = slice(0, None, 2), slice(1, None, 2)
        for taken in range(most):
            if bound(taken, chooses) <= self.epsilon:
                said = bound(taken, says)
                return (taken, said) if said <= self.epsilon else (most, bound(most, says))
        return most, bound(most, says)

    def _bound(self, left: int, effects: np.ndarray) -> float:
        """Upper end of the interval of `left` × the mean of `effects`; infinite if they tell too little."""
        size = len(effects)
        if size < LEAST or not effects.any():
            return float("inf")
        student = _student(self.delta / (2 if self.epsilon else 1), size - 1)  # two looks with epsilon
        return float(left * (effects.mean() + student * effects.std(ddof=1) / np.sqrt(size)))


@dataclass(frozen=True)
class _Seen:
    """What the rollouts see of the corpus before the sample is encoded.

    Attributes:
        stale: (n, c) bool, which candidates are.
        growth: (m,), how the errors of each document grow with its age.
        rows: (r,), the stale candidates of all rollouts.
    """

    batch: RolloutBatch
    temperature: float
    found: Scores
    stale: np.ndarray
    growth: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls, store: VectorStore, batch: RolloutBatch, step: int, candidates: int, temperature: float
    ) -> _Seen:
        found = score_rollouts(store, batch, candidates, temperature)
        stale = (found.candidates >= 0) & (store.version[found.candidates] != step)
        growth = np.sqrt(1 - np.exp(-np.maximum(store.staleness(step), 0) / MEMORY))
        return cls(batch, temperature, found, stale, growth, np.unique(found.candidates[stale]))

    def errors(self, sample: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """How far the score of each of `sample` was off, at full growth, (|U|,): the mean over its rollouts.

        Args:
            moved: (|U|, d), its vectors' moves.
        """
        total, count = np.zeros(len(sample)), np.zeros(len(sample))
        order = np.argsort(sample)
        for i, rows in enumerate(self.found.candidates):
            mine = rows[self.stale[i] & np.isin(rows, sample)]
            place = order[np.searchsorted(sample, mine, sorter=order)]
            total[place] += moved[place] @ self.batch.vectors[i]
            count[place] += 1
        return total / np.maximum(count, 1) / self.growth[sample]

    def order(self, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stale candidates by falling part, (r,) rows, and these parts, (r,).

        Args:
            errors: (|U|,), those of the sample at full growth.
        """
        found = self.found
        slopes, widths = _slopes(found, self.temperature)
        parts = np.zeros(len(self.growth))
        for i, rows in enumerate(found.candidates):
            columns = np.flatnonzero(self.stale[i])
            shift = self.growth[rows[columns], None] * errors
            for d in np.flatnonzero(found.grades[i] > 0):
                gap = (found.scores[i, columns] - found.scores[i, d])[:, None]
                moved = np.abs(_sigmoid((gap + shift) / widths[i]) - _sigmoid(gap / widths[i]))
                parts[rows[columns]] += slopes[i, d] * moved.mean(axis=1)
        rows = self.rows[np.lexsort((self.rows, -parts[self.rows]))]
        return rows, parts[rows]

    def effects(self, sample: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Y: what the fresh score of each of `sample` alone does to the mean reward, (|U|,).

        Args:
            fresh: (|U|, d), its vectors.
        """
        found = self.found
        effects = np.zeros(len(sample))
        place = {row: u for u, row in enumerate(sample.tolist())}
        for i, rows in enumerate(found.candidates):
            columns = np.flatnonzero(np.isin(rows, sample))
            if not len(columns):
                continue
            which = np.array([place[row] for row in rows[columns].tolist()])
            lists = np.tile(found.scores[i], (1 + len(columns), 1))  # as it was, then with each one mended
            lists[1 + np.arange(len(columns)), columns] = fresh[which] @ self.batch.vectors[i]
            rewards = soft_ndcg(
                torch.from_numpy(lists),
                torch.from_numpy(np.tile(found.grades[i], (len(lists), 1))),
                self.temperature,
                torch.from_numpy(np.tile(rows >= 0, (len(lists), 1))),
            ).numpy()
            effects[which] += np.abs(rewards[1:] - rewards[0])
        return effects / len(found.candidates)


def _slopes(found: Scores, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """|∂reward/∂rank| of each candidate, (n, c), and T of each rollout in units of its scores, (n,)."""
    there = found.candidates >= 0
    scores, grades, mask = (torch.from_numpy(part) for part in (found.scores, found.grades, there))
    widths = temperature * score_spread(scores, grades, mask)
    slopes = rank_slope(scores, grades, widths, mask)
    return slopes.numpy(), widths.clamp(min=1e-6).numpy()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-60, 60)))


def _student(share: float, freedom: int) -> float:
    """What Student's t exceeds in `share` of the cases, by its expansion in 1/freedom."""
    z = -NormalDist().inv_cdf(share)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
