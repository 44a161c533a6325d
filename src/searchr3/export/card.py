"""The model card: what the model is, how it is used, and what was measured. It holds no figure of its own."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from searchr3.evaluation.collection import Evaluation, read_collection
from searchr3.evaluation.saved import SavedRun
from searchr3.model import SearchR3

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COLUMNS = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "recall@100": "recall@100", "mrr@10": "MRR@10"}
APPENDS = ("qwen2",)  # text-embeddings-inference puts `<|endoftext|>` behind every text of these


def card(
    model: SearchR3,
    format: str,
    name: str,
    base: str | None = None,
    instruction: str | None = None,
    results: Sequence[str | Path] = (),
) -> str:
    """The text of `README.md`, with the Hub's metadata as its head.

    The licence is left to whoever publishes: it hangs on the base model and the data.

    Args:
        format: as `export` takes it.
        base: Hub id of the base model; another name is told in words only.
        results: as `searchr3 report` takes them.

    Raises:
        DataError: a result cannot be read.
    """
    measured = read_collection(results).evaluations if results else ()
    kind = model.model.config.model_type
    head = ModelCardData(
        base_model=base if base and _HUB_ID.fullmatch(base) else None,
        library_name="transformers" if format == "searchr3" else "sentence-transformers",
        pipeline_tag="text-generation" if format == "searchr3" else "feature-extraction",
        tags=["searchr3", "retrieval", "embeddings", *(["onnx"] if format == "onnx" else [])],
    )
    pages = Environment(
        loader=PackageLoader("searchr3", "export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; what others wrote goes through `cell` or stands in a fence
    )
    pages.filters |= {"cell": _cell, "quoted": partial(json.dumps, ensure_ascii=False)}
    return pages.get_template("card.md.j2").render(
        head=head.to_yaml(),
        name=name,
        base=base,
        format=format,
        instruction=instruction,
        prompts=model.conversation.prompts.to_dict(),
        dimension=model.dimension,
        max_length=model.conversation.max_length,
        appends=kind in APPENDS,
        float32=model.model.dtype.itemsize == 4,  # vLLM would compute in half precision
        columns=list(_COLUMNS.values()),
        measured=[{"about": _about(one), "rows": [_row(run) for run in one.found.runs]} for one in measured],
    )


def _about(one: Evaluation) -> str:
    found = one.found
    stage = f", {one.stage}" if one.stage else ""
    return (
        f"{_cell(one.name)}{stage}, split {_cell(found.split)}: "
        f"{found.queries:,} queries, {found.documents:,} documents"
    )


def _row(run: SavedRun) -> list[str]:
    """Name, then each metric with its interval, then the tokens of a thought."""
    values: dict[str, Any] = run.dump()
    shown = [
        f"{values[metric]:.3f} ({run.ci95[metric][0]:.3f}–{run.ci95[metric][1]:.3f})" for metric in _COLUMNS
    ]
    return [_cell(run.name), *shown, f"{run.thinking_tokens_mean:.1f}"]


def _cell(text: str) -> str:
    """Text that stays in its cell of a table, and is neither HTML nor a link."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", line)


def base_of_run(model: Path) -> str | None:
    """Hub id of the base that the recipe of a run names, given the folder of one of its models."""
    file = model.parent / "recipe.yaml"
    if not file.is_file():
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        named = found.get("recipe", found).get("model", {}).get("base")  # a run's file tells its machine too
        if isinstance(named, str) and _HUB_ID.fullmatch(named) and not Path(named).exists():
            return named
    return None
