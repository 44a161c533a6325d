"""Comparing saved results, and showing them in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3.errors import DataError
from searchr3.evaluation.results import Results, differences
from searchr3.evaluation.saved import read_queries, read_results
from searchr3.evaluation.statistics import holm
from searchr3.evaluation.tables import coloured, table_of
from searchr3.ranking import METRICS

if TYPE_CHECKING:
    from rich.table import Table


def compare(a: str | Path, b: str | Path) -> list[dict[str, Any]]:
    """Differences a − b between two `results.json` of the same data and split, for each run that both hold.

    Returns:
        `{"run", "a", "b", "metric", "mean", "ci95", "p", "p_holm"}` for each run and metric; "a" and "b" are
        the two paths. `p_holm` is p corrected for all these rows, which are the family.

    Raises:
        DataError: a file is wrong or missing, or the two differ in data, its files, split or queries, or
            share no run.
    """
    first, second = read_results(a), read_results(b)
    for key in ("data", "split", "documents"):
        _same(key, first[key], second[key], str(a), str(b))
    files = [one["data_files"] for one in (first, second) if one.get("data_files")]  # older: not told
    if len({*files}) > 1:
        raise DataError(
            f"{a} and {b} were measured on different files of {first['data']}; evaluate both on the same"
        )
    of_a, of_b = read_queries(a), read_queries(b)
    shared = [run["name"] for run in first["runs"] if run["name"] in of_a and run["name"] in of_b]
    if not shared:
        runs = f"{', '.join(of_a)} against {', '.join(of_b)}"
        raise DataError(f"{a} and {b} share no run ({runs}); evaluate both with the same options")
    for run in shared:
        _same("set of queries", {*of_a[run]["ndcg@10"]}, {*of_b[run]["ndcg@10"]}, str(a), str(b))
    rows = differences([(str(a), str(b), of_a[run], of_b[run]) for run in shared])
    corrected = holm([row["p"] for row in rows])
    return [
        {"run": shared[i // len(METRICS)], **row, "p_holm": p}
        for i, (row, p) in enumerate(zip(rows, corrected, strict=True))
    ]


def between(
    first: Results, second: Results, names: tuple[str, str] = ("stage1", "stage2")
) -> list[dict[str, Any]]:
    """Differences between two evaluations in memory, such as those before and after stage 2.

    Each of the model's runs in `second` minus each of those in `first`, called, say, "stage2 reasoned".

    Raises:
        DataError: the two differ in data, split or queries.
    """
    for key in ("data", "split", "documents"):
        _same(key, getattr(first, key), getattr(second, key), *names)
    _same("set of queries", {*first.query_ids}, {*second.query_ids}, *names)
    pairs = [(a, b) for a in second.runs for b in first.runs]
    return differences(
        [(f"{names[1]} {a.name}", f"{names[0]} {b.name}", a.values, b.values) for a, b in pairs]
    )


def results_table(summary: Mapping[str, Any]) -> Table:
    """The runs of a `results.json` for the terminal, 80 columns wide; nDCG@10 with its 95 % interval."""
    from rich.markup import escape

    sizes = f"{summary['queries']:,} queries · {summary['documents']:,} documents"
    title = f"{summary['data']} · {summary['split']} · {sizes}"
    table = table_of(title, ["run"], ["ndcg@10 (95 %)"])
    table.padding = 0  # nine columns, and room for a name
    metrics = (metric.replace("@", "\n@") for metric in METRICS[1:])
    for heading in (*metrics, "tokens", "emitted", "tokens\n/s", "ms a\nquery"):
        table.add_column(heading, justify="right")
    for run in summary["runs"]:
        cost = run.get("cost") or {"seconds_per_query": run["seconds"] / max(1, summary["queries"])}
        low, high = run["ci95"]["ndcg@10"]
        thinks = run.get("emission_rate") is not None
        table.add_row(
            escape(run["name"]),
            f"{run['ndcg@10']:.3f} [dim]{low:.3f}–{high:.3f}[/dim]",
            *(f"{run[metric]:.3f}" for metric in METRICS[1:]),
            f"{run['thinking_tokens_mean']:.1f}" if thinks else "–",
            f"{run['emission_rate']:.1%}" if thinks else "–",
            _figure(cost.get("thinking_tokens_per_second")),
            _figure(1000 * cost["seconds_per_query"]),
        )
    return table


def _figure(value: float | None) -> str:
    """A number in six places, as far as it goes."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def differences_table(rows: Iterable[Mapping[str, Any]], metrics: Iterable[str] = METRICS) -> Table:
    """Differences a − b for the terminal; one that is significant is coloured.

    Rows that hold `p_holm` show it beside p.
    """
    from rich.markup import escape

    wanted = set(metrics)
    rows = [row for row in rows if row["metric"] in wanted]
    pairs = {f"{row['a']} − {row['b']}" for row in rows}
    by_run = any("run" in row for row in rows)  # from `compare`: the pair is always the same
    title = f"{pairs.pop()}, paired over the queries" if by_run else "paired differences"
    corrected = any("p_holm" in row for row in rows)
    figures = ("difference", "95 %", "p", *["p (Holm)"] * corrected)
    table = table_of(title, ["run" if by_run else "a − b", "metric"], figures)
    for row in rows:
        low, high = row["ci95"]
        table.add_row(
            escape(row["run"] if by_run else f"{row['a']} − {row['b']}"),
            row["metric"],
            coloured(row),
            f"{low:+.3f} to {high:+.3f}",
            *(_p(row.get(key)) for key in ("p", *["p_holm"] * corrected)),
        )
    return table


def suite_tables(summary: Mapping[str, Any], folder: Path) -> list[Table]:
    """What a `suite.json` says, for the terminal: metrics of every run on every task, and their means; and
    what thinking adds on each task, where that was measured.

    Args:
        folder: that of the suite, with the results of each task.
    """
    metrics = [METRICS[0], *["p-mrr"] * any("p-mrr" in means for means in summary["means"].values())]
    tasks = {
        task["task"]: {run["name"]: run for run in read_results(folder / task["file"])["runs"]}
        for task in summary["tasks"]
    }
    wanted = ("reasoned", "direct", METRICS[0])
    gains = [row for row in summary["differences"] if (row["a"], row["b"], row["metric"]) == wanted]
    return [*(_tasks(summary, tasks, metric) for metric in metrics), *([_gains(gains)] if gains else [])]


def _tasks(summary: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]], metric: str) -> Table:
    from rich.markup import escape

    def shown(values: Mapping[str, Any]) -> str:
        return f"{values[metric]:.3f}" if metric in values else "–"

    runs = list(summary["means"])
    table = table_of(f"{summary['suite']} · {summary['model']} · {metric}", ["task"], runs)
    for column in table.columns:  # names of models are long
        column.no_wrap, column.overflow = False, "fold"
    for name, found in tasks.items():
        table.add_row(escape(name), *(shown(found.get(run, {})) for run in runs))
    table.add_section()
    table.add_row("mean", *(shown(summary["means"][run]) for run in runs))
    return table


def _gains(rows: Iterable[Mapping[str, Any]]) -> Table:
    from rich.markup import escape

    figures = ("difference", "95 %", "p", "p (Holm)")
    table = table_of("reasoned − direct in ndcg@10, paired over the queries", ["task"], figures)
    for row in rows:
        low, high = row["ci95"]
        corrected = _p(row["p"]), _p(row["p_holm"])
        table.add_row(escape(row["task"]), coloured(row), f"{low:+.3f} to {high:+.3f}", *corrected)
    return table


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _same(key: str, a: object, b: object, first: str, second: str) -> None:
    if a != b:
        values = "" if isinstance(a, set) else f" ({a} and {b})"
        raise DataError(
            f"{first} and {second} differ in their {key}{values}; evaluate both on the same data and split"
        )
