"""`searchr3 report`."""

from __future__ import annotations

from collections.abc import Iterable
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
    _refuse_results(output, results)
    check_writable(output)
    from searchr3.evaluation.collection import read_collection
    from searchr3.evaluation.page import render_page
    from searchr3.evaluation.results import queries_path

    collection = read_collection(results)
    files = [one.file for one in collection.evaluations]
    _refuse_results(output, [*files, *map(queries_path, files)])
    write_text(output, render_page(collection))
    typer.echo(f"wrote {output}")


def _refuse_results(output: Path, results: Iterable[Path]) -> None:
    """Raise SearchR3Error where the page would replace results, or the file that a folder of them has."""
    files = [file for path in results for file in (path, path / "suite.json", path / "metrics.json")]
    if output.exists() and any(output.samefile(file) for file in files if file.exists()):
        raise SearchR3Error(f"{output}: is one of the results; choose another file for the page")
