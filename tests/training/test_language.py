"""SFT and KL of passes against their definition over the whole batch."""

from dataclasses import replace

import pytest
import torch

from searchr3.losses import kl_to_base, sft
from searchr3.training import pieces
from searchr3.training.forward import Item, Outputs
from searchr3.training.language import TokenLosses
from searchr3.training.recipe import Stage1Recipe
from searchr3.training.stage1_batch import TokenCounts

WORDS, EMBED = 11, 7
# a direct query, a document, a thought of which the end alone is learnt, a thought, a chat
ITEMS = [
    Item([1, 2, 3, EMBED, 4], 3, 2, learn=True, anchor=True),
    Item([1, 2, EMBED], 2, 2),
    Item([1, 5, 6, 6, EMBED, 4], 4, 2, learn=True, anchor=True, learn_from=4),
    Item([1, 8, 9, EMBED, 4], 3, 1, learn=True, anchor=False),
    Item([1, 2, 9, 10], None, 2, anchor=True),
]
REASONED = [False, False, True, True, True]
COUNTS = TokenCounts(plain=3, thinking=2 + 4, anchored=2 + 3 + 2)


def spoken(logits_of: int) -> Outputs:
    said = [
        (row, t)
        for row, item in enumerate(ITEMS)
        if item.speaks
        for t in range(item.answer_start, len(item.ids))
    ]
    draw = torch.Generator().manual_seed(logits_of)
    return Outputs(
        vectors=torch.zeros(len(ITEMS), 1),
        logits=torch.randn(len(said), WORDS, generator=draw).requires_grad_(),
        labels=torch.tensor([ITEMS[row].ids[t] for row, t in said]),
        item=torch.tensor([row for row, _ in said]),
        learn=torch.tensor([ITEMS[row].learns(t) for row, t in said]),
    )


@pytest.mark.parametrize("at_once", [1, 3 * WORDS, 10**6])
@pytest.mark.parametrize("kl", [0.0, 0.4])
def test_it_is_what_the_definition_says(at_once: int, kl: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "AT_ONCE_CPU", at_once)
    stage = Stage1Recipe(sft=0.7, kl=kl, sft_reasoning=0.8)
    outputs, base = spoken(0), spoken(1)
    anchored = torch.tensor([item.anchor for item in ITEMS])[outputs.item]
    theirs = base.logits.detach()[anchored] if kl else None

    total, parts = TokenLosses(stage, COUNTS, EMBED)(outputs, ITEMS, REASONED, theirs)
    (gradient,) = torch.autograd.grad(total, outputs.logits)

    thinks = torch.tensor(REASONED)[outputs.item]
    plain, thinking = outputs.learn & ~thinks, outputs.learn & thinks
    assert (int(plain.sum()), int(thinking.sum())) == (COUNTS.plain, COUNTS.thinking)
    language = 0.2 * sft(outputs.logits[plain], outputs.labels[plain])
    language = language + 0.8 * sft(outputs.logits[thinking], outputs.labels[thinking])
    keep = anchored & (outputs.labels != EMBED)
    assert int(keep.sum()) == COUNTS.anchored
    held = kl_to_base(outputs.logits[keep], base.logits.detach()[keep])
    (expected,) = torch.autograd.grad(0.7 * language + kl * held, outputs.logits)
    assert parts == pytest.approx({"sft": language.item(), "kl": held.item() if kl else 0.0}, abs=1e-6)
    assert total.item() == pytest.approx(0.7 * language.item() + kl * held.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected)


def test_passes_that_say_nothing_add_nothing() -> None:
    outputs = spoken(0)
    silent = replace(
        outputs, **{name: getattr(outputs, name)[:0] for name in ("logits", "labels", "item", "learn")}
    )
    total, parts = TokenLosses(Stage1Recipe(), COUNTS, EMBED)(silent, ITEMS[1:2], [False], None)
    assert total.item() == 0 and parts == {"sft": 0.0, "kl": 0.0}
    total.backward()  # and yet the head takes part, which other processes may wait for
    assert outputs.logits.grad is not None and not outputs.logits.grad.any()
