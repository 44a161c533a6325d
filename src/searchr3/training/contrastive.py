"""Stage 2's contrastive term with cached gradients: exact over the whole batch, whatever the micro-batches.

The batch's loss depends on three sets of vectors: those of the rollouts, of the direct queries and of the
documents. All are encoded once without a graph, the gradient of the loss with respect to each vector is
kept, and every micro-batch then adds `Σ gradient · vector` for its share, whose gradient with respect to
the weights is that of the loss (gradient caching, Gao et al., 2021, arXiv 2101.06983). All vectors are of
one age: fresh positives against stale negatives would teach the model to move queries and re-encoded
documents together away from the rest of the corpus.

With several optimizer steps on one generation each takes its share of the rows, weighted by the number of
steps: on average the whole term, as the policy loss is. It is exact for the first step; in the later ones the
gradients are those of vectors that are so many steps old.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from searchr3.conversation import Rendered
from searchr3.losses import info_nce

Key = tuple[int, ...]


@dataclass(frozen=True)
class CachedTerm:
    """What the micro-batches need of one generation batch.

    Attributes:
        loss: the term's value, unweighted.
        rollouts: gradient of each rollout's vector, by its ids, see `by_rollout`.
        texts: conversations (direct queries and documents) that still need a forward with gradient.
        gradients: theirs, shape (len(texts), d).
    """

    loss: float
    rollouts: dict[Key, Tensor]
    texts: list[Rendered]
    gradients: Tensor

    def share(self, part: int, parts: int) -> tuple[list[Rendered], Tensor]:
        """The texts of micro-batch `part` of `parts` and their gradients."""
        return self.texts[part::parts], self.gradients[part::parts]


def cached_term(
    rollouts: Tensor,
    direct: Tensor,
    documents: Tensor,
    query_of: Tensor,
    positive: Tensor,
    allowed: Tensor,
    temperature: float,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Half InfoNCE of the rollouts, half of the direct queries, against the same documents; its gradients.

    Args:
        rollouts: unit vectors of the n rollouts that count, (n, d).
        direct: unit vectors of the q queries, (q, d).
        documents: unit vectors of the m documents, (m, d).
        query_of: the query of each rollout, int64, (n,).
        positive: the positive document of each query, int64, (q,).
        allowed: negatives of each query, bool, (q, m).

    Returns:
        loss; gradients shaped like `rollouts`, `direct` and `documents`.
    """
    leaves = [vectors.detach().float().requires_grad_(True) for vectors in (rollouts, direct, documents)]
    thinking, plain, corpus = leaves
    loss = 0.5 * info_nce(plain, corpus, positive, temperature, allowed)
    if len(thinking):
        loss = loss + 0.5 * info_nce(thinking, corpus, positive[query_of], temperature, allowed[query_of])
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    filled = [
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, gradients, strict=True)
    ]
    return loss.item(), filled[0], filled[1], filled[2]


def rollout_key(prompt: Sequence[int], completion: Sequence[int]) -> Key:
    """Names a rollout by its token ids: rollouts of the same ids have the same vector."""
    return (*prompt, -1, *completion)


def by_rollout(keys: Sequence[Key], gradients: Tensor) -> dict[Key, Tensor]:
    """Gradients (n, d) by rollout. Rollouts of the same ids share the mean of theirs: the sum stays."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: gradients[own].mean(dim=0) for key, own in rows.items()}
