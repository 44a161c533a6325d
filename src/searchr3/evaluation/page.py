"""A page of results: what any set of evaluations found, whole in one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from searchr3.evaluation.collection import Collection, Evaluation, weights
from searchr3.evaluation.controls import WITHOUT_MODEL
from searchr3.evaluation.page_figures import Bar, Spot, Step, forest, ladder, scatter
from searchr3.evaluation.pages import model_name, render, run_name
from searchr3.evaluation.saved import Paired, Point, Saved, SavedDifference, SavedRun
from searchr3.evaluation.statistics import RESAMPLES, Difference, direction, pooled_differences
from searchr3.ranking import METRICS
from searchr3.version import __version__
from searchr3.words import shortened

METRIC = METRICS[0]
_TOLD = (METRIC, "p-mrr")  # of all differences
_KINDS = {"own": "The model", "control": "Controls", "baseline": "Baselines"}
_WAYS = {"above": 1, "below": -1}
_FASTEST = 1e-6  # seconds a query; nothing is drawn left of it


def render_page(collection: Collection) -> str:
    """The page as HTML text; every part whose figures are not there is left out.

    Raises:
        DataError: the values beside an evaluation are not its own.
    """
    shown = [_shown(one, place) for place, one in enumerate(collection.evaluations, start=1)]
    effects = [_effect(group) for group in collection.groups]
    effects = [effect for effect in effects if effect["rows"] or effect["controls"]]
    titles = Counter(effect["title"] for effect in effects)
    for effect in effects:
        if titles[effect["title"]] > 1:  # a model before and after it was trained further
            effect["title"] += f" · files {effect['files'][:8] or 'unknown'}"
    common = _common(shown)
    for one in shown:
        one["own_facts"] = {key: value for key, value in one["facts"].items() if key not in common}
    return render(
        "results.html.j2",
        title=collection.title,
        sets=shown,
        grouped=any(one.group for one in collection.evaluations),
        queries=sum(one.found.queries for one in collection.evaluations),
        metrics=METRICS,
        overview=_overview(collection.evaluations),
        effects=effects,
        forest=_forest(effects),
        across=[row.dump() for row in collection.across if row.metric == METRIC],
        corrected=any(row.p_holm is not None for effect in effects for _, row in effect["rows"]),
        missing=collection.missing,
        common=common,
        resamples=RESAMPLES,
        version=__version__,
    )


def _shown(one: Evaluation, place: int) -> dict[str, Any]:
    """All that the page says of one evaluation."""
    found = one.found
    rows = [
        {"label": run_name(run.name), "kind": _colour(run), "run": _with_cost(run, one)} for run in found.runs
    ]
    roles = [run.role for run in found.runs]
    kinds = [
        (title, [row for row, of in zip(rows, roles, strict=True) if of == role])
        for role, title in _KINDS.items()
    ]
    tokens, thoughts = "most thinking tokens", "thoughts whose mean is taken"
    drawn = [
        ("Quality over the thinking budget", _ladder(one, "tokens", tokens), _apart(one, "tokens")),
        ("Quality over the number of thoughts", _ladder(one, "samples", thoughts), _apart(one, "samples")),
        ("Quality against seconds a query", _cost(one), ""),
        ("Quality against thinking tokens", _frontier(one), ""),
    ]
    told = dict.fromkeys((row.a, row.b, row.metric) for row in found.differences if row.metric in _TOLD)
    facts = {"model": found.model, "split": found.split} | _facts(found)
    return {
        "id": f"set-{place}",
        "name": one.name,
        "file": str(one.file),
        "found": found,
        "kinds": [(title, members) for title, members in kinds if members],
        "differences": [row.dump() for row in (one.difference(*what) for what in told) if row],
        "figures": [figure for figure in drawn if figure[1]],
        "signals": [signal.dump() for signal in found.uncertainty.signals] if found.uncertainty else [],
        "uncertainty": _facts(found.uncertainty),
        "adaptive": _facts(found.adaptive),
        "p_mrr": any(run.p_mrr is not None for run in found.runs),
        "facts": facts,
    }


def _effect(group: Sequence[Evaluation]) -> dict[str, Any]:
    """What thinking adds in the evaluations of one model: to each, and pooled where that can be.

    "rows" holds (name, reasoned − direct), "pooled" the same differences as means over the data sets by what
    is taken off, "controls" a row of reasoned − control for each data set, "figure" all of it at a glance.
    """
    rows = [(one.name, row) for one in group if (row := one.difference("reasoned", "direct"))]
    pooled = _pooled(group)
    roles = {run.name: run for one in group for run in one.found.runs if run.name != "reasoned"}
    controls = [name for name, run in roles.items() if run.role == "control"]
    table = [(one.name, [one.difference("reasoned", name) for name in controls]) for one in group]
    against: Mapping[str, Difference | SavedDifference | None] = pooled
    if len(group) == 1:
        against = {name: group[0].difference("reasoned", name) for name in roles}
    bars = [
        Bar(f"− {run_name(name)}", row.mean, row.ci95, _colour(roles[name]))
        for name, row in against.items()
        if row
    ]
    title = " · ".join(dict.fromkeys(filter(None, [model_name(group[0].found.model), group[0].stage])))
    return {
        "title": title,
        "files": group[0].thinker[-1],
        "rows": rows,
        "sets": len(group),
        "pooled": pooled,
        "mean": pooled.get("direct"),
        "whole": against.get("direct") or (rows[0][1] if len(rows) == 1 else None),
        "better": sum(_sure(row) > 0 for _, row in rows),
        "worse": sum(_sure(row) < 0 for _, row in rows),
        "corrected": all(row.p_holm is not None for _, row in rows),
        "weakest": min(  # above it for sure is above all of them; BM25 asks another question
            (
                (run_name(name), found)
                for name in controls
                if name != WITHOUT_MODEL and (found := against.get(name))
            ),
            key=lambda pair: pair[1].ci95[0],
            default=None,
        ),
        "control_names": [run_name(name) for name in controls],
        "controls": [row for row in table if any(row[1])],
        "pooled_controls": [pooled.get(name) for name in controls],
        "figure": forest(bars, f"Reasoned minus each other run, {title}") if bars else None,
        "unpooled": len(group) > 1 and not pooled,
        "cost": _price(group),
    }


def _sure(row: Paired) -> int:
    """1 or −1 where a difference is significant, by its corrected p where there is one; else 0."""
    return direction(row.ci95, row.p if row.p_holm is None else row.p_holm)


def _pooled(group: Sequence[Evaluation]) -> dict[str, Difference]:
    """Reasoned minus every other run that all evaluations have, as a mean over the data sets.

    Empty where there is one evaluation, a data set twice, or no values of each query.
    """
    if not _poolable(group) or not all(one.values for one in group):
        return {}
    if not all(one.found.run("reasoned") for one in group):
        return {}
    names = [
        run.name
        for run in group[0].found.runs
        if run.name != "reasoned" and all(one.found.run(run.name) for one in group)
    ]
    if not names:
        return {}
    gains = [_gains(one, names) for one in group]
    return dict(zip(names, pooled_differences(gains, weights=weights(group)), strict=True))


def _poolable(evaluations: Sequence[Evaluation]) -> bool:
    """Several different data sets, one model: a mean over them means something."""
    sets = {(one.found.data, one.found.split) for one in evaluations}
    return len(sets) == len(evaluations) > 1 == len({one.thinker for one in evaluations})


def _gains(one: Evaluation, names: Sequence[str]) -> np.ndarray:
    """(queries, names): reasoned minus each run, in nDCG@10."""
    values = one.values or {}
    reasoned, others = values["reasoned"][METRIC], [values[name][METRIC] for name in names]
    return np.array([[value - other[query] for other in others] for query, value in reasoned.items()])


def _forest(effects: Sequence[Mapping[str, Any]]) -> str | None:
    """Reasoned − direct on every data set, each model's mean below its own."""
    bars = []
    for effect in effects:
        bars += [Bar(name, row.mean, row.ci95) for name, row in effect["rows"]]
        if whole := effect["mean"]:
            name = f"mean of {effect['sets']}" + (f", {effect['title']}" if len(effects) > 1 else "")
            bars.append(Bar(name, whole.mean, whole.ci95, "accent", pooled=True))
    return forest(bars, "Reasoned minus direct on each data set") if len(bars) > 1 else None


def _price(group: Sequence[Evaluation]) -> dict[str, float] | None:
    """Means over the evaluations of what a query takes, thinking and not."""
    pairs = [(one.found.run("reasoned"), one.found.run("direct"), one) for one in group]
    seconds = [(_seconds(a, one), _seconds(b, one), a) for a, b, one in pairs if a and b]
    if not seconds or any(value is None for row in seconds for value in row[:2]):
        return None
    return {
        "tokens": float(np.mean([run.thinking_tokens_mean for _, _, run in seconds])),
        "reasoned": float(np.mean([thinking for thinking, _, _ in seconds])),
        "direct": float(np.mean([direct for _, direct, _ in seconds])),
    }


def _overview(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """nDCG@10 of every run on every data set; of one model its mean too, where all have the run."""
    if len(evaluations) < 2:
        return None
    names = [*dict.fromkeys(run.name for one in evaluations for run in one.found.runs)]
    rows = [
        (one.name, [run.ndcg if (run := one.found.run(name)) else None for name in names])
        for one in evaluations
    ]
    means: list[float | None] = []
    if _poolable(evaluations):
        shares, columns = weights(evaluations), zip(*(values for _, values in rows), strict=True)
        means = [None if None in column else float(np.dot(column, shares)) for column in columns]
    return {"names": [run_name(name) for name in names], "rows": rows, "means": means}


def _curve(one: Evaluation, key: str) -> list[tuple[int, Point]]:
    """The curve of the evaluation over "tokens" or "samples", from left to right."""
    curves = one.found.curves
    points = (curves.budget if key == "tokens" else curves.samples) if curves else ()
    found = [(place, point) for point in points if (place := getattr(point, key)) is not None]
    return sorted(found, key=lambda pair: pair[0])


def _ladder(one: Evaluation, key: str, xlabel: str) -> str | None:
    """A curve of the evaluation, with direct as a line."""
    direct = one.found.run("direct")
    steps = [Step(str(place), point.ndcg, *(point.ci95 or (None, None))) for place, point in _curve(one, key)]
    level = ("direct", direct.ndcg) if direct else None
    return ladder(steps, xlabel, f"nDCG@10 over {xlabel}, {one.name}", level) if steps else None


def _apart(one: Evaluation, key: str) -> str:
    """Where a curve is significantly above or below direct, which the eye cannot tell; "" if not known."""
    told = [(place, row) for place, point in _curve(one, key) if (row := point.minus_direct)]
    if not told:
        return ""
    ways = {way: [str(place) for place, row in told if _sure(row) == sign] for way, sign in _WAYS.items()}
    words = [f"significantly {way} direct at {', '.join(places)}" for way, places in ways.items() if places]
    among = f", corrected for {len(told)} points" if len(told) > 1 else ""
    return f"Query by query{among}: {'; '.join(words) or 'nowhere significantly apart from direct'}."


def _cost(one: Evaluation) -> str | None:
    """One point a run; none where only one is known."""
    known = [(run, seconds) for run in one.found.runs if (seconds := _seconds(run, one)) is not None]
    spots = [_spot(run, max(seconds, _FASTEST)) for run, seconds in known]
    what = f"nDCG@10 against seconds a query, {one.name}"
    return scatter(spots, "seconds a query", what, logarithmic=True) if len(spots) > 1 else None


def _frontier(one: Evaluation) -> str | None:
    """The model's own runs against the tokens that they think, with the frontier of `auto`."""
    if not one.found.adaptive:
        return None
    own = [run for run in one.found.runs if run.role == "own"]
    path = [
        Spot("", point.thinking_tokens_mean, point.ndcg)
        for point in one.found.adaptive.frontier
        if point.thinking_tokens_mean is not None
    ]
    spots = [_spot(run, run.thinking_tokens_mean) for run in own]
    what = f"nDCG@10 against thinking tokens a query, {one.name}"
    return scatter(spots, "thinking tokens a query", what, path=path) if spots else None


def _spot(run: SavedRun, x: float) -> Spot:
    return Spot(run_name(run.name), x, run.ndcg, *run.ci95[METRIC], _colour(run))


def _seconds(run: SavedRun, one: Evaluation) -> float | None:
    """Seconds a query; files that are older than costs tell those of all queries."""
    if "cost" in run.model_fields_set:
        return run.cost.seconds_per_query
    return run.seconds / one.found.queries if one.found.queries else None


def _with_cost(run: SavedRun, one: Evaluation) -> dict[str, Any]:
    return run.dump() | {"seconds_per_query": _seconds(run, one)}


def _colour(run: SavedRun) -> str:
    """A name of `figures.COLOURS`."""
    if run.role != "own":
        return run.role
    return run.name if run.name in ("direct", "reasoned") else "accent"


def _facts(part: Saved | None) -> dict[str, str]:
    """What a file says beyond the keys that have a place on the page: key → value, for people."""
    facts: dict[str, str] = {}
    for key, value in ((part and part.model_extra) or {}).items():
        inner = value if isinstance(value, dict) else {"": value}
        for name, one in inner.items():
            if isinstance(one, str | int | float):
                text = f"{one:.4g}" if isinstance(one, float) else str(one)
                facts[f"{key} {name}".strip().replace("_", " ")] = shortened(text, 300)
    return facts


def _common(shown: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The facts that are the same for all evaluations."""
    first, *others = [one["facts"] for one in shown] or [{}]
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}
