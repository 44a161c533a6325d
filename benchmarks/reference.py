"""The reference recipe with its arms and controls: does thinking help, and is it the thinking?

    python benchmarks/reference.py --output benchmarks/results/reference.json
    python benchmarks/reference.py --run DIR --output …      reads evidence that is there instead
    python benchmarks/reference.py … --young DIR             and evidence of a base with less pretraining

Figures are nDCG@10 on the test split, means over the seeds; `_low` and `_high` are bounds of 95 % intervals.
`base_was_shown_pairs` is 1 where the base has read training queries with their answers (docs/evidence.md).
What is gathered is kept in the work folder; what was interrupted goes on where it was. The machine of the
result is that on which the evidence was begun, by its recipe.yaml; the commit is that of this file, for a
folder of evidence does not know its own. Evidence that is not complete is refused.
`--quick` gathers the same evidence on fewer documents, steps and seeds: it shows that everything works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from _minilm import minilm
from _result import arguments, write

from searchr3.errors import SearchR3Error, first_line
from searchr3.evaluation.evidence import STAGES
from searchr3.evaluation.saved import read_json
from searchr3.runs.evidence import Plan, gather

LABELS = (100, 300, 1000, 3000)
QUICK = (
    "data.max_documents=1000",
    "data.stage1_queries=200",
    "data.dev_queries=40",
    "data.dev_documents=200",
    "stage1.steps=4",
    "stage1.evaluate_every=4",
    "stage2.steps=2",
    "stage2.evaluate_every=2",
    "stage2.queries=8",
    "stage2.contrastive_pairs=8",
)


def figures(found: dict[str, Any]) -> dict[str, float | None]:
    """The figures of `evidence.json`, flat."""
    flat: dict[str, float | None] = {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    flat["seeds"] = len(found["seeds"])
    told = {**found["verdict"], "base_was_shown_pairs": found.get("base_was_shown_pairs")}
    flat |= {key: float(value) for key, value in told.items() if isinstance(value, bool)}
    for row in found["differences"]:
        name = f"reasoned2_minus_{row['b']}"
        flat[name], (flat[f"{name}_low"], flat[f"{name}_high"]) = row["mean"], row["ci95"]
        flat[f"{name}_p_holm"] = row["p_holm"]
    for point in found["labels"]:
        for stage in ("stage1", "stage2"):
            name, row = f"labels_{point['labels']}_{stage}", point[stage]
            flat[name], (flat[f"{name}_low"], flat[f"{name}_high"]) = row["mean"], row["ci95"]
        for name in (*STAGES, "direct1_given_up"):
            flat[f"labels_{point['labels']}_{name}"] = point.get(name)
    return flat | {f"seconds_{name.replace(' ', '_')}": value for name, value in found["seconds"].items()}


def young_figures(found: dict[str, Any]) -> dict[str, float | None]:
    """Of a base with a tenth of the pretraining: does thinking pay there?"""
    wanted = [
        *STAGES,
        *(f"reasoned2_minus_direct{stage}{end}" for stage in "12" for end in ("", "_low", "_high")),
    ]
    flat = figures(found)
    return {f"young_{name}": flat[name] for name in wanted}


def gathered(folder: Path) -> dict[str, Any]:
    """The evidence in a folder.

    Raises:
        SearchR3Error: there is none, or it is not complete.
    """
    place = folder / "evidence.json"
    found = read_json(place, "give a folder of `searchr3 evidence`")
    if not found.get("complete"):
        raise SearchR3Error(f"{place}: is not complete; go on with `searchr3 evidence … --resume`")
    return found


def machine_of(folder: Path) -> dict[str, str] | None:
    """On what the evidence was begun, by its recipe.yaml; None where that does not tell.

    Raises:
        SearchR3Error: there is no such file, or it cannot be read.
    """
    place = folder / "recipe.yaml"
    try:
        found = yaml.safe_load(place.read_text(encoding="utf-8"))
        return dict(found["machine"]) if found.get("machine") else None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as why:
        raise SearchR3Error(f"{place}: cannot be read ({first_line(why)}); take it from a copy") from None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="folder of evidence that `searchr3 evidence` has gathered")
    parser.add_argument("--work", type=Path, help="default runs/benchmark-reference, with -quick if short")
    parser.add_argument(
        "--young", type=Path, help="folder of evidence, of a base with a tenth of the pretraining"
    )
    options = parser.parse_args()
    place = options.run or options.work or Path("runs") / ("benchmark-reference" + "-quick" * options.quick)
    try:
        young = young_figures(gathered(options.young)) if options.young else {}
        if not options.run:
            plan = Plan(1, (50,), 1) if options.quick else Plan(3, LABELS, 1, minilm())
            begun = (place / "recipe.yaml").is_file()
            gather("reference", QUICK if options.quick else (), place, plan, resume=begun)
        flat = figures(gathered(place)) | young
        machine = machine_of(place)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "reference", flat, machine)


if __name__ == "__main__":
    main()
