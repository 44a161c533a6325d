"""Greedy thoughts and the vectors behind them: in one pass where the architecture is known, else in two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from searchr3.embedding import Embedder
from searchr3.engine import Engine, Thinker
from searchr3.generation import Reasoning, padding_id
from searchr3.tasks import Task


def has_one_pass(search: Thinker) -> bool:
    """Whether `one_pass` can take this model apart."""
    return Embedder(search.model, padding_id(search.conversation)).known


def one_pass(
    search: Thinker, texts: Sequence[str], max_new_tokens: int, instruction: str | None = None
) -> tuple[list[Reasoning], np.ndarray]:
    """What `generate` says of each query, and what `encode_query` gives behind it, float32 (n, d).

    The vectors are those of two passes but for the rounding of sums. No random numbers are drawn.

    Raises:
        ModelError: the architecture is not known, see `has_one_pass`.
    """
    chat, model = search.conversation, search.model
    training = model.training
    model.eval()
    try:
        engine = Engine(search, search.batch_size)
        beginning = chat.reasoning_start(instruction)
        tasks = [
            Task(prompt, max_new_tokens, beginning=beginning)
            for prompt in chat.reasoning_prompts(texts, instruction)
        ]
        for task in sorted(tasks, key=lambda task: len(task.prompt)):  # those of like length share a pass
            engine.submit(task)
        while engine.busy:
            engine.step()
    finally:
        model.train(training)
    vectors = np.zeros((len(tasks), search.dimension), dtype=np.float32)
    for row, task in enumerate(tasks):
        vectors[row] = task.vector
    return [Reasoning(chat.thought_text(task.said), tuple(task.said), task.ended) for task in tasks], vectors
