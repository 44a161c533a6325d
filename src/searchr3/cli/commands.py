"""All commands. Each reads its arguments, calls the room that does the work, and prints.

Rooms are imported inside the commands, so that `searchr3 --help` does not wait for torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from searchr3.cli.adapt import adapt
from searchr3.cli.chat import chat_check
from searchr3.cli.encode import encode
from searchr3.cli.evaluate import compare, evaluate
from searchr3.cli.evidence import evidence
from searchr3.cli.export import export
from searchr3.cli.mine import mine
from searchr3.cli.options import Resume, Settings
from searchr3.cli.report import report
from searchr3.cli.search import index, search
from searchr3.cli.serve import serve
from searchr3.cli.terminal import OneLineErrors, hush_libraries
from searchr3.cli.traces import traces
from searchr3.cli.train import train
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
    from searchr3.runs import pipeline

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


app.command(epilog="Example: searchr3 mine mydata --output mydata-mined --by runs/first/stage1")(mine)


app.command(epilog="Example: searchr3 encode runs/mine/stage2 mydata/corpus.jsonl --output vectors")(encode)


app.command(epilog="Example: searchr3 export runs/mine/stage2 --output exported --format onnx")(export)


app.command(epilog="Example: searchr3 serve --store my.index --port 8000")(serve)


app.command(epilog="Example: searchr3 chat-check runs/mine/stage2 --base runs/mine/base")(chat_check)


app.command(epilog="Example: searchr3 index docs src --store my.index --model runs/mine/stage2")(index)


app.command(epilog='Example: searchr3 search "read a file line by line" --run runs/quickstart')(search)
