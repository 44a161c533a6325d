"""Checkpoints: which one a run goes on from, what moves with the weights, and the start as a candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from searchr3.environment import CorpusEnvironment

BEST = "eval_ndcg@10"  # what chooses the best checkpoint
ENVIRONMENT = "environment"  # folder beside the weights in each checkpoint


def last_checkpoint(folder: Path, *parts: str) -> Path | None:
    """The newest checkpoint below `folder` that is whole, or None.

    An interrupted save leaves a part of one: the trainer's state is written last, `parts` (names in the
    checkpoint) after it.
    """
    needed = (TRAINER_STATE_NAME, *parts)
    whole = [path for path in folder.glob("checkpoint-*") if all((path / name).exists() for name in needed)]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


class StartCounts(TrainerCallback):
    """Makes the model as a stage finds it a candidate for its best checkpoint: a stage never makes it worse.

    Only its weights are kept, in `checkpoint-0`; nothing is resumed from there. `trainer` is set once there
    is one.
    """

    trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(args.output_dir) / "checkpoint-0"
        if state.global_step:
            if not state.best_global_step and folder.is_dir():  # the run may have been moved
                state.best_model_checkpoint = str(folder)
            return
        state.best_metric = self.trainer.evaluate()[BEST]
        self.trainer.save_model(str(folder))
        state.best_model_checkpoint = str(folder)


class KeepEnvironment(TrainerCallback):
    """Saves the corpus vectors with every checkpoint: a resumed run goes on with the same stale corpus."""

    def __init__(self, environment: CorpusEnvironment):
        self.environment = environment

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.environment.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / ENVIRONMENT)
