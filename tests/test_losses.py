"""Each loss against its formula in plain Python, masks, edge cases and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from searchr3.losses import allowed_negatives, at_widths, info_nce, kl_to_base, sft, triplet_margin


def unit(rows: int, width: int, seed: int) -> Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, documents, positives and which documents are allowed (or None: all)."""
    n, m, seed = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(0, 10**6))
    positive = torch.tensor(draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n)))
    row = st.lists(st.booleans(), min_size=m, max_size=m)
    allowed = draw(st.none() | st.lists(row, min_size=n, max_size=n).map(torch.tensor))
    return unit(n, 4, seed), unit(m, 4, seed + 1), positive, allowed


def negatives(row: int, positive: Tensor, allowed: Tensor | None, m: int) -> list[int]:
    return [j for j in range(m) if j != positive[row] and (allowed is None or bool(allowed[row, j]))]


@given(batch=batches(), temperature=st.floats(0.02, 2.0))
def test_info_nce_is_its_formula(
    batch: tuple[Tensor, Tensor, Tensor, Tensor | None], temperature: float
) -> None:
    queries, documents, positive, allowed = batch
    losses = []
    for i, query in enumerate(queries.tolist()):
        scores = [dot(query, document) / temperature for document in documents.tolist()]
        own = scores[positive[i]]
        others = [scores[j] for j in negatives(i, positive, allowed, len(documents))]
        losses.append(math.log(sum(math.exp(score - own) for score in [own, *others])))
    expected = sum(losses) / len(losses)
    assert info_nce(queries, documents, positive, temperature, allowed).item() == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )


@given(batch=batches(), margin=st.floats(0.0, 1.5))
def test_triplet_margin_is_its_formula(
    batch: tuple[Tensor, Tensor, Tensor, Tensor | None], margin: float
) -> None:
    queries, documents, positive, allowed = batch
    losses = []
    for i, query in enumerate(queries.tolist()):
        scores = [dot(query, document) for document in documents.tolist()]
        others = [scores[j] for j in negatives(i, positive, allowed, len(documents))]
        losses.append(max(0.0, margin - scores[positive[i]] + max(others)) if others else 0.0)
    expected = sum(losses) / len(losses)
    assert triplet_margin(queries, documents, positive, margin, allowed).item() == pytest.approx(
        expected, abs=1e-5
    )


@given(
    batch=batches(),
    widths=st.dictionaries(st.integers(1, 4), st.floats(0.1, 3.0), min_size=1),
    loss=st.sampled_from([info_nce, triplet_margin]),
)
def test_a_loss_at_several_widths_is_the_mean_of_those_of_shorter_vectors(
    batch: tuple[Tensor, Tensor, Tensor, Tensor | None],
    widths: dict[int, float],
    loss: Callable[..., Tensor],
) -> None:
    queries, documents, positive, allowed = batch
    expected = 0.0
    for width, weight in widths.items():
        short = [rows[:, :width] / rows[:, :width].norm(dim=1, keepdim=True) for rows in (queries, documents)]
        expected += weight * loss(*short, positive, 0.3, allowed).item()
    found = at_widths(loss, widths, queries, documents, positive, 0.3, allowed).item()
    assert found == pytest.approx(expected / sum(widths.values()), rel=1e-4, abs=1e-6)


def test_at_its_own_width_alone_a_loss_is_itself() -> None:
    queries, documents, positive = unit(3, 8, 0), unit(5, 8, 1), torch.tensor([0, 1, 4])
    alone = at_widths(info_nce, {8: 1.0}, queries, documents, positive, 0.1)
    assert alone == info_nce(queries, documents, positive, 0.1)


@given(tokens=st.integers(1, 6), vocabulary=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_sft_is_its_formula(tokens: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator) * 3
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    losses = [
        math.log(sum(math.exp(score) for score in row)) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert sft(logits, labels).item() == pytest.approx(sum(losses) / tokens, rel=1e-4, abs=1e-5)


@given(tokens=st.integers(1, 6), vocabulary=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_kl_is_its_formula_and_never_negative(tokens: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, tokens, vocabulary, generator=generator) * 3
    total = 0.0
    for p_row, q_row in zip(ours.tolist(), theirs.tolist(), strict=True):
        p, q = [math.exp(score) for score in p_row], [math.exp(score) for score in q_row]
        total += sum(x / sum(p) * math.log((x / sum(p)) / (y / sum(q))) for x, y in zip(p, q, strict=True))
    value = kl_to_base(ours, theirs).item()
    assert value == pytest.approx(total / tokens, rel=1e-3, abs=1e-5)
    assert value > -1e-6


def test_the_direction_of_the_kl_is_from_policy_to_base() -> None:
    policy, base = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kl_to_base(policy, base).item() == pytest.approx(
        math.log(2), abs=0.01
    )  # the other way it would be about 3.8
    assert kl_to_base(base, policy).item() == pytest.approx(4.5 - math.log(2), abs=0.01)


def test_the_kl_of_a_model_to_itself_is_zero() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    assert kl_to_base(logits, logits.clone()).item() == 0.0
    assert kl_to_base(logits + 3.0, logits).item() == pytest.approx(
        0.0, abs=1e-6
    )  # logits are known up to a constant


def test_without_tokens_the_language_losses_are_zero_and_differentiable() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = sft(logits, torch.zeros(0, dtype=torch.long)) + kl_to_base(logits, torch.zeros(0, 7))
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None


def test_without_negatives_the_contrastive_losses_are_zero() -> None:
    queries, documents = unit(3, 4, 0).requires_grad_(), unit(3, 4, 1).requires_grad_()
    positive, allowed = torch.arange(3), torch.zeros(3, 3, dtype=torch.bool)
    loss = info_nce(queries, documents, positive, 0.05, allowed) + triplet_margin(
        queries, documents, positive, 0.2, allowed
    )
    assert loss.item() == 0.0
    loss.backward()
    assert queries.grad.abs().sum() == 0
    assert info_nce(queries[:1], documents[:1], torch.tensor([0]), 0.05).item() == 0.0
    assert triplet_margin(queries[:1], documents[:1], torch.tensor([0]), 0.2).item() == 0.0


@given(batch=batches(), temperature=st.sampled_from([0.01, 0.05, 1.0]))
def test_gradients_are_finite_whatever_is_masked(
    batch: tuple[Tensor, Tensor, Tensor, Tensor | None], temperature: float
) -> None:
    queries, documents, positive, allowed = batch
    queries, documents = queries.float().requires_grad_(), documents.float().requires_grad_()
    loss = info_nce(queries, documents, positive, temperature, allowed)
    loss = loss + triplet_margin(queries, documents, positive, 0.3, allowed)
    loss.backward()
    assert loss.isfinite()
    assert queries.grad.isfinite().all()
    assert documents.grad.isfinite().all()


def test_a_masked_document_gets_no_gradient() -> None:
    queries, documents = unit(2, 4, 3), unit(4, 4, 4).requires_grad_()
    positive, allowed = torch.tensor([0, 1]), torch.tensor([[True, True, False, True]] * 2)
    loss = info_nce(queries, documents, positive, 0.1, allowed) + triplet_margin(
        queries, documents, positive, 2.0, allowed
    )
    loss.backward()
    assert documents.grad[2].abs().sum() == 0
    assert (documents.grad[[0, 1, 3]].abs().sum(dim=1) > 0).all()
    assert allowed[:, :2].all()  # the caller's mask is left alone


def test_the_positive_counts_even_where_it_is_not_allowed() -> None:
    queries, documents, positive = unit(2, 4, 5), unit(3, 4, 6), torch.tensor([0, 1])
    closed = torch.tensor([[False, True, True], [True, False, True]])
    assert info_nce(queries, documents, positive, 0.1, closed) == info_nce(queries, documents, positive, 0.1)
    assert not closed[0, 0]


def test_losses_of_half_precision_are_computed_in_full() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(4)
    assert sft(logits, labels).dtype == torch.float32
    assert sft(logits, labels) == sft(logits.float(), labels)
    assert kl_to_base(logits, logits.flip(0)) == kl_to_base(logits.float(), logits.float().flip(0))


def test_relevant_documents_and_their_copies_are_no_negatives() -> None:
    allowed = allowed_negatives(["a", "b", "a", "c"], [{"a"}, {"b", "c"}, {"z"}])
    assert allowed.dtype == torch.bool
    assert allowed.tolist() == [[False, True, False, True], [True, False, True, False], [True] * 4]


@given(
    documents=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8),
    relevant=st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=4),
)
def test_allowed_negatives_entry_by_entry(documents: list[str], relevant: list[set[str]]) -> None:
    allowed = allowed_negatives(documents, relevant)
    assert allowed.shape == (len(relevant), len(documents))
    for i, known in enumerate(relevant):
        for j, document in enumerate(documents):
            assert bool(allowed[i, j]) == (document not in known)
