"""`searchr3 evidence`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from searchr3.cli.options import Json, Resume, Settings, numbers
from searchr3.cli.terminal import show
from searchr3.files import json_text


def evidence(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with searchr3."
        ),
    ],
    settings: Settings = None,
    output: Annotated[Path, typer.Option(help="Folder of the evidence.")] = Path("runs/evidence"),
    seeds: Annotated[int, typer.Option(min=1, help="How many, from the recipe's own on.")] = 3,
    labels: Annotated[
        str,
        typer.Option(
            help="Numbers of labelled stage-1 queries, such as 100,300,1000: what is thinking worth at each?"
        ),
    ] = "",
    label_seeds: Annotated[int, typer.Option(min=1, help="Seeds of each of these.")] = 1,
    baseline: Annotated[
        str | None,
        typer.Option(help="A rival, beside BM25: any of `searchr3 evaluate --baseline` but rewrite:."),
    ] = None,
    one_rate: Annotated[
        bool, typer.Option("--one-rate", help="Train control (a) at stage 2's learning rate alone.")
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Does thinking help, and is it the thinking?

    Trains a recipe with several seeds, and the arms and controls that its gain must be above: direct search
    taught by the same labels, stage 2 without its reward, another query's thought, filler, the query again.
    """
    from searchr3.runs.evidence import Plan, gather

    points = tuple(sorted({*numbers(labels, "--labels", 1)}))
    plan = Plan(seeds, points, label_seeds, baseline, both_rates=not one_rate)
    found = gather(recipe, settings or [], output, plan, resume)
    if as_json:
        print(json_text(found))
        return
    from searchr3.evaluation.evidence_page import evidence_tables

    show(*evidence_tables(found))
    for sentence in found["verdict"]["sentences"]:
        print(sentence)
    print(f"\nopen {output / 'evidence.html'}")
