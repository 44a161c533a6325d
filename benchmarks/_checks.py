"""Whether what measures is right: metrics against trec_eval and its formulas, BM25 as the field sets it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from statistics import fmean

import numpy as np
import pytrec_eval

from searchr3.dataset import Qrels, RetrievalDataset
from searchr3.evaluation.bm25 import BM25, Setting, as_run
from searchr3.ranking import METRICS, trec_metrics

THEIRS = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100"}
THEIRS["mrr@10"] = "recip_rank"

Hits = Mapping[str, Mapping[str, float]]


def cases(run: Hits, qrels: Qrels) -> Iterator[tuple[str, Hits, Qrels]]:
    """Rankings and judgements that are easy to get wrong."""
    yield "as_found", run, qrels
    yield "ties", {query: {d: float(round(s)) for d, s in hits.items()} for query, hits in run.items()}, qrels
    fewer = {
        query: {d: grade for number, (d, grade) in enumerate(judged.items(), start=place) if number % 3}
        for place, (query, judged) in enumerate(qrels.items())
    }
    yield "missing", {query: hits for n, (query, hits) in enumerate(run.items()) if n % 3}, fewer
    draw = random.Random(0)
    graded = {query: {d: draw.randint(0, 3) for d in judged} for query, judged in qrels.items()}
    yield "grades", run, graded


def formulas(hits: Mapping[str, float], grades: Mapping[str, int]) -> dict[str, float]:
    """trec_eval's metrics of one query; equal scores (they are float32) go by descending document id."""
    ranked = sorted(hits, key=lambda document: (np.float32(hits[document]), document), reverse=True)
    gains = [grades.get(document, 0) for document in ranked]
    relevant = sum(grade > 0 for grade in grades.values())
    ideal = sum(g / math.log2(n + 2) for n, g in enumerate(sorted(grades.values(), reverse=True)[:10]))
    first = next((number for number, gain in enumerate(gains, start=1) if gain > 0), None)
    return {
        "ndcg@10": sum(g / math.log2(n + 2) for n, g in enumerate(gains[:10])) / ideal if ideal else 0.0,
        "recall@10": sum(gain > 0 for gain in gains[:10]) / relevant if relevant else 0.0,
        "recall@100": sum(gain > 0 for gain in gains[:100]) / relevant if relevant else 0.0,
        "mrr@10": 1 / first if first and first <= 10 else 0.0,
    }


def disagreement(run: Hits, qrels: Qrels) -> float:
    """The largest difference of our metrics to trec_eval's and to the formulas, over queries and metrics."""
    ours = trec_metrics(run, qrels)
    judged = {query: dict(grades) for query, grades in qrels.items() if grades}
    names = {"ndcg_cut.10", "recall.10,100", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, names).evaluate({q: dict(h) for q, h in run.items()})
    largest = 0.0
    for query, grades in qrels.items():
        plain = formulas(run.get(query, {}), grades)
        for metric in METRICS:
            value = ours[metric][query]
            largest = max(largest, abs(value - plain[metric]))
            # trec_eval has no cut-off for the reciprocal rank
            if query in theirs and not (metric == "mrr@10" and theirs[query]["recip_rank"] < 0.1):
                largest = max(largest, abs(value - theirs[query][THEIRS[metric]]))
    return largest


def checked(dataset: RetrievalDataset) -> tuple[dict[str, float], float]:
    """The disagreement in each case, and BM25's nDCG@10."""
    qrels = dataset.split("test")
    ids = list(qrels)
    index = BM25([one.content for one in dataset.corpus.values()], Setting())
    scores, rows = index.search([dataset.queries[query].text for query in ids], 100)
    run = as_run(ids, list(dataset.corpus), scores, rows)
    found = {case: disagreement(hits, judged) for case, hits, judged in cases(run, qrels)}
    return found, fmean(trec_metrics(run, qrels)["ndcg@10"].values())
