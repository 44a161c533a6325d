"""Stage 1's losses over tokens, SFT and the KL to the base, a piece of the logits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from searchr3.losses import kl_to_base, sft
from searchr3.training.forward import Item, Outputs
from searchr3.training.pieces import in_pieces
from searchr3.training.recipe import Stage1Recipe
from searchr3.training.stage1_batch import TokenCounts


@dataclass(frozen=True)
class TokenLosses:
    """Parts of a batch's losses that are sums over tokens, pass by pass.

    Args:
        counts: tokens that each part is a mean over, of all passes and processes.
        embed_id: of the embed token, to which the base gives no meaning.
    """

    stage: Stage1Recipe
    counts: TokenCounts
    embed_id: int

    def __call__(
        self, outputs: Outputs, items: Sequence[Item], reasoned: Sequence[bool], theirs: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """`a·SFT + b·KL` of a pass, and both by name.

        Args:
            items: of the pass.
            reasoned: which of them think.
            theirs: the base's logits for the anchored items, one row for each of their tokens; None: no KL.
        """
        device = outputs.item.device
        weights = self._weights(outputs, torch.tensor(reasoned, device=device)[outputs.item])
        anchored = torch.tensor([item.anchor for item in items], device=device)[outputs.item]
        place = anchored.cumsum(0) - 1  # in `theirs`
        if theirs is None:
            anchored = torch.zeros_like(anchored)
        anchored &= outputs.labels != self.embed_id
        found = torch.zeros(2, device=device)

        def of_piece(logits: Tensor, piece: slice) -> Tensor:
            language = sft(logits, outputs.labels[piece], weights[piece])
            found[0] += language.detach()
            rows = anchored[piece]
            if theirs is None or not rows.any():
                return self.stage.sft * language
            same = torch.full((int(rows.sum()),), 1 / self.counts.anchored, device=device)
            kl = kl_to_base(logits[rows], theirs[place[piece][rows]], same)
            found[1] += kl.detach()
            return self.stage.sft * language + self.stage.kl * kl

        total = in_pieces(of_piece, outputs.logits)
        return total, dict(zip(("sft", "kl"), found.tolist(), strict=True))

    def _weights(self, outputs: Outputs, reasoned: Tensor) -> Tensor:
        """Of the tokens in SFT, (t,). Direct answers and reasoning weigh apart: thoughts must not drown.

        Args:
            reasoned: bool, (t,), which tokens are a thought's.
        """
        share = self.stage.sft_reasoning if self.counts.thinking else 0.0
        plain, thinking = (1 - share) / max(1, self.counts.plain), share / max(1, self.counts.thinking)
        return torch.where(reasoned, thinking, plain) * outputs.learn
