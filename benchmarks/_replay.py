"""A refresh policy replayed on a recorded trajectory, held against the corpus encoded afresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from _trajectory import Trajectory

from searchr3.environment import CorpusEnvironment, Frozen, RefreshPolicy, Scores
from searchr3.environment.fidelity import advantage_cosine, advantage_spearman, cosine, top10_overlap


@dataclass(frozen=True)
class Step:
    """One step of a replay; the figures against the oracle are NaN where the step was not audited."""

    step: int
    rows: int
    share: float
    token_share: float
    seconds: float
    bound: float
    reward: float = float("nan")
    reward_error: float = float("nan")
    spearman: float = float("nan")
    cosine: float = float("nan")
    top10: float = float("nan")
    drift: float = float("nan")
    varied: float = float("nan")


class Timed:
    """An environment's `encode` that looks vectors up by row number, and how long it took."""

    def __init__(self, look_up: Callable[[np.ndarray], np.ndarray]) -> None:
        self.look_up, self.seconds = look_up, 0.0

    def __call__(self, texts: list[str]) -> np.ndarray:
        started = time.perf_counter()
        vectors = self.look_up(np.array([int(text) for text in texts]))
        self.seconds += time.perf_counter() - started
        return vectors


class Oracle:
    """Scores of every audited step's rollouts against the corpus of that step, worked out once."""

    def __init__(self, trajectory: Trajectory, audited: list[int]) -> None:
        self.trajectory, self.audited = trajectory, audited
        self._scores: dict[int, Scores] = {}

    def scores(self, step: int) -> Scores:
        if step not in self._scores:
            environment = corpus_environment(self.trajectory, Frozen(), step)
            self._scores[step] = environment.score(*self.trajectory.rollouts(step))
        return self._scores[step]


def corpus_environment(trajectory: Trajectory, policy: RefreshPolicy, step: int) -> CorpusEnvironment:
    """The corpus as the policy of `step` encodes it; `encode` takes row numbers for texts."""
    stage = trajectory.recipe.stage2
    return CorpusEnvironment(
        {key: str(row) for row, key in enumerate(trajectory.ids)},
        lambda texts: np.empty((len(texts), 0)),
        policy,
        stage.environment.candidates,
        stage.reward.temperature,
        trajectory.corpus(step),
        step,
        lengths=trajectory.tokens,
    )


def replay(trajectory: Trajectory, policy: RefreshPolicy, oracle: Oracle) -> list[Step]:
    """Refresh at every step, compare at the audited ones."""
    environment = corpus_environment(trajectory, policy, 0)
    group = trajectory.recipe.stage2.rollouts
    steps = []
    for step in range(trajectory.steps):
        environment.encode = encode = Timed(lambda rows, step=step: trajectory.fresh(step, rows.tolist()))
        vectors, relevant = trajectory.rollouts(step)
        report = environment.refresh(vectors, relevant, step)
        found = Step(
            step=step,
            rows=report.documents,
            share=report.share_reencoded,
            token_share=report.share_tokens,
            seconds=report.seconds - encode.seconds,
            bound=report.policy.get("bound", float("nan")),
        )
        if step in oracle.audited:
            found = replace(found, **compare(environment, vectors, relevant, step, oracle, group))
        steps.append(found)
    return steps


def compare(
    environment: CorpusEnvironment,
    vectors: np.ndarray,
    relevant: list[dict[str, float]],
    step: int,
    oracle: Oracle,
    group: int,
) -> dict[str, float]:
    """Scores by the environment against the oracle's."""
    scores, true = environment.score(vectors, relevant), oracle.scores(step)
    spread = true.reward.reshape(-1, group).std(axis=1)
    return {
        "reward": float(true.reward.mean()),
        "reward_error": float(np.abs(scores.reward - true.reward).mean()),
        "spearman": advantage_spearman(scores.reward, true.reward, group),
        "cosine": advantage_cosine(scores.reward, true.reward, group),
        "top10": top10_overlap(scores.hits, true.hits),
        "drift": float(
            1 - cosine(environment.store.take(slice(None)), oracle.trajectory.corpus(step)).mean()
        ),
        "varied": float((spread > 1e-4).mean()),
    }
