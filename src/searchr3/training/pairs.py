"""Judged pairs, what stage 1 learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.errors import DataError


class Pairs(torch.utils.data.Dataset):
    """Judged pairs of a split as row numbers: (number of the query, number of the document)."""

    def __init__(self, dataset: RetrievalDataset, split: str):
        self.query_ids = list(dataset.split(split))
        self.document_ids = list(dataset.training_corpus())
        self.number = {key: row for row, key in enumerate(self.document_ids)}
        self.relevant = [
            {document for document, grade in dataset.split(split)[key].items() if grade > 0}
            for key in self.query_ids
        ]
        self.pairs = [
            (row, self.number[document])
            for row, known in enumerate(self.relevant)
            for document in sorted(known)
            if document in self.number
        ]
        if not self.pairs:
            raise DataError(f"{dataset.name}: split {split!r} has no relevant document to train on")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.pairs[index])
