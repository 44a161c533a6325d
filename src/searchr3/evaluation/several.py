"""One model on several data sets: a results file each, and what they say together in `suite.json`.

`suite.json` holds `{"suite", "model", "tasks", "missing", "means", "differences"}`. `tasks` are
`{"task", "file"}` and the `group` that a task is a part of, `missing` are `{"task", "why"}`, `means` are over
the tasks, a group counting once. Each row of `differences` is one of a task, with its `p` and with `p_holm`,
which is adjusted for that pair and metric having been tested on every task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from searchr3.adaptive import Adaptive, known_rule
from searchr3.dataset import load_dataset
from searchr3.dataset.mteb_task import MTEB
from searchr3.errors import DataError, SearchR3Error
from searchr3.evaluation.bench import Embedder
from searchr3.evaluation.results import Results, queries_path
from searchr3.evaluation.runner import evaluate
from searchr3.evaluation.saved import read_queries, read_results
from searchr3.evaluation.statistics import holm
from searchr3.evaluation.suites import GROUPS
from searchr3.files import sha256_of, write_json
from searchr3.machine import machine
from searchr3.ranking import METRICS

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

SUMMARY = "suite.json"
_ANYHOW = ("cache", "progress", "key_variable")  # options that change no figure
_CANDIDATES = 1000  # hits a query where p-MRR is the measure, which looks at all candidates
_FILES = (*(f"{stem}.jsonl{end}" for stem in ("corpus", "queries") for end in ("", ".gz")), "dataset.json")


@dataclass(frozen=True)
class Plan:
    """How each data set is measured.

    Attributes:
        model: name of the model, or its folder.
        split: whose queries.
        split_by: of the data `python`, see `load_dataset`.
        instructions: tell the model what the data says of its queries.
        options: further arguments of `evaluate`.
        prompts: a file that takes the place of the model's own.
    """

    model: str
    split: str = "test"
    split_by: str = "hash"
    instructions: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Path | None = None

    @cached_property
    def files(self) -> str | None:
        """A name of what the files of the model hold, which is not loaded; None where it is no folder."""
        from searchr3.loading import model_files

        files = model_files(Path(self.model))
        return sha256_of([*files, *([self.prompts] if self.prompts else [])]) if files else None

    def data_files(self, source: str) -> str | None:
        """A name of what the files of a data set hold; None where they are not of this machine."""
        place = Path(source)
        inside = [place / name for name in _FILES] + sorted(place.glob("qrels/*.tsv"))
        there = [file for file in (place, *inside) if file.is_file()]
        return sha256_of(there) if there else None

    def load(self, source: str) -> RetrievalDataset:
        """The data set, as the model is told of it.

        Raises:
            DataError: it cannot be had, or has no such split.
        """
        dataset = load_dataset(source, split_by=self.split_by)
        dataset.split(self.split)
        return dataset if self.instructions else replace(dataset, instruction=None)

    def told(self, source: str) -> dict[str, Any]:
        """What results hang on besides the weights, as `results.json` holds it under "options"."""
        given = {name: value for name, value in self.options.items() if name not in _ANYHOW}
        lists = {name: [*map(str, value)] for name, value in given.items() if isinstance(value, list | tuple)}
        own = {"source": source, "split_by": self.split_by, "instructions": self.instructions}
        return {**own, **given, **lists}

    def measure(self, model: Embedder, source: str, dataset: RetrievalDataset) -> Results:
        """`evaluate`, how it was asked, and the metric of the task's own where there is one."""
        from searchr3.evaluation.mteb_adapter import judged_by_change, with_own_metric

        data = self.data_files(source)
        depth = {"depth": _CANDIDATES} if judged_by_change(source) else {}
        results = evaluate(model, dataset, self.split, name=self.model, **{**depth, **self.options})
        told: dict[str, Any] = {"options": self.told(source), "digest": digest_of(model), "files": self.files}
        told |= {"data_files": data, "machine": machine(("torch", "transformers")) | _held(model)}
        results = replace(results, extras={**results.extras, **told})
        return with_own_metric(source, dataset, results)


def evaluate_several(
    model: Callable[[], Embedder],
    sources: Sequence[str],
    output: Path,
    plan: Plan,
    suite: str = "several data sets",
    resume: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure one model on several data sets, one after the other, and write `suite.json` at the end.

    A data set that cannot be had is left out, and listed with the reason. What was measured is saved at once.

    Args:
        model: gives the model; called when it is needed first.
        sources: as `load_dataset` takes them.
        output: a folder.
        suite: the name of all of them.
        resume: take over results that are there, if they are what would be measured; else all are replaced.
        tell: hears which data set is next.

    Returns:
        the content of `suite.json`.

    Raises:
        SearchR3Error: the results of two would have one name, or results to take over are of another model,
            other weights, another split, other options or another rule of when to think. That is told
            before anything is measured.
    """
    files = files_of(sources, output)
    there = {
        source: _taken_over(source, path, plan) for source, path in files.items() if resume and path.exists()
    }
    by_rule = any("adaptive" in one for one in there.values())  # which is no part of the digest
    ready = model() if there and (by_rule or len(there) < len(files)) else None
    _of_one_model(files, there, plan, ready)
    if by_rule:
        _of_one_rule(files, there, known_rule(ready, plan.options.get("adaptive")))
    found: dict[str, dict[str, Any]] = {}
    missing = []
    for source, path in files.items():
        if source in there:
            found[source] = there[source]
            continue
        tell(source)
        try:
            dataset = plan.load(source)
            results = plan.measure(model(), source, dataset)
        except DataError as why:
            missing.append({"task": label(source), "why": str(why)})
            continue
        results.save(path)
        found[source] = results.summary
        del dataset, results  # vectors of two corpora need not fit side by side
    summary = summarized(suite, plan.model, found, missing)
    write_json(output / SUMMARY, summary)
    return summary


def label(source: str) -> str:
    """The name of a data set's results, as a file can bear it.

    >>> label("mteb:MKQARetrieval/en"), label("data/packs/scifact/"), label("BeIR/scifact")
    ('MKQARetrieval-en', 'scifact', 'BeIR--scifact')
    """
    if source.startswith(MTEB):
        return source.removeprefix(MTEB).replace("/", "-")
    path = Path(source)
    no_hub_id = path.is_absolute() or len(path.parts) > 2 or source.endswith((".jsonl", ".jsonl.gz"))
    if no_hub_id or path.exists():
        return path.resolve().name.removesuffix(".gz").removesuffix(".jsonl")
    return source.strip("/").replace("/", "--")


def files_of(sources: Iterable[str], output: Path) -> dict[str, Path]:
    """Data set → the file of its results.

    Raises:
        SearchR3Error: two have the same.
    """
    files: dict[str, Path] = {}
    for source in dict.fromkeys(sources):
        path = output / f"{label(source)}.json"
        if path.name == SUMMARY:
            raise SearchR3Error(f"{source}: its results would be {SUMMARY}, which is for all; rename it")
        if other := next((other for other, taken in files.items() if taken == path), None):
            raise SearchR3Error(f"{other} and {source}: both results would be {path}; rename one of them")
        files[source] = path
    return files


def refuse_taken(sources: Iterable[str], output: Path) -> None:
    """Raise SearchR3Error when results would be replaced."""
    files = [*files_of(sources, output).values(), output / SUMMARY]
    if taken := next((one for file in files for one in (file, queries_path(file)) if one.exists()), None):
        raise SearchR3Error(
            f"{taken}: exists already; choose another folder, go on with --resume or replace with --overwrite"
        )


def summarized(
    suite: str,
    model: str,
    found: Mapping[str, Mapping[str, Any]],
    missing: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The content of `suite.json`.

    Args:
        found: data set → the content of its results file.
        missing: as the file holds them.
    """
    differences = [
        {"task": label(source), **row} for source, summary in found.items() for row in summary["differences"]
    ]
    tests: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in differences:
        tests.setdefault((row["a"], row["b"], row["metric"]), []).append(row)
    for rows in tests.values():
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = adjusted
    return {
        "suite": suite,
        "model": model,
        "tasks": [
            {"task": label(source), "file": f"{label(source)}.json"}
            | ({"group": GROUPS[source]} if source in GROUPS else {})
            for source in found
        ],
        "missing": list(missing),
        "means": _means(found),
        "differences": differences,
    }


def _means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Run → metric → mean over the tasks, of what every task has; a group counts as one task."""
    tables = {source: {run["name"]: run for run in summary["runs"]} for source, summary in found.items()}
    means: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        for metric in (*METRICS, "p-mrr"):
            groups: dict[str, list[float]] = {}
            for source, table in tables.items():
                if metric in table.get(name, {}):
                    groups.setdefault(GROUPS.get(source, source), []).append(table[name][metric])
            if sum(map(len, groups.values())) == len(tables):
                means.setdefault(name, {})[metric] = fmean(map(fmean, groups.values()))
    return means


def digest_of(model: Any) -> str | None:
    """A name of the weights and prompts, of a model that has one."""
    return model.digest() if hasattr(model, "digest") else None


def _held(model: Any) -> dict[str, str]:
    """Where a model computes, and how many texts at a time, as far as it tells."""
    known = {"device": getattr(model, "device", None), "batch size": getattr(model, "batch_size", None)}
    return {name: str(value) for name, value in known.items() if value is not None}


_AGAIN = "choose another folder, or measure again with --overwrite"


def _taken_over(source: str, path: Path, plan: Plan) -> dict[str, Any]:
    """Results that are there.

    Raises:
        SearchR3Error: they are not what would be measured.
    """
    summary = read_results(path)
    for key, wanted in (("model", plan.model), ("split", plan.split)):
        if summary[key] != wanted:
            raise SearchR3Error(f"{path}: is of the {key} {summary[key]}, not {wanted}; {_AGAIN}")
    asked, own = summary.get("options"), plan.told(source)
    if not isinstance(asked, dict):
        raise SearchR3Error(f"{path}: does not say with which options it was measured; {_AGAIN}")
    for key in (*own, *asked):
        if asked.get(key) != own.get(key):
            words = f"{key} {_words(asked.get(key))}, not {_words(own.get(key))}"
            raise SearchR3Error(f"{path}: was measured with {words}; {_AGAIN}")
    if summary.get("data_files") not in (None, plan.data_files(source)):
        raise SearchR3Error(f"{path}: {source} has changed since; {_AGAIN}")
    try:
        read_queries(path)
    except DataError as why:
        raise SearchR3Error(f"{why}; without {path.name} it is measured again with --resume") from None
    return summary


def _words(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _of_one_model(
    files: Mapping[str, Path], there: Mapping[str, Mapping[str, Any]], plan: Plan, model: Embedder | None
) -> None:
    """Raise SearchR3Error where results are of other weights than others, or than the model has now.

    Args:
        model: None where it is not loaded. Then, and behind servers, its files are looked at instead.
    """
    own = digest_of(model)
    known = own if model is not None else next((one.get("digest") for one in there.values()), None)
    for source, one in there.items():
        moved = own is None and one.get("files") not in (None, plan.files)
        if one.get("digest") != known or moved:
            words = "other weights or prompts, or behind another --backend"
            raise SearchR3Error(f"{files[source]}: is of a model with {words}; {_AGAIN}")


def _of_one_rule(files: Mapping[str, Path], there: Mapping[str, Mapping[str, Any]], rule: Adaptive) -> None:
    """Raise SearchR3Error where the run `auto` of results thought by another rule than `rule`."""
    for source, one in there.items():
        if used := one.get("adaptive"):
            before, now = (used.get("signal"), used.get("threshold")), (rule.signal, rule.threshold)
            if before != now:
                words = "{} from {}".format
                raise SearchR3Error(
                    f"{files[source]}: its run auto thought by another rule ({words(*before)}), the model's "
                    f"is {words(*now)} now; {_AGAIN}"
                )
