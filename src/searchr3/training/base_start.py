"""The base that another one goes on from: its weights, tokenizer and shape, and what it has read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from searchr3.errors import ModelError
from searchr3.training.base_facts import FACTS, read_facts
from searchr3.training.base_model import Shape


@dataclass(frozen=True)
class Start:
    """A base that was made here.

    Attributes:
        facts: its `base.json`.
    """

    folder: Path
    facts: dict[str, Any]
    shape: Shape
    vocabulary: int

    @classmethod
    def read(cls, folder: Path) -> Start:
        """Look at a base, its weights aside.

        Raises:
            ModelError: its `base.json` is missing, or does not tell its shape.
        """
        facts = read_facts(folder)
        try:
            settings = facts["settings"]
            return cls(folder, facts, Shape(**settings["shape"]), int(settings["vocabulary"]))
        except (KeyError, TypeError, ValueError):
            raise ModelError(
                f"{folder / FACTS}: is missing, or does not tell the shape of a base; go on from a folder "
                "that this command has made"
            ) from None

    @property
    def sources(self) -> list[dict[str, Any]]:
        """All that it has read, for the `base.json` of what goes on from it."""
        return [{**one, "inherited": True} for one in self.facts["sources"]]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def model(self) -> Qwen3ForCausalLM:
        """Its weights, in float32."""
        return Qwen3ForCausalLM.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
