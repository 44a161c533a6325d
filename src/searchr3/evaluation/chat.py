"""Whether a trained model still chats: how far it is from its base on general prompts, and what both say.

The base answers each prompt, greedily. Both models then read these answers, and what they hold likely is
compared at every token. The prompts are not those that training holds the model to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from searchr3.errors import ModelError, SearchR3Error, first_line
from searchr3.generation import generate_ids
from searchr3.losses import kl_to_base
from searchr3.model import SearchR3

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("kl_base_trained", "kl_trained_base", "same_token")


def chat_prompts() -> list[str]:
    """General prompts in plain English, none of which training uses."""
    text = resources.files("searchr3.evaluation").joinpath("chat_prompts.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def shift(trained: Tensor, base: Tensor) -> dict[str, float]:
    """How far two models are apart at the same t tokens, as means over them.

    Args:
        trained, base: logits, shape (t, vocabulary), t > 0.

    Returns:
        `kl_base_trained`, KL(base ‖ trained), and `kl_trained_base`, KL(trained ‖ base), both in nats;
        `same_token`, the share of the tokens for which both hold the same one the likeliest.
        NaN where logits are no numbers.
    """
    same = trained.argmax(dim=-1) == base.argmax(dim=-1)
    # the order keeps a NaN: of two that are not in order `max` takes the first
    kl = [max(kl_to_base(*pair).item(), 0.0) for pair in ((base, trained), (trained, base))]
    return dict(zip(FIGURES, (*kl, same.float().mean().item()), strict=True))


def measure_chat(
    model: SearchR3, base: SearchR3, max_new_tokens: int = 48, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Hold a trained model against the one that it was trained from, on general prompts.

    The device of the trained model holds one of the two at a time; the base ends in main memory.

    Args:
        max_new_tokens: most tokens of a reply, above 0.
        prompts: ours by default, see `chat_prompts`.

    Returns:
        the figures of `shift` over all tokens of the base's replies, `tokens`, their number, `embed_rate`,
        the share of the prompts to which the trained model says the embed token, and `replies`:
        `{"prompt", "base", "trained", "tokens"}` with the figures of each.

    Raises:
        ModelError: the two have different tokens, or one gives no numbers.
    """
    if model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ModelError(
            f"{model.tokenizer.name_or_path} and {base.tokenizer.name_or_path} have different tokens; "
            "give the model that the first was trained from"
        )
    chat = base.conversation
    texts = chat_prompts() if prompts is None else list(prompts)
    asked = chat.chat_prompts(texts)
    end = chat.tokenizer.eos_token_id
    stops = None if end is None else [end]
    rows = 1 + max(chat.tokenizer.get_vocab().values())  # either may have spare rows, which are no tokens

    def says(search: SearchR3) -> list[list[int]]:
        return generate_ids(search.model, chat, asked, max_new_tokens, stop_ids=stops)

    replies, device = [], model.device
    try:
        with _at_work(base, model, device):
            theirs = says(base)
            held = [_logits(base, *pair)[:, :rows] for pair in zip(asked, theirs, strict=True)]
        with _at_work(model, base, device):
            ours = says(model)
            for text, prompt, said, own, before in zip(texts, asked, theirs, ours, held, strict=True):
                apart = shift(_logits(model, prompt, said)[:, :rows], before)
                if any(map(isnan, apart.values())):
                    raise ModelError(
                        f"{model.tokenizer.name_or_path} or {base.tokenizer.name_or_path} gives no numbers: "
                        "it has diverged, or its weights are damaged; take an earlier checkpoint"
                    )
                told = [
                    chat.tokenizer.decode(ids[:-1] if ids[-1] == end else ids).strip() for ids in (said, own)
                ]
                replies.append(
                    {"prompt": text, "base": told[0], "trained": told[1], "tokens": len(said), **apart}
                )
    finally:
        base.model.to("cpu")
        model.model.to(device)
    tokens = sum(reply["tokens"] for reply in replies)
    means = {name: sum(reply[name] * reply["tokens"] for reply in replies) / tokens for name in FIGURES}
    embeds = sum(chat.embed_id in own for own in ours) / len(ours)
    return {**means, "tokens": tokens, "embed_rate": embeds, "replies": replies}


@contextlib.contextmanager
def _at_work(search: SearchR3, other: SearchR3, device: torch.device) -> Iterator[None]:
    """One of two models has the device for itself; linear layers that are held rounded need autocast."""
    other.model.to("cpu")
    search.model.to(device)
    with search.precision() if search.exact else contextlib.nullcontext():
        yield


@torch.no_grad()
def _logits(search: SearchR3, prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
    """What a model holds likely at each token of a reply, (tokens, rows of its head), in main memory."""
    ids = torch.tensor([[*prompt, *reply]], device=search.device)
    found = search.model(input_ids=ids, logits_to_keep=len(reply) + 1, use_cache=False).logits
    return found[0, :-1].float().cpu()


def still_chats(model: SearchR3, base: str | Path, max_new_tokens: int = 48) -> dict[str, Any]:
    """`measure_chat` against the model at `base`; if it cannot be had, `{"skipped": why}`."""
    try:
        other = (  # held as the model is: what is told apart is what training has changed
            SearchR3(base, device="cpu", products=model.autocast) if model.exact else SearchR3.from_base(base)
        )
        return measure_chat(model, other, max_new_tokens)
    except (SearchR3Error, torch.OutOfMemoryError) as error:
        return {"skipped": first_line(error)}


def chat_examples(chats: Mapping[str, Mapping[str, Any]], count: int = 3) -> list[dict[str, Any]]:
    """Prompts on which the last model is the nearest to its base, the farthest from it, and evenly between.

    Args:
        chats: name of a model → what `measure_chat` found, with one base and the same prompts.

    Returns:
        `{"prompt", "kl_base_trained", "sides": [(name, reply)]}`, the base's first, the nearest on top.
    """
    measured = {name: chat["replies"] for name, chat in chats.items() if "replies" in chat}
    if not measured:
        return []
    last = [*measured.values()][-1]
    order = sorted(range(len(last)), key=lambda row: last[row]["kl_base_trained"])
    count = min(count, len(order))
    chosen = [order[place * (len(order) - 1) // max(1, count - 1)] for place in range(count)]
    return [
        {
            "prompt": last[row]["prompt"],
            "kl_base_trained": last[row]["kl_base_trained"],
            "sides": [("base", last[row]["base"])]
            + [(name, replies[row]["trained"]) for name, replies in measured.items()],
        }
        for row in chosen
    ]


def chat_table(chats: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of `measure_chat` for the terminal, a row for each model that was measured."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = "does it still chat? against the base, on general prompts"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in ("KL(base ‖ model)", "KL(model ‖ base)", "same token", "says embed token"):
        table.add_column(heading, justify="right")
    for name, chat in chats.items():
        if "skipped" in chat:
            continue
        kl = [f"{chat[key]:.4f}" for key in FIGURES[:2]]
        table.add_row(escape(name), *kl, f"{chat['same_token']:.1%}", f"{chat['embed_rate']:.1%}")
    return table
