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

In several processes the batch is that of all: each works out the whole term from the vectors, learns through
its own rollouts, and takes its share of the texts, in as many forwards as the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from searchr3.conversation import Conversation, Rendered
from searchr3.dataset import RetrievalDataset
from searchr3.embedding import TOKENS_PER_BATCH, length_batches, tokens_per_pass
from searchr3.environment import CorpusEnvironment
from searchr3.group import ALONE, Group, joined
from searchr3.losses import at_widths, info_nce
from searchr3.model import SearchR3
from searchr3.sharing import encode_shared
from searchr3.training.batches import Cycle, NeighbourSampler
from searchr3.training.false_negatives import may_be_negatives
from searchr3.training.groups import Key, Rollouts, rollout_key
from searchr3.training.recipe import Recipe


@dataclass(frozen=True)
class CachedTerm:
    """What the micro-batches need of one generation batch.

    Attributes:
        loss: the term's value, unweighted.
        rollouts: gradient of the vector of each of this rank's rollouts, by its ids, see `by_rollout`.
        texts: conversations (direct queries and documents) that still need a forward with gradient; of all
            ranks.
        gradients: theirs, shape (len(texts), d).
        encoded: rows of the documents that were encoded for it, the environment's vectors being stale.
        group: the processes that share the texts.
    """

    loss: float
    rollouts: dict[Key, Tensor]
    texts: list[Rendered]
    gradients: Tensor
    encoded: np.ndarray
    group: Group = ALONE

    def passes(self, part: int, parts: int) -> Iterator[tuple[list[Rendered], Tensor]]:
        """This rank's forwards in micro-batch `part` of `parts`: texts of like length, and their gradients.

        All ranks make as many. A text that only fills up a pass has the gradient 0.
        """
        rows = range(part, len(self.texts), parts)
        some = [self.texts[row] for row in rows]
        size = self.group.size
        most = min(TOKENS_PER_BATCH // 2, tokens_per_pass(self.gradients.device))
        for batch in length_batches(some, max(1, len(some)), most, size):
            own = [rows[place] for place in batch[self.group.rank :: size]]
            filling = -(-len(batch) // size) - len(own)
            texts = [self.texts[row] for row in own] + [some[batch[-1]]] * filling
            yield (
                texts,
                torch.cat([self.gradients[own], self.gradients.new_zeros(filling, self.gradients.shape[1])]),
            )

    def through_rollouts(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """`Σ gradient · vector` over the rollouts of one micro-batch of TRL's that count.

        Args:
            inputs: `prompt_ids`, `completion_ids` (b, p), (b, c) and their masks.
            hidden: last hidden states of both, (b, p + c, d).
        """
        prompts, completions = inputs["prompt_ids"], inputs["completion_ids"]
        total = hidden.new_zeros((), dtype=torch.float32)
        for row in range(len(prompts)):
            prompt = prompts[row][inputs["prompt_mask"][row].bool()].tolist()
            length = int(inputs["completion_mask"][row].sum())
            gradient = self.rollouts.get(rollout_key(prompt, completions[row, :length].tolist()))
            if gradient is not None:  # its last token is the embed token
                vector = hidden[row, prompts.shape[1] + length - 1].float()
                total = total + gradient @ torch.nn.functional.normalize(vector, dim=-1)
        return total


class ContrastiveTerm:
    """Makes the term of each generation batch: which pairs it is made of, which negatives.

    Args:
        qrels: query id → relevant document → grade, of all queries that there are.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        environment: CorpusEnvironment,
        conversation: Conversation,
        qrels: Mapping[str, Mapping[str, float]],
        recipe: Recipe,
    ):
        self.dataset, self.environment, self.conversation = dataset, environment, conversation
        self.qrels, self.stage = qrels, recipe.stage2
        self.query_ids = list(qrels)
        self.number = {key: row for row, key in enumerate(self.query_ids)}
        self.best = {key: max(judged, key=judged.__getitem__) for key, judged in qrels.items()}
        self.widths = recipe.stage1.widths
        self._more: Cycle | None = None
        if self.stage.contrastive_pairs:
            texts = [dataset.corpus[self.best[key]].content for key in self.query_ids]
            sampler = NeighbourSampler(texts, recipe.stage1.neighbours, recipe.seed)
            self._more = Cycle(sampler, self.stage.contrastive_pairs)

    def of(
        self,
        search: SearchR3,
        rollouts: Rollouts,
        vectors: np.ndarray,
        plain: np.ndarray,
        hits: np.ndarray,
        step: int,
    ) -> CachedTerm:
        """Encode this batch's queries and documents at one age, and cache the gradients of their InfoNCE.

        Args:
            search: the model as it is now.
            rollouts: of this rank; `vectors`, `plain` and `hits` are theirs.
            vectors: (n, d) of the rollouts; those count that said the embed token.
            plain: (q, d) of their queries, encoded directly.
            hits: (n, k) rows of the environment, best first.
            step: the policy step.
        """
        group, ids = self.environment.group, self.environment.ids
        counted = rollouts.emitted.nonzero()[:, 0].tolist()
        asked = self._queries_of_all(rollouts.asked)
        spoke = self._queries_of_all([rollouts.queries[row] for row in counted])
        wrong = joined(group, self.environment.rows_of(self.negatives(rollouts, hits)))
        vectors, plain = joined(group, vectors[counted]), joined(group, plain)
        queries = [*asked, *(key for key in self.more_pairs(step // self.stage.updates) if key not in asked)]
        number = {key: row for row, key in enumerate(queries)}
        first = [self.best[key] for key in queries]
        documents = list(dict.fromkeys([*first, *(ids[row] for row in wrong)]))
        texts = [self.dataset.queries[key].text for key in queries]
        direct = self.conversation.queries(texts, self.dataset.instruction)
        contents = self.conversation.documents([self.dataset.corpus[key].content for key in documents])
        others = encode_shared(search, direct[len(asked) :], group)
        fresh, encoded = self._fresh(search, documents, contents, step)
        place = {key: row for row, key in enumerate(documents)}
        loss, of_rollouts, of_direct, of_documents = cached_term(
            torch.from_numpy(vectors),
            torch.from_numpy(np.concatenate([plain, others])),
            torch.from_numpy(fresh),
            torch.tensor([number[key] for key in spoke], dtype=torch.long),
            torch.tensor([place[key] for key in first]),
            may_be_negatives(self.dataset, queries, documents, [self.qrels[key] for key in queries]),
            self.stage.contrastive_temperature,
            self.widths(search.dimension),
        )
        keys, device = rollouts.keys, search.device
        before = sum(int(count[0]) for count in group.gather(np.array([len(counted)]))[: group.rank])
        own = of_rollouts[before : before + len(counted)]
        return CachedTerm(
            loss,
            by_rollout([keys[row] for row in counted], own.to(device)),
            [*direct, *contents],
            torch.cat([of_direct, of_documents]).to(device),
            encoded,
            group,
        )

    def _queries_of_all(self, own: Sequence[str]) -> list[str]:
        """The query ids of every rank, in the order of the ranks."""
        numbers = np.array([self.number[key] for key in own], dtype=np.int64)
        return [self.query_ids[row] for row in joined(self.environment.group, numbers)]

    def more_pairs(self, generation: int) -> list[str]:
        """Further queries: few pairs give easy negatives, from which the direct vectors would forget."""
        return [self.query_ids[row] for row in self._more.batch(generation)] if self._more else []

    def negatives(self, rollouts: Rollouts, hits: np.ndarray) -> list[str]:
        """For each query the best hits of its first rollout that are not relevant to it."""
        chosen: list[str] = []
        for row in range(0, len(rollouts.queries), rollouts.size):
            ids = [self.environment.ids[hit] for hit in hits[row]]
            wrong = [key for key in ids if key not in self.qrels[rollouts.queries[row]]]
            chosen += wrong[: self.stage.contrastive_negatives]
        return chosen

    def _fresh(
        self, search: SearchR3, documents: Sequence[str], contents: Sequence[Rendered], step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of this step, and the rows that were encoded for them.

        The environment gets none of them: what it refreshes its policy decides.
        """
        store, rows = self.environment.store, self.environment.rows_of(documents)
        vectors = store.take(rows).copy()
        old = np.flatnonzero(store.version[rows] != step)
        vectors[old] = encode_shared(search, [contents[int(row)] for row in old], store.group)
        return vectors, rows[old]


def cached_term(
    rollouts: Tensor,
    direct: Tensor,
    documents: Tensor,
    query_of: Tensor,
    positive: Tensor,
    allowed: Tensor,
    temperature: float,
    widths: Mapping[int, float] | None = None,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Half InfoNCE of the rollouts, half of the direct queries, against the same documents; its gradients.

    Args:
        rollouts: unit vectors of the n rollouts that count, (n, d).
        direct: unit vectors of the q queries, (q, d).
        documents: unit vectors of the m documents, (m, d).
        query_of: the query of each rollout, int64, (n,).
        positive: the positive document of each query, int64, (q,).
        allowed: negatives of each query, bool, (q, m).
        widths: at which it is taken, see `at_widths`; default: the vectors' own.

    Returns:
        loss; gradients shaped like `rollouts`, `direct` and `documents`.
    """
    leaves = [vectors.detach().float().requires_grad_(True) for vectors in (rollouts, direct, documents)]
    thinking, plain, corpus = leaves
    widths = widths or {corpus.shape[1]: 1.0}
    loss = 0.5 * at_widths(info_nce, widths, plain, corpus, positive, temperature, allowed)
    if len(thinking):
        theirs = (positive[query_of], temperature, allowed[query_of])
        loss = loss + 0.5 * at_widths(info_nce, widths, thinking, corpus, *theirs)
    of_rollouts, of_direct, of_documents = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return loss.item(), of_rollouts, of_direct, of_documents


def by_rollout(keys: Sequence[Key], gradients: Tensor) -> dict[Key, Tensor]:
    """Gradients (n, d) by rollout. Rollouts of the same ids share the mean of theirs: the sum stays."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: gradients[own].mean(dim=0) for key, own in rows.items()}
