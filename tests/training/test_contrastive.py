"""The cached term: its gradients are those of the plain loss, whatever the parts it is computed in."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.dataset import RetrievalDataset
from searchr3.embedding import embed
from searchr3.environment import CorpusEnvironment, Frozen
from searchr3.group import Group
from searchr3.losses import allowed_negatives, info_nce
from searchr3.model import SearchR3
from searchr3.training.contrastive import CachedTerm, ContrastiveTerm, by_rollout, cached_term
from searchr3.training.forward import Item
from searchr3.training.forward import run as forward
from searchr3.training.groups import rollout_key
from searchr3.training.recipe import Recipe

TEMPERATURE = 0.1


def plain(rollouts, direct, documents, query_of, positive, allowed):
    """The term without any cache."""
    loss = 0.5 * info_nce(direct, documents, positive, TEMPERATURE, allowed)
    if not len(rollouts):
        return loss
    return loss + 0.5 * info_nce(rollouts, documents, positive[query_of], TEMPERATURE, allowed[query_of])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**16))
def test_gradients_of_vectors_are_those_of_the_loss(n: int, q: int, others: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = (n, q, q + others)
    leaves = [
        F.normalize(torch.randn(size, 6, generator=draw), dim=-1).requires_grad_(True) for size in sizes
    ]
    query_of = torch.randint(q, (n,), generator=draw)
    positive = torch.randint(q + others, (q,), generator=draw)
    allowed = torch.rand(q, q + others, generator=draw) > 0.3

    loss, *gradients = cached_term(*leaves, query_of, positive, allowed, TEMPERATURE)

    expected = plain(*leaves, query_of, positive, allowed)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)


def test_at_several_widths_the_term_is_their_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    leaves = [F.normalize(torch.randn(rows, 6, generator=draw), dim=-1) for rows in (4, 2, 5)]
    shape = (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3]), torch.ones(2, 5, dtype=torch.bool), 0.1)

    loss, *gradients = cached_term(*leaves, *shape, {6: 1.0, 2: 3.0})

    cut = [F.normalize(vectors[:, :2], dim=-1) for vectors in leaves]
    expected = (cached_term(*leaves, *shape)[0] + 3 * cached_term(*cut, *shape)[0]) / 4
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all((gradient[:, 2:].abs() < gradient.abs().max()).all() for gradient in gradients)


def test_a_document_that_is_no_allowed_negative_is_not_pushed_away() -> None:
    vectors = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    allowed = allowed_negatives(["a", "b", "a"], [{"a"}])  # the positive stands in the batch twice

    _, _, _, of_documents = cached_term(
        vectors[:0], vectors[:1], vectors, torch.empty(0, dtype=torch.long), torch.tensor([0]), allowed, 0.1
    )

    assert of_documents[1].abs().sum() > 0
    assert of_documents[2].abs().sum() == 0


def test_equal_rollouts_share_their_gradient_without_loss() -> None:
    keys = [rollout_key(*ids) for ids in ([(1, 2), (3,)], [(1, 2), (4,)], [(1, 2), (3,)])]
    gradients = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    found = by_rollout(keys, gradients)

    assert len(found) == 2
    torch.testing.assert_close(sum(found[key] for key in keys), gradients.sum(dim=0))
    torch.testing.assert_close(found[keys[1]], gradients[1])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_rank_has_the_vectors_of_its_own_documents(
    size: int, toy: RetrievalDataset, toy_recipe: Callable[..., Recipe], on_ranks: Callable[..., list]
) -> None:
    """Ranks have rollouts, and so documents, of their own; the store is shared out among them."""
    vectors = np.arange(4.0 * len(toy.corpus), dtype=np.float32).reshape(-1, 4)
    wanted = [["d149", "d3", "d80"], ["d7", "d0", "d110"], ["d75"]]
    made = SimpleNamespace(encode_rendered=lambda some: np.array([-vectors[row] for row in some]))

    def fresh(group: Group) -> np.ndarray:
        corpus = {key: document.content for key, document in toy.corpus.items()}
        environment = CorpusEnvironment(corpus, lambda _: vectors, Frozen(), vectors=vectors, group=group)
        environment.store.update(np.array([3, 110]), vectors[[3, 110]], step=1)
        term = ContrastiveTerm(toy, environment, None, {}, toy_recipe())  # type: ignore[arg-type]
        rows = environment.rows_of(wanted[group.rank])
        return term._fresh(made, wanted[group.rank], rows, step=1)[0]  # type: ignore[arg-type]

    for rank, found in enumerate(on_ranks(size, fresh)):
        rows = [int(key[1:]) for key in wanted[rank]]
        expected = [vectors[row] if row in (3, 110) else -vectors[row] for row in rows]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("parts", [1, 2, 3, 50])
def test_every_text_is_in_exactly_one_part(parts: int, tiny_model: Path) -> None:
    texts = SearchR3(tiny_model).conversation.queries([f"text {i}" for i in range(7)])
    term = CachedTerm(0.0, {}, texts, torch.arange(7.0)[:, None], np.arange(0))

    shares = [term.share(part, parts) for part in range(parts)]

    assert sorted(row.item() for _, gradients in shares for row in gradients) == list(range(7))
    assert all(
        texts[int(row)] is text
        for some, gradients in shares
        for text, row in zip(some, gradients[:, 0], strict=True)
    )


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_gradients_of_weights_are_those_of_the_loss_whatever_the_parts(parts: int, tiny_model: Path) -> None:
    search = SearchR3(tiny_model, dtype="float32")
    chat, model = search.conversation, search.model
    rendered = {
        "direct": chat.queries(["parse the date", "merge two sorted lists"]),
        "rollouts": chat.reasoned(
            ["parse the date", "parse the date", "merge two sorted lists"],
            chat.thought_ids(["string strictly", "string strictly", "in place"]),
        ),
        "documents": chat.documents(
            ["def parse_date(): ...", "def merge(a, b): return", "def load(file): ..."]
        ),
    }
    query_of, positive = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
    allowed = allowed_negatives(["d0", "d1", "d2"], [{"d0"}, {"d1"}])
    shape = (query_of, positive, allowed)

    pad_id = search.tokenizer.pad_token_id
    plain(
        *(embed(model, rendered[name], pad_id) for name in ("rollouts", "direct", "documents")), *shape
    ).backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    vectors = {name: torch.from_numpy(search.encode_rendered(each)) for name, each in rendered.items()}
    loss, of_rollouts, of_direct, of_documents = cached_term(
        vectors["rollouts"], vectors["direct"], vectors["documents"], *shape, TEMPERATURE
    )
    keys = [rollout_key(each.ids, ()) for each in rendered["rollouts"]]
    texts = [*rendered["direct"], *rendered["documents"]]
    term = CachedTerm(
        loss, by_rollout(keys, of_rollouts), texts, torch.cat([of_direct, of_documents]), np.arange(0)
    )
    for part in range(parts):
        for key, each in list(zip(keys, rendered["rollouts"], strict=True))[part::parts]:
            (term.rollouts[key] @ embed(model, [each], pad_id)[0]).backward()
        own, gradients = term.share(part, parts)
        if own:
            items = [Item.of(one, (), learn=False, anchor=False) for one in own]
            (gradients * forward(model, items, pad_id).vectors).sum().backward()

    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)
