"""Judged pairs, what stage 1 learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.errors import DataError, RecipeError


class Pairs(torch.utils.data.Dataset):
    """Judged pairs of splits as row numbers: (number of the query, number of the document)."""

    def __init__(self, dataset: RetrievalDataset, *splits: str):
        judged = {key: grades for split in splits for key, grades in dataset.split(split).items()}
        self.query_ids = list(judged)
        self.document_ids = list(dataset.training_corpus())
        self.number = {key: row for row, key in enumerate(self.document_ids)}
        self.relevant = [
            {document for document, grade in grades.items() if grade > 0} for grades in judged.values()
        ]
        self.pairs = [
            (row, self.number[document])
            for row, known in enumerate(self.relevant)
            for document in sorted(known)
            if document in self.number
        ]
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
