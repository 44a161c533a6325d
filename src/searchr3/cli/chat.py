"""The command `searchr3 chat-check`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from searchr3.cli.options import Device, Json
from searchr3.cli.terminal import show
from searchr3.files import json_text
from searchr3.words import printable


def chat_check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    base: Annotated[str, typer.Option(help="The chat model that it was trained from: a folder or a Hub id.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply.")] = 48,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """See whether a trained model still chats as its base does.

    Both answer general prompts that training does not use; 0 nats: the same words with the same chances.
    """
    from searchr3 import SearchR3
    from searchr3.evaluation.chat import chat_examples, chat_table, measure_chat
    from searchr3.progress import hush_transformers

    hush_transformers()
    trained = SearchR3(model, device=device, dtype="float32")
    other = SearchR3.from_base(base)
    found = measure_chat(trained, other, max_new_tokens)
    if as_json:
        print(json_text({"model": model, "base": base, **found}))
        return
    show(chat_table({model: found}))
    for example in chat_examples({"model": found}):
        print(f"{printable(example['prompt'])}  ({example['kl_base_trained']:.4f})")
        for name, reply in example["sides"]:
            print(f"  {name + ':':<7}{printable(reply)}")
        print()
