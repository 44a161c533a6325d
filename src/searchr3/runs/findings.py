"""What a folder of `searchr3 evidence` holds by now: its results read, and weighed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.errors import DataError, first_line
from searchr3.evaluation.evidence import RUNS, STAGES, WITHOUT_REWARD, label_point, weigh
from searchr3.evaluation.saved import read_queries, read_results
from searchr3.training.arms import (
    AT_STAGE1_RATE,
    DIRECT_ONLY,
    NO_CONTRASTIVE,
    NO_POLICY,
    best_dev,
    direct_given_up,
    direct_only_arms,
    gradient_tokens,
    stage2_arms,
)
from searchr3.training.recipe import Recipe

CURVES = {
    "stage2": "checkpoints/stage2.curve.json",
    DIRECT_ONLY: f"{DIRECT_ONLY}/checkpoints/stage1.curve.json",
    NO_POLICY: f"{NO_POLICY}/checkpoints/stage2.curve.json",
    NO_CONTRASTIVE: f"{NO_CONTRASTIVE}/checkpoints/stage2.curve.json",
}
"""Where the curve of each training on stage 2's queries lies in a seed's folder."""

Runs = Mapping[str, Mapping[str, float]]
"""run → query id → nDCG@10."""


def findings(
    path: Path, recipe: Recipe, labels: int, arms: bool = True, both_rates: bool = True
) -> dict[str, Any]:
    """The figures of all seeds whose results are there, see `docs/evidence.md`.

    What lies there is told, whether it is asked for this time or was before: a rival, points of the curve
    over labels, and the arms that every seed has.

    Args:
        path: the folder of the evidence.
        labels: the recipe's own number of labelled queries, which is a point of the curve, too.
        arms: a seed is whole only with (b) and (c).
        both_rates: a seed is whole only with (a) at stage 1's learning rate, too.

    Returns:
        `{"seeds", "labels"}`, and from the first whole seed on all of `weigh`, sizes and costs.
    """
    direct_only, others = direct_only_arms(recipe, 1), stage2_arms(recipe)
    wanted = ["stage1", "stage2", *direct_only_arms(recipe, 1, both_rates), *(others if arms else ())]
    seeds = _seeds(path, wanted)
    found: dict[str, Any] = {"seeds": [int(folder.name.removeprefix("seed-")) for folder in seeds]}
    if seeds:
        summary = read_results(_results(seeds[0], "stage2"))
        found |= {key: summary[key] for key in ("data", "split", "documents", "queries")}
        models = [name for name in ("stage1", "stage2", *direct_only, *others) if _in_all(seeds, name)]
        there = [name for name in ("bm25", "rival") if _in_all([path], name)]
        baselines = {name: _runs(_results(path, name)) for name in there}
        found |= weigh(_values([_models(folder, models) for folder in seeds], baselines, recipe))
        found |= _costs(seeds)
        rates = {name: arm for name, arm in direct_only.items() if name in models}
        found["control_a_rates"] = _rates(rates, seeds)
    places = dict(_numbered(path, "labels-")) | {labels: path}
    points = [_label_point(number, place, recipe) for number, place in sorted(places.items())]
    return found | {"labels": [point for point in points if point]}


def _results(folder: Path, name: str) -> Path:
    return folder / "results" / f"{name}.json"


def _in_all(folders: Sequence[Path], name: str) -> bool:
    return all(_results(folder, name).is_file() for folder in folders)


def _seeds(path: Path, models: Sequence[str]) -> list[Path]:
    """The folders of seeds that hold the results of all `models`, in order."""
    return [one for _, one in _numbered(path, "seed-") if all(_in_all([one], name) for name in models)]


def _numbered(path: Path, stem: str) -> list[tuple[int, Path]]:
    """The folders that are called so and a number, in order; others, such as copies, are not ours."""
    found = [(one.name.removeprefix(stem), one) for one in path.glob(f"{stem}*")]
    return sorted((int(number), one) for number, one in found if number.isdecimal())


def _runs(place: Path) -> dict[str, dict[str, float]]:
    return {run: metrics["ndcg@10"] for run, metrics in read_queries(place).items()}


def _models(folder: Path, models: Sequence[str]) -> dict[str, Runs]:
    """Model → its runs, of one seed; of (a) those at the better learning rate."""
    places = {name: name for name in models}
    if DIRECT_ONLY in places:
        places[DIRECT_ONLY] = chosen_direct_only(folder, models)
    return {name: _runs(_results(folder, place)) for name, place in places.items()}


def chosen_direct_only(seed: Path, among: Sequence[str] = (DIRECT_ONLY, AT_STAGE1_RATE)) -> str:
    """The name of arm (a) in a seed's folder: of those `among` and there, the better on dev."""
    wanted = (name for name in (DIRECT_ONLY, AT_STAGE1_RATE) if name in among)
    return max((name for name in wanted if _results(seed, name).is_file()), key=lambda name: _dev(seed, name))


def _dev(seed: Path, name: str) -> float:
    return best_dev(_read(seed / name / "checkpoints" / "stage1.curve.json"))


def _rates(arms: Mapping[str, Recipe], seeds: Sequence[Path]) -> list[dict[str, Any]]:
    """What arm (a) came to at each learning rate, seed by seed."""
    chosen = [chosen_direct_only(folder, [*arms]) for folder in seeds]
    return [
        {
            "learning_rate": arm.stage1.learning_rate,
            "dev": [_dev(folder, name) for folder in seeds],
            "ndcg@10": [_mean([*_runs(_results(folder, name))["direct"].values()]) for folder in seeds],
            "chosen": [one == name for one in chosen],
        }
        for name, arm in arms.items()
    ]


def _values(
    seeds: Sequence[Mapping[str, Runs]], baselines: Mapping[str, Runs], recipe: Recipe
) -> dict[str, np.ndarray]:
    """Run, a key of `RUNS` → (seeds, queries)."""
    ids = list(seeds[0]["stage2"]["reasoned"])
    found = {}
    for name, one in RUNS.items():
        model, run = one.place
        if name == WITHOUT_REWARD and not recipe.stage2.contrastive:
            model = "stage1"  # nothing else has taught: stage 2 without its reward is stage 1
        rows = [seed[model][run] for seed in seeds if run in seed.get(model, ())]
        if name in baselines:
            (row,) = baselines[name].values()
            rows = [row]
        if rows:
            found[name] = np.array([[row[query] for query in ids] for row in rows])
    return found


def _costs(seeds: Sequence[Path]) -> dict[str, Any]:
    """Thinking tokens and emission rate of stage 2, what direct search has given up for thinking in stage 1,
    gradient tokens and seconds of each training; means.
    """
    summaries = [read_results(_results(folder, "stage2")) for folder in seeds]
    thinking = [run for one in summaries for run in one["runs"] if run["name"] == "reasoned"]
    found = {
        "thinking_tokens": _mean([run["thinking_tokens_mean"] for run in thinking]),
        "emission_rate": _mean([run["emission_rate"] for run in thinking]),
        "direct1_given_up": _given_up(seeds),
    }
    for name, place in CURVES.items():
        curves = [_read(folder / place) for folder in seeds if (folder / place).is_file()]
        if curves:
            found[f"gradient_tokens_{name}"] = _mean([gradient_tokens(curve) for curve in curves])
    clocks = [_read(folder / "progress.json") for folder in seeds]
    spent: dict[str, list[float]] = {}
    for clock in clocks:
        for phase, seconds in clock.items():  # "seed-0 stage1", "seed-1 stage1", …
            spent.setdefault(phase.partition(" ")[2], []).append(seconds)
    return found | {"seconds": {phase: _mean(each) for phase, each in spent.items()}}


def _given_up(seeds: Sequence[Path]) -> float:
    return _mean([direct_given_up(_read(folder / "checkpoints" / "stage1.curve.json")) for folder in seeds])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _read(place: Path) -> Any:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as why:
        mend = "take it from a copy, or remove the folder of this seed and go on with --resume"
        raise DataError(f"{place}: cannot be read ({first_line(why)}); {mend}") from None


def _label_point(labels: int, place: Path, recipe: Recipe) -> dict[str, Any] | None:
    """One point of the curve over labels, if a seed of it is there."""
    models = ["stage1", "stage2"]
    seeds = _seeds(place, models)
    if not seeds:
        return None
    values = _values([_models(folder, models) for folder in seeds], {}, recipe)
    point = label_point({name: values[name] for name in STAGES})
    return {"labels": labels, "seeds": len(seeds), **point, "direct1_given_up": _given_up(seeds)}
