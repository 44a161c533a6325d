"""`evaluate`: rank the corpus for every query of a split, directly, after thinking, and by the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.adaptive import Adaptive, known_rule
from searchr3.evaluation.adaptive import auto_run, summary
from searchr3.evaluation.baselines import check_baselines
from searchr3.evaluation.bench import Bench, Embedder, Progress
from searchr3.evaluation.budget import budget_curve
from searchr3.evaluation.cache import Cache
from searchr3.evaluation.controls import check_controls, run_controls
from searchr3.evaluation.examples import helped_and_hurt
from searchr3.evaluation.results import REASONING, Results, Run
from searchr3.evaluation.rivals import Rivals
from searchr3.evaluation.samples import sample_curve

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset


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
    cache: Cache | None = None,
    key_variable: str | None = None,
    adaptive: Adaptive | None = None,
) -> Results:
    """Measure a model and its baselines on the queries of one split. Reasoning traces are never seen.

    Args:
        model: gives the runs "direct" (no thinking), "reasoned" (one greedy thought a query) and "auto"
            (thinks where the direct ranking is unsure).
        split: whose queries; the whole corpus is ranked.
        reasoning: "off" (direct only), "on" (reasoned only), "both", "auto" (direct and auto) or "all".
        baselines: "bm25" (tuned on dev where there is one); the path or id of another model (direct), or
            `URL#MODEL` of a server that speaks OpenAI's embeddings; "rewrite:" and such a model, which then
            embeds the query with the thought of "reasoned" after it; or a `Run` that an earlier evaluation of
            the same queries made.
        depth: hits a query; at least 100.
        max_new_tokens: most tokens of a thought.
        document_vectors: (documents, d) float32 in the order of the corpus, when they are known already.
        progress: called as the work goes on.
        name: of the model, for the report.
        controls: names in `CONTROLS`: what to put in the place of the run `reasoned`'s thoughts.
        budgets: most tokens of a thought, at each of which nDCG@10 is measured, see `budget_curve`.
        samples: numbers of sampled thoughts, likewise, see `sample_curve`.
        cache: knows vectors and thoughts of models from before, and keeps the new ones. A model in training
            has no use for one: its weights are never met again.
        key_variable: the environment variable with the key of a baseline's server; by default
            OPENAI_API_KEY, by https or to this machine.
        adaptive: the rule of "auto"; default: the model's own.

    Raises:
        DataError: no such split, or its qrels are empty.
        ModelError: a baseline cannot be loaded, a vector is not finite, or no rule is known for "auto".
        EndpointError: a baseline's server cannot be asked.
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
    check_baselines(baselines, reasoning, key_variable)
    wanted = REASONING[reasoning]
    rule = known_rule(model, adaptive) if "auto" in wanted else None
    bench = Bench(dataset.without_reasoning(), split, depth, progress, cache)
    device = getattr(model, "device", None)
    rivals = Rivals(bench, baselines, key_variable, None if device is None else str(device))
    rivals.rank()
    model = cache.over(model) if cache else model
    documents_seconds = None
    if document_vectors is None:
        begun = bench.clock()
        document_vectors = bench.encode_documents(model)
        documents_seconds = bench.clock() - begun
    elif len(document_vectors) != len(dataset.corpus):
        raise ValueError(
            f"{len(document_vectors)} document vectors for a corpus of {len(dataset.corpus)} documents"
        )
    runs: dict[str, Run] = {}
    controlled: list[Run] = []
    extras: dict[str, Any] = {}
    if "direct" in wanted:
        runs["direct"] = bench.dense("direct", model, document_vectors, documents_seconds=documents_seconds)
    if "reasoned" in wanted:
        runs["reasoned"] = bench.reasoned(
            model, document_vectors, max_new_tokens, documents_seconds=documents_seconds
        )
        rivals.rewrite(runs["reasoned"])
        controlled = run_controls(bench, model, document_vectors, runs["reasoned"], controls)
    if rule:
        known = document_vectors, max_new_tokens, runs.get("reasoned")
        runs["auto"] = auto_run(bench, model, rule, runs["direct"], *known)
        extras["adaptive"] = summary(rule, runs["auto"], runs["direct"], runs.get("reasoned"))
    curves = {}
    if budgets:
        known_thoughts = runs.get("reasoned"), max_new_tokens, runs.get("direct")
        curves["budget"] = budget_curve(bench, model, document_vectors, budgets, *known_thoughts)
    if samples:
        both = [run for name, run in runs.items() if name != "auto"]
        curve, unsure = sample_curve(bench, model, document_vectors, samples, max_new_tokens, both)
        curves["samples"] = curve
        extras |= {"uncertainty": unsure} if unsure else {}
    extras |= {"curves": curves} if curves else {}
    if "direct" in runs and "reasoned" in runs:
        extras["examples"] = helped_and_hurt(runs["direct"], runs["reasoned"], bench.dataset, split)
    return Results(
        model=name or type(model).__name__,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=tuple(runs.values()),
        baselines=rivals.runs,
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
    check_baselines([baseline], "off")
    bench = Bench(dataset.without_reasoning(), split, depth, progress)
    rivals = Rivals(bench, [baseline])
    rivals.rank()
    return Results(
        model=baseline,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=(),
        baselines=rivals.runs,
    )
