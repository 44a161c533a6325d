"""Differentiable passes over mixed conversations: their vectors, and logits where the assistant speaks.

The pass goes through the model as the trainer has wrapped it (DDP, FSDP, PEFT). A hook on the language head
reads the last hidden states, and hands on to the head only the places that are to be predicted: of most
conversations these are few or none, and the head is the largest matrix of a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.conversation import Rendered
from searchr3.embedding import seen_by_head
from searchr3.generation import pad_ids, without_wrapper


@dataclass(frozen=True)
class Item:
    """A conversation to train on.

    Attributes:
        ids: token ids, what follows the embed token included.
        position: of the embed token; None for a chat that has none.
        answer_start: index of the first assistant token.
        learn: the language loss applies to its assistant tokens, from index `learn_from` on.
        anchor: the KL to the base applies to its assistant tokens.
    """

    ids: list[int]
    position: int | None
    answer_start: int
    learn: bool = False
    anchor: bool = False
    learn_from: int = 0

    @classmethod
    def of(
        cls, rendered: Rendered, after: Sequence[int], learn: bool, anchor: bool, learn_from: int = 0
    ) -> Item:
        ids = [*rendered.ids, *after]
        return cls(ids, rendered.position, rendered.answer_start, learn, anchor, learn_from)

    @property
    def speaks(self) -> bool:
        """Whether its assistant tokens are predicted."""
        return self.learn or self.anchor

    def learns(self, t: int) -> bool:
        """Whether the language loss applies to token t, an assistant's."""
        return self.learn and t >= self.learn_from


@dataclass(frozen=True)
class Outputs:
    """What a pass returns for n items with t chosen assistant tokens in all, in the order of the items.

    Attributes:
        vectors: unit vectors, shape (n, d), float32; zeros for items without an embed token.
        logits: shape (t, vocabulary), each predicting its label.
        labels: int64, shape (t,).
        item: int64, shape (t,), the number of the item of each label.
        learn: bool, shape (t,), whether the language loss applies to it.
    """

    vectors: Tensor
    logits: Tensor
    labels: Tensor
    item: Tensor
    learn: Tensor


def run(
    model: PreTrainedModel, items: Sequence[Item], pad_id: int, speak: Sequence[bool] | None = None
) -> Outputs:
    """One padded pass over `items`.

    Args:
        model: as the trainer has wrapped it.
        speak: for which items logits are wanted; by default those that learn or are anchored.
    """
    speak = [item.speaks for item in items] if speak is None else speak
    inner = without_wrapper(getattr(model, "module", model))
    device = next(inner.parameters()).device
    ids, mask = pad_ids([item.ids for item in items], pad_id)
    chosen = [
        (row, t)
        for row, item in enumerate(items)
        if speak[row]
        for t in range(item.answer_start, len(item.ids))
    ]
    at = torch.tensor(chosen, dtype=torch.long, device=device).reshape(-1, 2)
    with seen_by_head(inner, (at[:, 0], at[:, 1] - 1)) as seen:
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    (hidden,) = seen
    place = torch.tensor([item.position or 0 for item in items], device=device)
    has = torch.tensor([[item.position is not None] for item in items], device=device)
    rows = torch.arange(len(items), device=device)
    learn = [items[row].learns(t) for row, t in chosen]
    vectors = F.normalize(hidden[rows, place].float(), dim=-1) * has
    if not chosen:  # FSDP waits for the backward pass at the head
        vectors = vectors + output.logits.sum() * 0.0
    return Outputs(
        vectors=vectors,
        logits=output.logits,
        labels=torch.tensor([items[row].ids[t] for row, t in chosen], dtype=torch.long, device=device),
        item=at[:, 0],
        learn=torch.tensor(learn, dtype=torch.bool, device=device),
    )
