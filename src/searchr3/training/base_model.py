"""Tokenizer and shape of a tiny base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from searchr3.errors import SearchR3Error

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 8192
SPARE_ROWS = 16  # as published checkpoints have them: the embed token needs no resize
LEAST_VOCABULARY = 512  # the 256 bytes, the special tokens, and some words


@dataclass(frozen=True)
class Shape:
    """Width, layers and attention heads of a base; the feed-forward is three times as wide.

    Raises:
        SearchR3Error: the heads do not divide the width into even parts.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1:
            raise SearchR3Error("width, layers and heads of a base must be 1 or more")
        if self.width % (2 * self.heads):  # rotary positions turn pairs of numbers
            raise SearchR3Error(
                f"a base of width {self.width} cannot have {self.heads} heads: each needs an even share; "
                "give a width that is a multiple of twice the heads"
            )

    def config(self) -> dict[str, int]:
        """As `Qwen3Config` names it; two heads share their keys and values where they are even in number."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 3 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 2 if self.heads % 2 == 0 else self.heads,
            "head_dim": self.width // self.heads,
        }


SIZES = {"5m": Shape(), "15m": Shape(384, 7, 6), "30m": Shape(512, 8, 8)}
"""Names of shapes: millions of parameters with a vocabulary of 8,192."""


def make_tokenizer(
    texts: Iterable[str], vocabulary: int = VOCABULARY - SPARE_ROWS
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased words, identifiers split at underscores and capitals.

    Every word starts with the same space mark wherever it stands, so `getFileName`, `get_file_name` and
    "get file name" share their tokens; white space itself is not kept. Deterministic for the same texts.
    """
    tokenizer = Tokenizer(models.BPE())
    boundary = Regex(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(boundary, " "), normalizers.Lowercase()]
    )
    words = Regex(r"\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: int = VOCABULARY,
    shape: Shape = SIZES["5m"],
    **overrides: int,
) -> Qwen3Config:
    """Configuration of a tiny base, by default 5.2M parameters: 4 layers of width 256.

    `model_type: qwen3`, because transformers 5 swaps the tokenizer class of `qwen2` folders for its own.
    """
    return Qwen3Config(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(shape.config() | overrides),
    )
