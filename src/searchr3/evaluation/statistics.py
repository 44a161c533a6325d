"""Intervals and tests over queries: how sure is a mean, and is one ranking better than another?

Queries are the unit that is drawn: each resample takes n queries with replacement. Both methods follow
Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation" (CIKM 2007), and Sakai (SIGIR 2006) for the bootstrap. Everything is seeded: the same values
give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 10_000
_DRAWS = 2**21  # random numbers held at once


@dataclass(frozen=True)
class Difference:
    """How far ranking a is above ranking b: mean of a − b over the queries, 95 % interval, two-sided p."""

    mean: float
    ci95: tuple[float, float]
    p: float

    @property
    def significant(self) -> bool:
        """See `direction`."""
        return direction(self.ci95, self.p) != 0


def direction(ci95: Sequence[float], p: float) -> int:
    """1 or −1 where a difference is significant, else 0: its 95 % interval leaves 0 out and p is below 0.05.

    Of thirty queries and more the two agree but at the margin. Of very few the interval alone is too sure: if
    three queries have one sign it leaves 0 out, and p is 0.25.

    >>> direction((0.1, 0.3), 0.25), direction((0.1, 0.3), 0.01), direction((-0.3, -0.1), 0.01)
    (0, 1, -1)
    """
    low, high = ci95
    return 0 if p >= 0.05 else int(low > 0) - int(high < 0)


def bootstrap_ci(
    values: np.ndarray, n: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over queries.

    Args:
        values: (queries,) or (queries, columns); columns (metrics, runs) share their resamples.
        n: resamples.
        seed: of the resamples.
        level: share of the resampled means inside the interval.

    Returns:
        low and high, each a number for one column, (columns,) for several.

    Raises:
        ValueError: there are no values, or one of them is not finite.
    """
    values = _checked(values)
    columns = values.reshape(len(values), -1)
    means = np.concatenate([counts @ columns for counts in _resamples(len(values), n, seed)]) / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.reshape(values.shape[1:])[()], high.reshape(values.shape[1:])[()]


def paired_difference(a: np.ndarray, b: np.ndarray, n: int = RESAMPLES, seed: int = 0) -> Difference:
    """Mean of a − b over the same queries, with a paired bootstrap interval and a paired randomization test.

    The interval is `bootstrap_ci` of the differences. p is two-sided: were both rankings the same, each
    difference would carry a random sign, so p is the share of `n` random sign flips whose mean is at least
    as far from 0 as the mean seen, (1 + hits) / (1 + n).

    Args:
        a, b: (queries,) values of one metric, in the same order of queries.
        n: resamples, and sign flips.
        seed: of both.

    Raises:
        ValueError: the lengths differ, there are no values, or one of them is not finite.
    """
    return paired_differences(np.reshape(a, (-1, 1)), np.reshape(b, (-1, 1)), n, seed)[0]


def paired_differences(a: np.ndarray, b: np.ndarray, n: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """`paired_difference` for each column of a and b, (queries, columns), which share resamples and flips."""
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be of the same queries; got shapes {a.shape} and {b.shape}")
    difference = a - b
    lows, highs = bootstrap_ci(difference, n, seed)
    figures = zip(difference.mean(axis=0), lows, highs, _randomization(difference, n, seed), strict=True)
    return [Difference(float(mean), (float(low), float(high)), float(p)) for mean, low, high, p in figures]


def pooled_differences(
    differences: Sequence[np.ndarray],
    n: int = RESAMPLES,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> list[Difference]:
    """Mean over data sets of their mean differences: each data set counts the same, however many its queries.

    Queries are drawn anew within each data set, and signs flipped within each, independently of the others:
    the data sets are those at hand, not a sample of all that there might be.

    Args:
        differences: for each data set (queries, columns) of a − b; the columns (pairs, metrics) are the same.
        n: resamples, and sign flips.
        seed: of both.
        weights: one a data set, 1 together; default: all the same.

    Returns:
        one a column.

    Raises:
        ValueError: there are no data sets, one has no values, or a value is not finite.
    """
    if not differences:
        raise ValueError("no data sets: at least one is needed")
    tables = [_checked(table) for table in differences]
    shares = weights or [1 / len(tables)] * len(tables)
    mean = np.sum([share * table.mean(axis=0) for share, table in zip(shares, tables, strict=True)], axis=0)
    drawn, flipped = np.zeros((n, len(mean))), np.zeros((n, len(mean)))
    for place, (share, table) in enumerate(zip(shares, tables, strict=True)):
        counts = _resamples(len(table), n, (seed, place))
        drawn += np.concatenate([one @ table for one in counts]) * share / len(table)
        flipped += _flipped_sums(table, n, (seed, place)) * share / len(table)
    lows, highs = np.quantile(drawn, [0.025, 0.975], axis=0)
    hits = (np.abs(flipped) >= np.abs(mean) - 1e-12).sum(axis=0)  # in spite of rounding, as below
    figures = zip(mean, lows, highs, (1 + hits) / (1 + n), strict=True)
    return [Difference(float(mean), (float(low), float(high)), float(p)) for mean, low, high, p in figures]


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of one family, corrected for their number (Holm, Scand. J. Statist. 6, 1979).

    With p(1) ≤ … ≤ p(m) in ascending order, the i-th becomes `max_{j ≤ i} min(1, (m − j + 1) · p(j))`. Who
    then takes those below 0.05 for real is wrong about any of them with a probability of at most 0.05,
    however they depend on each other.

    Returns:
        one corrected value for each, in the given order.

    Raises:
        ValueError: one is not between 0 and 1.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a p value is not between 0 and 1")
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(1.0, np.arange(len(values), 0, -1) * values[order])
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(scaled)
    return corrected.tolist()


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's ρ, ties sharing their mean rank; None where one is constant.

    >>> round(rank_correlation([1, 2, 3], [10, 20, 100]), 6)
    1.0
    """
    first, second = _ranks(a), _ranks(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    if not np.ptp(first) or not np.ptp(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Chance that a score with label True is above one with label False, ties counted half.

    From the rank sum of the n₁ scores with label True: `(Σ ranks − n₁ (n₁ + 1) / 2) / (n₁ n₀)`. 0.5 is
    guessing; None where one label is missing.

    >>> auroc([0.9, 0.2, 0.4], [True, False, True])
    1.0
    """
    wanted = np.asarray(labels, dtype=bool)
    ranks = _ranks(scores)
    if len(ranks) != len(wanted):
        raise ValueError(f"{len(ranks)} scores cannot be paired with {len(wanted)} labels")
    ones = int(wanted.sum())
    zeros = len(wanted) - ones
    if not ones or not zeros:
        return None
    return float((ranks[wanted].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 on, ascending, ties sharing their mean."""
    return rankdata(_checked(np.asarray(values)))


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no values: at least one query is needed")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    return values


def _resamples(size: int, n: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """How often each of `size` queries is drawn in each of `n` resamples, (some of n, size) at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS // size)
    for start in range(0, n, step):
        rows = min(step, n - start)
        drawn = rng.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _randomization(difference: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Two-sided p (columns,) of the sign-flip test on `difference` (queries, columns)."""
    seen = np.abs(difference.sum(axis=0)) - 1e-9  # flips that change nothing must count in spite of rounding
    hits = (np.abs(_flipped_sums(difference, n, seed)) >= seen).sum(axis=0)
    return (1 + hits) / (1 + n)


def _flipped_sums(difference: np.ndarray, n: int, seed: int | Sequence[int]) -> np.ndarray:
    """(n, columns): sums over the queries after `n` random flips of the queries' signs."""
    rng = np.random.default_rng(seed)
    step, sums = max(1, _DRAWS // len(difference)), []
    for start in range(0, n, step):
        signs = rng.integers(0, 2, (min(step, n - start), len(difference)), dtype=np.int8) * 2.0 - 1.0
        sums.append(signs @ difference)
    return np.concatenate(sums)
