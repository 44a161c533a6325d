"""Data sets made smaller, and several made one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.splits import first_of, fraction, query_key


def reduced(dataset: RetrievalDataset, queries: Mapping[str, int], documents: int) -> RetrievalDataset:
    """At most so many queries of each split, their judged documents, and others up to `documents`.

    All chosen by a stable hash; a split that `queries` does not name keeps all of its own.
    """
    qrels = {
        split: {key: judged[key] for key in first_of(judged, queries.get(split, len(judged)), "part")}
        for split, judged in dataset.qrels.items()
    }
    judged = {key for split in qrels.values() for grades in split.values() for key in grades}
    others = sorted(
        (key for key in dataset.corpus if key not in judged), key=lambda key: fraction(key, "part")
    )
    keep = judged | set(others[: max(0, documents - len(judged))])
    return replace(
        dataset,
        corpus={key: document for key, document in dataset.corpus.items() if key in keep},
        queries={key: dataset.queries[key] for split in qrels.values() for key in split},
        qrels=qrels,
        held_out=dataset.held_out & keep,
    )


def measured_queries(datasets: Iterable[RetrievalDataset]) -> set[str]:
    """The dev and test queries of all, as `query_key`s."""
    return {
        query_key(one.queries[key].text)
        for one in datasets
        for split in ("dev", "test")
        for key in one.qrels.get(split, ())
    }


def merged(
    name: str, parts: Mapping[str, RetrievalDataset], measured: Set[str] = frozenset()
) -> RetrievalDataset:
    """Several data sets as one; an id becomes `PART:ID`. Instructions are left out: there can be only one.

    Training queries that are among the `measured` ones, of whichever part, are left out.
    """
    corpus, queries, qrels = {}, {}, dict[str, dict[str, dict[str, int]]]()
    for part, dataset in parts.items():
        corpus |= {f"{part}:{key}": document for key, document in dataset.corpus.items()}
        queries |= {f"{part}:{key}": query for key, query in dataset.queries.items()}
        for split, judged in dataset.qrels.items():
            qrels.setdefault(split, {}).update(
                {
                    f"{part}:{query}": {f"{part}:{key}": grade for key, grade in grades.items()}
                    for query, grades in judged.items()
                    if split in ("dev", "test") or query_key(dataset.queries[query].text) not in measured
                }
            )
    held_out = frozenset(f"{part}:{key}" for part, dataset in parts.items() for key in dataset.held_out)
    return RetrievalDataset(name, corpus, queries, qrels, held_out)
