"""Whether what measures is right: metrics against trec_eval and its formulas, BM25 as the field sets it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
import pytrec_eval

from searchr3.dataset import Qrels, RetrievalDataset
from searchr3.evaluation.bm25 import BM25, Setting, as_run
from searchr3.ranking import METRICS, trec_metrics

PUBLISHED = 0.665, 0.679  # BM25 on SciFact: BEIR's multi-field index, and Anserini's flat one
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


def measured(
    datasets: Iterable[tuple[str, RetrievalDataset]], known: Mapping[str, float] | None
) -> dict[str, float]:
    """The figures of all data sets, one after the other, see `metrics.py`.

    Args:
        datasets: names and data, each as it is or, where `known` is None, a part of it.
        known: name → the nDCG@10 of BM25 that somebody else found.
    """
    found: dict[str, float] = {}
    for name, dataset in datasets:
        print(f"{name}: metrics and BM25", flush=True)
        disagreements, quality = checked(dataset)
        found |= {f"agreement.{name}.{case}": value for case, value in disagreements.items()}
        found[f"bm25.{name}.ndcg@10"] = quality
        if known and name in known:
            found[f"bm25.{name}.stated"] = known[name]
            found[f"bm25.{name}.off"] = abs(quality - known[name])
        if known is not None and name == "scifact":
            found["scifact_outside"] = max(0.0, PUBLISHED[0] - quality, quality - PUBLISHED[1])
    found["difference_most"] = max(value for key, value in found.items() if key.startswith("agreement."))
    if offs := [value for key, value in found.items() if key.endswith(".off")]:
        found["bm25_off_most"] = max(offs)
    return found


def stated(readme: Path) -> dict[str, float]:
    """Data set → the README's nDCG@10 of BM25."""
    if not readme.is_file():
        return {}
    lines = readme.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("|")]
    column = next((n for n, cell in enumerate(rows[0]) if "BM25 nDCG@10" in cell), None) if rows else None
    if column is None:
        return {}
    found = {row[1].strip(): re.match(r"\s*(\d\.\d+)", row[column]) for row in rows if len(row) > column}
    return {name: float(number[1]) for name, number in found.items() if number}
