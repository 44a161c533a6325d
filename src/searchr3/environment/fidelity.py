"""How alike two rewardings of the same rollouts are, and two encodings of the same documents."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def advantage_spearman(rewards: np.ndarray, oracle: np.ndarray, group: int) -> float:
    """Spearman's correlation of `reward − mean of its group` with the oracle's, over all rollouts.

    Groups without variance stay in: their advantages are zeros that must be found. Equal values share the
    mean of their ranks.

    Args:
        rewards, oracle: (n,), the `group` rollouts of a query next to each other.

    Returns:
        in [−1, 1]; NaN where either side has no variance at all.

    >>> advantage_spearman(np.array([0.1, 0.3, 0.9, 0.8]), np.array([0.2, 0.3, 0.7, 0.5]), group=2)
    0.6
    """
    a, b = (rankdata(_centred(values, group).ravel()) for values in (rewards, oracle))
    return round(_correlation(a - a.mean(), b - b.mean()), 12)


def advantage_cosine(rewards: np.ndarray, oracle: np.ndarray, group: int) -> float:
    """Cosine of the advantages as GRPO scales them with the oracle's: `(r − mean) / (std + 1e-4)` by group.

    Arguments and result as in `advantage_spearman`; the standard deviation is that of a sample, as in TRL.
    """
    return _correlation(*(_scaled(values, group).ravel() for values in (rewards, oracle)))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows, (n, d), (n, d) → (n,); 0 where a vector is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a, b) / np.maximum(lengths, np.finfo(np.float32).tiny)


def top10_overlap(hits: np.ndarray, oracle: np.ndarray) -> float:
    """Mean share of the oracle's first ten hits, (n, k) rows each, that are among the first ten of `hits`."""
    pairs = [(a[:10], b[:10]) for a, b in zip(hits, oracle, strict=True)]
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))


def _centred(rewards: np.ndarray, group: int) -> np.ndarray:
    """Rewards less the mean of their group, (n / group, group) float64, rounded so that equal ones tie."""
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, group)
    return np.round(groups - groups.mean(axis=1, keepdims=True), 9)


def _scaled(rewards: np.ndarray, group: int) -> np.ndarray:
    centred = _centred(rewards, group)
    return centred / (centred.std(axis=1, ddof=1, keepdims=True) + 1e-4)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")
