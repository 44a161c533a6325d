"""One differentiable pass over mixed conversations: their vectors, and logits where the assistant speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.conversation import Rendered
from searchr3.generation import pad_ids
from searchr3.model import TOKENS_PER_BATCH, backbone, length_batches


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


@dataclass(frozen=True)
class Outputs:
    """What `forward` returns for n items with t chosen assistant tokens in all, in the order of the items.

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


def forward(
    model: PreTrainedModel, items: Sequence[Item], pad_id: int, speak: Sequence[bool] | None = None
) -> Outputs:
    """Run the model over `items` in chunks of like length.

    Args:
        speak: for which items logits are wanted; by default where `learn` or `anchor` is set.
    """
    speak = [item.learn or item.anchor for item in items] if speak is None else speak
    device = next(model.parameters()).device
    network = backbone(model)
    vectors: list[Tensor] = []
    spoken: list[Tensor] = []
    row_of: list[int] = []
    token_of: list[tuple[int, int]] = []
    for rows in length_batches(items, batch_size=len(items), tokens=TOKENS_PER_BATCH // 2):
        chunk = [items[row] for row in rows]
        ids, mask = pad_ids([item.ids for item in chunk], pad_id)
        hidden = network(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        place = torch.tensor([item.position or 0 for item in chunk], device=device)
        has = torch.tensor([[item.position is not None] for item in chunk], device=device)
        vectors.append(
            F.normalize(hidden[torch.arange(len(rows), device=device), place].float(), dim=-1) * has
        )
        row_of += rows
        chosen = [
            (i, t)
            for i, row in enumerate(rows)
            if speak[row]
            for t in range(items[row].answer_start, len(items[row].ids))
        ]
        if chosen:
            at = torch.tensor(chosen, device=device)
            spoken.append(hidden[at[:, 0], at[:, 1] - 1])
            token_of += [(rows[i], t) for i, t in chosen]
    order = torch.tensor(sorted(range(len(row_of)), key=row_of.__getitem__), device=device)
    token_order = sorted(range(len(token_of)), key=token_of.__getitem__)
    token_of = [token_of[i] for i in token_order]
    if spoken:
        states = torch.cat(spoken)[torch.tensor(token_order, device=device)]
    else:
        states = hidden.new_zeros((0, hidden.shape[-1]))
    head = model.get_output_embeddings()
    return Outputs(
        vectors=torch.cat(vectors)[order],
        logits=head(states),
        labels=torch.tensor([items[row].ids[t] for row, t in token_of], dtype=torch.long, device=device),
        item=torch.tensor([row for row, _ in token_of], dtype=torch.long, device=device),
        learn=torch.tensor(
            [items[row].learn and t >= items[row].learn_from for row, t in token_of],
            dtype=torch.bool,
            device=device,
        ),
    )
