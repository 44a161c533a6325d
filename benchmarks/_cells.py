"""The figures of benchmarks/evidence.py: a cell is what one arm found on one test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from searchr3.evaluation.statistics import bootstrap_ci, holm, paired_difference, pooled_differences

ARMS = ("bm25", "direct1", "reasoned1", "direct2", "reasoned2", "auto", "st_mnrl", "rival", "control_a")
OWN = "reasoned2"
TO_BEAT = ("direct1", "direct2", "control_a")
"""What `OWN` must be significantly above on a test set, for thinking to have helped there."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Case:
    """A test set and what each arm found there.

    Attributes:
        values: arm → query id → nDCG@10; the same queries in all. Arms may be missing.
        tokens: of the arms that think, mean thinking tokens a query.
        emission: of these, the share of the thoughts that ended by themselves; None where none thought.
        counts: whether it is one of the packs of the headline: each test set is counted once.
    """

    values: Mapping[str, Mapping[str, float]]
    tokens: Mapping[str, float] = field(default_factory=dict)
    emission: Mapping[str, float | None] = field(default_factory=dict)
    counts: bool = True

    def row(self, arm: str) -> np.ndarray:
        """(queries,) in the order of the first arm."""
        ids = next(iter(self.values.values()))
        return np.array([self.values[arm][query] for query in ids])


def figures(cases: Mapping[str, Case]) -> Figures:
    """All cells, `CASE.ARM.FIGURE`, and the headline.

    A cell holds nDCG@10 with its 95 % interval (`ndcg`, `low`, `high`), how far `OWN` is above it (`behind`,
    with interval and uncorrected `p`), and of arms that think `tokens` and `emission`.
    """
    found: Figures = {}
    for name, case in cases.items():
        for arm in (arm for arm in ARMS if arm in case.values):
            found |= {f"{name}.{arm}.{key}": value for key, value in _cell(case, arm).items()}
    return {**headline({name: case for name, case in cases.items() if case.counts}), **found}


def _cell(case: Case, arm: str) -> Figures:
    row = case.row(arm)
    low, high = bootstrap_ci(row)
    found: Figures = {"ndcg": float(row.mean()), "low": float(low), "high": float(high)}
    if OWN in case.values and arm != OWN:
        above = paired_difference(case.row(OWN), row)
        found |= {
            "behind": above.mean,
            "behind_low": above.ci95[0],
            "behind_high": above.ci95[1],
            "p": above.p,
        }
    if arm in case.tokens:
        found |= {"tokens": case.tokens[arm], "emission": case.emission.get(arm)}
    return found


def headline(cases: Mapping[str, Case]) -> Figures:
    """On how many packs thinking helped, what stage 1 has over MNRL, and what adaptive thinking keeps."""
    helped = thinking_helped(cases)
    found: Figures = {"packs": len(cases), "packs_reasoned_significantly_better": len(helped)}
    gains = [case.row("direct1") - case.row("st_mnrl") for case in cases.values() if "st_mnrl" in case.values]
    if gains:
        (whole,) = pooled_differences([values[:, None] for values in gains])
        name, (low, high) = "stage1_over_st_mnrl_mean", whole.ci95
        found |= {name: whole.mean, f"{name}_low": low, f"{name}_high": high}
    return found | adaptive([cases[name] for name in helped])


def thinking_helped(cases: Mapping[str, Case]) -> list[str]:
    """The cases in which `OWN` is above each of `TO_BEAT`, p below 0.05.

    The p of a case is the largest of its comparisons', for one failure is enough to lose (intersection-union
    test); it is corrected over the cases (Holm).
    """
    whole = [name for name, case in cases.items() if all(arm in case.values for arm in (OWN, *TO_BEAT))]
    corrected = holm([max(_chance(cases[name], arm) for arm in TO_BEAT) for name in whole])
    return [name for name, p in zip(whole, corrected, strict=True) if p < 0.05]


def _chance(case: Case, arm: str) -> float:
    """p of `OWN` being above an arm; 1 where it is not."""
    found = paired_difference(case.row(OWN), case.row(arm))
    return found.p if found.mean > 0 else 1.0


def adaptive(cases: Sequence[Case]) -> Figures:
    """What `auto` keeps of thinking's gain, and spends of its tokens, pooled over the queries of `cases`.

    Null where there is no gain, such as without any case.
    """
    there = [case for case in cases if "auto" in case.values]
    gain = sum(float((case.row(OWN) - case.row("direct2")).sum()) for case in there)
    if gain <= 0:
        return {"adaptive_packs": len(there), "adaptive_gain_share": None, "adaptive_token_share": None}
    kept = sum(float((case.row("auto") - case.row("direct2")).sum()) for case in there)
    spent, whole = (sum(case.tokens[arm] * len(case.values[arm]) for case in there) for arm in ("auto", OWN))
    return {
        "adaptive_packs": len(there),
        "adaptive_gain_share": kept / gain,
        "adaptive_token_share": spent / whole if whole else None,
    }
