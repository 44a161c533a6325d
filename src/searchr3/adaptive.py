"""Thinking only where it pays: how sure a direct ranking is of itself, and the rule that decides by it.

A ranking's own scores say something of how good it is (query performance prediction). What is looked at is
the scores of its ten best documents, which a search has anyway. Pure functions, and a rule that is saved
beside a model's weights; what chooses the rule is `searchr3.evaluation.adaptive`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.errors import ModelError
from searchr3.files import write_json
from searchr3.ranking import top_k

RULE = "adaptive.json"
"""Beside the weights. A file of its own, because it does not decide vectors: what was encoded stays valid."""
DEPTH = 10
"""Best documents whose scores are looked at."""

Documents = np.ndarray | Callable[[np.ndarray, int], np.ndarray]
"""What is searched: vectors (m, d), or a function from query vectors (n, d) and k to the k best scores of
each, (n, k), best first, as an index gives them."""


def _margin(scores: np.ndarray) -> np.ndarray:
    """1 − z / √(k − 1), z being how many standard deviations of the k scores the best is above their mean.

    No z of k numbers is above √(k − 1), that of one high score and k − 1 equal ones.
    """
    spread, mean = scores.std(axis=1), scores.mean(axis=1)  # scores are relative to the best: its own is 0
    most = math.sqrt(max(1, scores.shape[1] - 1))
    return 1 - np.divide(-mean, spread, out=np.zeros_like(mean), where=spread > 0) / most


def _entropy(scores: np.ndarray) -> np.ndarray:
    """−Σ p log p / log k of p = softmax(scores / their standard deviation): 1 where all score the same."""
    spread = scores.std(axis=1, keepdims=True)
    # where all are equal their shares are
    weights = np.exp(np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 0))
    shares = weights / weights.sum(axis=1, keepdims=True)
    if scores.shape[1] == 1:
        return np.ones(len(scores))
    return -(shares * np.log(shares)).sum(axis=1) / math.log(scores.shape[1])


SIGNALS = {
    "margin": "the best document does not stand out from the next nine",
    "entropy": "the ten best are alike",
    "score": "the best document is far from the query",
    "spread": "the ten best score alike, in cosine",
}
"""The signals, and what each holds for doubt.

`margin` and `entropy` see the shape of the scores alone, not their scale; `score` and `spread` are cosines,
comparable within one model and corpus. `spread` is NQC without its normalization (Shtok, Kurland, Carmel,
Raiber and Markovits, "Predicting query performance by query-drift estimation", 2012).
"""


def uncertainty(scores: np.ndarray, signal: str) -> np.ndarray:
    """How unsure each ranking is.

    Args:
        scores: (n, k ≥ 1) cosines of the best documents, falling; those beyond `DEPTH` are not looked at.
        signal: one of `SIGNALS`.

    Returns:
        (n,) float64, 0 or more, higher where there is more doubt; `margin` and `entropy` are at most 1.

    Raises:
        ValueError: no such signal, or no scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores must be (n, k) with k ≥ 1, got {scores.shape}")
    scores = scores[:, :DEPTH]
    below = scores - scores[:, :1]  # equal scores become exact zeros
    if signal == "margin":
        found = _margin(below)
    elif signal == "entropy":
        found = _entropy(below)
    elif signal == "score":
        found = 1 - scores[:, 0]
    elif signal == "spread":
        found = 1 - below.std(axis=1)
    else:
        raise ValueError(f"the signal must be one of {', '.join(SIGNALS)}; got {signal!r}")
    return np.maximum(found, 0.0)


@dataclass(frozen=True)
class Adaptive:
    """The rule of `reasoning="auto"`: think about a query where its direct ranking is unsure enough.

    Attributes:
        signal: of the doubt, one of `SIGNALS`.
        threshold: the least uncertainty that is thought about: 0 always thinks, None never does.
        chosen_on: data and split that chose it, for people.

    Raises:
        ValueError: no such signal, or the threshold is no number of 0 or more.
    """

    signal: str
    threshold: float | None
    chosen_on: str | None = None

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"the signal must be one of {', '.join(SIGNALS)}; got {self.signal!r}")
        number = self.threshold if isinstance(self.threshold, int | float) else -1
        if self.threshold is not None and not 0 <= number < math.inf:
            raise ValueError(f"the threshold must be a number of 0 or more, or None; got {self.threshold!r}")

    def thinks(self, scores: np.ndarray) -> np.ndarray:
        """(n,) bool, which queries are to be thought about, by the scores (n, k) of their direct rankings."""
        if self.threshold is None:
            return np.zeros(len(scores), dtype=bool)
        return uncertainty(scores, self.signal) >= self.threshold

    def thinks_about(self, vectors: np.ndarray, documents: Documents) -> np.ndarray:
        """As `thinks`, of direct query vectors (n, d) and what they search; (n,) bool.

        Raises:
            ValueError: there are no documents, or the widths differ.
        """
        if not len(vectors) or self.threshold is None:
            return np.zeros(len(vectors), dtype=bool)
        if callable(documents):
            scores = documents(vectors, DEPTH)
            return self.thinks(scores) if scores.shape[1] else np.zeros(len(vectors), dtype=bool)
        if not len(documents):
            raise ValueError('reasoning="auto" needs the vectors of at least one document')
        return self.thinks(top_k(vectors, documents, DEPTH)[0])

    def save(self, folder: str | Path) -> None:
        """Write the rule into a model's folder, whole or not at all, over an older one."""
        write_json(Path(folder) / RULE, asdict(self))


def load_rule(folder: Path) -> Adaptive | None:
    """The rule in a model's folder, None where there is none.

    Raises:
        ModelError: the file is not what `Adaptive.save` writes.
    """
    file = folder / RULE
    if not file.is_file():
        return None
    try:
        return Adaptive(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ModelError(
            f"{file}: not a rule of adaptive thinking ({' '.join(str(error).split())}); "
            "make it again with `searchr3 adapt`, or remove it"
        ) from None


def known_rule(model: Any, rule: Adaptive | None = None) -> Adaptive:
    """`rule`, or else the model's own.

    Raises:
        ModelError: there is neither.
    """
    rule = rule or getattr(model, "adaptive", None)
    if rule is None:
        raise ModelError(
            'reasoning="auto": the model has no rule of when to think; '
            "choose one with `searchr3 adapt MODEL --data …`, or give a rule"
        )
    return rule
