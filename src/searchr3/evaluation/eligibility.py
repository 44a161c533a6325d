"""Rankings in which not every document may stand: excluded ones, or a few candidates to order anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from searchr3.dataset.types import Eligible
from searchr3.ranking import highest


class Eligibility:
    """Which documents may be found, by the numbers of queries and documents.

    Args:
        eligible: query id → which; queries that are not there may find all.
        queries: ids, in the order of the rankings' rows.
        documents: ids, in the order of the corpus.

    Attributes:
        only: number of a query → sorted numbers of the documents that alone it may find.
        without: number of a query → numbers of those that it may not.
        spare: how many hits more a search must bring, so that enough are left.
    """

    def __init__(
        self, eligible: Mapping[str, Eligible], queries: Sequence[str], documents: Sequence[str]
    ) -> None:
        self.only: dict[int, np.ndarray] = {}
        self.without: dict[int, np.ndarray] = {}
        if eligible:
            numbers = {document: number for number, document in enumerate(documents)}
            for number, query in enumerate(queries):
                if (one := eligible.get(query)) is not None:
                    rows = sorted(numbers[document] for document in one.documents if document in numbers)
                    (self.without if one.others else self.only)[number] = np.array(rows, dtype=np.int64)
        self.spare = max(map(len, self.without.values()), default=0)

    def ordered(
        self,
        scores: np.ndarray,
        rows: np.ndarray,
        score: Callable[[int, np.ndarray], np.ndarray],
        best: Callable[[np.ndarray, int], np.ndarray] = highest,
    ) -> None:
        """Write the ranking of the candidates, for the queries that have some, into `scores` and `rows`.

        Args:
            scores, rows: (queries, k), changed in place; row −1 where there is no hit.
            score: number of a query, numbers of documents → their scores.
            best: scores, k → the places of the k best.
        """
        for number, some in self.only.items():
            found = score(number, some)
            places = best(found, rows.shape[1])
            scores[number], rows[number] = 0, -1
            scores[number, : len(places)], rows[number, : len(places)] = found[places], some[places]

    def kept(self, scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first k hits that may be found, (queries, k); row −1 where there are fewer."""
        if self.only or self.without:
            scores, rows = scores.copy(), rows.copy()
        for number in (*self.only, *self.without):
            found = rows[number] >= 0
            if number in self.only:
                found &= np.isin(rows[number], self.only[number])
            else:
                found &= ~np.isin(rows[number], self.without[number])
            left = [values[number][found] for values in (scores, rows)]
            scores[number], rows[number] = 0, -1
            scores[number, : len(left[0])], rows[number, : len(left[0])] = left
        return scores[:, :k], rows[:, :k]
