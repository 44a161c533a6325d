"""Encoding as a work of several processes, each of which makes the same number of forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from searchr3.conversation import Conversation, Rendered
from searchr3.embedding import length_batches, tokens_per_pass
from searchr3.group import Group, bounds, joined, most
from searchr3.model import SearchR3

_SOME = 1024  # texts that are read and tokenized at once


def dealt(batches: Iterable[Sequence[int]], size: int) -> list[list[list[int]]]:
    """Each rank's part of every batch, all parts of a batch of one length: a short one repeats its last row.

    >>> dealt([[4, 2, 0], [1]], 2)
    [[[4, 0], [1]], [[2, 0], [1]]]
    """
    parts: list[list[list[int]]] = [[] for _ in range(size)]
    for batch in batches:
        width = -(-len(batch) // size)
        for rank, part in enumerate(parts):
            own = [*batch[rank::size]]
            part.append(own + [batch[-1]] * (width - len(own)))
    return parts


def encode_shared(search: SearchR3, rendered: Sequence[Rendered], group: Group) -> np.ndarray:
    """`search.encode_rendered`, but each rank encodes a part, and gets the vectors of all.

    Weights that are dealt among the ranks (FSDP, ZeRO-3) are gathered in every forward, so all ranks must
    make equally many, however many texts there are. Collective: all pass the same conversations.
    """
    if group.size == 1:
        return search.encode_rendered(rendered)
    limits = (search.batch_size, tokens_per_pass(search.device), group.size)
    parts = dealt(length_batches(rendered, *limits), group.size)
    own = search.encode_rendered(rendered, batches=parts[group.rank])
    vectors = np.empty_like(own)
    rows = [[row for batch in part for row in batch] for part in parts]
    for part, found in zip(rows, group.gather(own[rows[group.rank]]), strict=True):
        vectors[part] = found
    return vectors


def encode_own(search: SearchR3, rendered: Sequence[Rendered], group: Group) -> np.ndarray:
    """`search.encode_rendered` where each rank has at least one conversation of its own; collective.

    A rank with fewer batches repeats its last, so that all make as many forwards.
    """
    if group.size == 1:
        return search.encode_rendered(rendered)
    batches = list(length_batches(rendered, search.batch_size, tokens_per_pass(search.device)))
    missing = most(group, len(batches)) - len(batches)
    return search.encode_rendered(rendered, batches=batches + batches[-1:] * missing)


def document_lengths(
    conversation: Conversation, ids: Sequence[str], documents: Mapping[str, str], group: Group
) -> np.ndarray:
    """Tokens of each document's conversation, int64 (len(ids),). Each rank counts a part; collective."""
    start, end = bounds(len(ids), group.size)[group.rank : group.rank + 2].tolist()
    own = np.empty(end - start, dtype=np.int64)
    for first in range(start, end, _SOME):
        some = [documents[key] for key in ids[first : min(first + _SOME, end)]]
        counts = [len(one.ids) for one in conversation.documents(some)]
        own[first - start : first - start + len(some)] = counts
    return joined(group, own)
