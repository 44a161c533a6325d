"""Whether what measures is right: metrics against trec_eval, and BM25 as the field sets it."""

from __future__ import annotations

from collections.abc import Mapping

import pytrec_eval

from searchr3.dataset import Qrels, RetrievalDataset
from searchr3.evaluation.bm25 import BM25, Setting, as_run
from searchr3.ranking import trec_metrics

MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100"}
FIELD = Setting(k1=0.9, b=0.4)  # Anserini's, in BEIR's own figures too


def plain_bm25(dataset: RetrievalDataset) -> dict[str, float]:
    """BM25 untuned on the test split: `ndcg` and recalls, and how far our metrics are from trec_eval's."""
    qrels = dataset.split("test")
    index = BM25((document.content for document in dataset.corpus.values()), FIELD)
    found = index.search([dataset.queries[query].text for query in qrels], 100)
    run = as_run([*qrels], [*dataset.corpus], *found)
    ours = trec_metrics(run, qrels)
    means = {name: sum(values.values()) / len(values) for name, values in ours.items()}
    return {
        "ndcg": means["ndcg@10"],
        "recall_10": means["recall@10"],
        "recall_100": means["recall@100"],
        "trec_eval_error": max(trec_eval_error(one, qrels) for one in (run, worse(run))),
    }


Found = Mapping[str, Mapping[str, float]]
"""query id → document id → score."""


def worse(run: Found) -> dict[str, dict[str, float]]:
    """The run with ties, and without every tenth query."""
    return {
        query: {key: float(round(score)) for key, score in hits.items()}
        for number, (query, hits) in enumerate(run.items())
        if number % 10
    }


def trec_eval_error(run: Found, qrels: Qrels) -> float:
    """The largest difference of a query's metric from trec_eval's; a query that the run lacks counts 0."""
    ours = trec_metrics(run, qrels)
    judge = pytrec_eval.RelevanceEvaluator(
        {key: dict(judged) for key, judged in qrels.items()}, set(MEASURES.values())
    )
    theirs = judge.evaluate({key: dict(hits) for key, hits in run.items()})
    return max(
        abs(values[query] - theirs.get(query, {}).get(MEASURES[name], 0.0))
        for name, values in ours.items()
        if name in MEASURES
        for query in qrels
    )
