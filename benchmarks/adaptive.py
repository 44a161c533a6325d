"""Thinking only where it pays: quality against mean thinking tokens, by training and by choosing.

    python benchmarks/adaptive.py --output benchmarks/results/adaptive.json
    python benchmarks/adaptive.py --run RUN --work runs/adaptive --output …      from RUN/stage1 and RUN/data
    python benchmarks/adaptive.py --results a.json b.json --output …             further evaluations, pooled

By training: from the same stage-1 model stage 2 is trained once for each cost of a thinking token
(`--weights`, in nDCG; 0 costs nothing), otherwise with the same recipe, rewards scaled by the batch as a
cost wants it. Where thinking costs, one rollout of each group is the embed token at once, which would hardly
be tried else; without a cost it would be the direct form's fixed answer, which does harm, so there all
rollouts are sampled. `frontier.cost_….` holds what each model gives on test, thinking whenever it wants to
(`reasoned`, `tokens`), and `frontier.stage1.` where they began.

By choosing: for each of these models `searchr3 adapt`'s rule is chosen on dev, and measured on test (`auto`,
`auto_tokens`).

`adaptive_gain_share` and `adaptive_token_share` are what the rule keeps of the gain of always thinking, and
spends of its tokens: pooled over the queries of the test sets on which thinking helps significantly (the
paired 95 % interval of reasoned − direct is above 0, its p below 0.05), `adaptive_sets` of them out of
`adaptive_sets_seen`.
The sets are those of `--results`, written by `searchr3 evaluate --reasoning all`, or without any the test of
the model without a cost. Null where thinking helps on none.

Each part is kept in `--work` and is not made again, unless the code or the recipe has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _result import arguments, code, write
from _start import beginning

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.evaluation import evaluate, read_results
from searchr3.evaluation.adaptive import Measured, choose, frontier
from searchr3.evaluation.statistics import direction
from searchr3.files import json_text, write_json
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.runs.preparation import limited
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

WEIGHTS = (0.0, 0.002, 0.005, 0.01, 0.02)
QUICK_WEIGHTS = (0.0, 0.02)
QUICK = (
    *("data.max_documents=600", "data.dev_queries=20", "data.dev_documents=60", "stage1.steps=4"),
    *("stage1.evaluate_every=4", "stage1.batch_size=8", "stage2.steps=2", "stage2.evaluate_every=2"),
    *("stage2.queries=4", "stage2.rollouts=4", "model.max_new_tokens=6"),
)
COMMON = ("stage2.reward.least_tokens=0", "stage2.scale_rewards=batch")


def arm_name(weight: float | None) -> str:
    """A name without a dot, as figures need it.

    >>> arm_name(0.005), arm_name(None)
    ('cost_5e-03', 'stage1')
    """
    return "stage1" if weight is None else f"cost_{weight:.0e}"


def recipe_of(source: Path | str, overrides: Sequence[str], weight: float | None) -> Recipe:
    cost = weight or 0
    own = f"stage2.reward.length={cost}", f"stage2.direct_rollout={str(cost > 0).lower()}"
    return load_recipe(source, [*overrides, *COMMON, *own])


def part(work: Path, start: Path, dataset: RetrievalDataset, recipe: Recipe, weight: float | None) -> Path:
    """The folder of one arm, with `results.json` of its test and `frontier.json`; made if it is not there."""
    kept = recipe.dump() if weight is not None else recipe.dump()["model"]
    told = json_text([code(), str(start.resolve()), dataset.name, kept])
    folder = work / f"{arm_name(weight)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if (folder / "frontier.json").is_file():
        return folder
    print(f"{arm_name(weight)}: {'measuring' if weight is None else 'training'}", flush=True)
    model = folder / "model"
    if weight is not None and not model.is_dir():
        from searchr3.training.stage2 import train_stage2

        search = SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")
        curve = train_stage2(search, limited(dataset, recipe), recipe, folder / "checkpoints")
        write_json(folder / "curve.json", curve)
        search.save_pretrained(model)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    search = SearchR3(start if weight is None else model, batch_size=recipe.model.batch_size, dtype="float32")
    named: dict[str, Any] = {"baselines": (), "max_new_tokens": recipe.model.max_new_tokens}
    dev = evaluate(search, dataset, "dev", **named)
    where = f"{dataset.name} dev, {len(dev.query_ids):,} queries"
    rule = choose(Measured.of(dev.run("direct"), dev.run("reasoned")), chosen_on=where).rule
    found = evaluate(
        search, dataset, "test", "all", document_vectors=dev.document_vectors, adaptive=rule, **named
    )
    found.save(folder / "results.json")
    measured = Measured.of(found.run("direct"), found.run("reasoned"))
    write_json(folder / "frontier.json", [point._asdict() for point in frontier(measured, rule.signal)])
    return folder


def figures_of(results: Mapping[str, Any]) -> dict[str, float | None]:
    """One arm's figures."""
    runs = {run["name"]: run for run in results["runs"]}
    return {
        "direct": runs["direct"]["ndcg@10"],
        "reasoned": runs["reasoned"]["ndcg@10"],
        "tokens": runs["reasoned"]["thinking_tokens_mean"],
        "auto": runs["auto"]["ndcg@10"],
        "auto_tokens": runs["auto"]["thinking_tokens_mean"],
        "auto_share": results["adaptive"]["thinking_share"],
    }


def pooled(all_results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The rule's shares over the queries of all sets on which thinking helps significantly.

    Args:
        all_results: contents of `results.json`, with the runs direct, reasoned and auto.

    Raises:
        SearchR3Error: a run is missing, or a rule was chosen on the queries that it is measured on.
    """
    gained = kept = always = spent = 0.0
    sets = 0
    for results in all_results:
        runs = {run["name"]: run for run in results["runs"]}
        name = f"{results['data']} {results['split']}"
        if not {"direct", "reasoned", "auto"} <= runs.keys() or "adaptive" not in results:
            raise SearchR3Error(f"{name}: evaluate it with --reasoning all")
        if (results["adaptive"]["chosen_on"] or "").startswith(f"{name}, "):
            raise SearchR3Error(f"{name}: chose the rule itself; choose it on dev")
        if not _helps(results["differences"]):
            continue
        sets += 1
        direct, reasoned, auto = (runs[run]["ndcg@10"] for run in ("direct", "reasoned", "auto"))
        count = results["queries"]
        gained += count * (reasoned - direct)
        kept += count * (auto - direct)
        always += count * runs["reasoned"]["thinking_tokens_mean"]
        spent += count * runs["auto"]["thinking_tokens_mean"]
    return {
        "adaptive_gain_share": kept / gained if sets else None,
        "adaptive_token_share": spent / always if sets and always else None,
        "adaptive_sets": sets,
        "adaptive_sets_seen": len(all_results),
    }


def _helps(differences: Sequence[Mapping[str, Any]]) -> bool:
    wanted = ("reasoned", "direct", "ndcg@10")
    rows = [row for row in differences if (row["a"], row["b"], row["metric"]) == wanted]
    return bool(rows) and direction(rows[0]["ci95"], rows[0]["p"]) > 0


def picture(arms: Mapping[str, Path], place: Path) -> None:
    """nDCG@10 over mean thinking tokens: each trained model, and what a rule can choose of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    found = {name: figures_of(read_results(folder / "results.json")) for name, folder in arms.items()}
    trained = sorted(
        (one["tokens"], one["reasoned"], name) for name, one in found.items() if name != "stage1"
    )
    axes.plot(
        [tokens for tokens, _, _ in trained],
        [ndcg for _, ndcg, _ in trained],
        "o-",
        color="#d9822b",
        label="a model for each cost of a token",
    )
    for tokens, ndcg, name in trained:
        axes.annotate(
            name.removeprefix("cost_"), (tokens, ndcg), fontsize=7, xytext=(3, 4), textcoords="offset points"
        )
    free = next((name for name in arms if name == arm_name(0.0)), None)
    if free:
        points = json.loads((arms[free] / "frontier.json").read_text(encoding="utf-8"))
        spent, ndcg = ([point[key] for point in points] for key in ("tokens", "ndcg"))
        axes.plot(spent, ndcg, color="#7a9cc6", linewidth=1.4, label="the one without cost, the unsure think")
        axes.plot([spent[0], spent[-1]], [ndcg[0], ndcg[-1]], ":", color="#888888", label="… any think")
        axes.plot(
            found[free]["auto_tokens"],
            found[free]["auto"],
            "D",
            color="#4f6d8f",
            label="… its rule, from dev",
        )
    axes.set(xlabel="mean thinking tokens a query", ylabel="nDCG@10 on test")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place)


def train_and_measure(options: Namespace) -> tuple[dict[str, float | None], dict[str, Path]]:
    """Figures and folders of all arms."""
    work = options.work or Path("runs") / ("adaptive-quick" if options.quick else "adaptive")
    overrides = QUICK if options.quick else ()
    given = options.run
    source = given / "recipe.yaml" if given else "quickstart"
    weights = options.weights or (QUICK_WEIGHTS if options.quick else WEIGHTS)
    recipes = {weight: recipe_of(source, overrides, weight) for weight in (None, *weights)}
    if len({*map(arm_name, recipes)}) <= len(weights):
        raise SearchR3Error("--weights: two have the same first digit, and so one name; leave one out")
    dataset, start = beginning(work, overrides, given and given / "stage1", given and given / "data")
    arms = {
        arm_name(weight): part(work, start, dataset, recipe, weight) for weight, recipe in recipes.items()
    }
    figures = {
        f"frontier.{name}.{key}": value
        for name, folder in arms.items()
        for key, value in figures_of(read_results(folder / "results.json")).items()
    }
    return figures, arms


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="a run with a finished stage 1; default: the quickstart's")
    parser.add_argument("--work", type=Path, help="folder of what is trained; goes on where it stopped")
    parser.add_argument("--weights", type=float, nargs="+", help="costs of a thinking token, in nDCG")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="of evaluate --reasoning all")
    parser.add_argument("--picture", type=Path, help="PNG file, e.g. docs/adaptive-frontier.png")
    options = parser.parse_args()
    hush_transformers()
    try:
        given = [read_results(place) for place in options.results]
        pooled(given)  # what is wrong with them is told before the work
        figures, arms = train_and_measure(options)
        own = [folder / "results.json" for name, folder in arms.items() if name == arm_name(0.0)]
        figures |= pooled(given or [read_results(place) for place in own])
        if options.picture:
            picture(arms, options.picture)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "adaptive", figures)


if __name__ == "__main__":
    main()
