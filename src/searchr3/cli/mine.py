"""The command `searchr3 mine`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.cli.options import BatchSize, Device, Json, SplitBy, names
from searchr3.cli.terminal import show
from searchr3.files import json_text


def mine(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for `searchr3 evaluate --data`.")],
    output: Annotated[Path, typer.Option(help="Folder for the data set with its negatives.")],
    by: Annotated[
        str, typer.Option(metavar="bm25|MODEL", help="Who ranks the corpus: bm25, or a searchr3 model.")
    ] = "bm25",
    split: Annotated[
        str,
        typer.Option(help="Splits whose queries get negatives; commas between them; `train`: both stages."),
    ] = "stage1",
    split_by: SplitBy = "hash",
    negatives: Annotated[int, typer.Option(min=1, help="Most new negatives a query.")] = 8,
    from_rank: Annotated[
        int, typer.Option(min=1, help="First rank of the candidates; relevant documents take none.")
    ] = 10,
    to_rank: Annotated[int, typer.Option(min=1, help="Their last rank.")] = 100,
    max_share: Annotated[
        float | None,
        typer.Option(
            help="Highest score of a negative, as a share of the relevant document's; inf: any.  "
            "[default: 0.95, any with --margin]"
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="How far a negative scores below the relevant document at least.")
    ] = None,
    against: Annotated[
        Literal["weakest", "strongest"],
        typer.Option(help="Which relevant document that is, where there are several."),
    ] = "weakest",
    sampling: Annotated[
        Literal["top", "random"], typer.Option(help="Take the best ranks, or any with equal chance.")
    ] = "top",
    seed: Annotated[int, typer.Option(help="Of --sampling random.")] = 0,
    anew: Annotated[
        bool, typer.Option("--anew", help="Leave out negatives that the queries have already.")
    ] = False,
    instruction: Annotated[str | None, typer.Option(help="Task instruction for a model's queries.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="As for `searchr3 evaluate`.")] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted mining.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, and replace what was mined before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Mine hard negatives for a data set.

    They are documents that rank high for a query, beside the relevant ones and clearly below them.
    """
    from searchr3 import load_dataset, mining
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    if max_share is None and margin is None:
        max_share = 0.95
    share = None if max_share == float("inf") else max_share
    rule = mining.Rule(negatives, from_rank, to_rank, share, margin, against, sampling, seed)
    teacher = mining.Teacher(by, instruction, prompts, batch_size, device)
    work = mining.Work(output, resume, overwrite)
    teacher.files()  # what is not there is told before the data are read
    dataset = load_dataset(data, split_by=split_by)
    splits = mining.training_splits(dataset, names(split))
    with Screen() as screen:
        screen.phase("mining", f"{data} by {by}")
        found = mining.mine(dataset, work, rule, teacher, splits, anew, screen.work)
    if as_json:
        print(json_text({"output": str(output), **found}))
    else:
        show(mining.mining_table(found, negatives, f"{output}: negatives for {split}, by {by}"))
