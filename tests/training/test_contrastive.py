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

from searchr3.conversation import Rendered
from searchr3.dataset import RetrievalDataset
from searchr3.embedding import embed, tokens_per_pass
from searchr3.environment import CorpusEnvironment, Frozen
from searchr3.group import Group, bounds
from searchr3.losses import allowed_negatives, info_nce
from searchr3.model import SearchR3
from searchr3.ranking import top_k
from searchr3.training.common import relevant_documents
from searchr3.training.contrastive import CachedTerm, ContrastiveTerm, by_rollout, cached_term
from searchr3.training.forward import Item
from searchr3.training.forward import run as forward
from searchr3.training.groups import Rollouts, rollout_key
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


@pytest.mark.parametrize("size", [2, 4])
def test_processes_make_the_term_that_one_makes(
    size: int,
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: Callable[..., Recipe],
    on_ranks: Callable[..., list],
) -> None:
    """Each has the rollouts of its own queries; one of them has none that said the embed token."""
    recipe = toy_recipe("stage2.contrastive_pairs=5", "stage2.contrastive_negatives=2")
    search = SearchR3(tiny_model, dtype="float32")
    chat, qrels = search.conversation, relevant_documents(toy, "stage2")
    asked = list(qrels)[:4]
    corpus = {key: document.content for key, document in toy.training_corpus().items()}
    known = search.encode_document(list(corpus.values()))
    words = chat.thought_ids(["date", "string lazily", "list", "file", "", "date", "place"])
    said = [[*one, chat.embed_id] for one in words] + [words[0]]  # two a query, the last never says it
    said[6] = words[6]

    def term_of(group: Group) -> CachedTerm:
        environment = CorpusEnvironment(corpus, None, Frozen(), vectors=known, group=group)  # type: ignore
        environment.store.update(np.array([3, 110]), known[[3, 110]], step=1)  # the others are stale
        start, end = bounds(4, group.size)[group.rank : group.rank + 2]
        own = [key for key in asked[start:end] for _ in range(2)]
        prompts = chat.reasoning_prompts([toy.queries[key].text for key in own])
        rollouts = Rollouts(own, prompts, said[2 * start : 2 * end], 2, chat)
        vectors = search.encode_rendered(rollouts.rendered())
        plain = search.encode_query([toy.queries[key].text for key in rollouts.asked])
        _, hits = top_k(vectors, known, 5)
        maker = ContrastiveTerm(toy, environment, chat, qrels, recipe)
        return maker.of(search, rollouts, vectors, plain, hits, step=1)

    (whole,), parts = on_ranks(1, term_of), on_ranks(size, term_of)

    assert len(whole.texts) > 15
    assert any(not part.rollouts for part in parts) == (size == 4)
    together = {key: gradient for part in parts for key, gradient in part.rollouts.items()}
    assert together.keys() == whole.rollouts.keys()
    for key, gradient in whole.rollouts.items():
        torch.testing.assert_close(together[key], gradient, atol=1e-5, rtol=1e-3)
    for part in parts:
        assert part.loss == pytest.approx(whole.loss, rel=1e-4)
        assert part.texts == whole.texts
        np.testing.assert_array_equal(part.encoded, whole.encoded)
        torch.testing.assert_close(part.gradients, whole.gradients, atol=1e-5, rtol=1e-3)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 900), max_size=30),
    parts=st.integers(1, 5),
    size=st.integers(1, 4),
)
def test_every_text_is_learnt_once_in_as_many_passes_on_each_rank(
    lengths: list[int], parts: int, size: int
) -> None:
    texts = [Rendered([7] * length, 0, 0) for length in lengths]
    numbers = torch.arange(1.0, len(texts) + 1)[:, None]
    ranks = [SimpleNamespace(rank=rank, size=size) for rank in range(size)]
    terms = [CachedTerm(0.0, {}, texts, numbers, np.arange(0), group) for group in ranks]  # type: ignore

    learnt = []
    for part in range(parts):
        passes = [list(term.passes(part, parts)) for term in terms]
        assert len({tuple(len(some) for some, _ in own) for own in passes}) == 1
        for some, gradients in (one for own in passes for one in own):
            assert (
                len(some) * max(len(text.ids) for text in some) <= tokens_per_pass(numbers.device)
                or len(some) == 1
            )
            for text, row in zip(some, gradients[:, 0].int().tolist(), strict=True):
                assert not row or texts[row - 1] is text
                learnt += [row] if row else []
    assert sorted(learnt) == list(range(1, len(texts) + 1))


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
        for own, gradients in term.passes(part, parts):
            items = [Item.of(one, (), learn=False, anchor=False) for one in own]
            (gradients * forward(model, items, pad_id).vectors).sum().backward()

    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)
