"""For every test: no network, no forked tokenizer threads; and models small enough to run in milliseconds."""

import os
from pathlib import Path

import pytest

# Before any library reads them. A test that reaches for the Hub fails at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = [
    f"def {verb}_{thing}({thing}, {way}=None):\n    {verb.capitalize()} the {thing} {way} and return {number} of them."
    for number, verb in enumerate(["parse", "sort", "merge", "split", "count", "load"])
    for thing, way in [("date", "strictly"), ("string", "lazily"), ("list", "in place"), ("file", "line by line")]
]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained chat model with the tiny base's architecture and tokenizer, but width 32.

    Its weights are wider than at a usual start, so that a vector depends strongly on the whole text.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    from searchr3.training.base import make_tokenizer, tiny_config

    tokenizer = make_tokenizer(TEXTS, vocabulary=584)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16}
    torch.manual_seed(0)
    config = tiny_config(tokenizer, vocabulary=600, **shape, **heads)
    config.initializer_range = 0.15
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_base: Path) -> Path:
    """Folder of `tiny_base` with the embed token, as training leaves it: `SearchR3(tiny_model)` loads it."""
    from searchr3.model import SearchR3

    folder = tiny_base.with_name("tiny-model")
    SearchR3.from_base(tiny_base, max_length=96).save_pretrained(folder)
    return folder
