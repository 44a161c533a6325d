"""The command line. Commands only: each reads its arguments, calls the room that does the work, and prints.

Rooms are imported inside the commands, so that `searchr3 --help` does not wait for torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from searchr3.cli_adapt import adapt
from searchr3.cli_chat import chat_check
from searchr3.cli_encode import encode
from searchr3.cli_evaluate import compare, evaluate
from searchr3.cli_evidence import evidence
from searchr3.cli_export import export
from searchr3.cli_report import report
from searchr3.cli_search import index, search
from searchr3.cli_serve import serve
from searchr3.cli_traces import traces
from searchr3.cli_train import train
from searchr3.files import json_text
from searchr3.options import Device, Json, Resume, Settings, SplitBy, names
from searchr3.terminal import OneLineErrors, hush_libraries, show
from searchr3.version import __version__

app = typer.Typer(
    name="searchr3",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a chat language model into a retriever that thinks before it embeds.",
    epilog="Start with: searchr3 quickstart",
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `searchr3` command."""
    app(arguments)
    raise SystemExit(0)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"searchr3 {__version__}")
        raise typer.Exit


@app.callback()
def start(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' own messages.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Runs before every command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        hush_libraries()


@app.command(epilog="Example: searchr3 quickstart --output runs/first")
def quickstart(
    settings: Settings = None,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    resume: Resume = False,
) -> None:
    """Run the whole loop, small and offline.

    A tiny model learns to embed the Python code installed on this machine, then to think before it embeds:
    minutes on a laptop, with a report at the end.
    """
    from searchr3 import pipeline

    pipeline.train("quickstart", settings or [], output, resume)


app.command(epilog="Example: searchr3 train mine.yaml stage1.steps=100 --output runs/mine")(train)


app.command(epilog="Example: searchr3 evaluate runs/mine/stage2 --data runs/mine/data --output results.json")(
    evaluate
)


app.command(epilog="Example: searchr3 compare stage1.json stage2.json")(compare)


app.command(epilog="Example: searchr3 adapt runs/mine/stage2 --data runs/mine/data")(adapt)


app.command(epilog="Example: searchr3 evidence reference --seeds 3 --output runs/evidence")(evidence)


app.command(epilog="Example: searchr3 report results.json --output page.html")(report)


app.command(
    epilog="Example: searchr3 traces mydata --output traced --endpoint http://localhost:8000 --model NAME"
)(traces)


@app.command(epilog="Example: searchr3 mine mydata --output mydata-mined --by runs/first/stage1")
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
    batch_size: Annotated[int, typer.Option(min=1, help="Most texts in one forward.")] = 32,
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


app.command(epilog="Example: searchr3 encode runs/mine/stage2 mydata/corpus.jsonl --output vectors")(encode)


app.command(epilog="Example: searchr3 export runs/mine/stage2 --output exported --format onnx")(export)


app.command(epilog="Example: searchr3 serve --store my.index --port 8000")(serve)


app.command(epilog="Example: searchr3 chat-check runs/mine/stage2 --base runs/mine/base")(chat_check)


app.command(epilog="Example: searchr3 index docs src --store my.index --model runs/mine/stage2")(index)


app.command(epilog='Example: searchr3 search "read a file line by line" --run runs/quickstart')(search)
