"""The pictures of a page of results: forest plots, curves over a budget, quality against what it costs.

Kinds of runs differ in colour, in lightness and in the form of their points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from searchr3.evaluation.figures import COLOURS, INK, MUTED, canvas
from searchr3.evaluation.pages import signed
from searchr3.words import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMS = {"direct": "o", "reasoned": "o", "accent": "o", "control": "s", "baseline": "D"}
_NAME = 27  # characters


class Bar(NamedTuple):
    """A difference: its name, mean and 95 % interval; a pooled one is drawn as a diamond."""

    name: str
    mean: float
    ci95: tuple[float, float]
    colour: str = "reasoned"
    pooled: bool = False


class Spot(NamedTuple):
    """A run: where it stands, and the interval of its quality where that is known."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    colour: str = "accent"


class Step(NamedTuple):
    """A point of a curve: its place on the axis, quality and interval."""

    name: str
    y: float
    low: float | None = None
    high: float | None = None


def forest(bars: Sequence[Bar], what: str) -> str:
    """Differences in nDCG@10 with their intervals, first on top, 0 as a line, as inline SVG."""
    told = (f"{bar.name} {signed(bar.mean)} ({signed(bar.ci95[0])} to {signed(bar.ci95[1])})" for bar in bars)
    with canvas(4.4, 0.65 + 0.3 * len(bars), f"{what}: {', '.join(told)}") as (axes, svg):
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, bar in zip(range(len(bars))[::-1], bars, strict=True):
            colour = COLOURS[bar.colour]
            axes.plot(bar.ci95, [place, place], color=colour, linewidth=2.4 if bar.pooled else 1.6)
            form = "D" if bar.pooled else _FORMS[bar.colour]
            axes.plot(bar.mean, place, form, color=colour, markersize=8 if bar.pooled else 6)
            axes.text(
                1.03,
                place,
                signed(bar.mean),
                transform=axes.get_yaxis_transform(),
                va="center",
                color=INK,
                weight="bold" if bar.pooled else "normal",
            )
        names = [shortened(bar.name, _NAME) for bar in bars]
        axes.set_yticks(range(len(bars))[::-1], names, parse_math=False)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
        axes.set_ylim(-0.7, len(bars) - 0.3)
        axes.set_xlabel("difference in nDCG@10")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    return svg[0]


def ladder(steps: Sequence[Step], xlabel: str, what: str, level: tuple[str, float] | None = None) -> str:
    """nDCG@10 over steps that lie evenly, such as budgets that double, with its interval, as inline SVG.

    Args:
        steps: from left to right.
        xlabel: what the steps are.
        what: read to those who cannot see the figure, before the values.
        level: name and nDCG@10 of what the steps are compared with, drawn as a horizontal line.
    """
    told = [f"{step.name}: {step.y:.3f}" for step in steps]
    told += [f"{level[0]}: {level[1]:.3f}"] if level else []
    places = np.arange(len(steps))
    values = np.array([step.y for step in steps])
    low = np.array([step.y if step.low is None else step.low for step in steps])
    high = np.array([step.y if step.high is None else step.high for step in steps])
    with canvas(4.4, 2.6, f"{what}. {', '.join(told)}") as (axes, svg):
        axes.fill_between(places, low, high, color=COLOURS["reasoned"], alpha=0.18, linewidth=0)
        axes.plot(places, values, "o-", color=COLOURS["reasoned"], linewidth=2, markersize=5)
        ends = [low.min(), high.max()]
        if level:
            axes.axhline(level[1], color=COLOURS["direct"], linewidth=1.6, linestyle="--")
            axes.text(
                0.99,
                level[1],
                level[0],
                transform=axes.get_yaxis_transform(),
                va="bottom",
                ha="right",
                color=COLOURS["direct"],
                parse_math=False,
            )
            ends += [level[1]]
        axes.set_xticks(places, [step.name for step in steps], parse_math=False)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", visible=False)
        _roomy(axes, min(ends), max(ends))
    return svg[0]


def scatter(
    spots: Sequence[Spot], xlabel: str, what: str, logarithmic: bool = False, path: Sequence[Spot] = ()
) -> str:
    """nDCG@10 of runs against what they cost, each with its name at the right, as inline SVG.

    Args:
        spots: one a run.
        xlabel: what is on the horizontal axis.
        what: read to those who cannot see the figure, before the values.
        logarithmic: the horizontal axis; every x must be above 0.
        path: further points, joined by a line and without names.
    """
    told = (f"{spot.name}: {spot.y:.3f} at {spot.x:.3g}" for spot in spots)
    with canvas(4.4, 2.9, f"{what}. {', '.join(told)}") as (axes, svg):
        if logarithmic:
            axes.set_xscale("log")
            axes.minorticks_off()
        if path:
            along = sorted(path, key=lambda spot: spot.x)
            axes.plot(
                [spot.x for spot in along],
                [spot.y for spot in along],
                ".-",
                color=COLOURS["accent"],
                linewidth=1.4,
            )
        for spot in spots:
            if spot.low is not None and spot.high is not None:
                axes.plot([spot.x] * 2, [spot.low, spot.high], color=COLOURS[spot.colour], linewidth=1)
            axes.plot(spot.x, spot.y, _FORMS[spot.colour], color=COLOURS[spot.colour], markersize=7)
        every = [*spots, *path]
        _roomy(
            axes,
            min(spot.y if spot.low is None else spot.low for spot in every),
            max(spot.y if spot.high is None else spot.high for spot in every),
        )
        axes.set_xlabel(xlabel)
        axes.margins(x=0.1)
        if logarithmic:
            ticks = _readable(*axes.get_xlim())
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        low, high = axes.get_ylim()
        for spot, height in zip(spots, _spread([(s.y - low) / (high - low) for s in spots]), strict=True):
            axes.annotate(
                shortened(spot.name, _NAME),
                (spot.x, spot.y),
                xytext=(1.06, height),
                textcoords="axes fraction",
                va="center",
                color=INK,
                fontsize=9,
                parse_math=False,
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": MUTED,
                    "linewidth": 0.5,
                    "shrinkA": 1,
                    "shrinkB": 4,
                    "relpos": (0, 0.5),  # from the left end of the name
                },
            )
    return svg[0]


def _roomy(axes: Axes, low: float, high: float) -> None:
    """Limits around what is shown; a difference that is nothing shall not fill the figure."""
    middle, half = (low + high) / 2, max(0.58 * (high - low), 0.02)
    axes.set_ylim(max(middle - half, min(0.0, low)), middle + half)


def _readable(low: float, high: float) -> list[float]:
    """A few ticks of a logarithmic axis between two numbers above 0; on a short one they lie evenly.

    >>> _readable(0.004, 30), _readable(0.07, 0.6), _readable(0.209, 0.242)
    ([0.01, 0.1, 1.0, 10.0], [0.1, 0.2, 0.5], [0.21, 0.22, 0.23, 0.24])
    """
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{step}e{power}") for power in powers for step in steps]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // 5)]
    even = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{tick:g}") for tick in even if low <= tick <= high]


def _spread(heights: Sequence[float], gap: float = 0.085) -> list[float]:
    """Heights moved apart until labels of that height are readable, in the same order.

    >>> _spread([0.5, 0.5, 0.1], gap=0.2)
    [0.4, 0.6, 0.1]
    """
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=float)[order]
    gap = min(gap, 1.1 / max(len(placed), 1))
    # isotonic regression of height − gap · rank: the nearest heights, in order, that keep the gap
    blocks: list[list[float]] = []  # mean, size
    for height in placed - gap * np.arange(len(placed)):
        blocks.append([float(height), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    flat = np.repeat([mean for mean, _ in blocks], [int(size) for _, size in blocks])
    result = np.empty(len(placed))
    result[order] = flat + gap * np.arange(len(placed))
    return [round(float(height), 6) for height in result]
