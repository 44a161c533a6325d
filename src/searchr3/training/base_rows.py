"""Texts and conversations as rows of token ids, and which rows a base is trained on, in which order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from searchr3.training.mixture import turns

CONTEXT = 256
LONGEST_TEXT = 1200  # characters of a text that are read: many beginnings teach more than a few long bodies

Talk = tuple[tuple[str, str], ...]
"""A conversation: (role, text) of each turn."""

_TOGETHER = 4096  # texts tokenized at once: what a tokenizer returns is a hundred times their ids


def as_chat(text: str, rng: random.Random) -> str:
    """A text as a conversation: the user says its beginning, the assistant goes on. The format, no labels."""
    words = text.split()
    cut = rng.randint(1, max(1, min(len(words) - 1, 40)))
    start, rest = " ".join(words[:cut]), " ".join(words[cut : cut + 120])
    return f"<|im_start|>user\n{start}<|im_end|>\n<|im_start|>assistant\n{rest}<|im_end|>\n"


def pack(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context: int = CONTEXT,
    chat_share: float = 0.1,
    seed: int = 0,
) -> torch.Tensor:
    """Shuffled texts as one stream of token ids cut into rows, int32 of shape (rows, context)."""
    rng = random.Random(seed)
    order = list(range(len(texts)))
    rng.shuffle(order)
    chats = [as_chat(texts[i], rng) if rng.random() < chat_share else None for i in order]
    plain = [texts[i] for i, chat in zip(order, chats, strict=True) if chat is None]
    end = tokenizer.pad_token_id  # <|endoftext|> separates texts, as in pretraining at large
    streams = [
        _stream([*ids, end] for ids in _ids(plain, tokenizer, split_special_tokens=True)),
        _stream(_ids([chat for chat in chats if chat is not None], tokenizer)),
    ]
    return _rows(streams, context, seed)


def pack_talks(
    talks: Sequence[Talk], tokenizer: PreTrainedTokenizerFast, context: int = CONTEXT, seed: int = 0
) -> torch.Tensor:
    """Shuffled conversations, packed as `pack` does. Whatever a turn spells, it is only text."""
    order = list(range(len(talks)))
    random.Random(seed).shuffle(order)
    roles = {role for talk in talks for role, _ in talk}
    opening = {role: tokenizer(f"<|im_start|>{role}\n")["input_ids"] for role in roles}
    closing = tokenizer("<|im_end|>\n")["input_ids"]
    turn_of = [turn for i in order for turn in talks[i]]
    said = _ids([text for _, text in turn_of], tokenizer, split_special_tokens=True)
    stream = _stream([*opening[role], *ids, *closing] for (role, _), ids in zip(turn_of, said, strict=True))
    return _rows([stream], context, seed)


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, **options: bool) -> Iterator[list[int]]:
    for start in range(0, len(texts), _TOGETHER):
        yield from tokenizer(list(texts[start : start + _TOGETHER]), **options)["input_ids"]


def _stream(parts: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(parts), dtype=np.int32)


def _rows(streams: Sequence[np.ndarray], context: int, seed: int) -> torch.Tensor:
    cut = [one[: len(one) // context * context] for one in streams]
    packed = torch.from_numpy(np.concatenate(cut)).view(-1, context)
    return packed[torch.randperm(len(packed), generator=torch.Generator().manual_seed(seed))]


class PackedRows(torch.utils.data.Dataset):
    """Rows of `pack` as the Trainer wants them: labels equal the inputs (the model shifts them)."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row}


def all_shares(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """The share of the rows of each part: those that are given, the others by what they have.

    Args:
        sizes: rows of each part, some in all.
        shares: of some parts, > 0, in sum at most 1; where all parts have one they are scaled to 1.
    """
    left = 1 - sum(shares.values())
    others = sum(size for name, size in sizes.items() if name not in shares)
    found = {name: shares[name] if name in shares else left * size / others for name, size in sizes.items()}
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def schedule(sizes: Mapping[str, int], shares: Mapping[str, float], count: int, seed: int = 0) -> np.ndarray:
    """Which row comes when: int64, (count,), rows numbered on from part to part in the order of `sizes`.

    Parts take turns by their shares; each gives its rows in a new random order every time it has given all.
    A longer schedule begins with the shorter one.

    Args:
        sizes: rows of each part, >= 1.
        shares: of each part, > 0, in sum 1.
        count: rows in all.
    """
    starts = np.cumsum([0, *sizes.values()])
    rows = [
        _forever(size, np.random.default_rng([seed, number])) for number, size in enumerate(sizes.values())
    ]
    order = islice(turns(np.array([shares[name] for name in sizes])), count)
    return np.fromiter((starts[part] + next(rows[part]) for part in order), dtype=np.int64, count=count)


def _forever(size: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(size).tolist()


def divided(items: Sequence[str] | Sequence[Talk], is_dev: Callable[[str], bool]) -> tuple[list, list]:
    """Items to train on and held-out ones; a conversation goes with its last turn."""
    found: tuple[list, list] = ([], [])
    for item in items:
        found[is_dev(item if isinstance(item, str) else item[-1][1])].append(item)
    return found
