"""`searchr3 report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, write_text


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...",
            help="Files that evaluate wrote, folders of suites, folders of runs or their metrics.json.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="File for the page.")] = Path("page.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Make one page of any set of results.

    Tables with intervals, what thinking adds on each data set and over all, budgets, cost, and the queries
    that thinking helped and hurt most. The page is one file and needs nothing else.
    """
    if output.is_dir():
        raise SearchR3Error(f"{output}: is a folder; name a file in it, such as {output / 'page.html'}")
    if output.exists() and not overwrite:
        raise SearchR3Error(f"{output}: exists already; choose another file or replace it with --overwrite")
    if output.exists() and any(output.samefile(path) for path in results if path.exists()):
        raise SearchR3Error(f"{output}: is one of the results; choose another file for the page")
    check_writable(output)
    from searchr3.evaluation.collection import read_collection
    from searchr3.evaluation.page import render_page

    write_text(output, render_page(read_collection(results)))
    typer.echo(f"wrote {output}")
