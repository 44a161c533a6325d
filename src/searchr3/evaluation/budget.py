"""What a thinking budget buys: nDCG@10 against the most tokens that a thought may have.

Greedy thoughts are prefix-consistent, so the model thinks once, at the largest budget, and its thoughts are
cut. Budget 0 is not the direct vector: it is the reasoning prompt with the embed token at once, by force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from searchr3.evaluation.bench import QUERIES, Bench, Embedder
from searchr3.evaluation.curves import points
from searchr3.evaluation.results import Run, Thought
from searchr3.evaluation.thoughts import cut


def budget_curve(
    bench: Bench,
    model: Embedder,
    document_vectors: np.ndarray,
    budgets: Sequence[int],
    reasoned: Run | None = None,
    max_new_tokens: int = 0,
    direct: Run | None = None,
) -> list[dict[str, Any]]:
    """nDCG@10 at each budget, in ascending order.

    Args:
        budgets: most new tokens of a thought, 0 or more; the embed token is one of them.
        reasoned: thoughts of at most `max_new_tokens` tokens; cut as they are if that is enough for all
            budgets.
        direct: what each budget is held against.

    Returns:
        `{"tokens", "ndcg@10", "ci95", "minus_direct", "thinking_tokens_mean", "emission_rate",
        "seconds_per_query"}` for each (see `points`). The seconds are those of embedding and searching at
        this budget, as measured, and of the one generation its share: tokens within the budget over all
        tokens.
    """
    budgets, limit = sorted(set(budgets)), max_new_tokens
    if reasoned is not None and limit >= budgets[-1]:
        thoughts = [reasoned.thoughts[query] for query in bench.ids]
        thinking = reasoned.thinking_seconds or 0.0
    else:
        limit = budgets[-1]
        thoughts, thinking = _think(bench, model, limit)
    runs = []
    for budget in budgets:
        start = bench.clock()
        short = [cut(model.conversation, thought, budget) for thought in thoughts]
        vectors = bench.embed_after(model, short, f"budget {budget}")
        held = dict(zip(bench.ids, short, strict=True))
        runs.append(bench.ranked(f"budget {budget}", vectors, document_vectors, start, thoughts=held))
    all_tokens = max(1, _generated(thoughts, limit))
    return [
        {
            "tokens": budget,
            **point,
            "thinking_tokens_mean": run.thinking_tokens_mean,
            "emission_rate": run.emission_rate,
            "seconds_per_query": (run.seconds + thinking * _generated(thoughts, budget) / all_tokens)
            / len(bench.ids),
        }
        for budget, run, point in zip(budgets, runs, points(runs, bench.ids, direct), strict=True)
    ]


def _think(bench: Bench, model: Embedder, most: int) -> tuple[list[Thought], float]:
    """One greedy thought a query, and the seconds that took."""
    start, thoughts = bench.clock(), list[Thought]()
    for part in bench.steps("thinking for the budgets", bench.queries, QUERIES):
        thoughts += model.generate(batch=part, max_new_tokens=most, **bench.dataset.task)
    return thoughts, bench.clock() - start


def _generated(thoughts: Sequence[Thought], limit: int) -> int:
    """New tokens in all, the one that ended a thought among them."""
    return sum(min(len(thought.token_ids) + 1, limit) for thought in thoughts)
