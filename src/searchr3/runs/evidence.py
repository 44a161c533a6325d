"""`searchr3 evidence`: does thinking help, and is it the thinking? A recipe with its arms and controls.

    DIR/recipe.yaml, data/, base/      made once, the same for all seeds
    DIR/results/                       bm25, and a rival if one is named
    DIR/seed-K/stage1/, stage2/        the recipe with seed K, and what belongs to a run
    DIR/seed-K/direct_only/            arm (a): a run folder of its own with its `stage1/`
    DIR/seed-K/direct_only_stage1_rate/      the same at stage 1's learning rate; the better by dev is weighed
    DIR/seed-K/no_policy/, no_contrastive/   arms (b) and (c), each with its `stage2/`
    DIR/seed-K/results/                NAME.json of each model, and the values of each query beside it
    DIR/labels-N/seed-K/               stage 1 on N labelled queries, and stage 2, for the curve over labels
    DIR/evidence.json, evidence.html   what all of it says; both are renewed after every seed

What is there is skipped, a killed training goes on from its checkpoint. More seeds, labels or a rival may be
asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.dataset import RetrievalDataset
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.evaluation.controls import CONTROLS
from searchr3.evaluation.saved import read_json, read_results
from searchr3.files import check_writable, occupied, write_json, write_text
from searchr3.group import ALONE, Group, first_says, on_first, start_group
from searchr3.progress import Screen
from searchr3.runs.pipeline import Curve, RunFolder
from searchr3.runs.preparation import facts_of_base, limited, refuse_a_base_that_knows
from searchr3.training.base_facts import was_shown_pairs
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from searchr3.evaluation import Results

__all__ = ["Plan", "gather"]

SHOWN = (
    "The base has read training queries with their answers, as text: stage 1 is not the first to show them, "
    "and the number of its labels is not the number of known answers."
)
FOREIGN = ("stage1", "checkpoints", "report.html")  # in the folder of another command


@dataclass(frozen=True)
class Plan:
    """What is to be gathered.

    Attributes:
        seeds: how many, from the recipe's own on.
        labels: numbers of labelled stage-1 queries for the curve.
        label_seeds: seeds of each point of that curve.
        rival: a model to compare with, as `evaluate --baseline` takes one.
        stage2_arms: train arms (b) and (c), too.
        both_rates: train arm (a) at stage 1's learning rate, too.
    """

    seeds: int = 3
    labels: tuple[int, ...] = ()
    label_seeds: int = 1
    rival: str | None = None
    stage2_arms: bool = True
    both_rates: bool = True


def gather(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    output: Path = Path("runs/evidence"),
    plan: Plan = Plan(),
    resume: bool = False,
) -> dict[str, Any]:
    """Train and measure all that the plan names; returns the content of `evidence.json`.

    Args:
        recipe: a YAML file or the name of a recipe in the package.
        overrides: `key=value` texts, see `load_recipe`.
        resume: go on in `output`; its recipe must be the same, but for `evaluation` and `report_to`.

    Raises:
        SearchR3Error: `output` holds something else, or cannot be gone on with; whatever ends a training.
    """
    settings = load_recipe(recipe, overrides)
    refuse_a_base_that_knows(settings)
    if not (settings.stage1.steps and settings.stage2.steps):
        raise RecipeError("stage1.steps, stage2.steps: evidence needs both stages; set both above 0")
    group = start_group()
    with Screen(silent=group.rank > 0) as screen:
        return Evidence(output, settings, plan, screen, group).run(resume)


@dataclass
class Evidence:
    """The folder and what is done in it."""

    path: Path
    recipe: Recipe
    plan: Plan
    screen: Screen
    group: Group = ALONE
    model: Any = field(default=None, repr=False)  # one network, whose weights are replaced
    labels: int = 0  # labelled queries of stage 1, by the recipe

    def run(self, resume: bool) -> dict[str, Any]:
        from searchr3.evaluation import check_baselines

        check_baselines([self.plan.rival] if self.plan.rival else [], "off")
        folder = RunFolder(self.path, self.recipe, self.screen, self.group)
        with folder.held():
            on_first(self.group, lambda: self._admit(resume))
            on_first(self.group, folder.take_up)
            dataset, self.model = folder.begin()
            self.labels = len(dataset.split("stage1"))
            points = self._label_points(folder)
            on_first(self.group, lambda: self._conclude(complete=False))
            self._baselines(folder, dataset)
            for seed in self._seeds(self.plan.seeds):
                Chain(self, self.path / f"seed-{seed}", self._seeded(seed), dataset, folder.others).run(
                    arms=True
                )
                on_first(self.group, lambda: self._conclude(complete=False))
            for place, recipe, data in points:
                for seed in self._seeds(self.plan.label_seeds):
                    own = self._seeded(seed, recipe)
                    Chain(self, place / f"seed-{seed}", own, data, folder.others).run(arms=False)
            on_first(self.group, lambda: self._conclude(complete=True))
            return self.read()

    def read(self) -> dict[str, Any]:
        """The content of `evidence.json`."""
        return read_json(self.path / "evidence.json", "remove the file; it is made again with --resume")

    def _was_said(self) -> bool:
        """Whether the base was known to have read pairs: a folder of old has no copy of its `base.json`."""
        return (self.path / "evidence.json").is_file() and self.read().get("base_was_shown_pairs", False)

    def _seeds(self, count: int) -> range:
        return range(self.recipe.seed, self.recipe.seed + count)

    def _seeded(self, seed: int, recipe: Recipe | None = None) -> Recipe:
        return (recipe or self.recipe).model_copy(update={"seed": seed})

    def _admit(self, resume: bool) -> None:
        """Let new evidence into a new folder only, and go on only where the same recipe began."""
        place, elsewhere = self.path / "recipe.yaml", "choose another folder with --output"
        if not place.is_file():
            if occupied(self.path):
                raise SearchR3Error(f"{self.path}: exists and holds no evidence; {elsewhere}")
            check_writable(place)
            return
        if any((self.path / name).exists() for name in FOREIGN):
            raise SearchR3Error(f"{self.path}: holds the run of another command; {elsewhere}")
        if not resume:
            raise SearchR3Error(
                f"{self.path}: holds evidence already; add to it with --resume or {elsewhere}"
            )
        if not self.recipe.trains_as(load_recipe(place)):
            raise RecipeError(
                f"{place}: was begun with another recipe; resume with the same keys or {elsewhere}"
            )

    def _label_points(self, folder: RunFolder) -> list[tuple[Path, Recipe, RetrievalDataset]]:
        """The points of the curve over labels: the folder of each one's seeds, its recipe and its data.

        The recipe's own number of labels is the evidence itself.
        """
        if not self.plan.labels:
            return []
        points, whole = [], folder.whole_data()
        there = len(whole.split("stage1"))
        for labels in self.plan.labels:
            if labels > there:
                raise RecipeError(
                    f"--labels {labels}: {whole.name} has {there} labelled queries for stage 1; leave it out"
                )
            if labels != self.labels:
                data = self.recipe.data.model_copy(update={"stage1_queries": labels})
                recipe = self.recipe.model_copy(update={"data": data})
                points.append((self.path / f"labels-{labels}", recipe, limited(whole, recipe)))
        return points

    def _baselines(self, folder: RunFolder, dataset: RetrievalDataset) -> None:
        from searchr3.evaluation.runner import evaluate_baseline

        def measure(name: str, asked: str) -> None:
            place = self.path / "results" / f"{name}.json"
            if not place.is_file() or read_results(place)["model"] != asked:
                depth, progress = self.recipe.evaluation.depth, self.screen.work
                evaluate_baseline(asked, dataset, depth=depth, progress=progress).save(place)

        with folder.phase("baselines", "measuring on the test split"):
            on_first(self.group, lambda: measure("bm25", "bm25"))
            if rival := self.plan.rival:
                on_first(self.group, lambda: measure("rival", rival))

    def _conclude(self, complete: bool) -> None:
        """Write what is known by now."""
        from searchr3.evaluation.evidence_page import evidence_page
        from searchr3.runs.findings import findings

        asked = self.plan.stage2_arms, self.plan.both_rates
        found = findings(self.path, self.recipe, self.labels, *asked)
        shown = was_shown_pairs(facts_of_base(self.recipe, self.path / "base")) or self._was_said()
        found = {"recipe": self.recipe.name, "complete": complete, "base_was_shown_pairs": shown, **found}
        if "reasoned2" in found:
            found["verdict"]["sentences"] += [SHOWN] * shown
            write_text(self.path / "evidence.html", evidence_page(found))
        write_json(self.path / "evidence.json", found)


@dataclass
class Chain:
    """Stage 1, stage 2 and the arms of one seed, in one folder.

    Attributes:
        dataset: with the training queries that the recipe wants; others: of `data.mixture`.
    """

    whole: Evidence
    path: Path
    recipe: Recipe
    dataset: RetrievalDataset
    others: list[RetrievalDataset]
    vectors: np.ndarray | None = None

    def run(self, arms: bool) -> None:
        whole = self.whole
        self.folder = RunFolder(self.path, self.recipe, whole.screen, whole.group, others=self.others)
        on_first(whole.group, self.folder.record)
        on_first(whole.group, self.folder.take_up)
        stage1, stage2 = self._training(self.folder, "stage1"), self._training(self.folder, "stage2")
        found = self._made("stage1", self.folder, "stage1", whole.path / "base", stage1)
        self.vectors = found.document_vectors if found else None  # what stage 2 and its arms begin with
        asked = {"controls": CONTROLS} if arms else {}
        self._made("stage2", self.folder, "stage2", self.path / "stage1", stage2, **asked)
        if not arms:
            return
        from searchr3.training.arms import stage2_arms

        self._direct_only()
        others = stage2_arms(self.recipe) if self.whole.plan.stage2_arms else {}
        for name, recipe in others.items():
            folder = self._arm(name, recipe)
            self._made(name, folder, "stage2", self.path / "stage1", self._training(folder, "stage2"))

    def _arm(self, name: str, recipe: Recipe) -> RunFolder:
        """An arm's own folder."""
        folder = RunFolder(self.path / name, recipe, self.whole.screen, self.whole.group)
        on_first(self.whole.group, folder.record)
        on_first(self.whole.group, folder.take_up)
        return folder

    def _training(self, folder: RunFolder, stage: str) -> Callable[[Path], Curve]:
        """Trains a stage as the folder's recipe says."""
        return lambda place: folder.train_stage(
            stage, self.whole.model, self.dataset, place, self.vectors if stage == "stage2" else None
        )

    def _direct_only(self) -> None:
        """Arm (a) at its learning rates, for as many gradient tokens as stage 2 had."""
        from searchr3.training import arms
        from searchr3.training.stage1 import train_stage1

        data, model = arms.direct_only_data(self.dataset), self.whole.model
        curve = json.loads((self.path / "checkpoints" / "stage2.curve.json").read_text(encoding="utf-8"))
        tokens, unsized = arms.gradient_tokens(curve), arms.direct_only(self.recipe, 1)
        steps = arms.steps_for(tokens, data, model.conversation, unsized)
        tell = self.whole.screen.training
        for name, recipe in arms.direct_only_arms(self.recipe, steps, self.whole.plan.both_rates).items():
            folder = self._arm(name, recipe)

            def train(place: Path, recipe: Recipe = recipe) -> Curve:
                return train_stage1(model, data, recipe, place, tell, start_counts=True)

            self._made(name, folder, "stage1", self.path / "stage1", train, reasoning="off")

    def _made(
        self,
        name: str,
        folder: RunFolder,
        stage: str,
        start: Path,
        train: Callable[[Path], Curve],
        **asked: Any,
    ) -> Results | None:
        """A model and its results, unless they are there.

        Args:
            name: of the results.
            folder: where the model is saved, as `stage`.
            start: the weights that it is trained from.
            asked: further arguments of `evaluate`.

        Returns:
            the results where they were made just now.
        """
        group, model = self.whole.group, self.whole.model
        place = self.path / "results" / f"{name}.json"
        if first_says(group, place.is_file()):
            return None
        title = f"{self.path.name} {name}"
        with self.folder.phase(title, "preparing"):
            if not first_says(group, (folder.path / stage).is_dir()):
                model.reload(start)
            folder.learn(stage, model, train)
        with self.folder.phase(f"{title} evaluation", "measuring on the test split"):
            results = folder.measure(title, model, self.dataset, **asked)
            on_first(group, lambda: results.save(place))
        return results
