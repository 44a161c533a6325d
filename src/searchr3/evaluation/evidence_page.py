"""Evidence for people: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.evaluation.figures import COLOURS, MUTED, canvas
from searchr3.evaluation.page_figures import Bar, forest
from searchr3.evaluation.pages import p_value, render, signed
from searchr3.evaluation.tables import coloured, table_of

if TYPE_CHECKING:
    from rich.table import Table

_KINDS = {
    "direct1": "direct",
    "direct2": "direct",
    "reasoned1": "reasoned",
    "bm25": "baseline",
    "rival": "baseline",
}


def evidence_tables(found: Mapping[str, Any]) -> list[Table]:
    """The runs of `evidence.json` and how far stage 2, reasoned, is above each; the curve over labels."""
    rows = {row["b"]: row for row in found["differences"]}
    seeds = f"{len(found['seeds'])} seed{'s' if len(found['seeds']) > 1 else ''}"
    sizes = f"{found['queries']:,} queries · {found['documents']:,} documents · {seeds}"
    figures = ("ndcg@10 (95 %)", "reasoned 2 − it (95 %)", "p, Holm", "of each seed")
    runs = table_of(f"{found['data']} · {found['split']} · {sizes}", ["run"], figures)
    for run in found["runs"]:
        low, high = run["ci95"]
        row = rows.get(run["name"])
        runs.add_row(
            run["title"],
            f"{run['ndcg@10']:.3f} [dim]{low:.3f}–{high:.3f}[/dim]",
            _with_interval(row) if row else "",
            p_value(row["p_holm"]) if row else "",
            " ".join(f"{signed(mean)}" for mean in row["seeds"]) if row else "",
        )
    return [runs, _label_table(found["labels"])] if len(found["labels"]) > 1 else [runs]


def _label_table(points: Sequence[Mapping[str, Any]]) -> Table:
    title = "reasoned − direct, by the number of labelled queries of stage 1"
    table = table_of(title, (), ("labels", "stage 1 (95 %)", "stage 2 (95 %)", "seeds"))
    for point in points:
        table.add_row(
            f"{point['labels']:,}",
            _with_interval(point["stage1"]),
            _with_interval(point["stage2"]),
            str(point["seeds"]),
        )
    return table


def evidence_page(found: Mapping[str, Any]) -> str:
    """One HTML page without scripts or links: verdict, table, forest plot, curve over labels."""
    rows = {row["b"]: row for row in found["differences"]}
    titles = {run["name"]: run["title"] for run in found["runs"]}
    points = found["labels"]
    bars = [
        Bar(titles[name], row["mean"], (row["ci95"][0], row["ci95"][1]), _KINDS.get(name, "control"))
        for name, row in rows.items()
    ]
    return render(
        "evidence.html.j2",
        found=found,
        rows=rows,
        forest=forest(bars, "Stage 2, reasoned, minus each of the others") if bars else None,
        labels=label_curve(points) if len(points) > 1 else None,
    )


def label_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Reasoned minus direct of both stages over the number of labelled queries, as inline SVG.

    Args:
        points: as `evidence.label_point` gives them, with "labels".
    """
    labels = [point["labels"] for point in points]
    values = (
        f"{point['labels']}: {signed(point['stage1']['mean'])}, {signed(point['stage2']['mean'])}"
        for point in points
    )
    told = f"reasoned minus direct, stages 1 and 2, over the labelled queries: {'; '.join(values)}"
    with canvas(4.4, 2.6, told) as (axes, svg):
        axes.axhline(0, color=MUTED, linewidth=1)
        for stage, kind in (("stage1", "direct"), ("stage2", "reasoned")):
            means = np.array([point[stage]["mean"] for point in points])
            low, high = np.array([point[stage]["ci95"] for point in points]).T
            errors = np.clip([means - low, high - means], 0, None)
            colour, name = COLOURS[kind], f"stage {stage[-1]}"
            axes.errorbar(labels, means, yerr=errors, fmt="o-", color=colour, label=name, capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(labels, [f"{number:,}" for number in labels])
        axes.minorticks_off()
        axes.set_xlabel("labelled queries of stage 1")
        axes.set_ylabel("nDCG@10, reasoned − direct")
        axes.legend(frameon=False)
    return svg[0]


def _with_interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{coloured(row)} [dim]{low:+.3f} to {high:+.3f}[/dim]"
