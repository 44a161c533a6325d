"""A tiny chat-format base model, made from nothing: tokenizer, causal pretraining on installed Python code.

It stands where a Qwen2.5 checkpoint stands in real use, and runs through the same code: a `transformers`
causal LM with a ChatML template and spare embedding rows. The objective is causal language modelling alone.
Its texts hold no query-document pair (docstrings are separated from their functions) and nothing of the dev
and test functions, or with `--split-by package` of the packages that are held out.

    python -m searchr3.training.base OUTPUT [--split-by hash|package] [--steps 2400] [--resume]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from searchr3.errors import DataError
from searchr3.files import new_folder
from searchr3.training.precision import computes_bf16

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 8192
SPARE_ROWS = 16  # as published checkpoints have them: the embed token needs no resize
CONTEXT = 256
LONGEST_TEXT = 1200  # characters of a text that are read: many beginnings teach more than a few long bodies


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
    tokenizer: PreTrainedTokenizerFast, vocabulary: int = VOCABULARY, **overrides: int
) -> Qwen3Config:
    """Shape of the tiny base: 5.2M parameters, 4 layers of width 256.

    `model_type: qwen3`, because transformers 5 swaps the tokenizer class of `qwen2` folders for its own.
    """
    shape = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    } | overrides
    return Qwen3Config(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )


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
    streams: list[list[int]] = [[], []]
    if plain:
        ids = tokenizer(plain, split_special_tokens=True)["input_ids"]
        streams[0] = list(chain.from_iterable([*one, end] for one in ids))
    if len(plain) < len(texts):
        streams[1] = list(
            chain.from_iterable(tokenizer([chat for chat in chats if chat is not None])["input_ids"])
        )
    whole = [token for stream in streams for token in stream[: len(stream) // context * context]]
    packed = torch.tensor(whole, dtype=torch.int32).view(len(whole) // context, context)
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


def make_base(
    texts: Sequence[str],
    output: str | Path,
    steps: int = 2400,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Make tokenizer and model from `texts` and save both to `output` (bfloat16 safetensors, about 10.5 MB).

    Checkpoints lie beside `output`, with the suffix `.checkpoints`; `resume` continues from the last one.

    Raises:
        DataError: the texts do not fill one batch.
    """
    output = Path(output)
    texts = [text[:LONGEST_TEXT] for text in texts]
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(tiny_config(tokenizer))
    rows = pack(texts, tokenizer, seed=seed)
    if len(rows) < batch_size:
        raise DataError(
            f"too few texts: {len(rows)} rows of {CONTEXT} tokens do not fill a batch of {batch_size}"
        )
    print(
        f"{len(texts)} texts, {rows.numel() / 1e6:.1f}M tokens, "
        f"{model.num_parameters() / 1e6:.2f}M parameters",
        flush=True,
    )
    arguments = TrainingArguments(
        output_dir=str(output.with_suffix(".checkpoints")),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": max(1, steps // 4)},
        warmup_steps=min(100, steps // 10),
        weight_decay=0.1,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=computes_bf16(),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        dataloader_drop_last=True,
        save_steps=100,
        save_total_limit=2,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=PackedRows(rows), processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    with new_folder(output, overwrite=True) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    from searchr3.dataset.python_code import python_texts

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--split-by", choices=("hash", "package"), default="hash", help="as data.split_by")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    texts = list(python_texts(split_by=options.split_by))
    make_base(texts, options.output, steps=options.steps, resume=options.resume)


if __name__ == "__main__":
    main()
