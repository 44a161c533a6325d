"""The reward of a rollout: a DCG made continuous, a bonus for the right form, a cost for length.

Pure functions of tensors. Search-R3 (arXiv 2510.07048) rewards a rollout by a "scaled", continuous DCG
whose formula is not published; the one here is ours. The soft rank is the position function of Qin, Liu and
Li, "A general approximation framework for direct optimization of information retrieval measures" (2010);
gains and discount are those of trec_eval.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log

import torch
from torch import Tensor


def soft_rank(
    scores: Tensor, temperature: float | Tensor, mask: Tensor | None = None, tie_order: Tensor | None = None
) -> Tensor:
    """The continuous rank of each candidate among all of them.

        rank(d) = 1 + Σ_{c ≠ d} sigmoid((s(c) − s(d)) / T)

    At T = 0 the sigmoid is a step and the rank the ordinary one, 1 the best.

    Args:
        scores: (..., c).
        temperature: T ≥ 0 in units of the scores: a number, or a tensor (...) with one T a list.
        mask: (..., c) bool, False where a column is padding. Padding outranks nobody; its own rank means
            nothing.
        tie_order: (..., c) integers; at T = 0 the smaller one goes first on equal scores. Default: the
            earlier column.

    Returns:
        (..., c), each from 1 to the number of candidates.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    return _ranks_of(columns, scores, temperature, mask, tie_order)


def soft_ndcg(
    scores: Tensor,
    gains: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    tie_order: Tensor | None = None,
    cutoff: int | None = None,
) -> Tensor:
    """The reward of each rollout, in [0, 1]: the soft DCG of its candidates over the best that there can be.

        reward = DCG / ideal DCG
        DCG    = Σ_{d: gain(d) > 0} gain(d) / log2(1 + rank(d))
        ideal  = Σ_i gain_i / log2(1 + i),  the gains in falling order

    `rank` is `soft_rank` with T = temperature × `score_spread`, so neither the scale nor the offset of the
    scores matters, and with a fixed number of best-scoring candidates the reward of a document hardly
    depends on how large the corpus is: the gaps between the highest scores shrink with their spread. At
    temperature 0 it is nDCG as trec_eval computes it: gains are the grades themselves, ties go by
    `tie_order` (trec_eval: document id descending, scores compared in float32).

    Never above 1, because a vector of soft ranks is a mixture of permutations and 1/log2(1 + rank) is
    convex. Two relevant documents compete like any others, so at temperature > 0 raising *one* of several
    can lower the reward; raising all cannot.

    Args:
        scores: (..., c) of the candidates: the relevant documents and the others that score highest.
        gains: (..., c), the grades; 0 or less is not relevant.
        temperature: T relative to the spread, ≥ 0.
        mask: (..., c) bool, False where a column is padding, whose score and gain are ignored.
        tie_order: as in `soft_rank`.
        cutoff: count only the first `cutoff` ranks (hard nDCG@cutoff). Only at temperature 0.

    Returns:
        (...); 0 for a list without a relevant candidate.

    Raises:
        ValueError: temperature < 0, or a cutoff with temperature > 0 (the result could exceed 1).
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 or more")
    if cutoff is not None and (temperature > 0 or cutoff < 1):
        raise ValueError(f"cutoff {cutoff} at temperature {temperature}; needs cutoff ≥ 1 and temperature 0")
    gains = gains.clamp(min=0).to(scores.dtype)
    if mask is not None:
        gains = gains.masked_fill(~mask, 0)
    most = int((gains > 0).sum(-1).max()) if gains.numel() else 0
    if most == 0:
        return scores.new_zeros(scores.shape[:-1])

    best, columns = gains.sort(dim=-1, descending=True, stable=True)  # the relevant ones come first
    best, columns = best[..., :most], columns[..., :most]
    spread = temperature * score_spread(scores, gains, mask) if temperature > 0 else 0.0
    ranks = _ranks_of(columns, scores, spread, mask, tie_order)
    ideal_ranks = torch.arange(1, most + 1, device=scores.device, dtype=scores.dtype).expand(ranks.shape)
    dcg, ideal = ((best * _discount(r, cutoff)).sum(-1) for r in (ranks, ideal_ranks))
    return (dcg / ideal.clamp(min=torch.finfo(ideal.dtype).tiny)).clamp(max=1)


def rank_slope(
    scores: Tensor, gains: Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """|∂ soft_ndcg / ∂ rank| of each candidate: what one rank more of it costs the reward, to first order.

        gain(d) / ideal DCG · 1 / (ln 2 · (1 + rank(d)) · log2²(1 + rank(d)))

    Args:
        scores, gains, mask: as in `soft_ndcg`.
        temperature: T in units of the scores, as in `soft_rank`.

    Returns:
        (..., c); 0 where a candidate is not relevant.
    """
    gains = gains.clamp(min=0).to(scores.dtype)
    if mask is not None:
        gains = gains.masked_fill(~mask, 0)
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    ideal = (gains.sort(dim=-1, descending=True).values * _discount(places, None)).sum(-1, keepdim=True)
    beyond = 1 + soft_rank(scores, temperature, mask)
    slope = 1 / (log(2) * beyond * torch.log2(beyond) ** 2)
    return gains * slope / ideal.clamp(min=torch.finfo(ideal.dtype).tiny)


def score_spread(scores: Tensor, gains: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation of the scores of the candidates that are not relevant. (..., c) → (...).

    The unit of temperature. The relevant ones stay out, or raising one would raise T as well. 0 when there
    are fewer than two others or all are equal; the reward is then that of T = 0.
    """
    others = gains <= 0 if mask is None else (gains <= 0) & mask
    count = others.sum(-1, keepdim=True).clamp(min=1)
    top = scores.masked_fill(~others, -torch.inf).amax(-1, keepdim=True)
    offset = (scores - top).masked_fill(~others, 0)  # equal scores become exact zeros
    mean = offset.sum(-1, keepdim=True) / count
    variance = ((offset - mean) ** 2).masked_fill(~others, 0).sum(-1, keepdim=True) / count
    return variance.sqrt().squeeze(-1)


def format_reward(formed: Tensor) -> Tensor:
    """1 for a rollout that thought and then wrote the embed token, else 0. (n,) bool → (n,) float."""
    return formed.to(torch.get_default_dtype())


def length_cost(lengths: Tensor, free: int, per_token: float) -> Tensor:
    """per_token × max(0, length − free), lengths in tokens without the embed token. (n,) → (n,)."""
    return per_token * (lengths - free).clamp(min=0).to(torch.get_default_dtype())


@dataclass(frozen=True)
class RewardWeights:
    """How the parts of the reward are weighed.

    Attributes:
        ndcg: weight of the soft nDCG.
        format: what a thought and then the embed token, without force, are worth.
        length: cost of each thinking token beyond `free_tokens`, in the unit of `ndcg`: what a token must
            bring to be worth saying. 0 unless asked for: a policy that is paid for silence falls silent.
        free_tokens: thinking tokens that cost nothing.
    """

    ndcg: float = 1.0
    format: float = 0.1
    length: float = 0.0
    free_tokens: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"reward weight {field.name} is {value}; it must be finite and 0 or more")


def combine(ndcg: Tensor, formed: Tensor, lengths: Tensor, weights: RewardWeights) -> Tensor:
    """The whole reward of each rollout. All (n,).

    weights.ndcg × ndcg + weights.format × formed − weights.length × max(0, length − free_tokens)

    With a length cost what is learnt is E[nDCG] − (length / ndcg) · E[tokens]: each weight is the slope at
    which its policy touches the frontier of quality against tokens. A cost relative to what a group gains
    would have no such meaning, and would be least where thinking gains least.

    Not to be added here: a term that is the same for all rollouts of a query, for it cancels in GRPO's
    advantage.
    """
    form = weights.format * format_reward(formed)
    cost = length_cost(lengths, weights.free_tokens, weights.length)
    return weights.ndcg * ndcg + form.to(ndcg) - cost.to(ndcg)


def _discount(ranks: Tensor, cutoff: int | None) -> Tensor:
    discount = 1 / torch.log2(1 + ranks)
    return discount if cutoff is None else discount.masked_fill(ranks > cutoff, 0)


def _ranks_of(
    columns: Tensor,
    scores: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None,
    tie_order: Tensor | None,
) -> Tensor:
    """`soft_rank` of the chosen columns (..., r) only: r × c comparisons a list instead of c × c."""
    everyone = torch.arange(scores.shape[-1], device=scores.device)
    order = everyone.expand(scores.shape) if tie_order is None else tie_order.expand(scores.shape)
    if mask is not None:
        scores = scores.masked_fill(~mask, 0)
    gap = scores.unsqueeze(-2) - scores.gather(-1, columns).unsqueeze(-1)  # (..., r, c)
    earlier = order.unsqueeze(-2) < order.gather(-1, columns).unsqueeze(-1)
    step = (gap > 0) | ((gap == 0) & earlier)

    temperature = torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    if temperature.dim():
        temperature = temperature[..., None, None]
    soft = torch.sigmoid(gap / torch.where(temperature > 0, temperature, 1))
    ahead = torch.where(temperature > 0, soft, step.to(scores.dtype))

    counts = everyone != columns.unsqueeze(-1)
    if mask is not None:
        counts = counts & mask.unsqueeze(-2)
    return 1 + (ahead * counts).sum(-1)
