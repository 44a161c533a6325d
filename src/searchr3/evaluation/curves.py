"""What the curves of an evaluation have in common: points with intervals, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.evaluation.results import Run
from searchr3.evaluation.statistics import bootstrap_ci, holm, paired_differences
from searchr3.evaluation.tables import coloured, table_of

if TYPE_CHECKING:
    from rich.table import Table

METRIC = "ndcg@10"


def points(runs: Sequence[Run], ids: Sequence[str], direct: Run | None = None) -> list[dict[str, Any]]:
    """nDCG@10 of each run over the queries `ids`, with its interval; all share their resamples.

    Returns:
        `{"ndcg@10", "ci95"}` each; with `direct` also "minus_direct", `{"mean", "ci95", "p", "p_holm"}` of
        the paired difference, p corrected for the number of runs.
    """
    values = _table(runs, ids)
    lows, highs = bootstrap_ci(values)
    found: list[dict[str, Any]] = [
        {METRIC: mean, "ci95": [low, high]}
        for mean, low, high in zip(values.mean(axis=0).tolist(), lows.tolist(), highs.tolist(), strict=True)
    ]
    if direct:
        apart = paired_differences(values, np.repeat(_table([direct], ids), len(runs), axis=1))
        corrected = holm([one.p for one in apart])
        for point, one, p in zip(found, apart, corrected, strict=True):
            point["minus_direct"] = {"mean": one.mean, "ci95": [*one.ci95], "p": one.p, "p_holm": p}
    return found


def _table(runs: Sequence[Run], ids: Sequence[str]) -> np.ndarray:
    """(queries, runs)."""
    return np.array([[run.values[METRIC][query] for run in runs] for query in ids])


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
    apart = ["− direct"] if "minus_direct" in rows[0] else []
    table = table_of(title, [heading], ["ndcg@10 (95 %)", *apart, "tokens", "emitted", "s/query"])
    for row in rows:
        low, high = row["ci95"]
        table.add_row(
            str(row[key]),
            f"{row[METRIC]:.3f} [dim]{low:.3f}–{high:.3f}[/dim]",
            *([coloured(row["minus_direct"])] if apart else []),
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
