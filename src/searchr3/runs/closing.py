"""What a run leaves once both stages are measured: vectors, `metrics.json`, `report.html`, and last words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from searchr3.dataset import RetrievalDataset
from searchr3.files import new_file, write_json, write_text
from searchr3.machine import machine
from searchr3.runs.search import IDS, ids_digest
from searchr3.training.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from searchr3.evaluation import Results

EXAMPLES = 10
ALARMS = "stage2.alarms.json"  # in `checkpoints/`


def close(
    path: Path,
    recipe: Recipe,
    dataset: RetrievalDataset,
    stages: Mapping[str, Results],
    seconds: Mapping[str, float],
    chats: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Table], list[str]]:
    """Write what a run leaves.

    Args:
        path: the run's folder.
        stages: "stage1", "stage2" → what `evaluate` found.
        seconds: of each phase.
        chats: stage → what `still_chats` found.

    Returns:
        tables and lines for the screen.
    """
    from searchr3.evaluation import between, differences_table, results_table
    from searchr3.evaluation.chat import chat_examples, chat_table
    from searchr3.evaluation.report import choose_examples, render_report

    final = stages["stage2"].document_vectors
    assert final is not None
    _save_vectors(path, dataset, final)
    curves = {name: _rows(path / "checkpoints" / f"{name}.curve.json") for name in stages}
    alarms = _rows(path / "checkpoints" / ALARMS)
    summaries = {name: results.summary for name, results in stages.items()}
    differences = between(stages["stage1"], stages["stage2"])
    write_json(
        path / "metrics.json",
        {
            "seconds": seconds,
            "stages": summaries,
            "differences": differences,
            "curves": curves,
            "alarms": alarms,
            "chat": chats,
        },
    )
    report = render_report(
        f"searchr3 · {recipe.name}",
        summaries,
        curves,
        choose_examples(stages["stage1"], stages["stage2"], dataset, EXAMPLES),
        yaml.safe_dump(recipe.dump(), sort_keys=False),
        machine() | {f"seconds, {name}": f"{spent:.0f}" for name, spent in seconds.items()},
        differences,
        alarms,
        chats,
        chat_examples(chats),
    )
    write_text(path / "report.html", report)
    tables = [results_table(summary) for summary in summaries.values()]
    tables.append(differences_table(differences, ["ndcg@10"]))
    if any("skipped" not in chat for chat in chats.values()):
        tables.append(chat_table(chats))
    lines = [
        *_chat_lines(chats),
        *_stage2_kept_its_start(curves["stage2"]),
        *_alarm_lines(alarms, recipe),
        *_next_steps(path, recipe, dataset, seconds),
    ]
    return tables, lines


def _save_vectors(path: Path, dataset: RetrievalDataset, vectors: np.ndarray) -> None:
    from safetensors.numpy import save_file

    with new_file(path / "vectors.safetensors") as temporary:
        save_file({"documents": vectors}, temporary, {IDS: ids_digest(dataset.corpus)})


def _next_steps(
    path: Path, recipe: Recipe, dataset: RetrievalDataset, seconds: Mapping[str, float]
) -> list[str]:
    query = dataset.queries[next(iter(dataset.split("test")))].text
    tokens = recipe.model.max_new_tokens
    return [
        f"Done in {sum(seconds.values()) / 60:.1f} minutes. Try next:",
        f"  open {path / 'report.html'}",
        f"  searchr3 search {shlex.quote(query)} --run {path}",
        f"  searchr3 evaluate {path / 'stage2'} --data {path / 'data'}"
        f" --max-new-tokens {tokens} --output results.json",
        f"  searchr3 adapt {path / 'stage2'} --data {path / 'data'} --max-new-tokens {tokens}",
        "  searchr3 train MY_RECIPE.yaml        your own data: docs/train-on-your-data.md",
    ]


def _rows(place: Path) -> list[dict[str, Any]]:
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else []


def _chat_lines(chats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the model could not be held against its base, and why."""
    return [
        f"Whether {name} still chats was not measured: {chat['skipped']}"
        for name, chat in chats.items()
        if "skipped" in chat
    ]


def _alarm_lines(alarms: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[str]:
    """The health monitor's alarms, and whether one ended the stage."""
    lines = [f"Alarm at step {alarm['step']} of stage 2: {alarm['message']}." for alarm in alarms]
    if alarms and recipe.stage2.health.stop:
        lines.append(
            f"Stage 2 ended there, after {alarms[0]['step']} of {recipe.stage2.steps} steps, as "
            "stage2.health.stop asks; its best checkpoint was kept."
        )
    return lines


def _stage2_kept_its_start(curve: list[dict[str, float]]) -> list[str]:
    """What to say when no checkpoint of stage 2 was better on dev than the model it began with."""
    from searchr3.training.checkpoints import BEST

    scores = [(row[BEST], -row["step"]) for row in curve if BEST in row]
    if not scores or max(scores)[1] < 0:
        return []
    return ["Stage 2 was never better on dev than its start, which was kept: more steps, or another rate?"]
