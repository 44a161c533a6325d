"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.errors import SearchR3Error

SplitBy = Annotated[
    Literal["hash", "package"],
    typer.Option(help="For the data `python`: single functions are held out, or whole packages."),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to set, such as stage1.steps=100."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:1.  [default: GPU if any]")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most texts in one forward.")]
ThoughtTokens = Annotated[int, typer.Option(min=1, help="Most tokens of a thought.")]
PromptsFile = Annotated[
    Path | None, typer.Option(help="YAML or JSON file with the prompts of a checkpoint that is not ours.")
]
_DIGITS = 9  # of a number of queries or tokens

Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]


def finite(value: float | None) -> float | None:
    """The callback of an option that takes a number: `nan` and `inf` pass every limit."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number")
    return value


Backend = Annotated[
    Literal["local", "vllm"], typer.Option(help="Who computes: this process, or running vLLM servers.")
]
Url = Annotated[
    str | None, typer.Option(help="With vllm: the server that generates, http://localhost:8000[#NAME].")
]
EmbedUrl = Annotated[
    str | None, typer.Option(help="With vllm: the one that runs with --runner pooling.  [default: --url]")
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where vectors and thoughts are kept for the next evaluation.  [default: ~/.cache/searchr3]",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep nothing, look nothing up.")]


def numbers(text: str, option: str, least: int) -> list[int]:
    """The whole numbers in a text that has commas between them, none below `least`."""
    found = names(text)
    if not all(name.isdecimal() and len(name) <= _DIGITS and int(name) >= least for name in found):
        raise typer.BadParameter(
            f"whole numbers from {least} to 999,999,999, with commas between", param_hint=option
        )
    return [int(name) for name in found]


def refuse_both(cache: Path | None, no_cache: bool) -> None:
    """Raise SearchR3Error for a place to keep things in, and the wish to keep none."""
    if cache and no_cache:
        raise SearchR3Error("--cache and --no-cache contradict each other; leave one out")


def check_backend(backend: str, url: str | None, embed_url: str | None) -> None:
    """Raise SearchR3Error where a backend lacks its address, or an address its backend."""
    if (backend == "vllm") != bool(url) or (embed_url and not url):
        raise SearchR3Error("--backend vllm and --url go together: both, or neither")


def names(text: str) -> list[str]:
    """The names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]
