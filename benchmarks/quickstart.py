"""The quickstart, measured: is the loop right, whole, and quick enough?

    python benchmarks/quickstart.py --output benchmarks/results/quickstart.json
    python benchmarks/quickstart.py --run RUN --output …      reads a finished run instead of making one

Figures are those of the default recipe, seed 0, on the test split. `--quick` runs the same loop on fewer
documents and steps: it shows that everything works, not how well.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from _result import arguments, write

QUICK = (
    "data.max_documents=1500",
    "stage1.steps=20",
    "stage1.evaluate_every=10",
    "stage2.steps=4",
    "stage2.evaluate_every=4",
)


def figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The run's figures, flat; differences come with the bounds of their paired 95 % interval."""
    found: dict[str, float | None] = {"minutes": round(sum(metrics["seconds"].values()) / 60, 2)}
    stages = metrics["stages"]
    found |= {"documents": stages["stage1"]["documents"], "queries": stages["stage1"]["queries"]}
    for number, stage in (("1", stages["stage1"]), ("2", stages["stage2"])):
        for run in stage["runs"]:
            name = run["name"] if run["name"] == "bm25" else run["name"] + number
            found[name] = run["ndcg@10"]
            found[f"{name}_low"], found[f"{name}_high"] = run["ci95"]["ndcg@10"]
            if run["name"] == "reasoned":
                found[f"thinking_tokens{number}"] = run["thinking_tokens_mean"]
                found[f"emission_rate{number}"] = run["emission_rate"]
    found["direct1_over_bm25"] = found["direct1"] / found["bm25"]
    for row in metrics["differences"]:
        if row["metric"] == "ndcg@10":
            a, b = (side.split()[1] + side.split()[0][-1] for side in (row["a"], row["b"]))
            found[f"{a}_minus_{b}"] = row["mean"]
            found[f"{a}_minus_{b}_low"], found[f"{a}_minus_{b}_high"] = row["ci95"]
    steps = [entry for entry in metrics["curves"]["stage2"] if "groups_with_variance" in entry]
    last = steps[-max(1, len(steps) // 4) :]
    found["groups_with_variance_last_quarter"] = sum(entry["groups_with_variance"] for entry in last) / len(
        last
    )
    return found


def picture(metrics: dict[str, Any], place: Path) -> None:
    """Bars of nDCG@10 with 95 % intervals, and the dev curves of both stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    bars = []
    for number in ("1", "2"):
        for run in metrics["stages"][f"stage{number}"]["runs"]:
            own = run["name"] in ("direct", "reasoned")
            if own or number == "1":
                bars.append((f"stage {number}, {run['name']}" if own else "BM25", run))
    bars.sort(key=lambda bar: bar[0] != "BM25", reverse=True)
    colours = {"direct": "#7a9cc6", "reasoned": "#d9822b"}
    for place_, (label, run) in enumerate(reversed(bars)):
        low, high = run["ci95"]["ndcg@10"]
        mean = run["ndcg@10"]
        left.barh(
            place_,
            mean,
            color=colours.get(run["name"], "#b0b0b0"),
            xerr=[[mean - low], [high - mean]],
            capsize=3,
        )
        left.text(0.005, place_, f"{label}  {mean:.3f}", va="center", fontsize=9)
    left.set(yticks=[], xlabel="nDCG@10 on the test split, 95 % interval")
    start = 0
    for stage in ("stage1", "stage2"):
        curve = metrics["curves"][stage]
        for key, colour in (("eval_direct", colours["direct"]), ("eval_reasoned", colours["reasoned"])):
            points = [(start + row["step"], row[key]) for row in curve if key in row]
            label = key.removeprefix("eval_") if stage == "stage1" else None
            right.plot(
                [x for x, _ in points], [y for _, y in points], "o-", color=colour, label=label, markersize=3
            )
        start += max(row["step"] for row in curve)
        if stage == "stage1":
            right.axvline(start, color="#888888", linewidth=0.8)
            right.text(start, right.get_ylim()[0], " stage 2 →", fontsize=8, va="bottom")
    right.set(xlabel="training step", ylabel="dev nDCG@10")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(place)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--picture", type=Path, help="PNG file for the README's picture")
    parser.add_argument("--run", type=Path, help="a finished run of the default recipe")
    options = parser.parse_args()
    run = options.run
    if run is None:
        from searchr3.runs.pipeline import train

        run = Path(tempfile.mkdtemp(prefix="quickstart-")) / "run"
        train("quickstart", QUICK if options.quick else (), run)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    write(options.output, "quickstart", figures(metrics))
    if options.picture:
        picture(metrics, options.picture)


if __name__ == "__main__":
    main()
