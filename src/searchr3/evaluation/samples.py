"""Several sampled thoughts a query: the mean of their vectors, and what their agreement tells.

Thoughts are sampled once, as many as the largest number asked for; smaller numbers take the first of them.
Everything is seeded: a second evaluation of the same model, on the same machine, gives the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from searchr3.evaluation.bench import QUERIES, Bench, Embedder
from searchr3.evaluation.curves import points
from searchr3.evaluation.results import Run
from searchr3.evaluation.statistics import auroc, rank_correlation

TEMPERATURE = 1.0  # that of `encode_query(samples=k)`
_TOP = 10


def sample_curve(
    bench: Bench,
    model: Embedder,
    document_vectors: np.ndarray,
    counts: Sequence[int],
    max_new_tokens: int,
    runs: Sequence[Run],
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """nDCG@10 of the mean of k sampled thoughts' vectors, and whether their agreement tells a miss.

    Args:
        counts: the numbers k, 1 or more. At 1 it is one sampled thought, where `encode_query` at 1 sample
            takes the greedy one.
        max_new_tokens: most tokens of a thought.
        runs: rankings of the same queries, which the agreement is held against; so is that of the largest k.
            Where "direct" is among them each point is held against it.

    Returns:
        the curve in ascending order, `{"samples", "ndcg@10", "ci95", "minus_direct", "thinking_tokens_mean",
        "emission_rate", "seconds_per_query"}` each (see `points`), where tokens and seconds are those of all
        k thoughts of a query; and with the largest k, `{"samples", "agreement_mean", "overlap_mean",
        "signals": [{"signal", "run", "rank_correlation", "auroc"}]}`, None where that is 1. "agreement" is
        the mean cosine of two of a query's k vectors, "overlap" the mean share of their first 10 documents
        that two have in common. `rank_correlation` is theirs with the run's nDCG@10; `auroc` the chance that
        a query without a relevant document in the run's first 10 has the lower signal (None where there is
        no such query, or no other).
    """
    counts = sorted(set(counts))
    total = np.zeros((len(bench.ids), document_vectors.shape[1]))
    tops, ranked, figures = [], [], []
    tokens = emitted = 0
    spent = 0.0
    for number in range(1, counts[-1] + 1):
        start = bench.clock()
        vectors = []
        for place, part in enumerate(bench.steps(f"sample {number}", bench.queries, QUERIES)):
            thoughts = model.generate(
                batch=part,
                max_new_tokens=max_new_tokens,
                temperature=TEMPERATURE,
                seed=_seed(seed, number, place),
                **bench.dataset.task,
            )
            vectors.append(model.encode_query(part, reasoning=thoughts, **bench.dataset.task))
            tokens += sum(len(thought.token_ids) for thought in thoughts)
            emitted += sum(thought.emitted for thought in thoughts)
        found = np.concatenate(vectors)
        total += found
        spent += bench.clock() - start
        tops.append(bench.eligibility.kept(*bench.hits(found, document_vectors), _TOP)[1])
        if number in counts:
            run = bench.ranked(f"{number} samples", _unit(total), document_vectors, bench.clock())
            ranked.append(run)
            figures.append(
                {
                    "thinking_tokens_mean": tokens / len(bench.ids),
                    "emission_rate": emitted / (number * len(bench.ids)),
                    "seconds_per_query": (spent + run.seconds) / len(bench.ids),
                }
            )
    direct = next((run for run in runs if run.name == "direct"), None)
    curve = [
        {"samples": count, **point, **rest}
        for count, point, rest in zip(counts, points(ranked, bench.ids, direct), figures, strict=True)
    ]
    return curve, uncertainty(
        agreement(total, counts[-1]), overlap(np.stack(tops)), [*runs, ranked[-1]], bench.ids, counts[-1]
    )


def agreement(total: np.ndarray, samples: int) -> np.ndarray:
    """Mean cosine of two of a query's k unit vectors, (n,), from their sums (n, d); 1 for a single one.

    `(|Σ v|² − k) / (k (k − 1))`: the square of the sum holds every pair twice, and k times 1.
    """
    if samples == 1:
        return np.ones(len(total))
    return (np.einsum("nd,nd->n", total, total) - samples) / (samples * (samples - 1))


def overlap(rows: np.ndarray) -> np.ndarray:
    """Mean share of the hits that two of a query's k rankings have in common, (n,), from rows (k, n, hits).

    A document that c of the rankings hold is common to c (c − 1) / 2 pairs of them. Row −1 is no hit; all
    rankings of a query have as many hits.
    """
    samples, queries, _ = rows.shape
    if samples == 1:
        return np.ones(queries)
    found = [rows[:, query][rows[:, query] >= 0] for query in range(queries)]
    shared = np.array([_pairs(np.unique(one, return_counts=True)[1]) for one in found])
    hits = np.array([len(one) / samples for one in found])
    return np.divide(shared, _pairs(np.array([samples])) * hits, out=np.ones(queries), where=hits > 0)


def uncertainty(
    agreed: np.ndarray, overlapped: np.ndarray, runs: Sequence[Run], ids: Sequence[str], samples: int
) -> dict[str, Any] | None:
    """How well agreement and overlap tell where each run is right, as `sample_curve` returns it."""
    if samples == 1:
        return None
    signals = {"agreement": agreed, "overlap": overlapped}
    return {
        "samples": samples,
        **{f"{name}_mean": float(values.mean()) for name, values in signals.items()},
        "signals": [
            {
                "signal": name,
                "run": run.name,
                "rank_correlation": rank_correlation(
                    values.tolist(), [run.values["ndcg@10"][query] for query in ids]
                ),
                "auroc": auroc((-values).tolist(), [run.values["recall@10"][query] == 0 for query in ids]),
            }
            for name, values in signals.items()
            for run in runs
        ],
    }


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1)).sum()) / 2


def _seed(*numbers: int) -> int:
    """One seed from several numbers: no two batches of texts share their random numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
