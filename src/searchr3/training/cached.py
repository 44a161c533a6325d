"""Gradient caching: a batch as large as the loss wants, in forwards as small as the memory allows.

A contrastive loss needs the vectors of the whole batch at once. They are first encoded without a graph; the
gradient of the loss with respect to each vector is kept; then every chunk is run again with a graph and adds
`Σ gradient · vector`, whose gradient with respect to the weights is that of the loss (Gao et al., 2021, arXiv
2101.06983). Losses that are sums over tokens need no such thing and join the second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from searchr3.training.forward import Outputs

Run = Callable[[Sequence[int], bool], Outputs]


def backward(
    chunks: Sequence[Sequence[int]],
    run: Run,
    of_vectors: Callable[[Tensor], tuple[float, Tensor]],
    of_tokens: Callable[[Sequence[int], Outputs], Tensor],
    accumulate: Callable[[Tensor], None],
    cache: bool,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Add the gradients of `of_vectors(all vectors) + Σ of_tokens(chunk)` to the weights.

    Args:
        chunks: numbers of the items of each forward; each item stands in exactly one.
        run: the forward of some items, and whether logits are wanted.
        of_vectors: from the vectors of all items, (n, d) in their order, its value and its gradient (n, d).
        of_tokens: from a chunk's items and outputs a scalar.
        accumulate: backward of a scalar.
        cache: keep no graph before the second pass; else one forward does, and memory grows with the batch.
        autocast: precision of forwards. All of the first pass share one: it casts each weight once.

    Returns:
        value of the whole.
    """
    kept: list[Outputs] = []
    found: list[Tensor] = []
    states = []
    with torch.set_grad_enabled(not cache), autocast():
        for rows in chunks:
            states.append(_random_state())
            outputs = run(rows, not cache)
            found.append(outputs.vectors.detach().float())
            if not cache:
                kept.append(outputs)
    order = torch.tensor([row for rows in chunks for row in rows], device=found[0].device)
    vectors = torch.empty_like(torch.cat(found))
    vectors[order] = torch.cat(found)
    total, gradient = of_vectors(vectors)
    for number, rows in enumerate(chunks):
        if cache:
            with _replayed(states[number]), autocast():  # dropout is that of the first pass
                outputs = run(rows, True)
        else:
            outputs, kept[number] = kept[number], None  # type: ignore[call-overload]  # frees its graph
        tokens = of_tokens(rows, outputs)
        through = (gradient[list(rows)] * outputs.vectors).sum()
        accumulate(tokens + through)
        total += tokens.item()
    return total


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Of the CPU and of this process's own GPU; the others are no business of ours."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    cpu, gpu = state
    with torch.random.fork_rng([] if gpu is None else [torch.cuda.current_device()]):
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        yield
