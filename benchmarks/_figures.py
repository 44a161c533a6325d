"""The figures of the environment's benchmark, from what its parts have measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from _growth import rows_needed
from _replay import Step
from _result import interval

FASTER = {"base": 1, "five": 5}  # trajectory → times the recipe's learning rate


def figures(parts: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """All figures of the parts that there are, flat."""
    found: dict[str, float | None] = {}
    trajectories = [name for name in FASTER if name in parts]
    for name in trajectories:
        found |= {f"{name}.documents": parts[name]["documents"]}
        for policy, steps in parts[name]["policies"].items():
            rows = [Step(**{key: np.nan if v is None else v for key, v in step.items()}) for step in steps]
            found |= {f"{name}.{policy}.{key}": value for key, value in of_policy(rows).items()}
        found[f"{name}.audited_steps"] = sum(step["spearman"] is not None for step in steps)
    if len(trajectories) == len(FASTER):
        found |= headline(found, trajectories)
    if "growth" in parts:
        part = parts["growth"]
        found |= of_growth(part["curves"]) | part["drift"] | {"document_seconds": part["document_seconds"]}
    if "closed" in parts:
        found |= of_closed(parts["closed"])
    return found | parts.get("topk", {})


def of_policy(steps: Sequence[Step]) -> dict[str, float | None]:
    """Means over the steps after the first; what is held against the oracle, over the audited ones.

    Where no group varies there is nothing to rank: such a step has no correlation, and is counted apart. The
    first half is where the learning rate, falling to zero, is highest.
    """
    later = steps[1:]
    checked = [step for step in later if np.isfinite(step.reward_error)]
    ranked = [step for step in checked if np.isfinite(step.spearman)]
    first_half = [step for step in checked[: (len(checked) + 1) // 2] if step in ranked]
    bounded = [step for step in checked if np.isfinite(step.bound)]
    return {
        "share_reencoded_mean": fmean(step.share for step in later),
        "share_with_first_mean": (1 + sum(step.share for step in later)) / len(steps),
        "token_share_mean": fmean(step.token_share for step in later),
        "advantage_spearman_mean": _mean(step.spearman for step in ranked),
        "advantage_spearman_min": min((step.spearman for step in ranked), default=None),
        "advantage_spearman_first_half": _mean(step.spearman for step in first_half),
        "advantage_spearman_end": _mean(step.spearman for step in checked[-3:] if step in ranked),
        "advantage_spearman_last": ranked[-1].spearman if ranked else None,
        "advantage_cosine_mean": _mean(step.cosine for step in ranked),
        "steps_without_variance": len(checked) - len(ranked),
        "reward_error_mean": fmean(step.reward_error for step in checked),
        "top10_overlap_mean": fmean(step.top10 for step in checked),
        "drift_last": checked[-1].drift,
        "groups_varied_mean": fmean(step.varied for step in checked),
        "seconds_median": median(step.seconds for step in later),
        "bound_mean": fmean(step.bound for step in bounded) if bounded else None,
        "bound_held": fmean(step.reward_error <= step.bound for step in bounded) if bounded else None,
        "bound_there": len(bounded) / len(checked),
    }


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def headline(found: dict[str, float | None], trajectories: Sequence[str]) -> dict[str, float | None]:
    """Of the default policy, at the worse of the learning rates; None where one is not defined.

    A trajectory counts if `frozen` ends at 0.90 or less and at least a fifth of its groups vary: on another
    any policy would do. Its end is the mean of the last three audited steps, for a single step's figure, of
    128 rollouts, moves by a tenth from one to the next; that of the last one is published too.
    """

    def worst(key: str, of: Callable[[list[float]], float]) -> float | None:
        values = [found[f"{name}.default.{key}"] for name in trajectories]
        known = [value for value in values if value is not None and np.isfinite(value)]
        return of(known) if len(known) == len(values) else None

    counts = {}
    for name in trajectories:
        frozen, varied = (
            found[f"{name}.frozen.{key}"] for key in ("advantage_spearman_end", "groups_varied_mean")
        )
        counts[f"{name}.counts"] = int((frozen or 0) <= 0.9 and (varied or 0) >= 0.2)
    if not all(counts.values()):
        return counts
    return counts | {
        "share_reencoded_mean": worst("share_reencoded_mean", max),
        "advantage_spearman_mean": worst("advantage_spearman_mean", min),
        "advantage_spearman_min": worst("advantage_spearman_min", min),
        "advantage_cosine_mean": worst("advantage_cosine_mean", min),
    }


def of_growth(part: dict[str, list[list[float]]]) -> dict[str, float | None]:
    """Rows needed at each size, and, if all are known, their slope over the size, both as logarithms."""
    found: dict[str, float | None] = {}
    needed = {}
    for size, curve in part.items():
        rows, spearman, seconds = zip(*curve, strict=True)
        needed[int(size)] = found[f"rows_needed_{size}"] = rows_needed(rows, spearman)
        found[f"rows_spearman_best_{size}"] = max(spearman)
        found[f"refresh_seconds_{size}"] = median(seconds)
    known = [rows for rows in needed.values() if rows is not None]
    whole = len(known) == len(needed) > 1
    slope = float(np.polyfit(np.log(list(needed)), np.log(known), 1)[0]) if whole else None
    return {**found, "rows_slope": slope}


def of_closed(part: dict[str, Any]) -> dict[str, float | None]:
    """The gap (full − default) with Student's 95 % interval over the seeds, and what was saved."""
    full, default = part["full"], part["default"]
    gaps = [a["ndcg"] - b["ndcg"] for a, b in zip(full, default, strict=True)]
    gap, low, high = interval(gaps)

    def saved(*kinds: str) -> float:
        more, fewer = (sum(one[kind] for one in arm for kind in kinds) for arm in (full, default))
        return more / fewer

    return {
        "closed_documents": part["documents"],
        "closed_seeds": len(gaps),
        "closed_ndcg_full": fmean(one["ndcg"] for one in full),
        "closed_ndcg_default": fmean(one["ndcg"] for one in default),
        "closed_ndcg_frozen": fmean(one["ndcg"] for one in part["frozen"]),
        "final_ndcg_gap": gap,
        "final_ndcg_gap_low": low,
        "final_ndcg_gap_high": high,
        "tokens_saved_ratio": saved("tokens"),
        "tokens_saved_ratio_with_contrastive": saved("tokens", "contrastive_tokens"),
    }
