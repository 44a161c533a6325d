"""Checkpoints: whole or not there at all, and holding everything that a run needs to go on bit for bit.

`checkpoint-N` is written in a hidden folder, brought to the disk and renamed: what bears the name is whole.
In it lie the model, the trainer's own files (optimizer, scheduler, random states, `trainer_state.json`), what
is kept besides (see `WholeCheckpoints`), and `files.json` with the size of every file. In several processes
each keeps its own part, as the trainer does with random states.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import save_fsdp_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.distributed.fsdp import get_fsdp_ckpt_kwargs
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from searchr3.errors import DataError
from searchr3.files import disk_errors, put_folder, write_text
from searchr3.group import ALONE, Group, first_says, on_first

BEST = "eval_ndcg@10"  # what chooses the best checkpoint
ENVIRONMENT = "environment"  # folder beside the weights in each checkpoint of stage 2
HIDDEN = ".unfinished"  # what is being written or deleted, beside the checkpoints
FILES = "files.json"
KEPT = "kept"


class Kept(Protocol):
    """A part of a run with a small state, which moves with every checkpoint as JSON."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class KeptFolder(Protocol):
    """A part of a run with a large state, which gets a folder of its own in every checkpoint.

    In several processes all call both with the same folder, and the part sees to who writes.
    """

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def is_whole(checkpoint: Path) -> bool:
    """Whether a run can go on from there: every file of the save is there in its full size."""
    try:
        sizes = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        return TRAINER_STATE_NAME in sizes and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # not there, no JSON, no object
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole, or None."""
    return max(filter(is_whole, _checkpoints(folder)), key=step_of, default=None)


def resume_point(folder: Path, group: Group = ALONE) -> Path | None:
    """`last_checkpoint`; what a killed run left unfinished is removed, and what is not whole after it.

    Collective: what the first process sees holds for all.
    """
    on_first(group, lambda: _remove_unfinished(folder))
    newest = last_checkpoint(folder)
    step = first_says(group, step_of(newest) if newest else 0)  # there is no checkpoint of the start
    return folder / f"checkpoint-{step}" if step else None


def _remove_unfinished(folder: Path) -> None:
    newest = last_checkpoint(folder)
    for left in (folder / HIDDEN, *folder.glob(".checkpoint-*")):  # the latter: one that was to be replaced
        shutil.rmtree(left, ignore_errors=True)
    for checkpoint in _checkpoints(folder):
        if step_of(checkpoint) > (step_of(newest) if newest else 0):
            shutil.rmtree(checkpoint, ignore_errors=True)


def rotate(folder: Path, limit: int, best: Path | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never the newest or the best."""
    found = sorted(_checkpoints(folder), key=step_of)
    spare = [checkpoint for checkpoint in found[:-1] if checkpoint != best]
    for checkpoint in spare[: max(0, len(found) - limit)]:
        (folder / HIDDEN).mkdir(exist_ok=True)  # renamed first: a part of one never bears the name
        checkpoint.replace(folder / HIDDEN / checkpoint.name)
    shutil.rmtree(folder / HIDDEN, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Those of a run; what a user keeps beside them, such as `checkpoint-40-copy`, is none."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]


class WholeCheckpoints:
    """Mixin of both trainers: checkpoints that are whole, and from which a run goes on bit for bit.

    Besides what transformers keeps, a checkpoint has the figures noted since the last log line, whether the
    training was told to stop, and whatever is in these two, to be filled before `train`:

    Attributes:
        kept: name → part of the run whose `state_dict()`, JSON values, is saved and given back.
        kept_folders: name → part of the run that saves itself to a folder and loads itself from there.
    """

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    accelerator: Any
    model: Any
    model_wrapped: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    _parts: defaultdict[str, list[float]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.kept: dict[str, Kept] = {}
        self.kept_folders: dict[str, KeptFolder] = {}
        self._parts = defaultdict(list)
        self._resumed: Path | None = None
        self._saving: Path | None = None
        self._over = False
        super().__init__(*args, **kwargs)
        self.add_callback(_GoesOn(self))  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
        self._resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        source = str(self._resumed) if self._resumed else None
        return super().train(resume_from_checkpoint=source, **kwargs)  # type: ignore[misc]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self._over:  # transformers would make one more step before it looks
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving) if self._saving else super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        with self.whole(f"checkpoint-{self.state.global_step}") as hidden:
            self._saving = hidden.parent
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            finally:
                self._saving = None
            self._save_kept(hidden)
            best = self._best(folder)
            self.state.best_model_checkpoint = best and str(best)  # not its hidden place
            if self.args.should_save:
                self.state.save_to_json(str(hidden / TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate(folder, self.args.save_total_limit or 1, best)

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """A hidden folder that all processes may write to; it becomes the checkpoint `name` on success.

        Raises:
            SearchR3Error: the disk is full; there is no checkpoint of that name then.
        """
        place = Path(self.args.output_dir) / name
        hidden = place.parent / HIDDEN / name
        try:
            with disk_errors(place):
                if self.args.should_save:
                    shutil.rmtree(hidden, ignore_errors=True)
                    hidden.mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                yield hidden
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    (hidden / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
                    files = (path for path in sorted(hidden.rglob("*")) if path.is_file())
                    sizes = {path.relative_to(hidden).as_posix(): path.stat().st_size for path in files}
                    write_text(hidden / FILES, json.dumps(sizes, indent=2))
                    put_folder(hidden, place)
                self.accelerator.wait_for_everyone()
        finally:
            if self.args.should_save:  # by another process it might be done under the first one's next work
                shutil.rmtree(hidden.parent, ignore_errors=True)

    def save_weights(self, folder: Path) -> None:
        """The weights alone, also as transformers looks for them when they are dealt among processes."""
        self.save_model(str(folder))  # type: ignore[attr-defined]
        if self.is_fsdp_enabled:
            plugin, model = self.accelerator.state.fsdp_plugin, self.model
            save_fsdp_model(plugin, self.accelerator, model, str(folder), **get_fsdp_ckpt_kwargs())
        elif self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(str(folder))

    def _save_kept(self, folder: Path) -> None:
        kept = {
            "figures": self._figures(),
            "loss": self._tr_loss.item(),
            "logged": self._globalstep_last_logged,
            "stopped": self.control.should_training_stop and self.state.global_step < self.state.max_steps,
            "parts": {name: part.state_dict() for name, part in self.kept.items()},
        }
        # Python's own JSON: a figure that is not a number comes back as it was
        write_text(folder / self._own(f"{KEPT}.json"), json.dumps(kept))
        for name, part in self.kept_folders.items():
            part.save(folder / name)

    # Going on

    def load_kept(self, folder: Path) -> None:
        """Take over what `_save_kept` wrote.

        Raises:
            DataError: another number of processes saved it, or it is damaged.
        """
        file = folder / self._own(f"{KEPT}.json")
        if not file.is_file():
            saved = max(1, len(list(folder.glob(f"{KEPT}-[0-9]*.json"))))
            raise DataError(f"{folder}: was saved by {saved} process(es); resume with as many")
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # JSON or UTF-8
            raise DataError(f"{file}: damaged; remove {folder} to go on from the one before") from None
        for name, figures in self._figures().items():
            figures.clear()
            figures.update(kept["figures"].get(name, {}))
        self._tr_loss = torch.tensor(kept["loss"], device=self.args.device)
        self._globalstep_last_logged = kept["logged"]
        self._over = kept["stopped"] or self.state.global_step >= self.state.max_steps
        for name, part in self.kept.items():
            if name in kept["parts"]:
                part.load_state_dict(kept["parts"][name])
        for name, place in self.kept_folders.items():
            place.load(folder / name)

    def _figures(self) -> dict[str, defaultdict[str, list[float]]]:
        """Noted since the last log line: by us, and by TRL where it trains."""
        return {"noted": self._parts, **getattr(self, "_metrics", {})}

    def _best(self, folder: Path) -> Path | None:
        """The best checkpoint so far, that of this step included; the run may have been moved."""
        best = folder / f"checkpoint-{self.state.best_global_step or 0}"
        return best if best.is_dir() or step_of(best) == self.state.global_step else None

    def _own(self, name: str) -> str:
        """The name of this process's part of a checkpoint."""
        first, dot, last = name.partition(".")
        return name if self.args.world_size == 1 else f"{first}-{self.args.process_index}{dot}{last}"


class _GoesOn(TrainerCallback):
    """Gives a resumed trainer back what it kept, once transformers has set itself up."""

    def __init__(self, trainer: WholeCheckpoints):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        trainer = self.trainer
        trainer._over = False
        if trainer._resumed:
            best = trainer._best(Path(args.output_dir))
            state.best_model_checkpoint = best and str(best)
            trainer.load_kept(trainer._resumed)
            control.should_training_stop = trainer._over


class StartCounts(TrainerCallback):
    """Makes the model as a stage finds it a candidate for its best checkpoint: a stage never makes it worse.

    Only its weights are kept, in `checkpoint-0`; nothing is resumed from there. `trainer` is set once there
    is one.
    """

    def __init__(self, trainer: Any = None):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.global_step:
            state.best_metric = self.trainer.evaluate()[BEST]
            with self.trainer.whole("checkpoint-0") as hidden:
                self.trainer.save_weights(hidden)
            state.best_model_checkpoint = str(Path(args.output_dir) / "checkpoint-0")
