"""Evidence for people: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.evaluation import figures

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.table import Table

_PLAIN: dict[str, Any] = {"title_justify": "left", "box": None, "pad_edge": False, "collapse_padding": False}


def evidence_tables(found: Mapping[str, Any]) -> list[Table]:
    """The runs of `evidence.json` and how far stage 2, reasoned, is above each; the curve over labels."""
    from rich.table import Table

    rows = {row["b"]: row for row in found["differences"]}
    seeds = f"{len(found['seeds'])} seed{'s' if len(found['seeds']) > 1 else ''}"
    sizes = f"{found['queries']:,} queries · {found['documents']:,} documents · {seeds}"
    runs = Table(title=f"{found['data']} · {found['split']} · {sizes}", **_PLAIN)
    for heading in ("run", "ndcg@10 (95 %)", "reasoned 2 − it (95 %)", "p, Holm", "of each seed"):
        runs.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=heading != "run")
    for run in found["runs"]:
        low, high = run["ci95"]
        row = rows.get(run["name"])
        runs.add_row(
            run["title"],
            f"{run['ndcg@10']:.3f} [dim]{low:.3f}–{high:.3f}[/dim]",
            _coloured(row) if row else "",
            p_value(row["p_holm"]) if row else "",
            " ".join(f"{signed(mean)}" for mean in row["seeds"]) if row else "",
        )
    return [runs, _label_table(found["labels"])] if found["labels"] else [runs]


def _label_table(points: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="reasoned − direct, by the number of labelled queries of stage 1", **_PLAIN)
    for heading in ("labels", "stage 1 (95 %)", "stage 2 (95 %)", "seeds"):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            f"{point['labels']:,}",
            _coloured(point["stage1"]),
            _coloured(point["stage2"]),
            str(point["seeds"]),
        )
    return table


def evidence_page(found: Mapping[str, Any]) -> str:
    """One HTML page without scripts or links: verdict, table, forest plot, curve over labels."""
    rows = {row["b"]: row for row in found["differences"]}
    titles = {run["name"]: run["title"] for run in found["runs"]}
    points = found["labels"]
    return _template().render(
        found=found,
        rows=rows,
        forest=forest([titles[name] for name in rows], [*rows.values()]) if rows else None,
        labels=label_curve(points) if points else None,
    )


def forest(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Differences with their 95 % intervals as inline SVG, the first on top; the seeds as faint dots.

    Args:
        names: one a difference.
        rows: `{"mean", "ci95", "seeds"}`.
    """
    places = np.arange(len(rows))[::-1]
    words = (f"{name} {signed(row['mean'])}" for name, row in zip(names, rows, strict=True))
    label = f"nDCG@10 of stage 2, reasoned, minus: {', '.join(words)}"
    with figures._figure(5.6, 0.7 + 0.34 * len(rows), label) as (axes, svg):
        axes.axvline(0, color=figures._MUTED, linewidth=1)
        for place, row in zip(places, rows, strict=True):
            low, high = row["ci95"]
            kind = "accent" if low > 0 else "reasoned" if high < 0 else "baseline"
            axes.plot([low, high], [place, place], color=figures.COLOURS[kind], linewidth=2.5)
            axes.plot([row["mean"]], [place], "o", color=figures.COLOURS[kind], markersize=6)
            heights = [place - 0.22] * len(row["seeds"])
            axes.plot(row["seeds"], heights, "o", color=figures._MUTED, markersize=2.5, alpha=0.7)
        axes.set_yticks(places, names, parse_math=False)
        axes.tick_params(axis="y", labelcolor=figures._INK)
        axes.set_xlabel("nDCG@10, stage 2 reasoned minus it")
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    return svg[0]


def label_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Reasoned minus direct of both stages over the number of labelled queries, as inline SVG.

    Args:
        points: as `evidence.label_point` gives them, with "labels".
    """
    labels = [point["labels"] for point in points]
    with figures._figure(5.6, 2.8, "reasoned minus direct over the number of labelled queries") as (
        axes,
        svg,
    ):
        axes.axhline(0, color=figures._MUTED, linewidth=1)
        for stage, kind in (("stage1", "direct"), ("stage2", "reasoned")):
            means = np.array([point[stage]["mean"] for point in points])
            low, high = np.array([point[stage]["ci95"] for point in points]).T
            errors = np.clip([means - low, high - means], 0, None)
            colour, name = figures.COLOURS[kind], f"stage {stage[-1]}"
            axes.errorbar(labels, means, yerr=errors, fmt="o-", color=colour, label=name, capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(labels, [f"{number:,}" for number in labels])
        axes.minorticks_off()
        axes.set_xlabel("labelled queries of stage 1")
        axes.set_ylabel("nDCG@10, reasoned − direct")
        axes.legend(frameon=False)
    return svg[0]


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(-0.01234)
    '−0.012'
    """
    return f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """
    >>> p_value(0.0001), p_value(0.25)
    ('<0.001', '0.250')
    """
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _coloured(row: Mapping[str, Any]) -> str:
    """A difference for the terminal, green or red where its interval leaves 0 out."""
    low, high = row["ci95"]
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    return f"[{colour}]{signed(row['mean'])}[/{colour}] [dim]{signed(low)} to {signed(high)}[/dim]"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    page = resources.files("searchr3.evaluation").joinpath("evidence.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg": Markup, "signed": signed, "p": p_value}
    return environment.from_string(page)
