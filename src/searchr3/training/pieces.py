"""A loss that is a sum over rows, worked out a piece of them at a time.

Of logits, rows as wide as the vocabulary, a loss and its graph need several copies. Here these exist for one
piece at a time, and what is kept for the backward pass is the gradient alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 2**23  # numbers in a piece: enough work for each kernel of a GPU
AT_ONCE_CPU = 2**20  # what caches hold


def in_pieces(loss: Callable[[Tensor, slice], Tensor], rows: Tensor, at_once: int | None = None) -> Tensor:
    """`Σ loss(rows[piece], piece)` over pieces of consecutive rows.

    Gradients of first order flow to `rows` alone: whatever else the loss hangs on is a constant to it.

    Args:
        loss: scalar of some rows, float32, and of which they are. It is called once for each piece, with
            gradients enabled where `rows` wants one.
        rows: shape (t, v).
        at_once: most numbers in a piece, which has at least one row; by default what the device likes.

    Returns:
        scalar; 0 where there are no rows.
    """
    if at_once is None:
        at_once = AT_ONCE_CPU if rows.device.type == "cpu" else AT_ONCE
    wanted = torch.is_grad_enabled() and rows.requires_grad
    found: Tensor = _InPieces.apply(rows, loss, max(1, at_once // max(1, rows.shape[1])), wanted)
    return found


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, loss: Callable[[Tensor, slice], Tensor], size: int, wanted: bool
    ) -> Tensor:
        gradient = torch.empty_like(rows) if wanted else None
        total = torch.zeros((), device=rows.device)
        for start in range(0, len(rows), size):
            piece = slice(start, start + size)
            part = rows[piece].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                value = loss(part, piece)
            total += value.detach()
            if gradient is not None:
                (gradient[piece],) = torch.autograd.grad(value, part)
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = ctx.gradient.mul_(above)
        ctx.gradient = None  # used up: a second backward pass would scale it twice
        return gradient, None, None, None
