"""`searchr3 evaluate` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, json_text
from searchr3.options import Json, SplitBy, names, numbers
from searchr3.terminal import show


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    data: Annotated[
        str, typer.Option(help="A BEIR folder, a .jsonl file of triples, a Hub data set, or `python`.")
    ],
    split: Annotated[str, typer.Option(help="Whose queries to rank the whole corpus for.")] = "test",
    split_by: SplitBy = "hash",
    reasoning: Annotated[
        Literal["off", "on", "both"], typer.Option(help="Embed queries directly, after thinking, or both.")
    ] = "both",
    baseline: Annotated[
        str, typer.Option(help="bm25, and models of sentence-transformers or searchr3; commas between them.")
    ] = "bm25",
    output: Annotated[
        Path | None, typer.Option(help="File for the results; the values of each query go beside it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with the prompts of a checkpoint that is not ours.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a thought.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Most texts in one forward.")] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1.  [default: GPU if any]")] = None,
    as_json: Json = False,
    controls: Annotated[
        str,
        typer.Option(
            help="all, or some of other_trace, filler, repeated, bm25+trace: is it what the thoughts say?"
        ),
    ] = "",
    budget: Annotated[
        str, typer.Option(help="nDCG@10 at most so many tokens a thought, such as 0,4,8,16,32,64,128.")
    ] = "",
    samples: Annotated[
        str, typer.Option(help="nDCG@10 of the mean of so many sampled thoughts, such as 1,2,4,8.")
    ] = "",
) -> None:
    """Measure a model against baselines.

    Ranks the whole corpus for every query of a split, with 95 % intervals and paired differences.
    """
    budgets, counts = numbers(budget, "--budget", 0), numbers(samples, "--samples", 1)
    if output:
        _check_results(output, overwrite)
    from searchr3 import SearchR3, load_dataset
    from searchr3.evaluation import (
        CONTROLS,
        check_baselines,
        check_controls,
        curve_tables,
        differences_table,
        results_table,
    )
    from searchr3.evaluation import evaluate as measure
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    # what is not there is told before the model is loaded
    wanted = CONTROLS if controls == "all" else names(controls)
    check_controls(wanted, reasoning)
    check_baselines(names(baseline))
    dataset = load_dataset(data, split_by=split_by)
    dataset.split(split)
    thinker = SearchR3(model, batch_size=batch_size, device=device, prompts=prompts)
    with Screen() as screen:
        screen.phase("evaluation", f"{model} on {data}")
        results = measure(
            thinker,
            dataset,
            split,
            reasoning,
            names(baseline),
            max_new_tokens=max_new_tokens,
            progress=screen.work,
            name=model,
            controls=wanted,
            budgets=budgets,
            samples=counts,
        )
    if output:
        results.save(output)
    if as_json:
        print(json_text(results.summary))
    else:
        summary = results.summary
        differences = differences_table(summary["differences"], ["ndcg@10"])
        show(results_table(summary), differences, *curve_tables(summary))


def _check_results(output: Path, overwrite: bool) -> None:
    """Before the work: results can be written to `output`, and replace others only when asked to."""
    from searchr3.evaluation.results import queries_path

    if output.is_dir():
        raise SearchR3Error(f"{output}: is a folder; name a file in it, such as {output / 'results.json'}")
    check_writable(output)
    taken = next((path for path in (output, queries_path(output)) if path.exists()), None)
    if taken and not overwrite:
        raise SearchR3Error(f"{taken}: exists already; choose another file or replace it with --overwrite")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Results that evaluate wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Others, of the same data and split.")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations, query by query.

    Prints for each run and metric the mean of A − B, its 95 % interval and p, also corrected (Holm) for
    the number of rows.
    """
    from searchr3.evaluation import compare as between
    from searchr3.evaluation import differences_table

    rows = between(a, b)
    if as_json:
        print(json_text(rows))
    else:
        show(differences_table(rows))
