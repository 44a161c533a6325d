"""What the two trainers share: arguments, dev evaluation, loss curves, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.errors import DataError, ModelError, RecipeError
from searchr3.generation import evaluating, is_dealt
from searchr3.group import Group
from searchr3.model import SearchR3
from searchr3.shared_search import SharedSearch
from searchr3.training.checkpoints import BEST, WholeCheckpoints
from searchr3.training.dev import DevSet
from searchr3.training.health import HealthMonitor
from searchr3.training.precision import precision
from searchr3.training.recipe import Recipe, SelectionRecipe
from searchr3.training.weights import ends_in_one_unit, load_dealt_adapter

Tell = Callable[[dict[str, Any]], None]
"""Receives progress: `stage`, `step`, `steps`, and the newest figures."""


def arguments(recipe: Recipe, stage: SelectionRecipe, folder: Path) -> dict[str, Any]:
    """Arguments of `transformers.TrainingArguments` that both stages set alike."""
    return {
        "output_dir": str(folder),
        "max_steps": stage.steps,
        "learning_rate": stage.learning_rate,
        "warmup_steps": math.ceil(stage.warmup_share * stage.steps),
        "lr_scheduler_type": stage.schedule,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "bf16": precision(recipe) is not None,
        "activation_checkpointing": recipe.model.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "eval_strategy": "steps",
        "eval_steps": stage.evaluate_every,
        "save_strategy": "steps",
        "save_steps": stage.evaluate_every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": BEST,
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "logging_steps": stage.log_every,
        "report_to": list(recipe.report_to),
        "run_name": recipe.name,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


class WatchHealth(TrainerCallback):
    """Tells of alarms, and ends training at the first if asked."""

    def __init__(self, monitor: HealthMonitor, tell: Tell | None):
        self.monitor, self.tell = monitor, tell

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for alarm in self.monitor.alarms:
            if self.tell and alarm.step == state.global_step:
                place = {"stage": "stage2", "step": state.global_step, "steps": state.max_steps}
                self.tell({**place, "alarm": alarm.message})
        if self.monitor.settings.stop and self.monitor.alarms:
            control.should_training_stop = control.should_log = True


def callbacks(stage: SelectionRecipe, tell: Tell | None, name: str) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [Progress(tell, name)] if tell else []
    if stage.patience is not None:
        found.append(EarlyStoppingCallback(early_stopping_patience=stage.patience))
    return found


class Progress(TrainerCallback):
    """Tells the caller where training is, once a step and at every log."""

    def __init__(self, tell: Tell, stage: str):
        self.tell, self.stage = tell, stage

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.tell({"stage": self.stage, "step": state.global_step, "steps": state.max_steps})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self.tell({"stage": self.stage, "step": state.global_step, "steps": state.max_steps, **(logs or {})})


class GradientTokens:
    """Tokens of one process that went forward and backward through the model so far, padding left out."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class DevEvaluation(WholeCheckpoints):
    """Mixin of both trainers: `evaluate` is dev nDCG@10 of the search model, and loss parts go into the log.

    Each line of the log tells `gradient_tokens`, what all processes have learnt from so far; a trainer counts
    its own in `learnt`. The trainers set `conversation`, `dev`, `group`, `recipe` and `think_on_dev`.
    """

    conversation: Conversation
    dev: DevSet
    group: Group
    recipe: Recipe
    think_on_dev: bool
    cost_on_dev: Callable[[float], float] | None = None  # of so many thinking tokens, in nDCG
    other_dev: Mapping[str, DevSet] = {}  # of further sources, by name; direct only
    name: str  # of the stage
    best_of: tuple[str, ...]  # the figures whose mean chooses the best checkpoint

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.learnt = GradientTokens()
        self.kept["gradient_tokens"] = self.learnt

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with ends_in_one_unit(self.model if self.is_fsdp_enabled else None):
            return super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if is_dealt(self.model) and hasattr(self.model, "peft_config"):
            load_dealt_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best and is_dealt(self.model) and hasattr(self.model, "peft_config"):
            load_dealt_adapter(self.model, Path(best))
        else:
            super()._load_best_model()  # type: ignore[misc]

    def search_model(self) -> SearchR3:
        """The model as it is now, for encoding and generating; it stays in training mode if it is."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        search = SearchR3.from_parts(
            model,
            self.conversation.tokenizer,
            self.conversation.prompts,
            self.conversation.max_length,
            self.recipe.model.batch_size,
            precision(self.recipe),
        )
        model.train(training)
        return search

    def note(self, **parts: float) -> None:
        """Remember figures of this step; their mean goes into the next log line."""
        for name, value in parts.items():
            self._parts[name].append(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = {**logs, **{name: sum(values) / len(values) for name, values in self._parts.items()}}
            self._parts.clear()
        if "train_runtime" not in logs:
            counts = self.group.gather(np.array([self.learnt.count]))
            logs = {**logs, "gradient_tokens": sum(int(one[0]) for one in counts)}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def dev_score(self, figures: Mapping[str, float]) -> float:
        """What chooses the best checkpoint, from the figures of `DevSet.score`."""
        return sum(figures[name] for name in self.best_of) / len(self.best_of)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Before the optimizer's step: with a gradient that is no number it would destroy the model."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if norm is not None and not math.isfinite(norm):
            raise ModelError(
                f"{self.name} has diverged: the gradient of step {self.state.global_step + 1} is not finite; "
                f"lower {self.name}.learning_rate, and begin anew in another folder"
            )
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        search = SharedSearch.over(self.search_model(), self.group)
        most = self.recipe.model.max_new_tokens if self.think_on_dev else 0
        figures = self.dev.score(search, most, self.cost_on_dev)
        figures |= {f"direct_{name}": dev.score(search)["direct"] for name, dev in self.other_dev.items()}
        # GPUs may round differently, but all must find the same checkpoint best, and stop at the same step
        first = self.group.gather(np.array([list(figures.values())], dtype=np.float64))[0][0].tolist()
        figures = dict(zip(figures, first, strict=True))
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        metrics[BEST] = self.dev_score(figures)
        with evaluating(
            self.model
        ):  # in training mode TRL would add what it noted for the next line on training
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args, self.state, self.control, metrics
        )
        return metrics


def relevant_documents(dataset: RetrievalDataset, split: str) -> dict[str, dict[str, float]]:
    """Query id → relevant document → grade, where the training corpus holds a relevant document.

    Raises:
        DataError: no such split, or it has no relevant document to train on.
    """
    corpus = dataset.training_corpus()
    found = {
        key: {
            document: float(grade) for document, grade in grades.items() if grade > 0 and document in corpus
        }
        for key, grades in dataset.split(split).items()
    }
    found = {key: grades for key, grades in found.items() if grades}
    if not found:
        raise DataError(f"{dataset.name}: split {split!r} has no relevant document to train on")
    return found


def check_data(dataset: RetrievalDataset, recipe: Recipe) -> None:
    """Look at the data before anything is trained.

    Raises:
        DataError: a split is missing, or has nothing to learn from.
        RecipeError: a step of stage 2 wants more queries than there are.
    """
    for split in ("dev", "test"):
        if not any(grade > 0 for judged in dataset.split(split).values() for grade in judged.values()):
            raise DataError(
                f"{dataset.name}: split {split!r} has no relevant document: nothing can be measured"
            )
    if recipe.stage1.steps:
        corpus = dataset.training_corpus()
        graded = (one for judged in dataset.split("stage1").values() for one in judged.items())
        if not any(grade > 0 and document in corpus for document, grade in graded):
            raise DataError(f"{dataset.name}: split 'stage1' has no relevant document to train on")
    wanted = recipe.stage2.queries
    if recipe.stage2.steps and (there := len(relevant_documents(dataset, "stage2"))) < wanted:
        raise RecipeError(
            f"stage2.queries: a step wants {wanted} queries, but the split 'stage2' of {dataset.name} "
            f"has {there}; set it to {there} or less"
        )


def check_trackers(names: Sequence[str]) -> None:
    """Look at `report_to` before anything is trained.

    Raises:
        RecipeError: transformers does not know a tracker, or its library is not installed.
    """
    try:
        for tracker in get_reporting_integration_callbacks(list(names)):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError(f"report_to: {' '.join(str(error).split())}") from None


def curve(state: TrainerState) -> list[dict[str, float]]:
    """The log of a trainer, one entry a step: training figures and dev figures (`eval_…`) merged.

    The trainer's last words on one call of `train`, of which a resumed run has several, are left out.
    """
    merged: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        if "train_runtime" in entry:
            continue
        step = int(entry["step"])
        merged.setdefault(step, {"step": step}).update(
            {key: value for key, value in entry.items() if isinstance(value, (int, float)) and key != "epoch"}
        )
    return [merged[step] for step in sorted(merged)]
