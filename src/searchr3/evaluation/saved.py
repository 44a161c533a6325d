"""What an evaluation has left on the disk, typed and checked: `results.json`, `suite.json`, `metrics.json`.

Keys that came later are optional, so that older files stay readable; keys that are not known here are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, isfinite
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

from searchr3.errors import DataError
from searchr3.evaluation.results import queries_path
from searchr3.files import read_errors
from searchr3.ranking import METRICS

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=-1e-6, le=1 + 1e-6)]  # a mean of ones may be a little more than one
Difference = Annotated[Number, Field(ge=-1 - 1e-6, le=1 + 1e-6)]
Gap = Annotated[Number, Field(ge=-2 - 1e-6, le=2 + 1e-6)]  # between two of p-MRR
Amount = Annotated[Number, Field(ge=0, le=1e12)]
Rank = Annotated[int, Field(strict=True, ge=1)]
Interval = tuple[Share, Share]


Intervals = dict[str, tuple[Difference, Difference]]  # p-MRR may be below 0


def _complete(intervals: Intervals) -> Intervals:
    for metric in METRICS:
        if metric not in intervals:
            raise ValueError(f"has no interval of {metric!r}")
    return intervals


class Saved(BaseModel):
    """A JSON object of ours."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    def dump(self) -> dict[str, Any]:
        """As it stands in the file; optional keys that are not there are None or empty."""
        return self.model_dump(by_alias=True)


class Cost(Saved):
    seconds_per_query: Amount | None = None
    thinking_tokens_per_second: Amount | None = None
    documents_seconds: Amount | None = None


class SavedRun(Saved):
    """One way of ranking; its kind is told by its name in files that are older than kinds."""

    name: StrictStr
    ndcg: Share = Field(alias="ndcg@10")
    recall_10: Share = Field(alias="recall@10")
    recall_100: Share = Field(alias="recall@100")
    mrr: Share = Field(alias="mrr@10")
    p_mrr: Number | None = Field(default=None, alias="p-mrr")
    ci95: Annotated[Intervals, AfterValidator(_complete)]
    thinking_tokens_mean: Amount
    seconds: Amount
    emission_rate: Share | None = None
    setting: StrictStr | None = None
    kind: Literal["own", "control", "baseline"] | None = None
    cost: Cost = Cost()

    @property
    def role(self) -> str:
        """ "own", "control" or "baseline"."""
        return self.kind or ("own" if self.name in ("direct", "reasoned", "auto") else "baseline")


def _apart(runs: tuple[SavedRun, ...]) -> tuple[SavedRun, ...]:
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"has two runs of the name {twice!r}")
    return runs


class Paired(Saved):
    """A difference, query by query."""

    mean: Gap
    ci95: tuple[Gap, Gap]
    p: Share
    p_holm: Share | None = None


class SavedDifference(Paired):
    """a − b."""

    a: StrictStr
    b: StrictStr
    metric: StrictStr
    task: StrictStr | None = None


class Point(Saved):
    """A point of a curve: so many tokens may be thought, or so many thoughts were taken the mean of."""

    ndcg: Share = Field(alias="ndcg@10")
    ci95: Interval | None = None
    tokens: Annotated[int, Field(strict=True, ge=0)] | None = None
    samples: Annotated[int, Field(strict=True, ge=1)] | None = None
    thinking_tokens_mean: Amount | None = None
    seconds_per_query: Amount | None = None
    minus_direct: Paired | None = None


class Curves(Saved):
    budget: tuple[Point, ...] = ()
    samples: tuple[Point, ...] = ()


class Example(Saved):
    query: StrictStr
    text: StrictStr
    reasoning: StrictStr | None = None
    thinking_tokens: Amount | None = None
    direct: Share
    reasoned: Share
    direct_hits: tuple[StrictStr, ...] = ()
    reasoned_hits: tuple[StrictStr, ...] = ()
    direct_relevant: tuple[StrictBool, ...] = ()
    reasoned_relevant: tuple[StrictBool, ...] = ()
    direct_rank: Rank | None = None
    reasoned_rank: Rank | None = None
    relevant: tuple[StrictStr, ...] = ()


class Examples(Saved):
    helped: tuple[Example, ...] = ()
    hurt: tuple[Example, ...] = ()


class Signal(Saved):
    """How well a signal tells where a run is right."""

    signal: StrictStr
    run: StrictStr | None = None
    rank_correlation: Difference | None = None
    auroc: Share | None = None


class Uncertainty(Saved):
    signals: tuple[Signal, ...] = ()


class Adaptive(Saved):
    """`reasoning="auto"`: what was chosen, and what other choices would have given."""

    frontier: tuple[Point, ...] = ()


class SavedResults(Saved):
    """The content of a `results.json`."""

    model: StrictStr
    data: StrictStr
    split: StrictStr
    documents: Annotated[int, Field(strict=True, ge=0)]
    queries: Annotated[int, Field(strict=True, ge=0)]
    runs: Annotated[tuple[SavedRun, ...], AfterValidator(_apart)]
    differences: tuple[SavedDifference, ...]
    curves: Curves | None = None
    uncertainty: Uncertainty | None = None
    examples: Examples | None = None
    adaptive: Adaptive | None = None

    def run(self, name: str) -> SavedRun | None:
        return next((run for run in self.runs if run.name == name), None)

    def difference(self, a: str, b: str, metric: str = METRICS[0]) -> SavedDifference | None:
        """a − b, whichever way round the file holds it; None where it does not."""
        for row in self.differences:
            if (row.a, row.b, row.metric) == (a, b, metric):
                return row
            if (row.a, row.b, row.metric) == (b, a, metric):
                low, high = row.ci95
                return row.model_copy(update={"a": a, "b": b, "mean": -row.mean, "ci95": (-high, -low)})
        return None


class SuiteTask(Saved):
    task: StrictStr
    file: StrictStr
    group: StrictStr | None = None


class MissingTask(Saved):
    task: StrictStr
    why: StrictStr


class SavedSuite(Saved):
    """The content of a `suite.json`."""

    suite: StrictStr | None = None
    model: StrictStr | None = None
    tasks: tuple[SuiteTask, ...]
    missing: tuple[MissingTask, ...] = ()
    differences: tuple[SavedDifference, ...] = ()


class SavedMetrics(Saved):
    """What the `metrics.json` of a run folder holds of its evaluations."""

    stages: dict[str, SavedResults]
    differences: tuple[SavedDifference, ...] = ()


Kind = TypeVar("Kind", bound=Saved)

_ROUNDING = 1e-9  # between a mean and the same one reckoned in another order

_MEND = "give a file that `searchr3 evaluate --output` wrote"
_WORDS = {
    "missing": "is missing",
    "string_type": "is not a text",
    "tuple_type": "is not a list",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "float_type": "is not a number",
    "int_type": "is not a whole number",
}


def read_json(path: str | Path, mend: str = _MEND) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: no such file, not JSON (half a surrogate is none), or not an object.
    """
    with read_errors(Path(path)):
        content = Path(path).read_bytes()
    try:
        found = TypeAdapter(Any).validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"].removeprefix("Invalid JSON: ")
        raise DataError(f"{path}: not valid JSON ({fault}); {mend}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object; {mend}")
    return found


def checked(kind: type[Kind], found: object, where: str | Path, mend: str = _MEND) -> Kind:
    """`found` as `kind`.

    Raises:
        DataError: a key is missing or holds something else; the first such key is named.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        words = _WORDS.get(fault["type"]) or message[0].lower() + message[1:]
        raise DataError(f"{where}: key '{_key(fault['loc'])}' {words}; {mend}") from None


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a `results.json`, checked.

    Raises:
        DataError: no such file, not JSON, or not what `searchr3 evaluate` writes.
    """
    found = read_json(path)
    checked(SavedResults, found, path)
    return found


def read_queries(path: str | Path) -> dict[str, dict[str, dict[str, float]]]:
    """The values of each query beside the `results.json` at `path`: run → metric → query id → value.

    They are those that the file was reckoned from: as many queries, and the same mean of every metric.

    Raises:
        DataError: the parquet file is missing, not what `searchr3 evaluate` writes, or of other results.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place, found = queries_path(path), checked(SavedResults, read_json(path), path)
    kinds = {"run": pa.string(), "query": pa.string(), **dict.fromkeys(METRICS, pa.float64())}
    values: dict[str, dict[str, dict[str, float]]] = {}
    try:
        columns = pq.read_table(place, columns=[*kinds]).cast(pa.schema([*kinds.items()])).to_pydict()
        if None in columns["run"] or None in columns["query"]:
            raise ValueError("a name is missing")
        if not all(value is not None and isfinite(value) for metric in METRICS for value in columns[metric]):
            raise ValueError("a value is no number")
    except FileNotFoundError:
        raise DataError(f"{place}: no such file; keep it beside {Path(path).name}") from None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise DataError(f"{place}: does not hold the values of each query; evaluate again") from None
    for i, (run, query) in enumerate(zip(columns["run"], columns["query"], strict=True)):
        for metric in METRICS:
            values.setdefault(run, {}).setdefault(metric, {})[query] = columns[metric][i]
    if len(columns["run"]) != found.queries * len(found.runs) or not _agree(values, found):
        raise DataError(
            f"{place}: holds the values of other results than {Path(path).name}; "
            "keep beside it those that were written with it, or evaluate again"
        )
    return values


def _agree(values: Mapping[str, Mapping[str, Mapping[str, float]]], found: SavedResults) -> bool:
    """Whether all runs are there, for the same queries, and every mean is that of its values."""
    told = {run.name: run.dump() for run in found.runs}
    ids = next(iter(values.values()), {}).get(METRICS[0], {}).keys()
    return values.keys() == told.keys() and all(
        each.keys() == ids and isclose(fmean(each.values()), told[run][metric], abs_tol=_ROUNDING)
        for run, metrics in values.items()
        for metric, each in metrics.items()
    )


def _key(location: tuple[int | str, ...]) -> str:
    """Where a fault is: `runs[0].ndcg@10`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
