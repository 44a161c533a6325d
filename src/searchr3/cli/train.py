"""`searchr3 train`: a run, or with `--dry-run` what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from searchr3.cli.options import Resume, Settings
from searchr3.errors import SearchR3Error

OF_DRY_RUNS = ("processes", "shard", "tflops", "tokens_per_second")


def train(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with searchr3."
        ),
    ],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/RECIPE]")] = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check recipe, data and model; tell memory, tokens, hours; train nothing.",
        ),
    ] = False,
    processes: Annotated[
        int,
        typer.Option(min=1, envvar="WORLD_SIZE", help="--dry-run: of so many processes, one for each GPU."),
    ] = 1,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", envvar="ACCELERATE_USE_FSDP", help="--dry-run: with weights dealt among them."
        ),
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(help="--dry-run: 10¹² operations a second that one GPU does.  [default: measured here]"),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="--dry-run: that one GPU generates.  [default: measured here]")
    ] = None,
) -> None:
    """Train a model as a recipe says."""
    if dry_run:
        from searchr3.runs.dry_run import Machine
        from searchr3.runs.dry_run import dry_run as look

        machine = Machine(processes, shard, tflops, tokens_per_second)
        look(recipe, settings or [], machine, output, resume)
        return
    for name in OF_DRY_RUNS:
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":  # of a launcher's variables a run takes others
            option = f"--{name.replace('_', '-')}"
            mend = (
                "add --dry-run, or leave it out (docs/several-gpus.md says how to train in several processes)"
            )
            raise SearchR3Error(f"{option}: is for --dry-run only; {mend}")
    from searchr3.runs import pipeline

    pipeline.train(recipe, settings or [], output, resume)
