"""The quickstart, measured: is the loop right, whole, and quick enough?

    python benchmarks/quickstart.py --output benchmarks/results/quickstart.json
    python benchmarks/quickstart.py --run RUN --output …      reads a finished run instead of making one

Figures are those of the default recipe, seed 0, on the test split. `--quick` runs the same loop on fewer documents and
steps: it shows that everything works, not how well.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from _result import arguments, write

QUICK = {
    "data.max_documents": "1500",
    "stage1.steps": "20",
    "stage1.evaluate_every": "10",
    "stage2.steps": "4",
    "stage2.evaluate_every": "4",
}


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
    found["groups_with_variance_last_quarter"] = sum(entry["groups_with_variance"] for entry in last) / len(last)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of the default recipe")
    options = parser.parse_args()
    run = options.run
    if run is None:
        from searchr3.pipeline import quickstart

        run = Path(tempfile.mkdtemp(prefix="quickstart-")) / "run"
        quickstart(run, QUICK if options.quick else {}, resume=False)
    write(options.output, "quickstart", figures(json.loads((run / "metrics.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
