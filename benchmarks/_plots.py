"""The two plots of the environment's benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "frozen": "#b0b0b0",
    "random": "#8c8c8c",
    "neighbourhood": "#7a9cc6",
    "certified_plain": "#4f6d8f",
    "corrector": "#9bbf85",
    "neighbourhood_corrected": "#5b8c5a",
    "certified_early": "#eab676",
    "default": "#d9822b",
}
LABELS = {
    "default": "certified + corrector (default)",
    "certified_plain": "certified, nothing corrected",
    "certified_early": "… stopping early",
    "neighbourhood_corrected": "neighbourhood + corrector",
    "corrector": "random + corrector",
}
TITLES = {"base": "the recipe's learning rate", "five": "five times it"}


def fidelity_picture(
    trajectories: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], folder: Path
) -> None:
    """Spearman at the audited steps of each policy, a panel a trajectory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(trajectories), sharey=True, squeeze=False)[0]
    for axes, (name, policies) in zip(panels, trajectories.items(), strict=True):
        for policy, steps in policies.items():
            points = [(one["step"], one["spearman"]) for one in steps if one["spearman"] is not None]
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                color=COLOURS[policy],
                label=LABELS.get(policy, policy),
                linewidth=2.4 if policy == "default" else 1.4,
                markersize=3,
            )
        axes.axhline(0.99, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(title=TITLES[name], xlabel="training step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Spearman of the advantages\nwith those of a fresh corpus")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.savefig(folder / "environment-fidelity.png")


def growth_picture(growth: Mapping[str, Sequence[Sequence[float]]], folder: Path) -> None:
    """Spearman over the rows encoded at a step, a line a size of the corpus."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (size, curve), colour in zip(growth.items(), ("#f2c18d", "#d9822b", "#8c4a0c"), strict=False):
        rows, spearman, _ = zip(*curve, strict=True)
        axes.plot(rows, spearman, "o-", color=colour, label=f"{int(size):,} documents", markersize=3)
    axes.axhline(0.99, color="#888888", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="documents encoded at a refresh", ylabel="Spearman of the advantages")
    axes.set_xticks(rows, [f"{count:.0f}" for count in rows])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "environment-growth.png")
