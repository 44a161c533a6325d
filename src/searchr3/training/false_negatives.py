"""Which documents of a batch may be negatives: none that is right for the query, as far as the data tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from torch import Tensor

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.splits import query_key
from searchr3.losses import allowed_negatives


def may_be_negatives(
    dataset: RetrievalDataset,
    queries: Sequence[str],
    documents: Sequence[str],
    relevant: Sequence[Collection[str]],
) -> Tensor:
    """`allowed_negatives` that sees through copies, which batches of like documents bring together.

    A document is no negative where another of the same text is relevant, nor where it is relevant to another
    query of the same words (`query_key`).

    Args:
        queries: ids of the n queries of the batch.
        documents: ids of its m documents; the same may stand in it twice.
        relevant: for each query the ids of its relevant documents. Copies of those that are not in the batch
            are not looked for.

    Returns:
        bool, shape (n, m).
    """
    first: dict[str, str] = {}
    names = [first.setdefault(dataset.corpus[key].content, key) for key in documents]  # a copy has its name
    name_of = dict(zip(documents, names, strict=True))
    asked = [query_key(dataset.queries[key].text) for key in queries]
    right: defaultdict[str, set[str]] = defaultdict(set)
    for words, known in zip(asked, relevant, strict=True):
        right[words].update(name_of.get(key, key) for key in known)
    return allowed_negatives(names, [right[words] for words in asked])
