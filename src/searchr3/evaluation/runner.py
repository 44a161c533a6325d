"""`evaluate`: rank the corpus for every query of a split, directly, after thinking, and by the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from searchr3.evaluation.baselines import check_baselines, load_rival
from searchr3.evaluation.bench import Bench, Embedder, Progress
from searchr3.evaluation.results import Results, Run

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

REASONING = ("off", "on", "both")


def evaluate(
    model: Embedder,
    dataset: RetrievalDataset,
    split: str = "test",
    reasoning: str = "both",
    baselines: Sequence[str | Run] = ("bm25",),
    depth: int = 100,
    max_new_tokens: int = 128,
    document_vectors: np.ndarray | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Results:
    """Measure a model and its baselines on the queries of one split. Reasoning traces are never seen.

    Args:
        model: gives the runs "direct" (no thinking) and "reasoned" (one greedy thought a query).
        split: whose queries; the whole corpus is ranked.
        reasoning: "off" (direct only), "on" (reasoned only) or "both".
        baselines: "bm25" (tuned on dev where there is one), the path or id of another model (direct), or a
            `Run` that an earlier evaluation of the same queries made.
        depth: hits a query; at least 100.
        max_new_tokens: most tokens of a thought.
        document_vectors: (documents, d) float32 in the order of the corpus, when they are known already.
        progress: called as the work goes on.
        name: of the model, for the report.

    Raises:
        DataError: no such split, or its qrels are empty.
        ModelError: a baseline cannot be loaded, or a vector is not finite.
        ValueError: `reasoning`, `depth` or the shape of `document_vectors` is wrong.
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning must be one of {', '.join(REASONING)}; got {reasoning!r}")
    if depth < 100:
        raise ValueError(f"depth must be at least 100, or recall@100 cannot be measured; got {depth}")
    check_baselines(baselines)
    bench = Bench(dataset.without_reasoning(), split, depth, progress)
    others = [_baseline(baseline, bench) for baseline in dict.fromkeys(baselines)]
    if document_vectors is None:
        document_vectors = bench.encode_documents(model)
    elif len(document_vectors) != len(dataset.corpus):
        raise ValueError(
            f"{len(document_vectors)} document vectors for a corpus of {len(dataset.corpus)} documents"
        )
    runs = []
    if reasoning != "on":
        runs.append(bench.dense("direct", model, document_vectors))
    if reasoning != "off":
        runs.append(bench.reasoned(model, document_vectors, max_new_tokens))
    return Results(
        model=name or type(model).__name__,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=tuple(runs),
        baselines=tuple(others),
        document_vectors=document_vectors,
    )


def evaluate_baseline(
    baseline: str,
    dataset: RetrievalDataset,
    split: str = "test",
    depth: int = 100,
    progress: Progress | None = None,
) -> Results:
    """A baseline by itself, measured as `evaluate` does beside a model; arguments and errors as there."""
    check_baselines([baseline])
    bench = Bench(dataset.without_reasoning(), split, depth, progress)
    return Results(
        model=baseline,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=(),
        baselines=(_baseline(baseline, bench),),
    )


def _baseline(baseline: str | Run, bench: Bench) -> Run:
    if isinstance(baseline, Run):
        if baseline.values["ndcg@10"].keys() != set(bench.ids):
            raise ValueError(f"the run {baseline.name!r} is not of the same queries")
        return baseline
    if baseline == "bm25":
        return bench.bm25()
    rival = load_rival(baseline)
    return bench.dense(baseline, rival, bench.encode_documents(rival, f"{baseline} documents"))
