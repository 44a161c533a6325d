"""The corpus environment: how true its rewards are, for how many documents encoded again.

    python benchmarks/environment.py --output benchmarks/results/environment.json --pictures docs
    python benchmarks/environment.py --stage1 RUN/stage1 --output …       from a finished stage 1

Five parts, each kept in the work folder once it is done; what was interrupted goes on where it was. Stage 1
and the recorded runs serve whatever code comes later, all else is measured anew when the code has changed.

base, five   a stage-2 run each, recorded step by step: the quickstart's recipe over all Python code installed
             here, for 100 steps, at its learning rate and at five times it (the peak: the rate falls to zero
             over the run, as in the recipe). The corpus is encoded afresh at every tenth step, and every
             refresh policy is replayed on all steps with the same budget.
growth       rows a step needs for a Spearman correlation of 0.99, as the corpus grows: doubled until they
             reach it; over the first 30 steps, where the rate is highest
closed       runs under the default policy against runs under `full`, paired by seed
topk         the store's exact search against faiss

Fidelity of a step is Spearman's correlation of (reward − mean of its group) with the oracle's over all
rollouts, groups without variance included. The headline figures are those of the default policy at the worse
of the two learning rates.

Seconds of a refresh are without encoding, for vectors are looked up; `document_seconds` is what one costs.
What a run encodes besides, for the contrastive term and for dev, is no part of `share_reencoded`; the closed
loop's `tokens_saved_ratio_with_contrastive` counts the former.

The whole takes hours on two cores, and 10 GB of disk.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _closed_loop import closed_loop
from _figures import FASTER, figures
from _growth import WANTED, curve_of, drift, fidelity
from _plots import fidelity_picture, growth_picture
from _replay import Oracle, replay
from _result import arguments, part, parts_folder, write
from _start import beginning
from _topk import measure
from _trajectory import Trajectory, record

from searchr3.dataset import load_dataset
from searchr3.environment import Certified, Corrected, Frozen, Neighbourhood, Random, RefreshPolicy
from searchr3.errors import SearchR3Error
from searchr3.files import write_json
from searchr3.progress import hush_transformers
from searchr3.training.dev import DevSet
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe
from searchr3.training.refresh import refresh_policy

SIZE = {
    "steps": 100,
    "audit_every": 10,
    "growth": (10_000, 100_000, 1_000_000),
    "growth_steps": 30,
    "rows": (20, 40, 80, 160, 320, 640, 1280, 2560, 5120),
    "closed_documents": 2000,
    "closed_steps": 30,
    "closed_seeds": 5,
    "topk": 1_000_000,
}
QUICK = {
    "steps": 5,
    "audit_every": 2,
    "growth": (400, 800, 1600),
    "growth_steps": 4,
    "rows": (20, 80, 320),
    "closed_documents": 600,
    "closed_steps": 2,
    "closed_seeds": 2,
    "topk": 20_000,
}
QUICK_RECIPE = (
    "data.max_documents=1500",
    "data.dev_queries=50",
    "data.dev_documents=200",
    "stage1.steps=10",
    "stage1.evaluate_every=10",
    "stage2.queries=4",
    "stage2.contrastive_pairs=12",
)
Makers = dict[str, Callable[[], RefreshPolicy]]


def policies(recipe: Recipe) -> Makers:
    """Every policy at the budget of the recipe; `default` is the recipe's own."""
    stage, settings = recipe.stage2, recipe.stage2.environment
    budget, reward = settings.limit, (settings.candidates, stage.reward.temperature)
    if budget is None:
        raise SearchR3Error("stage2.environment.budget: policies are compared at a budget; give one")
    return {
        "frozen": Frozen,
        "random": lambda: Random(budget),
        "neighbourhood": lambda: Neighbourhood(settings.neighbours, budget),
        "certified_plain": lambda: Certified(*reward, epsilon=0.0, max_budget=budget, correct=False),
        "certified_early": lambda: Certified(*reward, epsilon=0.02, max_budget=budget),
        "corrector": lambda: Corrected(Random(budget)),
        "neighbourhood_corrected": lambda: Corrected(Neighbourhood(settings.neighbours, budget)),
        "default": lambda: refresh_policy(settings, stage.reward.temperature),
    }


def trajectory_of(name: str, options: Namespace) -> Trajectory:
    """The recorded trajectory; what is missing of it is made first."""
    steps = options.size["steps"]
    overrides = [*options.overrides, f"stage2.steps={steps}", f"stage2.evaluate_every={max(1, steps // 2)}"]
    recipe = load_recipe("quickstart", overrides)
    rate = FASTER[name] * recipe.stage2.learning_rate
    recipe = recipe.model_copy(
        update={"stage2": recipe.stage2.model_copy(update={"learning_rate": rate})}, deep=True
    )
    place = options.work / "data"
    if not place.is_dir():
        limit = recipe.data.max_documents if options.quick else None
        load_dataset("python", limit, recipe.data.split_by).save(place)
    dataset, folder = load_dataset(place), options.work / name
    record(folder, options.start, dataset, recipe)
    texts = [document.content for document in dataset.training_corpus().values()]
    return Trajectory(folder, options.start, texts)


def audited(options: Namespace) -> list[int]:
    """Steps at which the corpus is encoded afresh: the last among them, the first, all fresh, not."""
    steps, every = options.size["steps"], options.size["audit_every"]
    return sorted({*range(every, steps, every), steps - 1})


def replayed(name: str, options: Namespace) -> dict[str, Any]:
    """Part `base` or `five`: every policy's steps."""
    trajectory = trajectory_of(name, options)
    oracle, found = Oracle(trajectory, audited(options)), {}
    for policy, make in policies(trajectory.recipe).items():
        place = options.made / f"{name}-{policy}.json"
        if not place.is_file():
            print(f"{name}: {policy}", flush=True)
            write_json(place, [asdict(step) for step in replay(trajectory, make(), oracle)])
            trajectory.keep()
        found[policy] = json.loads(place.read_text(encoding="utf-8"))
    return {"documents": len(trajectory.ids), "policies": found}


def growth(options: Namespace) -> dict[str, Any]:
    """Part `growth`, on the trajectory of the recipe's own learning rate."""
    trajectory = trajectory_of("base", options)
    settings = trajectory.recipe.stage2.environment
    temperature, found, moved = trajectory.recipe.stage2.reward.temperature, {}, {}
    steps = options.size["growth_steps"]
    checked = [step for step in audited(options) if step <= steps]
    for size in options.size["growth"]:
        print(f"growth: {size:,} documents", flush=True)
        places = {
            count: options.made / f"growth-{size}-{count}.json"
            for count in options.size["rows"]
            if count <= size // 4
        }
        curve = curve_of(places.values())
        left = list(places)[len(curve) :] if not curve or curve[-1][1] < WANTED else []
        makers = [
            lambda count=count: refresh_policy(
                settings.model_copy(update={"budget": float(count)}), temperature
            )
            for count in left
        ]
        measured = fidelity(trajectory, steps, checked, size, makers)
        for count, point in zip(left, measured, strict=False):
            write_json(places[count], point)
            if point[1] >= WANTED:
                break
        found[str(size)] = curve_of(places.values())
        moved |= drift(trajectory, [0, *checked], size)
    return {"curves": found, "drift": moved, "document_seconds": trajectory.seconds_a_document()}


def closed(options: Namespace) -> dict[str, Any]:
    """Part `closed`: outcomes of both policies."""
    size = options.size
    overrides = (
        f"data.max_documents={size['closed_documents']}",
        f"stage2.steps={size['closed_steps']}",
        f"stage2.evaluate_every={size['closed_steps']}",
        "data.dev_queries=50",
        "data.dev_documents=500",
    )
    recipe = load_recipe("quickstart", [*options.overrides, *overrides])
    place = options.made / "closed-data"
    if not place.is_dir():
        load_dataset("python", size["closed_documents"], recipe.data.split_by).save(place)
    dataset = load_dataset(place)
    dev = DevSet.of(options.dataset, 1000, 3000)
    default = recipe.stage2.environment.policy
    seeds = range(size["closed_seeds"])
    arms = ("full", default, "frozen")
    found = closed_loop(options.made / "closed", options.start, dataset, dev, recipe, arms, seeds)
    outcomes = {"full": found["full"], "default": found[default], "frozen": found["frozen"]}
    return {"documents": len(dataset.training_corpus()), **outcomes}


PARTS: dict[str, Callable[[Namespace], dict[str, Any]]] = {
    "base": lambda options: replayed("base", options),
    "five": lambda options: replayed("five", options),
    "growth": growth,
    "closed": closed,
    "topk": lambda options: dict(measure(options.size["topk"])),
}


def recorded(options: Namespace) -> dict[str, str]:
    """At which commit each of the trajectories was recorded."""
    places = {name: options.work / name / "meta.json" for name in FASTER}
    return {
        name: json.loads(place.read_text(encoding="utf-8"))["commit"]
        for name, place in places.items()
        if place.is_file()
    }


def refuse_another(options: Namespace) -> None:
    """What was recorded from another model or with another recipe is not passed off as this one's."""
    about = {
        "stage1": str(options.stage1.resolve()) if options.stage1 else "its own",
        "recipe": load_recipe("quickstart", options.overrides).dump(),
    }
    if not _is(options.work / "about.json", about):
        raise SearchR3Error(f"{options.work}: holds another model's or recipe's; choose another with --work")


def _is(place: Path, about: dict[str, Any]) -> bool:
    """Whether the file holds `about`; written where there is none."""
    if not place.is_file():
        write_json(place, about)
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found == json.loads(json.dumps(about))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--stage1", type=Path, help="stage-1 model; by default the quickstart's is made")
    parser.add_argument("--data", type=Path, help="its data; by default the folder `data` beside it")
    parser.add_argument("--work", type=Path, help="default runs/environment or runs/environment-quick")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where the two plots go")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the quickstart's recipe")
    options = parser.parse_args()
    options.work = options.work or Path("runs") / ("environment-quick" if options.quick else "environment")
    options.size = QUICK if options.quick else SIZE
    options.overrides = [*(QUICK_RECIPE if options.quick else ()), *options.overrides]
    hush_transformers()
    try:
        refuse_another(options)
        options.dataset, options.start = beginning(
            options.work, options.overrides, options.stage1, options.data
        )
        options.made = parts_folder(options.work, size=options.size)
        done = {}
        for name in options.parts:
            done[name] = part(options.made / f"{name}.json", lambda name=name: PARTS[name](options))
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "environment", figures(done))
    for name, at in recorded(options).items():
        print(f"{name}: recorded at commit {at}")
    if options.pictures:
        if all(name in done for name in FASTER):
            fidelity_picture({name: done[name]["policies"] for name in FASTER}, options.pictures)
        if "growth" in done:
            growth_picture(done["growth"]["curves"], options.pictures)


if __name__ == "__main__":
    main()
