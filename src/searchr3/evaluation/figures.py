"""The report's pictures: small SVGs in colours that are variables of the page, dark mode included."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

# matplotlib knows no CSS: it draws in these stand-ins, which are then replaced by the page's variables.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
COLOURS = {
    "direct": "#040404",
    "reasoned": "#050505",
    "baseline": "#060606",
    "accent": "#070707",
    "control": "#080808",
}
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line"} | {colour: name for name, colour in COLOURS.items()}

_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "searchr3",  # the same data give the same bytes
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def curve(rows: Sequence[Mapping[str, Any]], key: str, label: str, colour: str = "accent") -> str | None:
    """A figure over the training steps as inline SVG: each value faintly, their running mean boldly.

    Args:
        rows: `{"step": int, key: number, …}`; rows without the key are left out.
        key: what to draw.
        label: read to those who cannot see the figure.
        colour: a name of `COLOURS`.

    Returns:
        the SVG, or None when no row holds the key.
    """
    points = [(row["step"], row[key]) for row in rows if _finite(row.get(key))]
    if not points:
        return None
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    width = max(1, len(values) // 20)
    with canvas(4.4, 2.4, label) as (axes, svg):
        if width > 1:
            axes.plot(steps, values, color=COLOURS[colour], linewidth=0.8, alpha=0.3)
        marker = "o" if len(values) < 15 else None
        axes.plot(
            steps, _smooth(values, width), color=COLOURS[colour], linewidth=2, marker=marker, markersize=4
        )
        axes.set_xlabel("step")
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.02)
        if values.min() >= 0:
            axes.set_ylim(0, 1.08 * values.max() or 1)  # a small change shall look small
        else:
            axes.axhline(0, color=MUTED, linewidth=0.8)
    return svg[0]


def shares(rows: Sequence[Mapping[str, Any]], parts: Mapping[str, tuple[str, str]], label: str) -> str | None:
    """Shares of one whole over the training steps as inline SVG, one on top of the other from 0 to 1.

    Args:
        rows: `{"step": int, key: share, …}`; rows that lack one of the keys are left out.
        parts: key → its name in the legend and its colour, a name of `COLOURS`; from the bottom up.
        label: read to those who cannot see the figure.

    Returns:
        the SVG, or None when no row holds all keys.
    """
    whole = [row for row in rows if all(_finite(row.get(key)) for key in parts)]
    if not whole:
        return None
    names, colours = zip(*parts.values(), strict=True)
    values = np.array([[row[key] for row in whole] for key in parts], dtype=float)
    steps = np.array([row["step"] for row in whole], dtype=float)
    if len(whole) == 1:  # an area needs two
        values, steps = values.repeat(2, axis=1), np.array([steps[0] - 0.5, steps[0] + 0.5])
    with canvas(4.4, 2.4, label) as (axes, svg):
        axes.stackplot(
            steps, values, labels=names, colors=[COLOURS[colour] for colour in colours], alpha=0.75
        )
        axes.set_ylim(0, 1)
        _over_steps(axes)
    return svg[0]


def lines(rows: Sequence[Mapping[str, Any]], parts: Mapping[str, tuple[str, str]], label: str) -> str | None:
    """Several figures over the training steps as inline SVG; arguments and result as for `shares`."""
    whole = [row for row in rows if all(_finite(row.get(key)) for key in parts)]
    if not whole:
        return None
    steps = [row["step"] for row in whole]
    with canvas(4.4, 2.4, label) as (axes, svg):
        for key, (name, colour) in parts.items():
            values = [row[key] for row in whole]
            axes.plot(steps, values, "o-", color=COLOURS[colour], label=name, linewidth=2, markersize=3)
        axes.set_ylim(bottom=0)
        _over_steps(axes)
    return svg[0]


def _over_steps(axes: Axes) -> None:
    """Training steps from left to right, the legend above."""
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.02)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        ncols=4,
        fontsize=8,
        borderpad=0,
        handlelength=1,
        handletextpad=0.4,
        columnspacing=1,
    )


def bars(
    names: Sequence[str], means: Sequence[float], intervals: Sequence[Sequence[float]], kinds: Sequence[str]
) -> str:
    """Horizontal bars of nDCG@10 with their 95 % intervals as inline SVG, first bar on top.

    Args:
        names: one a bar.
        means: lengths of the bars.
        intervals: low and high of each bar.
        kinds: names of `COLOURS`, one a bar.
    """
    places = np.arange(len(names))[::-1]
    low, high = np.array(intervals, dtype=float).T
    centre = np.array(means, dtype=float)
    label = "nDCG@10: " + ", ".join(f"{name} {mean:.3f}" for name, mean in zip(names, means, strict=True))
    with canvas(4.4, 0.5 + 0.36 * len(names), label) as (axes, svg):
        axes.barh(places, centre, height=0.62, color=[COLOURS[kind] for kind in kinds], alpha=0.85)
        errors = np.clip([centre - low, high - centre], 0, None)
        axes.errorbar(centre, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for place, mean, end in zip(places, means, high, strict=True):
            axes.annotate(
                f"{mean:.3f}",
                (end, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_yticks(places, names, parse_math=False)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(0, max(float(high.max()) * 1.18, 0.01))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    return svg[0]


@contextmanager
def canvas(width: float, height: float, label: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, in inches; the SVG text lies in the list once the block has ended."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), svg
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML prologue, which names an external DTD
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| font-family: [^;"]*;?', "", text)  # HTML needs none of them
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*pt" height="[^"]*pt"', r"<svg \1", text, count=1)
    svg.append(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over `width` values around each, fewer at the ends."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
