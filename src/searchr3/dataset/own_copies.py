"""Queries that stand in the corpus themselves, as in BEIR's arguana and quora, and are no answer there."""

from __future__ import annotations

from collections.abc import Mapping

from searchr3.dataset.splits import query_key
from searchr3.dataset.types import Document, Eligible, Qrels, Query


def without_itself(
    corpus: Mapping[str, Document], queries: Mapping[str, Query], qrels: Mapping[str, Qrels]
) -> dict[str, Eligible]:
    """What the queries of dev and test may find that are documents, too: all but themselves.

    BEIR leaves out every document of a query's own id (`ignore_identical_ids`). Here it must also have the
    query's words, for an id may be the same by chance, and it must not be judged to be an answer.
    """
    found = {}
    for split in ("dev", "test"):
        for query, judged in qrels.get(split, {}).items():
            own = corpus.get(query)
            if own is None or judged.get(query, 0) > 0:
                continue
            if query_key(queries[query].text) in (query_key(own.text), query_key(own.content)):
                found[query] = Eligible(frozenset({query}), others=True)
    return found
