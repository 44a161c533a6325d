"""The committed results as Markdown: `RESULTS.md` whole, and the tables that stand in pages.

A page holds a table between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from searchr3.evaluation.evidence import OWN, RUNS, STAGES
from searchr3.evaluation.pages import signed
from searchr3.files import write_text

HERE = Path(__file__).parent
Figures = Mapping[str, float | None]
TITLES = {name: run.name for name, run in RUNS.items()} | {
    "bm25": "BM25, tuned on dev",
    "rival": "all-MiniLM-L6-v2 as it comes",
}
"""Of the runs that evidence may hold, in the order in which they are shown."""


def written() -> None:
    """Write RESULTS.md and every page's tables anew."""
    write_text(HERE / "RESULTS.md", render())
    for page, names in PAGES.items():
        place = HERE.parent / page
        write_text(place, with_tables(place.read_text(encoding="utf-8"), names))


def results(name: str) -> Figures | None:
    """The committed figures of a benchmark, if there are any."""
    place = HERE / "results" / f"{name}.json"
    if not place.is_file():
        return None
    found: Figures = json.loads(place.read_text(encoding="utf-8"))["figures"]
    return found


def with_tables(page: str, names: Sequence[str]) -> str:
    """A page with the tables of these names put in anew; one without figures stays as it is.

    Raises:
        ValueError: the page has no place for one of them.
    """
    for name in names:
        source, table = TABLES[name]
        figures = results(source)
        if figures is not None:
            page = between(page, name, table(figures))
    return page


def between(page: str, name: str, text: str) -> str:
    """A page with a text between the marks of this name.

    >>> between("a <!-- n -->old<!-- /n --> b", "n", "new")
    'a <!-- n -->\\nnew\\n<!-- /n --> b'
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the page has no {start} … {end}")
    return f"{before}{start}\n{text}\n{end}{after}"


def rows_of(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; but for the first column numbers, to the right."""
    lines = [names, ["---"] + ["--:"] * (len(names) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def quickstart(f: Figures) -> str:
    """What the quickstart comes to."""
    thinking = {"reasoned1": "thinking_tokens1", "reasoned2": "thinking_tokens2"}
    rows = [
        [TITLES[key], three(f[key]), span(f, key), f"{f[thinking[key]]:.1f}" if key in thinking else ""]
        for key in ("bm25", *STAGES)
    ]
    sizes = f"{f['documents']:,} functions, {f['queries']:,} test queries"
    head = [f"Quickstart, {sizes}, {f['minutes']:.0f} minutes on 2 cores:", ""]
    return "\n".join([*head, *rows_of(["run", "nDCG@10", "95 % interval", "thinking tokens"], rows)])


def reference(f: Figures) -> str:
    """The arms and controls of the reference recipe."""
    rows = []
    for key, title in TITLES.items():
        if f.get(key) is None:
            continue
        less = f"{OWN}_minus_{key}"
        told = [signed(f[less]), span(f, less, signed)] if f.get(less) is not None else ["", ""]
        rows.append([f"**{title}**" if key == OWN else title, three(f[key]), *told])
    return "\n".join(rows_of(["run", "nDCG@10", "reasoned stage 2 less it", "95 % interval"], rows))


def labels(f: Figures) -> str:
    """What thinking is worth, by the number of labels."""
    points = [key.split("_") for key in f if key.startswith("labels_") and key.endswith("_stage2")]
    rows = []
    for count in sorted(int(count) for _, count, _ in points):
        row = [f"{count:,}"]
        for stage in "12":
            key = f"labels_{count}"
            row += [three(f[f"{key}_direct{stage}"]), difference(f, f"{key}_stage{stage}")]
        rows.append(row)
    head = [column for stage in "12" for column in (f"direct, stage {stage}", "reasoned − direct")]
    return "\n".join(rows_of(["labelled queries of stage 1", *head], rows))


ARMS = {
    "bm25": "BM25",
    "direct1": "direct, 1",
    "reasoned1": "reasoned, 1",
    "direct2": "direct, 2",
    "reasoned2": "reasoned, 2",
    "control_a": "(a)",
    "st_mnrl": "MNRL",
    "rival": "MiniLM",
}


def evidence(f: Figures) -> str:
    """The test sets of benchmarks/evidence.py, an arm a column."""
    cases = list(dict.fromkeys(key.split(".")[0] for key in f if key.endswith(".reasoned2.ndcg")))
    rows = [
        [
            case.replace("mixed-", "mixed: "),
            *(three(f.get(f"{case}.{arm}.ndcg")) for arm in ARMS),
            difference(f, f"{case}.direct2.behind"),
        ]
        for case in cases
    ]
    return "\n".join(rows_of(["test set", *ARMS.values(), "reasoned − direct, 2"], rows))


TABLES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "quickstart": ("quickstart", quickstart),
    "reference": ("reference", reference),
    "labels": ("reference", labels),
    "evidence": ("evidence", evidence),
}
"""Name → the result that it is of, and how it is written."""
PAGES: dict[str, tuple[str, ...]] = {
    "README.md": ("quickstart",),
    "docs/evidence.md": ("reference", "labels"),
}


def three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def span(f: Figures, key: str, form: Callable[[float], str] = three) -> str:
    """The interval of a figure."""
    return f"{form(f[f'{key}_low'])} to {form(f[f'{key}_high'])}"


def difference(f: Figures, key: str) -> str:
    """A difference with its interval."""
    return f"{signed(f[key])} ({span(f, key, signed)})"


def render() -> str:
    """All committed results."""
    parts = [
        "# Measured results",
        "",
        "Rendered from `benchmarks/results/*.json` by `python benchmarks/_result.py`; do not edit.",
        "",
    ]
    for place in sorted((HERE / "results").glob("*.json")):
        result = json.loads(place.read_text(encoding="utf-8"))
        parts += [
            f"## {result['name']}",
            "",
            f"`{result['command']}` at commit {result['commit']} on {result['machine']}",
            "",
        ]
        pictures = sorted((HERE.parent / "docs").glob(f"{result['name']}-*.png"))
        parts += [line for path in pictures for line in (f"![{path.stem}](../docs/{path.name})", "")]
        parts += _compared(result["figures"])
        flat = {key: value for key, value in result["figures"].items() if key.count(".") != 2}
        shown = [[f"`{key}`", _shown(value)] for key, value in flat.items()]
        parts += [*rows_of(["figure", "value"], shown), ""]
    return "\n".join(parts)


def _compared(figures: Figures) -> list[str]:
    """Figures named `case.arm.figure` as a table a case, an arm a row."""
    cases: dict[str, dict[str, dict[str, float | None]]] = {}
    for key, value in figures.items():
        if key.count(".") == 2:
            case, arm, figure = key.split(".")
            cases.setdefault(case, {}).setdefault(arm, {})[figure] = value
    lines = []
    for case, arms in cases.items():
        names = list(dict.fromkeys(name for arm in arms.values() for name in arm))
        rows = [[arm, *(_shown(found.get(name)) for name in names)] for arm, found in arms.items()]
        lines += [*rows_of([case, *names], rows), ""]
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"  # never a small one as zero
