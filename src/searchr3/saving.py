"""From a model in memory to a folder that `loading.py` reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from transformers import PreTrainedModel

from searchr3.adaptive import Adaptive
from searchr3.conversation import Conversation
from searchr3.files import new_folder
from searchr3.loading import SETTINGS


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model; of one with a LoRA adapter, a copy with the adapter merged."""
    if hasattr(model, "peft_config") and hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).merge_and_unload()
    return model


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
