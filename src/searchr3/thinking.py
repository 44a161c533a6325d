"""Thoughts and the vectors behind them in one pass, where the architecture is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from searchr3.embedding import Embedder
from searchr3.engine import Engine, Thinker
from searchr3.errors import ModelError
from searchr3.generation import Reasoning, context_length, evaluating, padding_id
from searchr3.tasks import Task


def has_one_pass(search: Thinker) -> bool:
    """Whether `one_pass` can take this model apart."""
    return Embedder(search.model, padding_id(search.conversation)).known


def check_room(search: Thinker, query: str, max_new_tokens: int, instruction: str | None = None) -> None:
    """Raise ModelError where the model is not made for so long a thought about a query."""
    context = context_length(search.model)
    (prompt,) = search.conversation.reasoning_prompts([query], instruction)
    room = max(0, (context or math.inf) - len(prompt) - 1)  # behind the thought comes the embed token
    if max_new_tokens > room:
        raise ModelError(
            f"{max_new_tokens} tokens of thought are more than the model's context of {context} leaves "
            f"behind this query; ask for at most {room}"
        )


def one_pass(
    search: Thinker, texts: Sequence[str], max_new_tokens: int, instruction: str | None = None
) -> tuple[list[Reasoning], np.ndarray]:
    """What `generate` says of each query, and what `encode_query` gives behind it, float32 (n, d).

    The vectors are those of two passes but for the rounding of sums. No random numbers are drawn.

    Raises:
        ModelError: the architecture is not known, see `has_one_pass`.
    """
    chat = search.conversation
    beginning = chat.reasoning_start(instruction)
    prompts = chat.reasoning_prompts(texts, instruction)
    tasks = [Task(prompt, max_new_tokens, beginning=beginning) for prompt in prompts]
    vectors = finish(search, tasks, search.batch_size)
    return [Reasoning(chat.thought_text(task.said), tuple(task.said), task.ended) for task in tasks], vectors


def sampled(
    search: Thinker, prompts: Sequence[list[int]], beginning: int, max_new_tokens: int, temperature: float
) -> tuple[list[list[int]], np.ndarray]:
    """Completions as `generate_ids` samples them, stop token included, and the vectors behind them, (n, d).

    All in one batch, by the random numbers of the process. A prompt that stands there several times is read
    once, and none is read again for its vector, which is that of `Conversation.close`.

    Args:
        beginning: how many first ids all prompts share.

    Raises:
        ModelError: the architecture is not known, see `has_one_pass`.
    """
    tasks = [Task(prompt, max_new_tokens, temperature, beginning=beginning) for prompt in prompts]
    vectors = finish(search, tasks, len(tasks), apart=False)
    return [task.said if task.stop is None else [*task.said, task.stop] for task in tasks], vectors


def finish(search: Thinker, tasks: Sequence[Task], rows: int, apart: bool = True) -> np.ndarray:
    """Run tasks that embed, at most `rows` at a time; their vectors, float32 (n, d). As for `Engine`."""
    with evaluating(search.model):
        engine = Engine(search, min(rows, max(1, len(tasks))), apart)  # each row has its memory
        # prompts of like length share a pass, and those that are the same are read once
        for task in sorted(tasks, key=lambda task: (len(task.prompt), task.prompt)):
            engine.submit(task)
        while engine.busy:
            engine.step()
    vectors = np.zeros((len(tasks), search.dimension), dtype=np.float32)
    for row, task in enumerate(tasks):
        vectors[row] = task.vector
    return vectors
