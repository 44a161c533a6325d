"""A tokenizer that puts the conversation around the text by itself.

`Conversation` renders a document as `prefix + text + suffix + answer + embed token`. Here the same is written
into `tokenizer.json`, so that whoever loads it gets the same ids for the same text, and the last of them is
the embed token:

- The frame is a template of the post-processor, as token ids: it is never tokenized again. The libraries cut
  the text to `max_length` less the template before they put the template around it.
- The special tokens are words of the vocabulary, no longer marks that are looked for in a text, so a text
  that holds `<|embed_token|>` or `<|im_end|>` is only text, as it is for `Conversation`. transformers makes
  marks of them again on loading, and is told not to look for them (`split_special_tokens`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from searchr3.conversation import Conversation
from searchr3.errors import ModelError
from searchr3.files import write_json
from searchr3.generation import padding_id

BEFORE, AFTER = "before", "after"  # the template's names of what stands before and after the text
# What a tokenizer's own settings would add around the text, and what is about chatting.
_DROPPED = (
    *("add_bos_token", "add_eos_token", "bos_token", "unk_token", "chat_template"),
    *("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"),
    *("is_local", "local_files_only", "name_or_path", "backend"),
)


def save_framed(conversation: Conversation, folder: Path, instruction: str | None = None) -> Tokenizer:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the tokenizer as it was written.

    Args:
        instruction: the task of the queries that will be embedded; documents have none.

    Raises:
        ModelError: the tokenizer is of a kind that cannot be told to, or does not give the same ids.
    """
    framed = _framed(conversation, instruction)
    framed.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _settings(conversation))
    check_framed(conversation, folder, instruction)
    return framed


def check_framed(conversation: Conversation, folder: Path, instruction: str | None = None) -> None:
    """Raise ModelError unless the saved tokenizer gives the conversation's ids, by either way of loading.

    The probes are texts with special tokens in them, of no length and of too much.
    """
    marks = sorted(conversation.tokenizer.get_added_vocab())
    probes = ["", "parse a date", " ".join(marks), "".join(marks), "Ünïcode, def f(x):\n\treturn x  # 1,234"]
    probes.append("too long " * conversation.max_length)
    wanted = [one.ids for one in conversation.queries(probes, instruction)]
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    cut = {"truncation": True, "max_length": conversation.max_length}
    for text, ids in zip(probes, wanted, strict=True):
        if raw.encode(text).ids != ids or loaded(text, **cut)["input_ids"] != ids:
            raise ModelError(
                f"{conversation.tokenizer.name_or_path}: its tokenizer cannot be exported, the text "
                f"{text[:40]!r} gets other token ids; use the model itself"
            )


def _framed(conversation: Conversation, instruction: str | None) -> Tokenizer:
    backend = getattr(conversation.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            f"{conversation.tokenizer.name_or_path}: a tokenizer of Python alone cannot be exported; "
            "use the model itself"
        )
    state = json.loads(backend.to_str())
    vocabulary = state["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise ModelError(
            f"{conversation.tokenizer.name_or_path}: a tokenizer of the kind {state['model'].get('type')} "
            "cannot be exported, those of BPE, WordPiece and WordLevel can; use the model itself"
        )
    vocabulary.update({token["content"]: token["id"] for token in state["added_tokens"]})
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    state["post_processor"] = _template(conversation, instruction)
    state["truncation"] = {
        "direction": "Right",
        "max_length": conversation.max_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))


def _template(conversation: Conversation, instruction: str | None) -> dict[str, Any]:
    """The post-processor of `tokenizers` that puts the frame around a text."""
    before, after = conversation.frame(instruction)
    names = conversation.tokenizer.convert_ids_to_tokens
    tokens = {
        name: {"id": name, "ids": ids, "tokens": [str(token) for token in names(ids)]}
        for name, ids in ((BEFORE, before), (AFTER, after))
        if ids
    }
    first = [{"SpecialToken": {"id": BEFORE, "type_id": 0}}] if before else []
    last = [{"SpecialToken": {"id": AFTER, "type_id": 0}}]
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [*first, text[0], *last],
        "pair": [*first, *text, *last],
        "special_tokens": tokens,
    }


def _settings(conversation: Conversation) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: as the model's own, without what the template replaces."""
    tokenizer = conversation.tokenizer
    with tempfile.TemporaryDirectory() as own:
        tokenizer.save_pretrained(own)
        settings = json.loads((Path(own) / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in settings.items() if key not in _DROPPED} | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is, in any version
        "eos_token": None,
        "pad_token": tokenizer.convert_ids_to_tokens(padding_id(conversation)),
        "padding_side": "right",
        "truncation_side": "right",
        "model_max_length": conversation.max_length,
        "split_special_tokens": True,
    }
