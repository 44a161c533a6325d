"""What an evaluation found: its runs, their intervals and differences, `results.json` and the per-query
values beside it.

`results.json` holds `{"model", "data", "split", "documents", "queries", "runs", "differences"}`. Each run
holds its name, its `kind` ("own", "control" or "baseline"), the mean of each metric, `ci95`,
`thinking_tokens_mean`, `emission_rate` (null for a run that does not think), `seconds`, its `cost` and, where
there is something to say, the `setting` it ran with. `cost` holds `seconds_per_query`,
`thinking_tokens_per_second` (null for a run that does not think) and `documents_seconds` (null where they are
not known). A difference is always a − b. Where they were asked for there are `curves`, `uncertainty`,
`examples` and, with the run "auto", `adaptive` (its rule, and what it gives). `searchr3 evaluate` adds its
`options`, and `digest`, the name of weights and prompts (null for a model that has none). The values of each
query lie beside it in `<stem>.queries.parquet`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from searchr3.evaluation.statistics import bootstrap_ci, paired_differences
from searchr3.files import disk_errors, write_json
from searchr3.ranking import METRICS

REASONING = {
    "off": ("direct",),
    "on": ("reasoned",),
    "auto": ("direct", "auto"),
    "both": ("direct", "reasoned"),
    "all": ("direct", "reasoned", "auto"),
}
"""How queries are to be embedded → the model's runs."""

Values = Mapping[str, Mapping[str, float]]
"""metric → query id → value."""

_SAVED_HITS = 10


class Thought(Protocol):
    """What a model thought about one query."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def emitted(self) -> bool: ...


class Hit(NamedTuple):
    """One found document."""

    document: str
    score: float


@dataclass(frozen=True, eq=False)
class Run:
    """One way of ranking the corpus for every query of a split.

    Attributes:
        name: "direct", "reasoned", "bm25", or the path of another model.
        values: metric → query id → value, for every query of the split.
        hits: query id → hits, best first.
        seconds: thinking, encoding the queries and searching; encoding or indexing the documents is left out.
        thoughts: query id → what was thought, of the queries that were thought about.
        setting: what the run was set to, for people.
        query_vectors: (queries, d) float32, in the order of the queries.
        kind: of the model that is measured, a control of one of its runs, or another's.
        thinking_seconds: the part of `seconds` in which thoughts were generated (in one pass: and the
            vectors behind them read); None when it does not think.
        documents_seconds: encoding or indexing the whole corpus; None where it was not done for this run.
    """

    name: str
    values: Values
    hits: Mapping[str, Sequence[Hit]]
    seconds: float
    thoughts: Mapping[str, Thought] = field(default_factory=dict, repr=False)
    setting: str | None = None
    query_vectors: np.ndarray | None = field(default=None, repr=False)
    kind: Literal["own", "control", "baseline"] = "own"
    thinking_seconds: float | None = None
    documents_seconds: float | None = None

    @property
    def cost(self) -> dict[str, float | None]:
        """What a query takes, how fast thoughts are generated, and what the corpus takes once; in seconds."""
        tokens = sum(len(each.token_ids) for each in self.thoughts.values())
        return {
            "seconds_per_query": self.seconds / len(self.values[METRICS[0]]),
            "thinking_tokens_per_second": tokens / self.thinking_seconds if self.thinking_seconds else None,
            "documents_seconds": self.documents_seconds,
        }

    @property
    def thinking_tokens_mean(self) -> float:
        """Mean tokens before the embed token, over all queries; 0 for those that were not thought about."""
        spent = sum(len(each.token_ids) for each in self.thoughts.values())
        return spent / max(1, len(self.values["ndcg@10"]))

    @property
    def emission_rate(self) -> float | None:
        """Share of the thoughts that the embed token ended without force; None when there are none."""
        return float(np.mean([each.emitted for each in self.thoughts.values()])) if self.thoughts else None

    def with_thinking_of(self, other: Run) -> Run:
        """This run, which searches with the thoughts of `other`, at the cost of thinking them."""
        seconds = self.seconds + (other.thinking_seconds or 0.0)
        return replace(self, seconds=seconds, thinking_seconds=other.thinking_seconds)


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of one evaluation, over the same queries.

    Attributes:
        documents: size of the corpus.
        runs: those of the model.
        baselines: those it is compared with.
        document_vectors: (documents, d) float32 of the model, in the order of the corpus.
        controls: those of the model with another thought than its own, see `evaluation.controls`.
        extras: further keys of `results.json`, such as "curves" and "adaptive".
        scores: run → name → value of metrics that are the data set's own, such as p-MRR, and their "ci95".
        own_differences: differences in metrics that are the data set's own, as `differences` gives them.
    """

    model: str
    data: str
    split: str
    documents: int
    query_ids: tuple[str, ...]
    runs: tuple[Run, ...]
    baselines: tuple[Run, ...] = ()
    document_vectors: np.ndarray | None = field(default=None, repr=False)
    controls: tuple[Run, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_differences: Sequence[Mapping[str, Any]] = ()

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The model's runs, its controls, the baselines."""
        return (*self.runs, *self.controls, *self.baselines)

    def run(self, name: str) -> Run:
        """The run, control or baseline called `name`.

        Raises:
            KeyError: there is none.
        """
        return {run.name: run for run in self.all_runs}[name]

    @property
    def pairs(self) -> list[tuple[Run, Run]]:
        """What is compared: the model's runs and the baselines, `reasoned` and the controls."""
        own = [(a, b) for i, b in enumerate(self.runs) for a in self.runs[i + 1 :]]
        pairs = own + [(a, b) for a in self.runs for b in self.baselines]
        return pairs + [(a, b) for a in self.runs if a.name == "reasoned" for b in self.controls]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `results.json`."""
        pairs = [(a.name, b.name, a.values, b.values) for a, b in self.pairs]
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "documents": self.documents,
            "queries": len(self.query_ids),
            "runs": [
                _with_own(run, self.scores.get(run["name"], {}))
                for run in _run_summaries(self.all_runs, self.query_ids)
            ],
            "differences": [*differences(pairs), *self.own_differences],
            **self.extras,
        }

    def save(self, path: str | Path) -> None:
        """Write `results.json` to `path` and the values of each query beside it, each whole or not at all."""
        _write_queries(queries_path(path), self)
        write_json(path, self.summary)


def differences(pairs: Sequence[tuple[str, str, Values, Values]]) -> list[dict[str, Any]]:
    """Paired differences a − b in every metric, as `results.json` holds them.

    Args:
        pairs: (name of a, name of b, values of a, values of b), all over the same queries.

    Returns:
        `{"a", "b", "metric", "mean", "ci95", "p"}` for each pair and metric, in that order.
    """
    if not pairs:
        return []
    ids = [*pairs[0][2][METRICS[0]]]
    a = np.hstack([_table(values, ids) for _, _, values, _ in pairs])
    b = np.hstack([_table(values, ids) for _, _, _, values in pairs])
    labels = [(first, second, metric) for first, second, _, _ in pairs for metric in METRICS]
    return [
        {"a": first, "b": second, "metric": metric, "mean": found.mean, "ci95": [*found.ci95], "p": found.p}
        for (first, second, metric), found in zip(labels, paired_differences(a, b), strict=True)
    ]


def queries_path(path: str | Path) -> Path:
    """Where the per-query values of a `results.json` lie.

    >>> queries_path("out/results.json").name
    'results.queries.parquet'
    """
    path = Path(path)  # only .json is taken off: qwen2.5 and qwen2.7 are two names
    return path.with_name(path.name.removesuffix(".json") + ".queries.parquet")


def _table(values: Values, ids: Sequence[str]) -> np.ndarray:
    """(queries, metrics)."""
    return np.array([[values[metric][query] for metric in METRICS] for query in ids])


def _run_summaries(runs: Sequence[Run], ids: Sequence[str]) -> list[dict[str, Any]]:
    tables = np.stack([_table(run.values, ids) for run in runs], axis=1)  # (queries, runs, metrics)
    lows, highs = bootstrap_ci(tables)
    summaries = []
    for run, means, low, high in zip(
        runs, tables.mean(axis=0).tolist(), lows.tolist(), highs.tolist(), strict=True
    ):
        summary = {
            "name": run.name,
            "kind": run.kind,
            **dict(zip(METRICS, means, strict=True)),
            "ci95": {metric: [*bounds] for metric, *bounds in zip(METRICS, low, high, strict=True)},
            "thinking_tokens_mean": run.thinking_tokens_mean,
            "emission_rate": run.emission_rate,
            "seconds": run.seconds,
            "cost": run.cost,
        }
        summaries.append(summary | ({"setting": run.setting} if run.setting else {}))
    return summaries


def _with_own(run: dict[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary with the data set's own metrics."""
    return {**run, **scores, "ci95": {**run["ci95"], **scores.get("ci95", {})}}


def _said(thought: Thought | None) -> dict[str, Any]:
    if thought is None:
        return {"thinking_tokens": 0, "emitted": None, "reasoning": None}
    return {
        "thinking_tokens": len(thought.token_ids),
        "emitted": bool(thought.emitted),
        "reasoning": thought.text,
    }


def _write_queries(path: Path, results: Results) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "run": run.name,
            "query": query,
            **{metric: run.values[metric][query] for metric in METRICS},
            **_said(run.thoughts.get(query)),
            "hits": [hit.document for hit in run.hits.get(query, ())[:_SAVED_HITS]],
        }
        for run in results.all_runs
        for query in results.query_ids
    ]
    columns = {"run": pa.string(), "query": pa.string(), **dict.fromkeys(METRICS, pa.float64())}
    columns |= {"thinking_tokens": pa.int32(), "emitted": pa.bool_(), "reasoning": pa.string()}
    columns |= {"hits": pa.list_(pa.string())}
    table = pa.Table.from_pylist(rows, schema=pa.schema([*columns.items()]))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            pq.write_table(table, temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
