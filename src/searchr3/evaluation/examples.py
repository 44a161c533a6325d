"""The queries that thinking helped and hurt most, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from searchr3.evaluation.results import Run
from searchr3.words import shortened

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

_TEXT, _TITLE = 300, 100  # most characters
_HITS = 5


def helped_and_hurt(
    direct: Run, reasoned: Run, dataset: RetrievalDataset, split: str, count: int = 10
) -> dict[str, list[dict[str, Any]]]:
    """The queries whose nDCG@10 thinking raised and lowered most, the most on top.

    Queries that it neither raised nor lowered are in neither list; of equal ones the smaller id is first.

    Args:
        direct, reasoned: runs over the same queries of `split`.
        count: most queries of each list.

    Returns:
        "helped" and "hurt" → `{"query" (id), "text", "reasoning", "thinking_tokens", "relevant"}` and, of
        both runs, `{"direct" (nDCG@10), "direct_hits", "direct_relevant" (whether each of these is),
        "direct_rank" (of the first relevant one, None where none was found)}`. Hits and relevant documents
        are the `heading`s of at most five. Texts are shortened.
    """
    before, after, qrels = direct.values["ndcg@10"], reasoned.values["ndcg@10"], dataset.split(split)

    def entry(query: str) -> dict[str, Any]:
        thought, grades = reasoned.thoughts[query], qrels[query]
        wanted = [document for document, grade in grades.items() if grade > 0]
        return {
            "query": query,
            "text": shortened(dataset.queries[query].text, _TEXT),
            "reasoning": shortened(thought.text, _TEXT),
            "thinking_tokens": len(thought.token_ids),
            "direct": before[query],
            "reasoned": after[query],
            **_found("direct", direct, query, grades, dataset),
            **_found("reasoned", reasoned, query, grades, dataset),
            "relevant": [heading(dataset, document) for document in wanted[:_HITS]],
        }

    gain = {query: after[query] - before[query] for query in before}
    best = sorted((query for query in gain if gain[query] > 0), key=lambda query: (-gain[query], query))
    worst = sorted((query for query in gain if gain[query] < 0), key=lambda query: (gain[query], query))
    return {"helped": [*map(entry, best[:count])], "hurt": [*map(entry, worst[:count])]}


def heading(dataset: RetrievalDataset, document: str) -> str:
    """A document as people know it: its title, else how it begins, else its id.

    Judgements may name documents that the corpus does not hold, as some of MTEB's do.
    """
    found = dataset.corpus.get(document)
    words = found.title.strip() or found.text.strip() if found else ""
    return shortened(words or document, _TITLE)


def _found(
    name: str, run: Run, query: str, grades: Mapping[str, int], dataset: RetrievalDataset
) -> dict[str, Any]:
    """Two documents may bear one title, so what is relevant is told of each hit."""
    documents = [hit.document for hit in run.hits[query]]
    good = [grades.get(document, 0) > 0 for document in documents]
    return {
        f"{name}_hits": [heading(dataset, document) for document in documents[:_HITS]],
        f"{name}_relevant": good[:_HITS],
        f"{name}_rank": good.index(True) + 1 if True in good else None,
    }
