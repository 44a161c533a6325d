"""Thoughts and the vectors behind them, of whatever model is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from searchr3.evaluation.results import Thought


def think(
    model: Any, queries: Sequence[str], max_new_tokens: int, clock: Callable[[], float], **task: Any
) -> tuple[list[Thought], np.ndarray, float]:
    """A greedy thought of each query, vectors (n, d), and the seconds of thinking by `clock`.

    In one pass where the model has one, whose seconds are all of thinking; else in two.
    """
    start = clock()
    if getattr(model, "reads_once", False):
        thoughts, vectors = model.think(queries, max_new_tokens=max_new_tokens, **task)
        return thoughts, vectors, clock() - start
    thoughts = list(model.generate(batch=queries, max_new_tokens=max_new_tokens, **task))
    seconds = clock() - start
    return thoughts, model.encode_query(queries, reasoning=thoughts, **task), seconds
