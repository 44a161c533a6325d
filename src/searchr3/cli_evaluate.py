"""`searchr3 evaluate`, `compare` and `adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, json_text
from searchr3.options import Json, SplitBy, names
from searchr3.terminal import show


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    data: Annotated[
        str, typer.Option(help="A BEIR folder, a .jsonl file of triples, a Hub data set, or `python`.")
    ],
    split: Annotated[str, typer.Option(help="Whose queries to rank the whole corpus for.")] = "test",
    split_by: SplitBy = "hash",
    reasoning: Annotated[
        Literal["off", "on", "auto", "both", "all"],
        typer.Option(
            help="off: embed queries directly; on: after thinking; both; auto: off, and a run that thinks "
            "where the direct ranking is unsure (see `searchr3 adapt`); all: the three."
        ),
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
) -> None:
    """Measure a model against baselines.

    Ranks the whole corpus for every query of a split, with 95 % intervals and paired differences.
    """
    if output:
        _check_results(output, overwrite)
    from searchr3 import SearchR3, load_dataset
    from searchr3.adaptive import known_rule
    from searchr3.evaluation import check_baselines, differences_table, results_table
    from searchr3.evaluation import evaluate as measure
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    # what is not there is told before the model is loaded
    check_baselines(names(baseline))
    dataset = load_dataset(data, split_by=split_by)
    dataset.split(split)
    thinker = SearchR3(model, batch_size=batch_size, device=device, prompts=prompts)
    if reasoning in ("auto", "all"):
        known_rule(thinker)
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
        )
    if output:
        results.save(output)
    if as_json:
        print(json_text(results.summary))
    else:
        show(results_table(results.summary), differences_table(results.summary["differences"], ["ndcg@10"]))


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

    Prints for each run and metric the mean of A − B, its 95 % interval and p.
    """
    from searchr3.evaluation import compare as between
    from searchr3.evaluation import differences_table

    rows = between(a, b)
    if as_json:
        print(json_text(rows))
    else:
        show(differences_table(rows))


def adapt(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a searchr3 model; gets the rule.")
    ],
    data: Annotated[str, typer.Option(help="As for `searchr3 evaluate`.")],
    split: Annotated[str, typer.Option(help="Whose queries choose; never the ones of a test.")] = "dev",
    split_by: SplitBy = "hash",
    keep: Annotated[
        float, typer.Option(help="Share of what thinking gains that the rule is to keep: above 0, at most 1.")
    ] = 0.95,
    prompts: Annotated[Path | None, typer.Option(help="As for `searchr3 evaluate`.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a thought.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Most texts in one forward.")] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1.  [default: GPU if any]")] = None,
    as_json: Json = False,
) -> None:
    """Choose when a model thinks.

    Measures it with and without, and saves the rule with it: think where the direct ranking is so unsure.
    """
    from searchr3.adaptive import RULE

    if not 0 < keep <= 1:
        raise SearchR3Error(f"--keep must be above 0 and at most 1, got {keep:g}")
    if not model.is_dir():
        raise SearchR3Error(
            f"{model}: no such folder; the rule is saved in it, so give a local one "
            "(of a Hub model: `hf download ID --local-dir FOLDER` first)"
        )
    check_writable(model / RULE)
    from searchr3 import SearchR3, load_dataset
    from searchr3.evaluation import evaluate as measure
    from searchr3.evaluation.adaptive import Measured, choice_lines, choice_table, choose
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    dataset = load_dataset(data, split_by=split_by)
    dataset.split(split)
    thinker = SearchR3(model, batch_size=batch_size, device=device, prompts=prompts)
    with Screen() as screen:
        screen.phase("measuring", f"{model} on {data}")
        found = measure(
            thinker, dataset, split, baselines=(), max_new_tokens=max_new_tokens, progress=screen.work
        )
    measured = Measured.of(found.run("direct"), found.run("reasoned"))
    queries, documents = len(found.query_ids), len(dataset.corpus)
    where = f"{dataset.name} {split}, {queries:,} queries, {documents:,} documents"
    choice = choose(measured, keep, where)
    choice.rule.save(model)
    if as_json:
        print(json_text({"model": str(model), **choice.as_dict()}))
    else:
        show(choice_table(choice, where))
        print("\n".join(choice_lines(choice)))
