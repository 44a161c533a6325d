"""What the person at the terminal sees beside the answers: one-line errors, tables, silence."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from searchr3.errors import SearchR3Error, first_line
from searchr3.files import NO_SPACE, full_disk
from searchr3.words import printable

if TYPE_CHECKING:
    from rich.table import Table

RESUMABLE = {
    "quickstart": " with --resume",
    "train": " with --resume",
    "evidence": " with --resume",
    "mine": " with --resume",
    "encode": "",
    "index": "",
    "traces": "",
    "evaluate": " (unless it had --no-cache)",
}
"""Commands that go on where they stopped, and how."""


_FULL_MEMORY = ("OutOfMemoryError", "MemoryError")  # torch's own, which is not imported for this
_SMALLER = "lower stage1.micro_tokens and model.batch_size, raise stage2.accumulation (--dry-run estimates)"


def one_line(error: BaseException, command: str | None = None) -> str:
    """What the person at the keyboard reads of an error: place, fault and mend, never more than one line.

    Of several processes it says which one speaks.
    """
    from searchr3.group import is_lost

    again = f"the same command{RESUMABLE[command]} continues" if command in RESUMABLE else None
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {again}" if again else "interrupted"
    full = full_disk(error)
    if isinstance(error, SearchR3Error):
        text = str(error)
    elif is_lost(error):
        text = "another process of the run has ended, or does not answer; its own message says why"
    elif type(error).__name__ in _FULL_MEMORY or "can't allocate memory" in str(error):
        trains = command in ("train", "quickstart")
        text = f"the memory is full ({first_line(error)}); {_SMALLER if trains else 'use smaller batches'}"
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        text = f"{error.filename}: the name is too long; choose a shorter one"
    elif full:
        place = f"{full.filename}: " if isinstance(full, OSError) and full.filename else ""
        text = f"{place}{NO_SPACE}"
    else:
        text = f"internal {type(error).__name__}: {error}; rerun with --debug for the traceback"
    if full and again:
        text += f"; once there is room, {again}"
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        text = f"process {os.environ.get('RANK', '?')}: {text}"
    return "error: " + printable(text)


class OneLineErrors(TyperGroup):
    """Errors become one line on stderr and an exit code; with `--debug`, their traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Whoever reads the advice to add --debug has typed the command already: it may stand at the end too.
        options = args[: args.index("--")] if "--" in args else args
        if "--debug" in options:
            args = [
                "--debug",
                *(argument for argument in options if argument != "--debug"),
                *args[len(options) :],
            ]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise  # typer's own: --help, wrong usage
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError):
                raise  # the reader of our output has gone, as in `searchr3 search … | head`
            if ctx.params.get("debug"):
                traceback.print_exc()
            else:
                print(one_line(error, ctx.invoked_subcommand), file=sys.stderr, flush=True)
            from searchr3.group import end_in_time

            end_in_time()
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def hush_libraries() -> None:
    """Leave the screen to our own lines. Nothing is imported: libraries read these when they are."""
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("LANCE_LOG", "error")
    for name in ("TRL_EXPERIMENTAL_SILENCE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("searchr3").setLevel(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def show(*tables: Table) -> None:
    """Print tables, as wide as the terminal; a file has no edge to wrap at."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table)
