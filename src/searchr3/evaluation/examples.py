"""The queries that thinking helped and hurt most, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from searchr3.evaluation.results import Hit, Run
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
        "helped" and "hurt" → `{"query" (id), "text", "reasoning", "thinking_tokens", "direct", "reasoned",
        "direct_hits", "reasoned_hits", "relevant"}`. "direct" and "reasoned" are nDCG@10; the last three are
        titles, of at most five documents each. Texts are shortened.
    """
    before, after, qrels = direct.values["ndcg@10"], reasoned.values["ndcg@10"], dataset.split(split)

    def entry(query: str) -> dict[str, Any]:
        thought = reasoned.thoughts[query]
        relevant = [document for document, grade in qrels[query].items() if grade > 0]
        return {
            "query": query,
            "text": shortened(dataset.queries[query].text, _TEXT),
            "reasoning": shortened(thought.text, _TEXT),
            "thinking_tokens": len(thought.token_ids),
            "direct": before[query],
            "reasoned": after[query],
            "direct_hits": titles(_found(direct.hits[query])),
            "reasoned_hits": titles(_found(reasoned.hits[query])),
            "relevant": titles(relevant),
        }

    def titles(documents: Iterable[str]) -> list[str]:
        some = [*documents][:_HITS]
        return [shortened(dataset.corpus[document].title or document, _TITLE) for document in some]

    gain = {query: after[query] - before[query] for query in before}
    best = sorted((query for query in gain if gain[query] > 0), key=lambda query: (-gain[query], query))
    worst = sorted((query for query in gain if gain[query] < 0), key=lambda query: (gain[query], query))
    return {"helped": [*map(entry, best[:count])], "hurt": [*map(entry, worst[:count])]}


def _found(hits: Sequence[Hit]) -> list[str]:
    return [hit.document for hit in hits]
