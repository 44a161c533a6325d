"""How far the environment's rewards are from those of a corpus that was encoded afresh."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import numpy as np

from searchr3.environment.environment import CorpusEnvironment, Relevant
from searchr3.environment.fidelity import advantage_cosine, advantage_spearman, cosine, top10_overlap

AGES = (10, 50, 90, 100)  # percentiles of the ages that an audit reports


@dataclass(frozen=True)
class Audit:
    """One step's rewards against the oracle's, which ranks fresh vectors.

    Attributes:
        reward_error: mean |reward − oracle's reward| over the rollouts.
        reward_error_ci: half width of its 95 % interval over queries; NaN for a single one.
        advantage_spearman: see `advantage_spearman`.
        advantage_cosine: see `advantage_cosine`.
        top10_overlap: mean share of a rollout's first ten hits that are the oracle's.
        drift: mean of 1 − cosine between stored and fresh vectors, over uniformly drawn documents or all.
        drift_ci: half width of its 95 % interval; 0 when all documents were encoded.
        missed: share of the uniformly drawn documents, not looked at otherwise, that would have entered the
            candidates of some rollout: what the sampled oracle, and so `reward_error`, cannot see. 0 when all
            were encoded.
        age_p10, age_p50, age_p90, age_p100: percentiles of the documents' ages in policy steps.
        documents: how many were encoded for this audit.
        seconds: wall time of the audit.
    """

    reward_error: float
    reward_error_ci: float
    advantage_spearman: float
    advantage_cosine: float
    top10_overlap: float
    drift: float
    drift_ci: float
    missed: float
    age_p10: float
    age_p50: float
    age_p90: float
    age_p100: float
    documents: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        """The figures for a log; those that are not defined (NaN) are left out."""
        values = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in values.items() if np.isfinite(value)}


def audit(
    environment: CorpusEnvironment,
    vectors: np.ndarray,
    relevant: Relevant,
    step: int,
    group: int,
    sample: int | None = None,
    seed: int = 0,
) -> Audit:
    """Score the same rollouts with fresh vectors and compare. The environment ends as it was.

    Without `sample` the whole corpus is encoded and the oracle is exact. With it, only a uniform draw of so
    many documents is, for `drift` and `missed`, and what the rollouts see: their relevant documents and their
    first 4 K hits. In a group what the rollouts of any rank see is encoded, and the figures on rewards are
    those of this rank's.

    Args:
        vectors: (n, d) of the rollouts; those of a query stand together, `group` of each.
        relevant: for each rollout, document id → grade.
        step: the policy step that `environment.encode` stands for now.
        group: G, rollouts a query.
        sample: uniformly drawn documents; None: all.
        seed: of the draw, with `step`.
    """
    started = time.perf_counter()
    store = environment.store
    scores = environment.score(vectors, relevant)
    if sample is None or sample >= len(store):
        rows = drawn = np.arange(len(store))
    else:
        draw = np.random.default_rng((seed, step))
        drawn = np.sort(draw.choice(len(store), sample, replace=False))
        seen = [store.top_k(vectors, 4 * environment.candidates)[1].ravel()]
        seen += [environment.rows_of([key for key, grade in one.items() if grade > 0]) for one in relevant]
        looked_at = np.unique(np.concatenate(store.group.gather(np.unique(np.concatenate(seen)))))
        rows = np.union1d(drawn, looked_at)
    ages = store.staleness(step)
    old, version = store.take(rows).copy(), store.version[rows].copy()
    fresh = environment.encoded(rows)
    moved = 1 - cosine(old, fresh)[np.searchsorted(rows, drawn)]
    store.update(rows, fresh, step)
    try:
        oracle = environment.score(vectors, relevant)
    finally:
        store.update(rows, old, version)

    error = np.abs(scores.reward - oracle.reward).reshape(-1, group).mean(axis=1)
    whole = len(rows) == len(store)
    unseen = drawn[:0] if whole else np.setdiff1d(drawn, looked_at)
    return Audit(
        reward_error=float(error.mean()),
        reward_error_ci=_half_width(error),
        advantage_spearman=advantage_spearman(scores.reward, oracle.reward, group),
        advantage_cosine=advantage_cosine(scores.reward, oracle.reward, group),
        top10_overlap=top10_overlap(scores.hits, oracle.hits),
        drift=float(moved.mean()),
        drift_ci=0.0 if whole else _half_width(moved),
        missed=float(np.isin(unseen, oracle.candidates).mean()) if len(unseen) else 0.0,
        **{f"age_p{share}": float(np.percentile(ages, share)) for share in AGES},
        documents=len(rows),
        seconds=time.perf_counter() - started,
    )


def _half_width(values: np.ndarray) -> float:
    """Of the 95 % interval of a mean, by the normal approximation; NaN for fewer than two values."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
