"""p-MRR of each query, for its interval; the figure itself is reckoned by MTEB's own code.

FollowIR (arXiv 2403.15246) asks each query twice, `ID-og` and `ID-changed`, whose instruction makes some
documents irrelevant. A document that was at rank r and is at rank s then counts `s / r − 1` where it has not
fallen, `1 − r / s` where it has; a query is the mean over its documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

Hits = Mapping[str, Mapping[str, float]]
"""query id → document id → score."""

_BEFORE, _AFTER = "-og", "-changed"


def p_mrr_of_queries(hits: Hits, qrels: Mapping[str, Mapping[str, int]]) -> list[float]:
    """p-MRR of every query that has documents whose judgement changed, each from −1 to 1."""
    found = []
    for query, judged in qrels.items():
        other = query.removesuffix(_BEFORE) + _AFTER
        if not query.endswith(_BEFORE) or not {query, other} <= hits.keys() or other not in qrels:
            continue
        before, after = _ranks(hits[query]), _ranks(hits[other])
        changes = [
            _change(before.get(document, len(before) + 1), after.get(document, len(after) + 1))
            for document, grade in judged.items()
            if qrels[other].get(document, 0) != grade
        ]
        if changes:
            found.append(fmean(changes))
    return found


def _ranks(scores: Mapping[str, float]) -> dict[str, int]:
    """Ranks from 1 on, ties by descending id, as MTEB breaks them."""
    order = sorted(scores, key=lambda document: (scores[document], document), reverse=True)
    return {document: rank for rank, document in enumerate(order, 1)}


def _change(before: int, after: int) -> float:
    return after / before - 1 if after <= before else 1 - before / after
