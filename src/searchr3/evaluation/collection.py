"""A set of results, from whatever people have: files of single evaluations, folders of suites, runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from searchr3.errors import DataError
from searchr3.evaluation.pages import model_name
from searchr3.evaluation.results import queries_path
from searchr3.evaluation.saved import (
    MissingTask,
    SavedDifference,
    SavedMetrics,
    SavedResults,
    SavedSuite,
    checked,
    read_json,
    read_queries,
)
from searchr3.ranking import METRICS

Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""run → metric → query id → value."""

_SUITE = "evaluate the suite again"
_METRICS = "give the metrics.json of a run that has ended"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on one data set.

    Attributes:
        name: what the page calls it; unlike that of any other evaluation of the set.
        file: where it was read.
        found: what is there.
        stage: of a run, such as "stage1".
        corrected: (a, b, metric) → p corrected for the tasks of a suite.
        group: of a suite's tasks, which counts as one in a mean.
    """

    name: str
    file: Path
    found: SavedResults
    stage: str | None = None
    corrected: Mapping[tuple[str, str, str], float | None] = field(default_factory=dict)
    group: str | None = None

    @property
    def thinker(self) -> tuple[str, str | None, str]:
        """The model: its name, its stage, and the name of what its files held ("" where that is not told)."""
        return self.found.model, self.stage, str((self.found.model_extra or {}).get("files") or "")

    @cached_property
    def values(self) -> Values | None:
        """The values of each query; None when they do not lie beside the file."""
        there = self.stage is None and queries_path(self.file).exists()
        return read_queries(self.file) if there else None

    def difference(self, a: str, b: str, metric: str = METRICS[0]) -> SavedDifference | None:
        """a − b, its p corrected where a suite says so."""
        row = self.found.difference(a, b, metric)
        if row is None:
            return None
        either = (self.corrected.get(pair) for pair in ((a, b, metric), (b, a, metric)))
        corrected = next((p for p in either if p is not None), row.p_holm)
        return row.model_copy(update={"p_holm": corrected})


@dataclass(frozen=True, eq=False)
class Collection:
    """All that one page shows.

    Attributes:
        title: of the page.
        evaluations: in the order in which they were named.
        missing: tasks of a suite that gave no results.
        across: differences between the stages of a run.
    """

    title: str
    evaluations: tuple[Evaluation, ...]
    missing: tuple[MissingTask, ...] = ()
    across: tuple[SavedDifference, ...] = ()

    @cached_property
    def groups(self) -> list[list[Evaluation]]:
        """Those of one model, and of one stage of it, together."""
        groups: dict[tuple[str, str | None, str], list[Evaluation]] = {}
        for one in self.evaluations:
            groups.setdefault(one.thinker, []).append(one)
        return [*groups.values()]


def weights(evaluations: Sequence[Evaluation]) -> list[float]:
    """What each counts in a mean over all: data sets the same, those of a group together as one."""
    groups = [(one.group, None if one.group else place) for place, one in enumerate(evaluations)]
    sizes = Counter(groups)
    return [1 / (len(sizes) * sizes[group]) for group in groups]


def read_collection(paths: Sequence[str | Path]) -> Collection:
    """What lies at the paths.

    Args:
        paths: files that `searchr3 evaluate` wrote, folders of suites or their `suite.json`, folders of runs
            or their `metrics.json`; at least one.

    Raises:
        DataError: a file is missing or wrong, or named twice.
    """
    parts = [_read(Path(path)) for path in paths]
    evaluations = [one for part in parts for one in part.evaluations]
    places = Counter((one.file.resolve(), one.stage) for one in evaluations)
    if twice := next((place for place, count in places.items() if count > 1), None):
        raise DataError(f"{twice[0]}: named twice; name each set of results once")
    return Collection(
        title=" · ".join(dict.fromkeys(part.title for part in parts))
        if len(parts) < 4
        else f"{len(evaluations)} evaluations",
        evaluations=tuple(_told_apart(evaluations)),
        missing=tuple(one for part in parts for one in part.missing),
        across=tuple(row for part in parts for row in part.across),
    )


def _read(path: Path) -> Collection:
    if path.is_dir():
        inside = [path / name for name in ("suite.json", "metrics.json")]
        there = [one for one in inside if one.is_file()]
        if not there:
            raise DataError(
                f"{path}: holds neither suite.json nor metrics.json; give a file that `searchr3 evaluate"
                " --output` wrote, the folder of a suite or that of a run"
            )
        path = there[0]
    found = read_json(path)
    if "tasks" in found:
        return _suite(path, checked(SavedSuite, found, path, _SUITE))
    if "stages" in found:
        return _run(path, checked(SavedMetrics, found, path, _METRICS))
    one = checked(SavedResults, found, path)
    return Collection(f"{model_name(one.model)} on {one.data}", (Evaluation(one.data, path, one),))


def _suite(path: Path, suite: SavedSuite) -> Collection:
    evaluations = []
    for task in suite.tasks:
        file = path.parent / task.file
        rows = [row for row in suite.differences if row.task == task.task]
        corrected = {(row.a, row.b, row.metric): row.p_holm for row in rows}
        found = checked(SavedResults, read_json(file, _SUITE), file, _SUITE)
        if not all(_holds(found, row) for row in rows):
            raise DataError(f"{path}: is older than {file.name}; evaluate the suite again with --resume")
        evaluations.append(Evaluation(task.task, file, found, corrected=corrected, group=task.group))
    models = dict.fromkeys([suite.model] if suite.model else [one.found.model for one in evaluations])
    about = suite.suite or f"{len(suite.tasks)} data sets"
    title = f"{', '.join(map(model_name, models))} on {about}" if models else about
    return Collection(title, tuple(evaluations), suite.missing)


def _holds(found: SavedResults, row: SavedDifference) -> bool:
    """Whether results hold a difference as their suite says it, but for the correction."""
    own = found.difference(row.a, row.b, row.metric)
    return own is not None and (own.mean, own.ci95, own.p) == (row.mean, row.ci95, row.p)


def _run(path: Path, metrics: SavedMetrics) -> Collection:
    evaluations = tuple(Evaluation(found.data, path, found, stage) for stage, found in metrics.stages.items())
    return Collection(f"run {path.resolve().parent.name}", evaluations, across=metrics.differences)


def _told_apart(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Each with a name of its own: the data set, and where needed stage, split, model, or file too."""
    names = [one.name for one in evaluations]
    more = [
        lambda one: one.stage and one.stage.replace("stage", "stage\u00a0"),
        lambda one: one.found.split,
        lambda one: model_name(one.found.model),
        lambda one: str(one.file),
    ]
    for further in more:
        added = [further(one) for one in evaluations]
        same = {name: {b for a, b in zip(names, added, strict=True) if a == name} for name in names}
        names = [
            f"{name} · {one}" if one and len(same[name]) > 1 else name
            for name, one in zip(names, added, strict=True)
        ]
    return [replace(one, name=name) for one, name in zip(evaluations, names, strict=True)]
