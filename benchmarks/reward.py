"""Which reward: hard nDCG, soft nDCG at several temperatures, and one direct rollout in each group.

    python benchmarks/reward.py --output benchmarks/results/reward.json
    python benchmarks/reward.py --stage1 RUN/stage1 --output …       from a finished stage 1, with RUN/data

Every arm trains stage 2 of the quickstart from the same stage-1 model, on the same data, for the same number
of steps; arms are paired by seed, which decides the order of the queries and the sampling. What counts is the
last checkpoint, not the best, on the whole dev split against the whole corpus; nothing is read off the test
split. A useful group is one whose best and worst rollout are 0.01 apart in the arm's own reward. Differences
are to the default recipe, with 95 % intervals over the paired seeds, see `half_width`.

An interrupted study goes on where it was: each finished arm and seed is a file in the work folder.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from _result import arguments, code, write
from _start import beginning

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.files import write_json
from searchr3.progress import hush_transformers
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from searchr3.evaluation import Results
    from searchr3.model import SearchR3

DEFAULT = "default"
ARMS: dict[str, tuple[str, ...]] = {
    "hard": ("stage2.reward.temperature=0",),
    "soft_0.1": ("stage2.reward.temperature=0.1",),
    DEFAULT: (),
    "soft_1.0": ("stage2.reward.temperature=1.0",),
    "direct_rollout": ("stage2.direct_rollout=true",),
}
QUICK = (
    "data.max_documents=800",
    "data.dev_queries=20",
    "data.dev_documents=100",
    "stage1.steps=10",
    "stage1.evaluate_every=10",
    "stage2.steps=2",
    "stage2.queries=4",
    "stage2.rollouts=4",
    "stage2.contrastive_pairs=12",
    "stage2.evaluate_every=2",
)
SEEDS, QUICK_SEEDS = 3, 1
QUALITY = ("direct", "reasoned", "mean")  # nDCG@10
GROUPS = (
    "groups_useful",
    "groups_with_variance",
    "groups_saturated",
    "groups_hopeless",
    "zero_variance_same",
    "zero_variance_saturated",
    "zero_variance_hopeless",
    "zero_variance_other",
)
PUBLISHED = (
    *QUALITY,
    "groups_useful",
    "groups_useful_last_quarter",
    "zero_variance",
    "zero_variance_same",
    "zero_variance_saturated",
    "zero_variance_hopeless",
    "zero_variance_other",
    "groups_saturated",
    "reward_gain_last_quarter",
    "thinking_tokens_last_quarter",
    "emission_rate_last_quarter",
)
"""What the result holds of each arm; the files of the work folder hold the curves too."""
THINKING = ("thinking_tokens", "emission_rate", "distinct_rollouts", "reward_gain")


def recipe_of(arm: str, seed: int, overrides: Sequence[str]) -> Recipe:
    always = (f"seed={seed}", "stage2.log_every=1")
    return load_recipe("quickstart", [*overrides, *always, *ARMS[arm]])


def measure(
    arm: str,
    seed: int,
    dataset: RetrievalDataset,
    model: Path,
    vectors: np.ndarray,
    recipe: Recipe,
    folder: Path,
) -> dict[str, Any]:
    """Train one arm with one seed, going on from its checkpoints, and measure what it ends with."""
    from searchr3.model import SearchR3
    from searchr3.training.checkpoints import last_checkpoint, step_of
    from searchr3.training.stage2 import train_stage2

    search = SearchR3(model, batch_size=recipe.model.batch_size, dtype="float32")
    curve = train_stage2(
        search, dataset, recipe, folder, vectors=vectors.copy(), alarms=folder / "alarms.json"
    )
    last = last_checkpoint(folder)
    if last is None or step_of(last) != recipe.stage2.steps:
        raise SearchR3Error(f"{folder}: no checkpoint of step {recipe.stage2.steps}; remove it and run again")
    search.reload(last)
    steps = [row for row in curve if "groups_useful" in row]
    tail = steps[-max(1, len(steps) // 4) :]
    found = {name: fmean(row[name] for row in steps) for name in (*GROUPS, *THINKING)}
    found |= {f"{name}_last_quarter": fmean(row[name] for row in tail) for name in (*GROUPS, *THINKING)}
    found["zero_variance"] = 1 - found["groups_with_variance"]
    alarms = json.loads((folder / "alarms.json").read_text(encoding="utf-8"))
    return {
        "arm": arm,
        "seed": seed,
        "recipe": recipe.dump(),
        "figures": quality(evaluated(search, dataset, recipe)) | found,
        "alarms": alarms,
        "curve": curve,
    }


def evaluated(search: SearchR3, dataset: RetrievalDataset, recipe: Recipe) -> Results:
    """The whole dev split against the whole corpus."""
    from searchr3.evaluation import evaluate
    from searchr3.training.precision import precision

    search.autocast = precision(recipe)
    return evaluate(search, dataset, split="dev", baselines=(), max_new_tokens=recipe.model.max_new_tokens)


def quality(results: Results) -> dict[str, float]:
    """nDCG@10 of direct and reasoned queries, and their mean."""
    found = {run["name"]: float(run["ndcg@10"]) for run in results.summary["runs"]}
    return {**found, "mean": (found["direct"] + found["reasoned"]) / 2}


def start(
    place: Path, model: Path, dataset: RetrievalDataset, recipe: Recipe
) -> tuple[dict[str, float], np.ndarray]:
    """What all arms begin with: the stage-1 model's quality, and its vectors of the training corpus."""
    from safetensors.numpy import load_file, save_file

    from searchr3.model import SearchR3

    about = {"stage1": str(model.resolve()), "data": dataset.name, "recipe": recipe.dump(), "code": code()}
    vectors = place.with_suffix(".safetensors")
    if not place.is_file():
        search = SearchR3(model, batch_size=recipe.model.batch_size, dtype="float32")
        results = evaluated(search, dataset, recipe)
        assert results.document_vectors is not None
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file({"documents": results.document_vectors}, vectors)
        write_json(place, {"about": about, "figures": quality(results)})
    known = json.loads(place.read_text(encoding="utf-8"))
    if known["about"] != about:
        raise SearchR3Error(
            f"{place.parent}: holds another study, or another code's; choose another folder with --work"
        )
    kept = [key not in dataset.held_out for key in dataset.corpus]
    return known["figures"], load_file(vectors)["documents"][kept]


def half_width(values: np.ndarray) -> float | None:
    """Half of the 95 % interval of a difference of two arms' means, of values (arms, seeds).

    Arms share their seeds, which makes randomized blocks: the error is what neither arm nor seed explains,
    estimated from all arms together, as if all varied alike, with (arms − 1)(seeds − 1) degrees of freedom.
    With two arms it is Student's paired interval. Not corrected for several comparisons; None for one seed.
    """
    from scipy.stats import t

    arms, seeds = values.shape
    freedom = (arms - 1) * (seeds - 1)
    if not freedom:
        return None
    left = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    variance = float((left**2).sum()) / freedom
    return float(t.ppf(0.975, freedom)) * (2 * variance / seeds) ** 0.5


def figures(
    results: Mapping[str, Sequence[Mapping[str, float]]], begun: Mapping[str, float], steps: int
) -> dict[str, float | None]:
    """All figures of the study, flat: means over the seeds, and differences to the default arm.

    Args:
        results: arm → the figures of each seed, seeds in the same order.
    """
    found: dict[str, Any] = {"seeds": len(results[DEFAULT]), "steps": steps}
    found |= {f"start_{name}": begun[name] for name in QUALITY}
    for arm, seeds in results.items():
        for name in PUBLISHED:
            found[f"{arm}_{name}"] = fmean(one[name] for one in seeds)
    compared = (*QUALITY, "groups_useful", "groups_useful_last_quarter")
    for name in compared:
        half = half_width(np.array([[one[name] for one in seeds] for seeds in results.values()]))
        for arm in results:
            if arm == DEFAULT:
                continue
            key = f"{arm}_minus_{DEFAULT}_{name}"
            found[key] = mean = found[f"{arm}_{name}"] - found[f"{DEFAULT}_{name}"]
            found[f"{key}_low"] = None if half is None else mean - half
            found[f"{key}_high"] = None if half is None else mean + half
    return found


def study(options: Namespace) -> dict[str, float | None]:
    overrides = (*(QUICK if options.quick else ()), *options.overrides)
    seeds = options.seeds if options.seeds is not None else QUICK_SEEDS if options.quick else SEEDS
    if seeds < 1:
        raise SearchR3Error(f"--seeds is {seeds}; at least 1")
    dataset, model = beginning(options.work, overrides, options.stage1, options.data)
    plain = recipe_of(DEFAULT, 0, overrides)
    hush_transformers()
    begun, vectors = start(options.work / "start.json", model, dataset, plain)
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):  # seed by seed: a study cut short still holds whole pairs
        for arm in ARMS:
            done = options.work / f"{arm}-{seed}.json"
            if not done.is_file():
                folder = options.work / "checkpoints" / f"{arm}-{seed}"
                print(f"{arm}, seed {seed}", flush=True)
                recipe = recipe_of(arm, seed, overrides)
                write_json(done, measure(arm, seed, dataset, model, vectors, recipe, folder))
                shutil.rmtree(folder, ignore_errors=True)
            results[arm].append(json.loads(done.read_text(encoding="utf-8"))["figures"])
    return figures(results, begun, plain.stage2.steps)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--stage1", type=Path, help="stage-1 model; by default the quickstart's is made")
    parser.add_argument("--data", type=Path, help="its data; by default the folder `data` beside it")
    parser.add_argument("--work", type=Path, help="work folder; by default runs/reward or runs/reward-quick")
    parser.add_argument("--seeds", type=int, help=f"default {SEEDS}, {QUICK_SEEDS} with --quick")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the quickstart's recipe")
    options = parser.parse_args()
    options.work = options.work or Path("runs") / ("reward-quick" if options.quick else "reward")
    try:
        write(options.output, "reward", study(options))
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
