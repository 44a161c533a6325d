"""Which of a query's nearest documents become its negatives: rank window, margin, copies, sampling.

The best of what a retriever finds are often right and only unjudged. Two things keep these out: the first
ranks are passed over, and a candidate must score clearly below the relevant document (positive-aware mining,
"TopK-PercPos" of NV-Retriever, arXiv 2407.15831).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from searchr3.errors import SearchR3Error


@dataclass(frozen=True)
class Rule:
    """How negatives are chosen.

    Attributes:
        negatives: most negatives a query.
        from_rank: first rank of the window, from 1; relevant documents take no rank.
        to_rank: its last rank.
        max_share: a negative scores at most this share of the relevant document's score; None: no such limit.
        margin: it scores at least so much less; None: no such limit.
        against: which relevant document, where there are several. `weakest`: a negative is below each of
            them; `strongest`: below one of them.
        sampling: the best ranks, or any in the window with equal chance.
        seed: of `random`.

    Raises:
        SearchR3Error: a value is out of range.
    """

    negatives: int = 8
    from_rank: int = 10
    to_rank: int = 100
    max_share: float | None = 0.95
    margin: float | None = None
    against: Literal["weakest", "strongest"] = "weakest"
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.from_rank < 1:
            raise SearchR3Error(
                f"negatives ({self.negatives}) and the first rank ({self.from_rank}) must be 1 or more"
            )
        ranks = self.to_rank - self.from_rank + 1
        if ranks < self.negatives:
            there = "no rank" if ranks < 1 else f"{ranks} rank{'s' * (ranks > 1)}"
            raise SearchR3Error(
                f"{self.negatives} negatives do not fit into the ranks {self.from_rank} to {self.to_rank} "
                f"({there}); raise the last rank"
            )
        if self.max_share is not None and not 0 < self.max_share < math.inf:
            raise SearchR3Error(f"the greatest share of the score must be above 0, found {self.max_share}")
        if self.margin is not None and not math.isfinite(self.margin):
            raise SearchR3Error(f"the margin must be a number, found {self.margin}")


@dataclass(frozen=True)
class Choice:
    """What was chosen for one query, in the order of ranks.

    Attributes:
        rows: the negatives.
        ranks: of each, from 1.
        gaps: score of the relevant document that the margin counts from, minus that of each.
        window: how many candidates the window held.
        dropped: how many of them the margin dropped.
        copies: how many of the others were met and passed over as copies.
    """

    rows: list[int]
    ranks: list[int]
    gaps: list[float]
    window: int
    dropped: int
    copies: int


def ceiling(positive: float, rule: Rule) -> float:
    """The highest score that a negative may have beside a relevant document with the score `positive`.

    min(positive − (1 − max_share) · |positive|, positive − margin). The first does not change with the scale
    of the scores, so it means the same for BM25's sums, whose size hangs on the query, and for cosines; the
    absolute value keeps it below the positive where a cosine is negative.
    """
    share, margin = rule.max_share, rule.margin
    relative = math.inf if share is None else positive * (share if positive >= 0 else 2 - share)
    return min(relative, math.inf if margin is None else positive - margin)


def select(
    rows: np.ndarray,
    scores: np.ndarray,
    positives: np.ndarray,
    rule: Rule,
    known: Collection[int] = (),
    is_copy: Callable[[int], bool] = lambda row: False,
    query: str = "",
) -> Choice:
    """Choose the negatives of one query.

    Args:
        rows: (k,) documents, best first; −1 stands for none.
        scores: (k,) their scores, descending.
        positives: (r,) scores of the relevant documents, r ≥ 1.
        known: rows that are no candidates and take no rank: the relevant ones above all.
        is_copy: whether a row is a copy of a relevant document or of the query. Asked of as few as possible.
        query: id of the query; `random` draws by it and the seed, whatever was drawn before.
    """
    candidate = np.array([row >= 0 and row not in known for row in rows.tolist()], dtype=bool)
    places = np.flatnonzero(candidate)[rule.from_rank - 1 : rule.to_rank]
    positive = float(positives.min() if rule.against == "weakest" else positives.max())
    below = np.flatnonzero(scores[places] <= ceiling(positive, rule)).tolist()
    order = below
    if rule.sampling == "random":
        order = random.Random(f"{rule.seed}:{query}").sample(below, len(below))
    chosen: list[int] = []
    copies = 0
    for one in order:
        if len(chosen) == rule.negatives:
            break
        if is_copy(int(rows[places[one]])):
            copies += 1
        else:
            chosen.append(one)
    chosen.sort()
    return Choice(
        rows=[int(rows[places[one]]) for one in chosen],
        ranks=[rule.from_rank + one for one in chosen],
        gaps=[positive - float(scores[places[one]]) for one in chosen],
        window=len(places),
        dropped=len(places) - len(below),
        copies=copies,
    )
