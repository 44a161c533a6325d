"""A loss in pieces is the loss, and so are its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from searchr3.losses import kl_to_base, sft
from searchr3.training.pieces import in_pieces


def weighed(rows: int, width: int, seed: int) -> tuple[Tensor, ...]:
    """Logits, labels, weights some of which are 0, and a base's logits."""
    draw = torch.Generator().manual_seed(seed)
    logits, base = (4 * torch.randn(rows, width, generator=draw) for _ in range(2))
    labels = torch.randint(width, (rows,), generator=draw)
    weights = torch.rand(rows, generator=draw) * (torch.rand(rows, generator=draw) > 0.3)
    return logits, labels, weights, base


@given(st.integers(0, 9), st.integers(1, 7), st.integers(1, 40), st.integers(0, 99), st.floats(-3, 3))
def test_pieces_are_the_whole(rows: int, width: int, at_once: int, seed: int, above: float) -> None:
    logits, labels, weights, base = weighed(rows, width, seed)

    def loss(some: Tensor, piece: slice = slice(None)) -> Tensor:
        language = sft(some, labels[piece], weights[piece])
        return language + 0.3 * kl_to_base(some, base[piece], weights[piece])

    whole, pieces = (logits.clone().requires_grad_() for _ in range(2))
    expected, found = loss(whole), in_pieces(loss, pieces, at_once)
    (above * expected).backward()
    (above * found).backward()

    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5, check_stride=False)
    torch.testing.assert_close(pieces.grad, whole.grad, atol=1e-6, rtol=1e-5)


def test_a_piece_has_no_more_than_it_may_but_a_row() -> None:
    seen: list[tuple[int, slice]] = []

    def loss(some: Tensor, piece: slice) -> Tensor:
        seen.append((len(some), piece))
        return some.sum()

    in_pieces(loss, torch.ones(5, 3, requires_grad=True), at_once=7)
    assert seen == [(2, slice(0, 2)), (2, slice(2, 4)), (1, slice(4, 6))]
    seen.clear()
    in_pieces(loss, torch.ones(2, 3), at_once=1)
    assert [length for length, _ in seen] == [1, 1]


def test_without_gradients_there_is_no_graph() -> None:
    def loss(some: Tensor, piece: slice) -> Tensor:
        assert not some.requires_grad and not torch.is_grad_enabled()
        return some.sum()

    assert not in_pieces(loss, torch.ones(4, 2)).requires_grad
    with torch.no_grad():
        assert in_pieces(loss, torch.ones(4, 2, requires_grad=True)).item() == 8


def test_the_gradient_has_the_rows_own_precision() -> None:
    rows = torch.randn(6, 5).bfloat16().requires_grad_()
    in_pieces(lambda some, piece: some.float().square().sum(), rows, 10).backward()
    assert rows.grad is not None and rows.grad.dtype == torch.bfloat16
    assert rows.grad.float() == pytest.approx(2 * rows.detach().float(), rel=1e-2)
