"""sentence-transformers on our own model and conversations: the same tokens in, the same vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import modules
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from searchr3.conversation import EMBED_TOKEN, Conversation
from searchr3.training.common import arguments
from searchr3.training.recipe import Recipe

_PLACE = "THE TEXT STANDS HERE"


def rival_of(folder: Path, dimension: int, dtype: str = "float32") -> SentenceTransformer:
    """A saved model of ours as theirs: transformer, last token, unit length.

    It is told to take plain text: else it would put texts into the tokenizer's chat template by its own rule.
    """
    network = modules.Transformer(
        str(folder),
        model_kwargs={"dtype": dtype},
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    pooling = modules.Pooling(dimension, "lasttoken")
    return SentenceTransformer(modules=[network, pooling, modules.Normalize()])


def as_text(conversation: Conversation, texts: Sequence[str]) -> list[str]:
    """What `conversation` makes of documents and direct queries, written out."""
    prompts, tokenizer = conversation.prompts, conversation.tokenizer
    turns = [{"role": "system", "content": prompts.embed}] if prompts.embed else []
    frame = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": _PLACE}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(frame).split(_PLACE)
    closing = after + prompts.answer.split(EMBED_TOKEN)[0] + EMBED_TOKEN
    return [before + text + closing for text in texts]


def cut(conversation: Conversation, texts: Sequence[str]) -> list[str]:
    """Texts that fit into the conversation: theirs would cut off the embed token, ours cuts the text."""
    room = conversation.max_length - len(conversation.documents([""])[0].ids)
    found = conversation.tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return [
        text if len(places) <= room else text[: places[room - 1][1]]
        for text, places in zip(texts, found["offset_mapping"], strict=True)
    ]


def read_alike(conversation: Conversation, texts: Sequence[str]) -> list[bool]:
    """Of which texts both make the same token ids.

    Theirs reads the whole conversation as one text, so it takes what looks like a special token for one, and
    may join tokens where the user's text ends.
    """
    theirs = conversation.tokenizer(as_text(conversation, texts), add_special_tokens=False)["input_ids"]
    ours = conversation.documents(texts)
    return [one.ids == list(other) for one, other in zip(ours, theirs, strict=True)]


def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
    """Batches in the order of the rows."""
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def settings_like(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What our stage 1 sets of `transformers.TrainingArguments`, but for evaluation and checkpoints: none."""
    ours = arguments(recipe, recipe.stage1, folder)
    shared = ("output_dir", "max_steps", "learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay")
    shared += (
        "max_grad_norm",
        "bf16",
        "use_cpu",
        "seed",
        "data_seed",
        "logging_steps",
        "dataloader_pin_memory",
    )
    size = {"per_device_train_batch_size": recipe.stage1.batch_size, "dataloader_drop_last": True}
    return {name: ours[name] for name in shared} | size | {"eval_strategy": "no", "save_strategy": "no"}


def rival_trainer(
    model: SentenceTransformer,
    loss: Any,
    anchors: Sequence[str],
    positives: Sequence[str],
    settings: dict[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
    sampler: Any = in_order,
) -> SentenceTransformerTrainer:
    """Their trainer on pairs of texts, silent.

    Args:
        loss: made for `model`.
        settings: of `transformers.TrainingArguments`.
    """
    args = SentenceTransformerTrainingArguments(
        **settings, batch_sampler=sampler, disable_tqdm=True, report_to=[], log_level="error"
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"anchor": list(anchors), "positive": list(positives)}),
        loss=loss,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
