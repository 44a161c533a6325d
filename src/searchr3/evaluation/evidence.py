"""Does thinking help, and is it the thinking? What trained arms and controls show, as pure functions.

Every run has a value (nDCG@10) for each seed and test query. A figure is a mean over both. Its interval is
the bootstrap over queries of the values averaged over seeds: how it would be with other queries and these
seeds. How far the seeds lie apart is told beside it: the mean of each, and Student's interval from three on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from searchr3.evaluation.pages import signed
from searchr3.evaluation.statistics import bootstrap_ci, direction, holm, paired_differences

OWN = "reasoned2"
"""What is held against everything else: stage 2, after thinking."""


@dataclass(frozen=True)
class Comparator:
    """A run that `OWN` is held against.

    Attributes:
        name: for people.
        place: file of results and run in it.
        as_good: what follows where `OWN` is not above it.
    """

    name: str
    place: tuple[str, str]
    as_good: str = ""


RUNS: Mapping[str, Comparator] = {
    "direct1": Comparator(
        "stage 1, direct",
        ("stage1", "direct"),
        "all that stage 2 has added does not pay over the plain start",
    ),
    "reasoned1": Comparator("stage 1, reasoned", ("stage1", "reasoned")),
    "direct2": Comparator(
        "stage 2, direct", ("stage2", "direct"), "the same model searches as well without its thoughts"
    ),
    OWN: Comparator("stage 2, reasoned", ("stage2", "reasoned")),
    "control_a": Comparator(
        "(a) direct only",
        ("direct_only", "direct"),
        "the new labels teach direct search as much, at equal cost",
    ),
    "control_b": Comparator(
        "(b) no policy gradient",
        ("no_policy", "reasoned"),
        "the contrastive term teaches as much without the reward",
    ),
    "control_c": Comparator("(c) no contrastive term", ("no_contrastive", "reasoned")),
    "control_d": Comparator(
        "(d) another query's thought", ("stage2", "other_trace"), "what the thought says does not matter"
    ),
    "control_e": Comparator(
        "(e) filler tokens", ("stage2", "filler"), "room to compute in is worth as much as words"
    ),
    "control_f": Comparator(
        "(f) the query repeated", ("stage2", "repeated"), "reading the query twice is worth as much"
    ),
    "control_g": Comparator("(g) BM25, query + thought", ("stage2", "bm25+trace")),
    "control_b_direct": Comparator("(b), direct", ("no_policy", "direct")),
    "control_c_direct": Comparator("(c), direct", ("no_contrastive", "direct")),
    "bm25": Comparator("BM25", ("bm25", "bm25")),
    "rival": Comparator("rival", ("rival", "")),
}
"""All runs that evidence may hold, in the order in which they are shown."""

TO_BEAT = ("direct1", "direct2", "control_a", "control_d", "control_e", "control_f")
"""Thinking has helped only if `OWN` is significantly above each of these."""
WITHOUT_REWARD = "control_b"
"""Reinforcement has helped only if `OWN` is significantly above this."""
STAGES = ("direct1", "reasoned1", "direct2", "reasoned2")
_ASIDE = ("control_b_direct", "control_c_direct")  # shown, but not held against `OWN`
_SUBJECT = RUNS[OWN].name.capitalize()


def weigh(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, differences and the verdict.

    `reasoned2_minus_best_control` is the difference to the best of `TO_BEAT` by mean, and so the least of the
    differences. Its bounds do not profit from that choice. `_low` is the least of the lower bounds: above 0
    it says that `OWN` is above all of them, each tested at its own level (intersection-union test: Berger,
    Technometrics 24, 1982). `_high` is the least of the upper bounds, each taken at 1 − 0.025 / k for the k
    controls (Bonferroni): one of them is below its control by chance k times as easily.

    Args:
        values: run, a key of `RUNS` → nDCG@10, (seeds, queries); (1, queries) of a run that has no seed. The
            same queries in all. Runs may be missing, `OWN` may not.

    Returns:
        `{run: mean, "reasoned2_minus_best_control", …_low, …_high, "best_control", "runs", "differences",
        "verdict"}`. `runs` holds `{"name", "title", "ndcg@10", "ci95", "seeds", "seeds_ci95"}`; `differences`
        holds `{"a", "b", "metric", "mean", "ci95", "p", "p_holm", "seeds", "seeds_ci95"}`, corrected among
        each other.

    Raises:
        KeyError: `OWN` is missing.
    """
    shown = [name for name in RUNS if name in values]
    rows = differences({name: values[name] for name in shown if name not in _ASIDE}, OWN)
    beside = {row["b"]: row for row in rows}
    found: dict[str, Any] = {name: float(values[name].mean()) for name in shown}
    found |= _best_control(values, beside)
    lows, highs = bootstrap_ci(np.stack([values[name].mean(axis=0) for name in shown], axis=1))
    found["runs"] = [
        {
            "name": name,
            "title": RUNS[name].name,
            "ndcg@10": found[name],
            "ci95": [float(low), float(high)],
            **_of_seeds(values[name]),
        }
        for name, low, high in zip(shown, lows, highs, strict=True)
    ]
    return found | {"differences": rows, "verdict": verdict(beside, values[OWN].shape[1])}


def differences(values: Mapping[str, np.ndarray], own: str) -> list[dict[str, Any]]:
    """`own` minus each of the others, in their order; arguments and result as for `weigh`."""
    others = [name for name in values if name != own]
    if not others:
        return []
    mine = np.tile(values[own].mean(axis=0)[:, None], len(others))
    theirs = np.stack([values[name].mean(axis=0) for name in others], axis=1)
    found = paired_differences(mine, theirs)
    corrected = holm([one.p for one in found])
    return [
        {
            "a": own,
            "b": name,
            "metric": "ndcg@10",
            "mean": one.mean,
            "ci95": [*one.ci95],
            "p": one.p,
            "p_holm": p,
            **_of_seeds(values[own] - values[name]),
        }
        for name, one, p in zip(others, found, corrected, strict=True)
    ]


def _best_control(
    values: Mapping[str, np.ndarray], beside: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    there = [name for name in TO_BEAT if name in beside]
    if not there:
        return {"best_control": None}
    best = min(there, key=lambda name: beside[name]["mean"])
    apart = np.stack([(values[OWN] - values[name]).mean(axis=0) for name in there], axis=1)
    _, highs = bootstrap_ci(apart, level=1 - 0.05 / len(there))
    return {
        "best_control": best,
        "reasoned2_minus_best_control": beside[best]["mean"],
        "reasoned2_minus_best_control_low": min(beside[name]["ci95"][0] for name in there),
        "reasoned2_minus_best_control_high": float(highs.min()),
    }


def _of_seeds(values: np.ndarray) -> dict[str, Any]:
    """The mean of each seed, and from three on Student's 95 % interval of their mean."""
    means = values.mean(axis=1)
    return {"seeds": means.tolist(), "seeds_ci95": student_interval(means.tolist())}


def student_interval(means: Sequence[float]) -> list[float] | None:
    """Student's 95 % interval of a mean; None for fewer than three values.

    >>> [round(bound, 3) for bound in student_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    if len(means) < 3:
        return None
    from scipy.stats import t

    values = np.asarray(means, dtype=np.float64)
    half = float(t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / len(values) ** 0.5
    return [float(values.mean()) - half, float(values.mean()) + half]


# Words


def verdict(beside: Mapping[str, Mapping[str, Any]], queries: int) -> dict[str, Any]:
    """What the differences say, in words.

    Args:
        beside: run → the difference of `OWN` to it.
        queries: how many there are.

    Returns:
        `{"thinking_helped", "reinforcement_helped", "sentences"}`; the first two are null where a run is
        missing that would have to be beaten, unless another one is not beaten anyway.
    """
    thinking = _above_all(beside, TO_BEAT)
    reinforcement = _above_all(beside, (WITHOUT_REWARD,))
    sentences = [
        *_claim("Thinking", thinking, beside, TO_BEAT, queries),
        *_claim("Reinforcement", reinforcement, beside, (WITHOUT_REWARD,), queries),
        *_seeds_that_agree(beside),
        *_seeds_that_disagree(beside),
        *_few_seeds(beside),
    ]
    return {"thinking_helped": thinking, "reinforcement_helped": reinforcement, "sentences": sentences}


def _way(row: Mapping[str, Any]) -> int:
    return direction(row["ci95"], row["p"])


def _above_all(beside: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> bool | None:
    if any(name in beside and _way(beside[name]) <= 0 for name in names):
        return False
    return True if all(name in beside for name in names) else None


def _claim(
    what: str,
    helped: bool | None,
    beside: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    queries: int,
) -> list[str]:
    there = [name for name in names if name in beside]
    if helped is None:
        missing = [RUNS[name].name for name in names if name not in there]
        return [f"Whether {what.lower()} helped is open: not measured against {_listed(missing)}."]
    above = [name for name in there if _way(beside[name]) > 0]
    below = [name for name in there if _way(beside[name]) < 0]
    level = [name for name in there if name not in (*above, *below)]
    parts = {name: _apart(name, beside[name]) for name in there}
    if helped:
        sentence = f"{what} helped: {RUNS[OWN].name} is significantly above {_listed([*parts.values()])}."
        return [sentence]
    sentences = [f"{what} did not help."]
    if below:
        sentences.append(f"{_SUBJECT} is significantly below {_listed([parts[name] for name in below])}.")
    if level:
        among = _listed([parts[name] for name in level])
        sentences.append(f"On {queries:,} queries {RUNS[OWN].name} cannot be told apart from {among}.")
    if above:
        sentences.append(f"{_SUBJECT} is significantly above {_listed([parts[name] for name in above])}.")
    reasons = [f"{RUNS[name].as_good} [{RUNS[name].name}]" for name in (*below, *level)]
    return [*sentences, f"What this says: {'; '.join(reasons)}."]


def _significant(beside: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any], int]]:
    """What was to be beaten and is not level: its name, its difference, how many seeds have another sign."""
    rows = [(name, beside[name]) for name in (*TO_BEAT, WITHOUT_REWARD) if name in beside]
    return [
        (name, row, sum(seed * row["mean"] <= 0 for seed in row["seeds"])) for name, row in rows if _way(row)
    ]


def _seeds_that_agree(beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where three seeds or more are of one sign; two may be so by chance every other time."""
    of_one_sign = [(name, row) for name, row, wrong in _significant(beside) if not wrong]
    names = [RUNS[name].name for name, row in of_one_sign if len(row["seeds"]) >= 3]
    if not names:
        return []
    seeds = len(of_one_sign[0][1]["seeds"])
    return [f"All {seeds} seeds have one sign on {_listed(names)}."]


def _seeds_that_disagree(beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Significant over queries, but not over the seeds: of both signs, or too far apart."""
    sentences = []
    for name, row, wrong in _significant(beside):
        if wrong:
            sentences.append(
                f"The seeds disagree on {RUNS[name].name}: "
                f"{wrong} of {len(row['seeds'])} have the other sign."
            )
        elif row["seeds_ci95"] and row["seeds_ci95"][0] <= 0 <= row["seeds_ci95"][1]:
            low, high = map(signed, row["seeds_ci95"])
            sentences.append(
                f"For other seeds the difference to {RUNS[name].name} is open: "
                f"{low} to {high} by Student's t."
            )
    return sentences


def _few_seeds(beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    seeds = max((len(row["seeds"]) for row in beside.values()), default=0)
    if not 0 < seeds < 3:
        return []
    word = "seed" if seeds == 1 else "seeds"
    return [f"This is of {seeds} {word}: how far trainings differ by chance is not known."]


def _apart(name: str, row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{RUNS[name].name} ({signed(row['mean'])}, {signed(low)} to {signed(high)})"


def _listed(parts: Sequence[str]) -> str:
    """
    >>> _listed(["one", "two", "three"])
    'one, two and three'
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


# Labels


def label_point(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What thinking is worth at one number of labels: reasoned minus direct of both stages.

    Args:
        values: each of `STAGES` → (seeds, queries).

    Returns:
        their means, and "stage1" and "stage2" → the difference, as in `weigh`.
    """
    found: dict[str, Any] = {name: float(one.mean()) for name, one in values.items()}
    for stage in ("1", "2"):
        pair = {name: values[name] for name in (f"reasoned{stage}", f"direct{stage}")}
        found[f"stage{stage}"] = differences(pair, f"reasoned{stage}")[0]
    return found
