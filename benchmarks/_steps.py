"""Some steps of either stage, as the product trains them, timed."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
from _timing import Clock, StepTimes, now

from searchr3.dataset import RetrievalDataset
from searchr3.environment import CorpusEnvironment
from searchr3.model import SearchR3
from searchr3.training.forward import Item
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer
from searchr3.training.stage2 import Stage2Trainer, train_stage2

PARTS = ("refresh", "scoring", "reward_forward")


def stage1_trainer(
    search: SearchR3, dataset: RetrievalDataset, recipe: Recipe, folder: Path, times: StepTimes
) -> tuple[Stage1Trainer, list[list[Item]]]:
    """Stage 1's trainer, which only trains: no dev evaluation, no checkpoint.

    Returns:
        the trainer, and a list that gets what each step learns from.
    """
    search.model.train()
    base = copy.deepcopy(search.model).eval().requires_grad_(False) if recipe.stage1.kl else None
    trainer = Stage1Trainer(search, base, dataset, recipe, folder, None)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.add_callback(times)
    seen: list[list[Item]] = []
    make = trainer.maker.of

    def noted(*args: Any) -> Any:
        batch = make(*args)
        seen.append(batch.items)
        return batch

    trainer.maker.of = noted  # type: ignore[method-assign]
    return trainer, seen


@contextlib.contextmanager
def _parts_timed(clock: Clock) -> Iterator[None]:
    """The methods in which the rollouts' and the environment's parts of a step are spent."""
    with contextlib.ExitStack() as stack:
        for owner, method, label in (
            (Stage2Trainer, "_reward", "reward"),
            (Stage2Trainer, "_generate", "rollout"),
            (CorpusEnvironment, "refresh", "refresh"),
            (CorpusEnvironment, "score", "scoring"),
        ):
            stack.enter_context(clock.watch(owner, method, label))
        yield


def stage2_steps(
    search: SearchR3, dataset: RetrievalDataset, vectors: np.ndarray, recipe: Recipe, reread: bool = False
) -> dict[str, Any]:
    """Some steps of stage 2, the first left out.

    Args:
        reread: trl samples the rollouts, and each is read once more for its vector.

    Returns:
        `steps`: the seconds of each and of its parts; `seconds` of each; `tokens`, mean length of a
        completion; `thinking`, of the thought in it.
    """
    clock, ends = Clock(), list[float]()

    def tell(progress: dict[str, Any]) -> None:
        if progress.get("step", 0) > len(ends):  # a step's end is told before it is logged
            ends.append(now())
            clock.close_step()

    way = patch.object(Stage2Trainer, "one_pass", None) if reread else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, _parts_timed(clock), way:
        curve = train_stage2(search, dataset, recipe, Path(folder), vectors=vectors.copy(), tell=tell)
    steps = []
    for parts, start, end in zip(clock.steps[1:], ends, ends[1:], strict=False):
        steps.append({**parts, "step": end - start})
        steps[-1]["reward_forward"] = parts["reward"] - parts["refresh"] - parts["scoring"]
        steps[-1]["update"] = end - start - parts["reward"] - parts["rollout"]
    logged = [row for row in curve if "loss" in row]
    return {
        "steps": steps,
        "seconds": [step["step"] for step in steps],
        "tokens": fmean(row["completions/mean_length"] for row in logged),
        "thinking": fmean(row["thinking_tokens"] for row in logged),
    }
