"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

SplitBy = Annotated[
    Literal["hash", "package"],
    typer.Option(help="For the data `python`: single functions are held out, or whole packages."),
]


def names(text: str) -> list[str]:
    """The names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]
