"""In the place of `engine.Engine`, for models that it cannot take apart: two passes, a batch at a time."""

from __future__ import annotations

import torch

from searchr3.generation import generate_ids, seeded, split_completion
from searchr3.model import SearchR3
from searchr3.tasks import Runner, Task


class Plain(Runner):
    """Runs tasks as `Engine` does, with `generate` and `encode_rendered`. A step finishes its whole batch.

    Those of like length, temperature and seed share a batch; a task that is at work cannot be cancelled.
    """

    def __init__(self, search: SearchR3, rows: int = 32):
        super().__init__(rows)
        self.search = search

    def step(self) -> list[Task]:
        """Finish the first task that waits, and others like it. Returns them."""
        alike = [task for task in self.waiting if _kind(task) == _kind(self.waiting[0])]
        if self.waiting and self.waiting[0].seed is not None:
            alike = alike[:1]  # what a seed gives must not hang on who else asks
        tasks = alike[: self.rows]
        for task in tasks:
            self.waiting.remove(task)
        self.active = tasks
        try:
            if tasks:
                self._finish(tasks)
        finally:
            self.active = []
        return tasks

    def _finish(self, tasks: list[Task]) -> None:
        most, temperature, seed, embeds = _kind(tasks[0])
        chat, device = self.search.conversation, self.search.device
        completions: list[list[int]] = [[] for _ in tasks]
        if most:
            with (
                self.search.precision(),
                seeded(None if seed is None else seed % 2**63, device),
                torch.no_grad(),
            ):
                prompts = [task.prompt for task in tasks]
                completions = generate_ids(self.search.model, chat, prompts, most, temperature)
        for task, completion in zip(tasks, completions, strict=True):
            task.said, emitted = split_completion(completion, chat)
            task.ended = emitted if embeds else len(task.said) < len(completion)
            task.done = True
        if embeds:
            rendered = [chat.close(task.prompt, task.said) for task in tasks]
            for task, vector in zip(tasks, self.search.encode_rendered(rendered), strict=True):
                task.vector = vector


def _kind(task: Task) -> tuple[int, float, int | None, bool]:
    return task.max_new_tokens, task.temperature, task.seed, task.embeds
