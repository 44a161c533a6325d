"""Sets of results on the disk, as evaluations leave them: with all keys, or as older versions wrote them."""

import json
from pathlib import Path
from typing import Any

from searchr3.evaluation import Results, Run
from searchr3.ranking import METRICS

CONTROLS = ("other_trace", "filler")


class Thought:
    text, token_ids, emitted = "red", (1, 2), True


def results(
    gain: float = 0.1,
    data: str = "colours",
    queries: int = 12,
    model: str = "m/stage2",
    controls: tuple[str, ...] = CONTROLS,
    baseline: str = "bm25",
) -> Results:
    """`reasoned` is above `direct` by about `gain`, and above the controls by more."""
    ids = [f"q{i}" for i in range(queries)]

    def run(name: str, add: float, thinks: bool = False) -> Run:
        value = {query: 0.3 + 0.4 * (i % 2) + add * (1 + i % 3) / 2 for i, query in enumerate(ids)}
        thoughts = dict.fromkeys(ids, Thought()) if thinks else {}
        return Run(name, dict.fromkeys(METRICS, value), {}, seconds=1.5, thoughts=thoughts)

    runs = (run("direct", 0), run("reasoned", gain, True))
    others = (*(run(name, -0.01 * i - 0.02) for i, name in enumerate(controls)), run(baseline, -0.1))
    return Results(model, data, "test", 50, tuple(ids), runs, others)


def enriched(summary: dict[str, Any], text: str = "a red thing") -> dict[str, Any]:
    """With every key that a later version adds; `text` wherever a text is."""
    point = {"ci95": [0.4, 0.6], "thinking_tokens_mean": 3.0, "emission_rate": 1.0, "seconds_per_query": 0.1}
    apart = {"mean": 0.1, "ci95": [0.05, 0.15], "p": 0.001, "p_holm": 0.003}
    example = {
        "query": f"id {text}",
        "text": f"text {text}",
        "reasoning": f"thought {text}",
        "thinking_tokens": 7,
        "direct": 0.25,
        "reasoned": 0.75,
        "direct_hits": [f"first {text}"],
        "reasoned_hits": [f"second {text}", f"first {text}"],
        "direct_relevant": [False],
        "reasoned_relevant": [True, False],
        "direct_rank": 7,
        "reasoned_rank": 1,
        "relevant": [f"second {text}"],
    }
    kinds = ["own"] * 2 + ["control"] * (len(summary["runs"]) - 3) + ["baseline"]
    runs = [
        run
        | {
            "kind": kind,
            "cost": {
                "seconds_per_query": 0.125,
                "thinking_tokens_per_second": 77.0 if run["emission_rate"] else None,
                "documents_seconds": None,
            },
            "setting": f"set to {text}",
        }
        for run, kind in zip(summary["runs"], kinds, strict=True)
    ]
    return summary | {
        "runs": runs,
        "curves": {
            "budget": [
                {"tokens": n, "ndcg@10": 0.5 + n / 1000, **point, "minus_direct": apart} for n in (0, 4, 128)
            ],
            "samples": [{"samples": n, "ndcg@10": 0.5 + n / 100, **point} for n in (1, 2)],
        },
        "uncertainty": {
            "samples": 4,
            "agreement_mean": 0.875,
            "signals": [{"signal": f"s {text}", "run": "reasoned", "rank_correlation": -0.5, "auroc": None}],
        },
        "examples": {"helped": [example], "hurt": [example | {"direct": 1.0, "reasoned": 0.0}]},
        "adaptive": {
            "signal": f"margin {text}",
            "threshold": 0.125,
            "frontier": [{"ndcg@10": 0.5, "thinking_tokens_mean": 1.0}],
        },
        "version": "9.8.7",
        "settings": {"max_new_tokens": 99, "note": text},
    }


def save(folder: Path, name: str, found: Results, rich: bool = True, text: str = "a red thing") -> Path:
    """`NAME.json` and the values of each query beside it."""
    path = folder / f"{name}.json"
    found.save(path)
    if rich:
        path.write_text(json.dumps(enriched(found.summary, text)))
    return path


def save_suite(folder: Path, tasks: dict[str, Results], text: str = "a red thing") -> Path:
    """A folder with `suite.json`; one more task is missing."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i, (task, found) in enumerate(tasks.items()):
        save(folder, f"task{i}", found, text=text)
        rows += [{"task": task, **row, "p_holm": 0.4321} for row in found.summary["differences"]]
    suite = {
        "suite": f"paper {text}",
        "model": next(iter(tasks.values())).model,
        "tasks": [{"task": task, "file": f"task{i}.json"} for i, task in enumerate(tasks)],
        "missing": [{"task": f"gone {text}", "why": f"no network {text}"}],
        "means": {},
        "differences": rows,
    }
    (folder / "suite.json").write_text(json.dumps(suite))
    return folder
