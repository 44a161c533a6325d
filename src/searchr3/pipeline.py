"""A whole run: data, base, stage 1, stage 2, and what each was worth on the same test.

A run folder fills in this order: `recipe.yaml`, `data/`, `base/`, `stage1/`, `stage2/`,
`vectors.safetensors`, `metrics.json`, `report.html`. Each of these appears whole or not at all, so a resumed
run skips what is there; a stage goes on from its newest checkpoint. Only `episodes.jsonl` is written in
place, line by line.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from searchr3 import __version__
from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.files import check_writable, disk_errors, occupied, write_json, write_text
from searchr3.group import ALONE, Group, on_first, start_group
from searchr3.preparation import check_names, make_base_model, make_dataset, refuse_a_base_that_knows
from searchr3.progress import Screen, hush_transformers
from searchr3.run_search import IDS, ids_digest, search
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from searchr3.evaluation import Results
    from searchr3.model import SearchR3

__all__ = ["RunFolder", "machine", "search", "train"]

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
EXAMPLES = 10
ALARMS = "stage2.alarms.json"  # in `checkpoints/`


def train(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a recipe from data to report.

    Args:
        recipe: a YAML file or the name of a recipe in the package.
        overrides: `key=value` texts, see `load_recipe`.
        output: run folder, `runs/RECIPE` by default.
        resume: continue an interrupted run in `output`; its recipe must be the same, but for `evaluation`
            and `report_to`.
        dry_run: read recipe and data, print them, train nothing.
    """
    settings = load_recipe(recipe, overrides)
    refuse_a_base_that_knows(settings)
    output = output or Path("runs") / Path(recipe).stem
    if dry_run:
        dataset = make_dataset(settings)
        check_names(settings)
        if settings.model.prompts:
            from searchr3.conversation import Prompts

            Prompts.load(settings.model.prompts)
        print(yaml.safe_dump(settings.dump(), sort_keys=False), end="")
        sizes = ", ".join(f"{name} {len(qrels):,}" for name, qrels in dataset.qrels.items())
        print(f"# data: {len(dataset.corpus):,} documents; queries: {sizes}")
        return
    group = start_group()
    with Screen(silent=group.rank > 0) as screen:
        RunFolder(output, settings, screen, group).run(resume)


@dataclass
class RunFolder:
    """One run and its folder. In several processes all train, and the first does the rest."""

    path: Path
    recipe: Recipe
    screen: Screen
    group: Group = ALONE
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, resume: bool) -> None:
        """All phases; those that an earlier, interrupted run finished are skipped."""
        on_first(self.group, lambda: self._admit(resume))
        begun: list[tuple[RetrievalDataset, SearchR3]] = []
        on_first(self.group, lambda: begun.append(self._begin()))
        dataset, model = begun[0] if begun else self._begin()  # by now there is nothing left to write
        results: dict[str, Results] = {}
        for name in ("stage1", "stage2"):
            self._stage(name, model, dataset, results)
        on_first(self.group, lambda: self._finish(dataset, results))

    def _admit(self, resume: bool) -> None:
        """Let a new run into a new folder only, and a resumed one only into its own."""
        place = self.path / "recipe.yaml"
        elsewhere = "choose another folder with --output"
        if not place.is_file():
            if occupied(self.path):
                raise SearchR3Error(f"{self.path}: exists and is not a run; {elsewhere}")
            check_writable(self.path / "recipe.yaml")
            return
        if (self.path / "report.html").exists():
            mend = "there is nothing to resume" if resume else elsewhere
            raise SearchR3Error(f"{self.path}: holds a finished run; {mend}")
        if not resume:
            raise SearchR3Error(
                f"{self.path}: holds an interrupted run; continue it with --resume or {elsewhere}"
            )
        if not self.recipe.trains_as(load_recipe(place)):
            raise RecipeError(
                f"{place}: the interrupted run had another recipe; resume with the same keys or {elsewhere}"
            )
        for name in ("data", "base", "stage1", "stage2"):  # of a run that was killed while it wrote a folder
            for left in self.path.glob(f".{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
        if (self.path / "progress.json").is_file():
            self.seconds = json.loads((self.path / "progress.json").read_text(encoding="utf-8"))

    def _begin(self) -> tuple[RetrievalDataset, SearchR3]:
        """Data and base. Nothing is written before both are known to be good: a fault leaves no folder."""
        from searchr3.model import SearchR3

        data, base = self.path / "data", self.path / "base"
        source = f"the run's own copy, {data}" if data.is_dir() else self.recipe.data.source
        with self._phase("data", f"reading {source}"):
            dataset = load_dataset(data) if data.is_dir() else make_dataset(self.recipe)
        with self._phase("base", "loading the base model"):
            hush_transformers()
            check_names(self.recipe)
            fresh = None if base.is_dir() else make_base_model(self.recipe)
            place = self.path / "recipe.yaml"
            if not place.is_file() or load_recipe(place) != self.recipe:
                used = {"recipe": self.recipe.dump(), "machine": machine()}
                write_text(place, yaml.safe_dump(used, sort_keys=False))
            if not data.is_dir():
                dataset.save(data)
            if fresh:
                fresh.save_pretrained(base)
            return dataset, SearchR3(base, batch_size=self.recipe.model.batch_size, dtype="float32")

    def _stage(
        self, name: str, model: SearchR3, dataset: RetrievalDataset, results: dict[str, Results]
    ) -> None:
        """Train a stage unless it is done, then measure the model on the test split, for `results`."""
        folder, checkpoints = self.path / name, self.path / "checkpoints"
        with self._phase(name, "preparing"):
            if not folder.is_dir():
                before = results.get("stage1")
                # several processes encode the corpus anew, together: sooner done than handed round
                vectors = before.document_vectors if before and self.group.size == 1 else None
                curve = self._train(name, model, dataset, checkpoints / name, vectors)
                on_first(self.group, lambda: self._keep(name, model, curve))
            for checkpoint in (checkpoints / name).glob("checkpoint-*"):  # also of a run killed just here
                shutil.rmtree(checkpoint, ignore_errors=True)
            model.reload(folder)  # what is measured, and what stage 2 starts from, is what was saved
        with self._phase(f"{name} evaluation", "measuring on the test split"):
            on_first(
                self.group, lambda: results.update({name: self._evaluate(name, model, dataset, results)})
            )

    def _keep(self, name: str, model: SearchR3, curve: list[dict[str, float]]) -> None:
        write_json(self.path / "checkpoints" / f"{name}.curve.json", curve)
        model.save_pretrained(self.path / name)

    def _train(
        self, name: str, model: SearchR3, dataset: RetrievalDataset, folder: Path, vectors: np.ndarray | None
    ) -> list[dict[str, float]]:
        if name == "stage1":
            from searchr3.training.stage1 import train_stage1

            return (
                train_stage1(model, dataset, self.recipe, folder, self.screen.training)
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

    def _evaluate(
        self, name: str, model: SearchR3, dataset: RetrievalDataset, before: Mapping[str, Results]
    ) -> Results:
        from searchr3.evaluation import evaluate
        from searchr3.training.precision import precision

        model.autocast = precision(self.recipe)
        return evaluate(
            model,
            dataset,
            baselines=before["stage1"].baselines if before else self.recipe.evaluation.baselines,
            depth=self.recipe.evaluation.depth,
            max_new_tokens=self.recipe.model.max_new_tokens,
            progress=self.screen.work,
            name=name,
        )

    def _finish(self, dataset: RetrievalDataset, stages: dict[str, Results]) -> None:
        from safetensors.numpy import save_file

        from searchr3.evaluation import between, differences_table, results_table
        from searchr3.evaluation.report import choose_examples, render_report

        final = stages["stage2"].document_vectors
        assert final is not None
        place = self.path / "vectors.safetensors"
        partial = place.with_suffix(".partial")
        with disk_errors(place):
            try:
                save_file({"documents": final}, partial, {IDS: ids_digest(dataset.corpus)})
                partial.chmod(0o644)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
        curves = {name: _rows(self.path / "checkpoints" / f"{name}.curve.json") for name in stages}
        alarms = _rows(self.path / "checkpoints" / ALARMS)
        summaries = {name: results.summary for name, results in stages.items()}
        differences = between(stages["stage1"], stages["stage2"])
        write_json(
            self.path / "metrics.json",
            {
                "seconds": self.seconds,
                "stages": summaries,
                "differences": differences,
                "curves": curves,
                "alarms": alarms,
            },
        )
        report = render_report(
            f"searchr3 · {self.recipe.name}",
            summaries,
            curves,
            choose_examples(stages["stage1"], stages["stage2"], dataset, EXAMPLES),
            yaml.safe_dump(self.recipe.dump(), sort_keys=False),
            machine() | {f"seconds, {name}": f"{seconds:.0f}" for name, seconds in self.seconds.items()},
            differences,
            alarms,
        )
        write_text(self.path / "report.html", report)
        self.screen.finish(
            [results_table(summary) for summary in summaries.values()]
            + [differences_table(differences, ["ndcg@10"])],
            [
                *_stage2_kept_its_start(curves["stage2"]),
                *_alarm_lines(alarms, self.recipe),
                *self._next_steps(dataset),
            ],
        )

    def _next_steps(self, dataset: RetrievalDataset) -> list[str]:
        query = dataset.queries[next(iter(dataset.split("test")))].text
        tokens = self.recipe.model.max_new_tokens
        return [
            f"Done in {sum(self.seconds.values()) / 60:.1f} minutes. Try next:",
            f"  open {self.path / 'report.html'}",
            f"  searchr3 search {shlex.quote(query)} --run {self.path}",
            f"  searchr3 evaluate {self.path / 'stage2'} --data {self.path / 'data'}"
            f" --max-new-tokens {tokens} --output results.json",
            "  searchr3 train MY_RECIPE.yaml        your own data: docs/train-on-your-data.md",
        ]

    @contextmanager
    def _phase(self, name: str, doing: str) -> Iterator[None]:
        """Time a phase; the seconds of an interrupted run count too."""
        self.screen.phase(name, doing)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 1)
            if self.group.rank == 0 and (self.path / "recipe.yaml").is_file():
                write_json(self.path / "progress.json", self.seconds)


def machine() -> dict[str, str]:
    """What a run ran on: versions and platform."""
    here = {"python": platform.python_version(), "platform": platform.platform(), "searchr3": __version__}
    return here | {name: version(name) for name in LIBRARIES}


def _rows(place: Path) -> list[dict[str, Any]]:
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else []


def _alarm_lines(alarms: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[str]:
    """The health monitor's alarms, and whether one ended the stage."""
    lines = [f"Alarm at step {alarm['step']} of stage 2: {alarm['message']}." for alarm in alarms]
    if alarms and recipe.stage2.health.stop:
        lines.append(
            f"Stage 2 ended there, after {alarms[0]['step']} of {recipe.stage2.steps} steps, as "
            "stage2.health.stop asks; its best checkpoint was kept."
        )
    return lines


def _stage2_kept_its_start(curve: list[dict[str, float]]) -> list[str]:
    """What to say when no checkpoint of stage 2 was better on dev than the model it began with."""
    from searchr3.training.checkpoints import BEST

    scores = [(row[BEST], -row["step"]) for row in curve if BEST in row]
    if not scores or max(scores)[1] < 0:
        return []
    return ["Stage 2 was never better on dev than its start, which was kept: more steps, or another rate?"]
