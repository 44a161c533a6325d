"""From a model in memory to a folder that `loading.py` reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from searchr3.adaptive import Adaptive
from searchr3.conversation import Conversation
from searchr3.files import new_folder
from searchr3.loading import SETTINGS, load_parts

OF_ADAPTER = ("lora_", "trainable_tokens_")  # in the names of what PEFT adds to a model


def plain_name(name: str) -> str:
    """What a weight of a model with an adapter is called in the model without."""
    return name.removeprefix("base_model.model.").replace(".token_adapter", "").replace(".base_layer", "")


def merged(model: PreTrainedModel, exact: str | Path | None = None) -> PreTrainedModel:
    """The model in full: float32, in main memory, any LoRA adapter merged; the device holds no second one.

    A model that has no adapter, and all its numbers, is its own.

    Args:
        exact: where the weights lie that the model holds rounded; an adapter is added to these.
    """
    adapter = hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")
    whole = load_parts(exact, "float32")[0] if exact else None
    if not adapter:
        return model if whole is None else whole
    theirs = dict(whole.named_parameters()) if whole else {}
    known: dict[int, torch.Tensor] = {id(buffer): buffer.to("cpu", copy=True) for buffer in model.buffers()}
    for name, weight in model.named_parameters():
        frozen = whole is not None and not any(part in name for part in OF_ADAPTER)
        value = theirs[plain_name(name)] if frozen else weight.detach().to("cpu", torch.float32, copy=True)
        known[id(weight)] = torch.nn.Parameter(value, weight.requires_grad)
    return copy.deepcopy(model, known).merge_and_unload()


def save_parts(
    path: str | Path,
    model: PreTrainedModel,
    conversation: Conversation,
    adaptive: Adaptive | None = None,
    overwrite: bool = False,
) -> None:
    """Write weights (safetensors), tokenizer, prompts and length, and the rule of adaptive thinking."""
    settings = {"prompts": conversation.prompts.to_dict(), "max_length": conversation.max_length}
    with new_folder(path, overwrite) as folder:
        model.save_pretrained(folder)
        conversation.tokenizer.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if adaptive:
            adaptive.save(folder)
