"""How tables for the terminal look, here and wherever an evaluation prints one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from searchr3.evaluation.statistics import direction
from searchr3.words import printable

if TYPE_CHECKING:
    from rich.table import Table


def table_of(title: str, left: Iterable[str], right: Iterable[str] = ()) -> Table:
    """An empty table: columns of words, which may fold, and columns of figures, which may not.

    Args:
        title: of one line; what might steer the terminal is left out of it.
        left, right: shown as they are; nothing in them or in the title is markup.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(printable(title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in left:
        table.add_column(escape(heading), overflow="fold")
    for heading in right:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    return table


def coloured(row: Mapping[str, Any]) -> str:
    """A difference, green or red where it is significant."""
    colour = ("default", "green", "red")[direction(row["ci95"], row["p"])]
    return f"[{colour}]{row['mean']:+.3f}[/{colour}]"
