"""What the curves of an evaluation have in common: points with intervals, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.evaluation.results import Run
from searchr3.evaluation.statistics import bootstrap_ci
from searchr3.evaluation.tables import table_of

if TYPE_CHECKING:
    from rich.table import Table

METRIC = "ndcg@10"


def points(runs: Sequence[Run], ids: Sequence[str]) -> list[dict[str, Any]]:
    """`{"ndcg@10", "ci95"}` of each run over the queries `ids`; all share their resamples."""
    values = np.array([[run.values[METRIC][query] for run in runs] for query in ids])
    lows, highs = bootstrap_ci(values)
    return [
        {METRIC: mean, "ci95": [low, high]}
        for mean, low, high in zip(values.mean(axis=0).tolist(), lows.tolist(), highs.tolist(), strict=True)
    ]


def curve_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The budget curve, the samples and what their agreement tells, as far as there, for the terminal."""
    curves = summary.get("curves", {})
    tables = []
    if "budget" in curves:
        direct = next((run[METRIC] for run in summary["runs"] if run["name"] == "direct"), None)
        note = "" if direct is None else f" (direct: {direct:.3f})"
        tables.append(_curve(f"thinking budget{note}", "tokens at most", "tokens", curves["budget"]))
    if "samples" in curves:
        tables.append(_curve("mean of sampled thoughts", "samples", "samples", curves["samples"]))
    if summary.get("uncertainty"):
        tables.append(_uncertainty(summary["uncertainty"]))
    return tables


def _curve(title: str, heading: str, key: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = table_of(title, [heading], ["ndcg@10 (95 %)", "tokens", "emitted", "s/query"])
    for row in rows:
        low, high = row["ci95"]
        table.add_row(
            str(row[key]),
            f"{row[METRIC]:.3f} [dim]{low:.3f}–{high:.3f}[/dim]",
            f"{row['thinking_tokens_mean']:.1f}",
            f"{row['emission_rate']:.1%}",
            f"{row['seconds_per_query']:.3f}",
        )
    return table


def _uncertainty(found: Mapping[str, Any]) -> Table:
    title = f"do {found['samples']} samples agree where the search is right?"
    table = table_of(title, ["signal"], ["mean", "run", "rank correlation", "AUROC of a miss"])
    for row in found["signals"]:
        figures = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("rank_correlation", "auroc"))
        table.add_row(row["signal"], f"{found[row['signal'] + '_mean']:.3f}", row["run"], *figures)
    return table
