"""The four losses of stage 1 as pure functions on tensors: no model, no I/O.

`L = a·SFT + b·KL + c·InfoNCE + d·TripletMargin` (Search-R3, arXiv 2510.07048, stage 1; the paper shows no
coefficients, so they are in the recipe). Vectors are unit length, so that a dot product is a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    queries: Tensor, documents: Tensor, positive: Tensor, temperature: float, allowed: Tensor | None = None
) -> Tensor:
    """Contrastive cross-entropy of each query's positive against all documents of the batch.

    `-log( exp(s⁺/τ) / Σ_j exp(s_j/τ) )`, mean over queries (van den Oord et al., 2018, arXiv 1807.03748).

    Args:
        queries: unit vectors, shape (n, d).
        documents: unit vectors, shape (m, d).
        positive: index of each query's positive document, int64, shape (n,).
        temperature: τ > 0.
        allowed: bool, shape (n, m); False leaves a document out of a query's sum (a false negative: the same
            document again, or judged relevant). The positive itself always counts.

    Returns:
        scalar.
    """
    logits = queries @ documents.T / temperature
    if allowed is not None:
        keep = allowed.clone()
        keep[torch.arange(len(positive), device=positive.device), positive] = True
        logits = logits.masked_fill(~keep, -torch.inf)
    return F.cross_entropy(logits.float(), positive)


def triplet_margin(
    queries: Tensor, documents: Tensor, positive: Tensor, margin: float, allowed: Tensor | None = None
) -> Tensor:
    """Hinge on the hardest negative by cosine: `max(0, θ − s(q, d⁺) + max_{d⁻} s(q, d⁻))`, mean over queries.

    Args:
        queries, documents, positive, allowed: as in `info_nce`; a query without any allowed negative adds 0.
        margin: θ ≥ 0, in units of cosine.

    Returns:
        scalar.
    """
    scores = (queries @ documents.T).float()
    rows = torch.arange(len(positive), device=positive.device)
    negative = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.clone()
    negative[rows, positive] = False
    hardest = scores.masked_fill(~negative, -torch.inf).amax(dim=1)
    return F.relu(margin - scores[rows, positive] + hardest).mean()


def at_widths(
    loss: Callable[..., Tensor], widths: Mapping[int, float], queries: Tensor, documents: Tensor, *others: Any
) -> Tensor:
    """A contrastive loss at several widths, so that the first dimensions of a vector are vectors too.

    `Σ_w weight_w · loss(q[:w] / ‖q[:w]‖, d[:w] / ‖d[:w]‖) / Σ_w weight_w` (Matryoshka representations,
    Kusupati et al., 2022, arXiv 2205.13147; a mean, so that the loss keeps its scale however many widths).

    Args:
        loss: `info_nce` or `triplet_margin`.
        widths: dimensions, each from 1 to d → weight > 0.
        queries: unit vectors, shape (n, d).
        documents: unit vectors, shape (m, d).
        others: what else `loss` takes.

    Returns:
        scalar.
    """
    parts = [
        weight * loss(prefix(queries, width), prefix(documents, width), *others)
        for width, weight in widths.items()
    ]
    return torch.stack(parts).sum() / sum(widths.values())


def prefix(vectors: Tensor, width: int) -> Tensor:
    """The first `width` dimensions of unit vectors (n, d), again to unit length."""
    return vectors if width == vectors.shape[1] else F.normalize(vectors[:, :width], dim=-1)


def sft(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Next-token cross-entropy over assistant tokens, mean over tokens; 0 when there are none.

    Args:
        logits: shape (t, vocabulary), each predicting the label of its row.
        labels: int64, shape (t,).
        weights: of the tokens, shape (t,), for a weighted sum instead of the mean.
    """
    if not len(labels):
        return logits.sum() * 0.0
    if weights is None:
        return F.cross_entropy(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels, reduction="none") @ weights


def kl_to_base(logits: Tensor, base_logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """`KL(π ‖ π_base) = Σ_v π(v) · (log π(v) − log π_base(v))`, mean over tokens, in nats.

    0 when there are no tokens. The direction is ours (the paper names none): it punishes the policy for
    saying what the base would not.

    Args:
        logits, base_logits: shape (t, vocabulary), at the same positions of the same sequences.
        weights: of the tokens, shape (t,), for a weighted sum instead of the mean.
    """
    if not len(logits):
        return logits.sum() * 0.0
    policy = F.log_softmax(logits.float(), dim=-1)
    base = F.log_softmax(base_logits.float(), dim=-1)
    if weights is None:
        return F.kl_div(base, policy, log_target=True, reduction="batchmean")
    return F.kl_div(base, policy, log_target=True, reduction="none").sum(dim=-1) @ weights


def allowed_negatives(document_ids: list[str], relevant: list[set[str]]) -> Tensor:
    """Which documents of a batch may serve as negatives of which query.

    Args:
        document_ids: ids of the m documents of the batch; the same document may stand in it twice.
        relevant: for each of the n queries the ids of all its relevant documents, its positive among them.

    Returns:
        bool, shape (n, m): False where the document is relevant to the query.
    """
    columns: dict[str, list[int]] = {}
    for column, document in enumerate(document_ids):
        columns.setdefault(document, []).append(column)
    allowed = np.ones((len(relevant), len(document_ids)), dtype=bool)
    for row, known in enumerate(relevant):  # not entry by entry: large batches have millions
        allowed[row, [column for key in known for column in columns.get(key, ())]] = False
    return torch.from_numpy(allowed)
