"""A whole run: data, base, stage 1, stage 2, and what each was worth on the same test.

A run folder fills in this order: `recipe.yaml`, `data/`, `base/`, `stage1/`, `stage2/`,
`vectors.safetensors`, `metrics.json`, `report.html`. Each of these appears whole or not at all, so a resumed
run skips what is there; a stage goes on from its newest checkpoint. Only `episodes.jsonl` is written in
place, line by line.

In several processes (`accelerate launch`, torchrun), which must see the same folder, all train and measure
together, and the first prepares, writes and speaks.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.files import LOCK, check_writable, occupied, write_json, write_text
from searchr3.group import ALONE, Group, first_says, on_first, start_group
from searchr3.locks import alone
from searchr3.machine import machine
from searchr3.progress import Screen, hush_transformers
from searchr3.runs.closing import ALARMS, close
from searchr3.runs.preparation import (
    check_names,
    keep_facts,
    limited,
    make_base_model,
    make_dataset,
    make_sources,
    refuse_a_base_that_knows,
)
from searchr3.runs.search import search
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe, recipe_path

if TYPE_CHECKING:
    from searchr3.evaluation import Results, Run
    from searchr3.model import SearchR3

__all__ = ["RunFolder", "search", "train"]

Curve = list[dict[str, float]]
"""One entry a logged step of a training."""

MIXTURE = "mixture"  # the run's copies of further sources, by name


def train(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    resume: bool = False,
) -> None:
    """Run a recipe from data to report.

    Args:
        recipe: a YAML file or the name of a recipe in the package.
        overrides: `key=value` texts, see `load_recipe`.
        output: run folder, `runs/RECIPE` by default.
        resume: continue an interrupted run in `output`; its recipe must be the same, but for `evaluation`
            and `report_to`.
    """
    settings = load_recipe(recipe, overrides)
    refuse_a_base_that_knows(settings)
    output = run_folder(recipe, output)
    group = start_group()
    with Screen(silent=group.rank > 0) as screen:
        RunFolder(output, settings, screen, group).run(resume)


def run_folder(recipe: Path | str, output: Path | None) -> Path:
    """Where a recipe's run goes: `output`, else runs/RECIPE."""
    return output or Path("runs") / recipe_path(recipe).stem


def may_run(path: Path, recipe: Recipe, resume: bool) -> bool:
    """Let a new run into a new folder only, and a resumed one only into its own; nothing is written.

    Returns:
        whether an interrupted run goes on there.

    Raises:
        SearchR3Error: the run may not go there, or the folder cannot be written.
    """
    place = path / "recipe.yaml"
    elsewhere = "choose another folder with --output"
    if not place.is_file():
        if occupied(path):
            raise SearchR3Error(f"{path}: exists and is not a run; {elsewhere}")
        check_writable(place)
        return False
    if (path / "evidence.json").exists():
        raise SearchR3Error(f"{path}: holds what `searchr3 evidence` gathers; {elsewhere}")
    if (path / "report.html").exists():
        mend = "there is nothing to resume" if resume else elsewhere
        raise SearchR3Error(f"{path}: holds a finished run; {mend}")
    if not resume:
        raise SearchR3Error(f"{path}: holds an interrupted run; continue it with --resume or {elsewhere}")
    if not recipe.trains_as(load_recipe(place)):
        raise RecipeError(
            f"{place}: the interrupted run had another recipe; resume with the same keys or {elsewhere}"
        )
    check_writable(place)
    return True


@dataclass
class RunFolder:
    """One run and its folder."""

    path: Path
    recipe: Recipe
    screen: Screen
    group: Group = ALONE
    seconds: dict[str, float] = field(default_factory=dict)
    chats: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: list[RetrievalDataset] = field(default_factory=list)  # of the mixture, for stage 1 alone

    def run(self, resume: bool) -> None:
        """All phases; those that an earlier, interrupted run finished are skipped."""
        from searchr3.evaluation import reusable

        with self.held():
            on_first(self.group, lambda: self._admit(resume))
            dataset, model = self.begin()
            stage1 = self._stage("stage1", model, dataset, None, None)
            known = reusable(stage1.baselines)
            stage2 = self._stage("stage2", model, dataset, stage1.document_vectors, known)
            on_first(self.group, lambda: self._finish(dataset, {"stage1": stage1, "stage2": stage2}))

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this run alone; collective.

        Raises:
            SearchR3Error: another run is at work there.
        """
        with ExitStack() as work:
            on_first(self.group, lambda: work.enter_context(self._lock()))
            yield

    def _lock(self) -> AbstractContextManager[None]:
        begun = any((self.path / name).is_file() for name in ("recipe.yaml", LOCK))
        if occupied(self.path) and not begun:  # by something else: that is refused, and stays as it is
            return nullcontext()
        elsewhere = "wait for its end, or choose another folder with --output"
        return alone(self.path, f"{self.path}: another run is at work there; {elsewhere}")

    def _admit(self, resume: bool) -> None:
        if may_run(self.path, self.recipe, resume):
            self.take_up()

    def take_up(self) -> None:
        """Remove what a run was killed in the middle of writing, and go on with its clock."""
        for name in (".data", ".base", ".stage1", ".stage2", f"{MIXTURE}/"):
            for left in self.path.glob(f"{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError, ValueError, TypeError, AttributeError):  # a clock that is lost is no fault
            before = json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
            self.seconds = {name: float(spent) for name, spent in before.items()}

    def begin(self) -> tuple[RetrievalDataset, SearchR3]:
        """Data and base; the first process makes them, the others read what it has written."""
        from searchr3.model import SearchR3
        from searchr3.training.parallel import deals_weights
        from searchr3.training.precision import held

        made: list[RetrievalDataset] = []
        on_first(self.group, lambda: made.append(self._prepare()))
        hush_transformers()
        if made:
            dataset = made[0]
        else:
            dataset = limited(self.whole_data(), self.recipe)
            self.others = make_sources(self.recipe, dataset, self.path / MIXTURE)
        size, products = self.recipe.model.batch_size, held(self.recipe, deals_weights(os.environ))
        return dataset, SearchR3(self.path / "base", batch_size=size, dtype="float32", products=products)

    def _prepare(self) -> RetrievalDataset:
        """Nothing is written before data and base are both known to be good: a fault leaves no folder."""
        data, base = self.path / "data", self.path / "base"
        source = f"the run's own copy, {data}" if data.is_dir() else self.recipe.data.source
        with self.phase("data", f"reading {source}"):
            whole = self.whole_data() if data.is_dir() else make_dataset(self.recipe)
            dataset = limited(whole, self.recipe)
            if not (self.path / "stage1").is_dir():
                self.others = make_sources(self.recipe, dataset, self.path / MIXTURE)
        with self.phase("base", "loading the base model"):
            hush_transformers()
            check_names(self.recipe, self.group.size)
            fresh = None if base.is_dir() else make_base_model(self.recipe)
            self.record()
            if not data.is_dir():
                whole.save(data)
            for asked, one in zip(self.recipe.data.mixture, self.others, strict=False):
                if not (place := self.path / MIXTURE / asked.label).is_dir():
                    one.save(place)
            if fresh:
                fresh.save_pretrained(base)
            keep_facts(self.recipe, base)
        return dataset

    def whole_data(self) -> RetrievalDataset:
        """The run's copy of its data, with all training queries."""
        return load_dataset(self.path / "data", on_disk=self.recipe.data.on_disk)

    def record(self) -> None:
        """Write down the recipe and what it runs on."""
        place = self.path / "recipe.yaml"
        if not place.is_file() or load_recipe(place) != self.recipe:
            used = {"recipe": self.recipe.dump(), "machine": machine()}
            write_text(place, yaml.safe_dump(used, sort_keys=False))

    def _stage(
        self,
        name: str,
        model: SearchR3,
        dataset: RetrievalDataset,
        vectors: np.ndarray | None,
        baselines: tuple[str | Run, ...] | None,
    ) -> Results:
        """Train a stage unless it is done, then measure the model on the test split."""
        with self.phase(name, "preparing"):
            self.learn(name, model, lambda folder: self.train_stage(name, model, dataset, folder, vectors))
        with self.phase(f"{name} evaluation", "measuring on the test split"):
            own = self.recipe.evaluation.baselines if self.group.rank == 0 else ()
            results = self.measure(name, model, dataset, own if baselines is None else baselines)
            if (tokens := self.recipe.evaluation.chat_tokens) and self.group.rank == 0:
                from searchr3.evaluation.chat import still_chats

                self.chats[name] = still_chats(model, self.path / "base", tokens)
            return results

    def learn(self, name: str, model: SearchR3, train: Callable[[Path], Curve]) -> None:
        """Train `model` unless that is done; it ends as what was saved.

        Args:
            name: of the folder that it is saved to.
            train: trains it in place, from the newest checkpoint in the folder that it is given.
        """
        if not first_says(
            self.group, (self.path / name).is_dir()
        ):  # it may be saved before the last one looks
            curve = train(self.path / "checkpoints" / name)
            on_first(self.group, lambda: self._save(name, model, curve))
        on_first(self.group, lambda: self._remove_checkpoints(name))  # also of a run killed just here
        model.reload(self.path / name)  # what is measured, and what comes next starts from, is what was saved

    def _save(self, name: str, model: SearchR3, curve: Curve) -> None:
        checkpoints = self.path / "checkpoints"
        write_json(checkpoints / f"{name}.curve.json", curve)
        model.save_pretrained(self.path / name)

    def _remove_checkpoints(self, name: str) -> None:
        for checkpoint in (self.path / "checkpoints" / name).glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def train_stage(
        self, name: str, model: SearchR3, dataset: RetrievalDataset, folder: Path, vectors: np.ndarray | None
    ) -> Curve:
        """Train a stage as the recipe says, from the newest checkpoint in `folder`.

        Args:
            vectors: (documents, d) of the model as it is now, if they are known.
        """
        if name == "stage1":
            from searchr3.training.stage1 import train_stage1

            return (
                train_stage1(model, dataset, self.recipe, folder, self.screen.training, self.others)
                if self.recipe.stage1.steps
                else []
            )
        from searchr3.training.stage2 import train_stage2

        if not self.recipe.stage2.steps:
            return []
        if vectors is not None and dataset.held_out:
            vectors = vectors[[key not in dataset.held_out for key in dataset.corpus]]
        return train_stage2(
            model,
            dataset,
            self.recipe,
            folder,
            self.path / "episodes.jsonl",
            vectors,
            self.screen.training,
            self.path / "checkpoints" / ALARMS,
        )

    def measure(
        self,
        name: str,
        model: SearchR3,
        dataset: RetrievalDataset,
        baselines: Sequence[str | Run] = (),
        **asked: Any,
    ) -> Results:
        """What `evaluate` finds on the test split; `asked` are arguments that the recipe does not know."""
        from searchr3.evaluation import evaluate
        from searchr3.shared_search import SharedSearch
        from searchr3.training.precision import precision

        model.autocast = precision(self.recipe)
        return evaluate(
            SharedSearch.over(model, self.group),
            dataset,
            baselines=baselines,
            depth=self.recipe.evaluation.depth,
            max_new_tokens=self.recipe.model.max_new_tokens,
            progress=self.screen.work,
            name=name,
            **asked,
        )

    def _finish(self, dataset: RetrievalDataset, stages: dict[str, Results]) -> None:
        self.screen.finish(*close(self.path, self.recipe, dataset, stages, self.seconds, self.chats))

    @contextmanager
    def phase(self, name: str, doing: str) -> Iterator[None]:
        """Time a phase; the seconds of an interrupted run count too, of a killed one all but the last few."""
        before, started = self.seconds.get(name, 0.0), time.perf_counter()

        def clock() -> None:
            self.seconds[name] = round(before + time.perf_counter() - started, 1)
            if self.group.rank == 0 and (self.path / "recipe.yaml").is_file():
                write_json(self.path / "progress.json", self.seconds)

        self.screen.phase(name, doing)
        self.screen.beat = clock
        try:
            yield
        finally:
            self.screen.beat = None
            clock()
