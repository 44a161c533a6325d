"""Dev nDCG@10 during training: a fixed sample of the dev queries against a fixed part of the corpus."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.splits import fraction
from searchr3.dataset.types import Qrels, Task
from searchr3.embedding import shorten
from searchr3.model import SearchR3
from searchr3.ranking import top_k, trec_metrics


@dataclass(frozen=True)
class DevSet:
    """Queries and documents that both trainers score themselves on; the same in every run on equal data."""

    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: list[str]
    qrels: Qrels
    widths: tuple[int, ...] = ()
    task: Task = field(default_factory=Task)

    @classmethod
    def of(
        cls, dataset: RetrievalDataset, queries: int, documents: int, widths: tuple[int, ...] = ()
    ) -> DevSet:
        """At most `queries` dev queries, their relevant documents and others up to `documents`.

        Chosen by a stable hash. Shortened vectors of `widths` dimensions are scored too.
        """
        judged = dataset.split("dev")
        chosen = sorted(judged, key=lambda key: fraction(key, "dev"))[:queries]
        qrels = {key: judged[key] for key in chosen}
        relevant = {document for grades in qrels.values() for document in grades}
        others = heapq.nsmallest(
            documents - len(relevant),
            (key for key in dataset.corpus if key not in relevant),
            key=lambda key: fraction(key, "dev"),
        )
        ids = sorted(relevant) + others
        return cls(
            chosen,
            [dataset.queries[key].text for key in chosen],
            ids,
            [dataset.corpus[key].content for key in ids],
            qrels,
            widths,
            dataset.task,
        )

    def score(
        self, model: SearchR3, max_new_tokens: int = 0, cost: Callable[[float], float] | None = None
    ) -> dict[str, float]:
        """nDCG@10 of direct queries and, when `max_new_tokens` > 0, of greedily reasoned ones.

        Args:
            cost: of so many thinking tokens, in nDCG.

        Returns:
            `direct`, `direct_at_64` and so on for shorter widths, and with reasoning also `reasoned`,
            `thinking_tokens` and, by `cost`, `thinking_cost` (means over the queries), and `emission_rate`.
        """
        documents = model.encode_document(self.documents)
        plain = model.encode_query(self.queries, **self.task)
        figures = {"direct": self._ndcg(plain, documents)}
        for width in self.widths:
            figures[f"direct_at_{width}"] = self._ndcg(shorten(plain, width), shorten(documents, width))
        if max_new_tokens:
            thoughts = model.generate(self.queries, max_new_tokens, **self.task)
            reasoned = model.encode_query(self.queries, thoughts, **self.task)
            figures["reasoned"] = self._ndcg(reasoned, documents)
            lengths = [len(thought.token_ids) for thought in thoughts]
            figures["thinking_tokens"] = float(np.mean(lengths))
            if cost:
                figures["thinking_cost"] = float(np.mean([cost(length) for length in lengths]))
            figures["emission_rate"] = float(np.mean([thought.emitted for thought in thoughts]))
        return figures

    def _ndcg(self, queries: np.ndarray, documents: np.ndarray) -> float:
        scores, rows = top_k(queries, documents, k=min(10, len(documents)))
        run = {
            key: {self.document_ids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True)}
            for i, key in enumerate(self.query_ids)
        }
        return float(np.mean(list(trec_metrics(run, self.qrels)["ndcg@10"].values())))
