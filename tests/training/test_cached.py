"""Gradient caching: the gradients of the whole batch, whatever the passes, and a peak that does not grow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from searchr3.training.cached import backward
from searchr3.training.forward import Outputs

ITEMS, WIDTH, WORDS = 7, 5, 4
NONE = torch.zeros(0)


class Network:
    """Items are rows of numbers; each says one word. Its dropout is drawn anew in every pass."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.inputs = torch.randn(ITEMS, WIDTH)
        self.weight = torch.randn(WIDTH, WIDTH).requires_grad_(True)
        self.head = torch.randn(WIDTH, WORDS).requires_grad_(True)
        self.graphs: list[int] = []  # items of each pass with a graph, those of a first pass left out

    def run(self, rows: Sequence[int], speak: bool) -> Outputs:
        hidden = F.dropout(self.inputs[list(rows)] @ self.weight, 0.5)
        if torch.is_grad_enabled():
            self.graphs.append(len(rows))
        logits = hidden @ self.head if speak else torch.zeros(0, WORDS)
        return Outputs(F.normalize(hidden, dim=-1), logits, NONE, NONE, NONE)

    def of_vectors(self, vectors: Tensor) -> tuple[float, Tensor]:
        """Every vector has to do with every other."""
        leaf = vectors.clone().requires_grad_(True)
        loss = (leaf @ leaf.T / 0.1).logsumexp(dim=1).mean()
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    @staticmethod
    def of_tokens(rows: Sequence[int], outputs: Outputs) -> Tensor:
        weights = torch.tensor([1.0 + row for row in rows])
        return (weights * outputs.logits.logsumexp(dim=1)).sum() / ITEMS

    def learn(self, chunks: Sequence[Sequence[int]], cache: bool) -> tuple[float, Tensor, Tensor]:
        self.weight.grad = self.head.grad = None
        torch.manual_seed(1)
        loss = backward(chunks, self.run, self.of_vectors, self.of_tokens, torch.Tensor.backward, cache)
        assert self.weight.grad is not None and self.head.grad is not None
        return loss, self.weight.grad, self.head.grad


@st.composite
def chunkings(draw: st.DrawFn) -> list[list[int]]:
    order = draw(st.permutations(range(ITEMS)))
    cuts = draw(st.sets(st.integers(1, ITEMS - 1)))
    edges = [0, *sorted(cuts), ITEMS]
    return [order[a:b] for a, b in pairwise(edges)]


@settings(max_examples=40)
@given(chunkings())
def test_cached_gradients_are_those_of_graphs_that_are_kept(chunks: list[list[int]]) -> None:
    """Dropout included: the second pass repeats the first one's."""
    network = Network()
    kept, cached = network.learn(chunks, cache=False), network.learn(chunks, cache=True)
    assert cached[0] == pytest.approx(kept[0], rel=1e-5)
    torch.testing.assert_close(cached[1:], kept[1:], atol=1e-5, rtol=1e-4)
    assert network.graphs == [len(chunk) for chunk in chunks] * 2


@settings(max_examples=20)
@given(chunkings())
def test_the_passes_do_not_matter(chunks: list[list[int]]) -> None:
    network = Network()
    network.run = lambda rows, speak: Outputs(  # type: ignore[method-assign]  # without dropout
        F.normalize(hidden := network.inputs[list(rows)] @ network.weight, dim=-1),
        hidden @ network.head,
        *[NONE] * 3,
    )
    whole, parts = network.learn([range(ITEMS)], cache=False), network.learn(chunks, cache=True)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1:], whole[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_the_first_pass_shares_one_autocast_and_none_is_open_where_gradients_flow(cache: bool) -> None:
    network, said = Network(), list[str]()
    run = network.run

    @contextmanager
    def autocast() -> Iterator[None]:
        said.append("open")
        yield
        said.append("close")

    def forward(rows: Sequence[int], speak: bool) -> Outputs:
        said.append("forward")
        return run(rows, speak)

    def accumulate(loss: Tensor) -> None:
        said.append("backward")
        loss.backward()

    chunks = [[0, 1, 2], [3, 4], [5, 6]]
    backward(chunks, forward, network.of_vectors, network.of_tokens, accumulate, cache, autocast)

    again = ["open", "forward", "close"] if cache else []
    assert said == ["open", *["forward"] * 3, "close", *[*again, "backward"] * 3]
