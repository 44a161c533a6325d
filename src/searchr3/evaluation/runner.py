"""`evaluate`: rank the corpus for every query of a split, directly, after thinking, and by the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.evaluation.baselines import check_baselines, load_rival
from searchr3.evaluation.bench import Bench, Embedder, Progress
from searchr3.evaluation.budget import budget_curve
from searchr3.evaluation.controls import check_controls, run_controls
from searchr3.evaluation.examples import helped_and_hurt
from searchr3.evaluation.results import Results, Run
from searchr3.evaluation.samples import sample_curve

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
    controls: Sequence[str] = (),
    budgets: Sequence[int] = (),
    samples: Sequence[int] = (),
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
        controls: names in `CONTROLS`: what to put in the place of the run `reasoned`'s thoughts.
        budgets: most tokens of a thought, at each of which nDCG@10 is measured, see `budget_curve`.
        samples: numbers of sampled thoughts, likewise, see `sample_curve`.

    Raises:
        DataError: no such split, or its qrels are empty.
        ModelError: a baseline cannot be loaded, or a vector is not finite.
        SearchR3Error: a control is unknown, or there is no run `reasoned` for it.
        ValueError: `reasoning`, `depth`, `budgets`, `samples` or the shape of `document_vectors` is wrong.
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning must be one of {', '.join(REASONING)}; got {reasoning!r}")
    if depth < 100:
        raise ValueError(f"depth must be at least 100, or recall@100 cannot be measured; got {depth}")
    if min(budgets, default=0) < 0 or min(samples, default=1) < 1:
        raise ValueError(f"budgets must be 0 or more, samples 1 or more; got {budgets} and {samples}")
    check_controls(controls, reasoning)
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
    direct, reasoned = (
        next((run for run in runs if run.name == way), None) for way in ("direct", "reasoned")
    )
    controlled = run_controls(bench, model, document_vectors, reasoned, controls) if reasoned else []
    extras: dict[str, Any] = {}
    if budgets:
        budget = budget_curve(bench, model, document_vectors, budgets, reasoned, max_new_tokens)
        extras["curves"] = {"budget": budget}
    if samples:
        curve, unsure = sample_curve(bench, model, document_vectors, samples, max_new_tokens, runs)
        extras["curves"] = {**extras.get("curves", {}), "samples": curve}
        extras |= {"uncertainty": unsure} if unsure else {}
    if direct and reasoned:
        extras["examples"] = helped_and_hurt(direct, reasoned, bench.dataset, split)
    return Results(
        model=name or type(model).__name__,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=tuple(runs),
        baselines=tuple(others),
        document_vectors=document_vectors,
        controls=tuple(controlled),
        extras=extras,
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
        return baseline if baseline.kind == "baseline" else replace(baseline, kind="baseline")
    if baseline == "bm25":
        return bench.bm25()
    rival = load_rival(baseline)
    return bench.dense(
        baseline, rival, bench.encode_documents(rival, f"{baseline} documents"), kind="baseline"
    )
