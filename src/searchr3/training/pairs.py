"""Judged pairs, what stage 1 learns from."""

from __future__ import annotations

from array import array

import numpy as np
import torch
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.disk import numbered
from searchr3.dataset.lazy import Lazy, joined
from searchr3.errors import DataError, RecipeError


class Pairs(torch.utils.data.Dataset):
    """Judged pairs of splits as row numbers: (number of the query, number of the document).

    Eight bytes a pair; all else is looked up in the data set when it is asked for.

    Attributes:
        query_ids: by number.
        document_ids: by number, of the training corpus.
        number_of: the number of a document; None for one that is not in the training corpus.
        relevant: by number of a query, the ids of its relevant documents.
        pairs: the numbers of each pair.
    """

    def __init__(self, dataset: RetrievalDataset, *splits: str):
        judged = [dataset.split(split) for split in splits]
        self.query_ids = joined([numbered(one)[0] for one in judged])
        self.document_ids, self.number_of = numbered(dataset.training_corpus())
        sizes = np.cumsum([0, *map(len, judged)])

        def relevant(row: int) -> set[str]:
            grades = judged[int(np.searchsorted(sizes, row, side="right")) - 1][self.query_ids[row]]
            return {document for document, grade in grades.items() if grade > 0}

        self.relevant = Lazy(len(self.query_ids), relevant)
        found = array("i")
        every = (grades for one in judged for _, grades in one.items())
        for row, grades in enumerate(every):
            for document in sorted(key for key, grade in grades.items() if grade > 0):
                if (number := self.number_of(document)) is not None:
                    found.extend((row, number))
        self._numbers = np.array(found, dtype=np.int32).reshape(-1, 2)
        self.pairs = Lazy(len(self._numbers), lambda row: tuple(self._numbers[row].tolist()))
        if not self.pairs:
            named = " and ".join(map(repr, splits))
            raise DataError(f"{dataset.name}: split {named} has no relevant document to train on")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.pairs[index])


def check_pairs(pairs: Pairs, name: str, batch_size: int) -> None:
    """Look whether a source of a mixture fills a batch: all pairs of a batch are of one source.

    Raises:
        RecipeError: it does not.
    """
    if len(pairs) < batch_size:
        raise RecipeError(
            f"data.mixture: the source {name!r} has {len(pairs)} training pairs, but a batch is of one "
            f"source and wants {batch_size} (stage1.batch_size); make it smaller, or leave the source out"
        )
