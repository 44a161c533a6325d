"""How fast this machine trains and generates: a few passes of the model itself, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from searchr3.embedding import length_batches
from searchr3.errors import SearchR3Error
from searchr3.loading import hold
from searchr3.training.adapter import add_adapter
from searchr3.training.estimate import Setting, Shape, Work, operations
from searchr3.training.forward import Item, run
from searchr3.training.precision import held, precision

if TYPE_CHECKING:
    from searchr3.model import SearchR3
    from searchr3.training.recipe import Recipe

SECONDS = 2.0  # of each kind of pass
NEW_TOKENS = 16


@dataclass(frozen=True)
class Speed:
    """Of one process: 10¹² operations a second in training, tokens a second in generation."""

    teraflops: float
    tokens: float


def free_bytes() -> int:
    """Memory that is free on the device that would train."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available  # what caches of files would give back counts


def measure(search: SearchR3, recipe: Recipe, setting: Setting, texts: list[str]) -> Speed:
    """Time forwards and backwards of documents as stage 1 makes them, and generation as stage 2 does.

    Args:
        search: the base model with its weights; it is used up.
        texts: documents of the data.

    Raises:
        SearchR3Error: the memory of the device does not suffice.
    """
    try:
        hold(search.model, held(recipe))
        search.model.to("cuda" if torch.cuda.is_available() else "cpu")
        shape = Shape.of(search.model.config)
        if recipe.model.lora:
            add_adapter(search, recipe)
        if recipe.model.gradient_checkpointing:
            search.model.activation_checkpointing_enable()
        search.autocast = precision(recipe)
        search.batch_size = min(64, recipe.stage2.queries * recipe.stage2.rollouts)
        return Speed(_training(search, recipe, shape, setting, texts), _generation(search, texts))
    except torch.OutOfMemoryError:
        raise SearchR3Error("the memory of this device does not suffice for one pass") from None


def _training(search: SearchR3, recipe: Recipe, shape: Shape, setting: Setting, texts: list[str]) -> float:
    items = [Item.of(one, (), False, False) for one in search.conversation.documents(texts)]
    rows = next(length_batches(items, len(items), recipe.stage1.micro_tokens or 2048))
    chosen = [items[row] for row in rows]
    tokens = sum(len(one.ids) for one in chosen)
    context = sum(len(one.ids) ** 2 for one in chosen) / tokens
    pad_id = search.conversation.tokenizer.pad_token_id or 0
    half = search.autocast
    search.model.train()

    def step() -> None:
        with torch.autocast(search.device.type, half, enabled=half is not None):
            vectors = run(search.model, chosen, pad_id).vectors
        vectors.sum().backward()
        search.model.zero_grad()

    return operations(shape, setting, Work.of(context, learnt=tokens)) / _seconds(step) / 1e12


def _generation(search: SearchR3, texts: list[str]) -> float:
    prompts = (texts * search.batch_size)[: search.batch_size]
    said: list[int] = []

    def speak() -> None:
        thoughts = search.generate([text[:200] for text in prompts], NEW_TOKENS, temperature=1.0)
        said.append(sum(len(one.token_ids) + one.emitted for one in thoughts))

    seconds = _seconds(speak)
    return max(1.0, sum(said[1:]) / max(1, len(said) - 1)) / seconds


def _seconds(work: Callable[[], None]) -> float:
    """Of one call: the mean of some seconds, after one that does not count."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    work()
    started, calls = now(), 0
    while calls == 0 or now() - started < SECONDS:
        work()
        calls += 1
    return (now() - started) / calls
