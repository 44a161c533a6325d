"""What a store of chunks is: the records in it, and what indexing and searching ask of it.

A file's chunks are rows of a *version*: a name of its content and of how it was chunked. The file's record
says which version is searched. Rows of a new version are added batch by batch, then the record is turned to
them at once, then the rows of the old one go. So whoever dies when, a search sees each file as it was before
or as it is now, and the next indexing finds in the records (`clean`) what may be left over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Facts(BaseModel):
    """What a store remembers of its model and of what it follows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    searchr3_store: Literal[1] = Field(default=1, description="version of this layout")
    model: str = Field(description="folder or Hub id of the model")
    digest: str = Field(description="of weights, tokenizer, prompts and length: what decides a vector")
    stamp: str = Field(default="", description="of sizes and times of the model's files")
    prompts: dict[str, str] = Field(description="wording of the conversations")
    max_length: int = Field(description="most tokens of template and text")
    dimension: int = Field(description="of the vectors")
    size: int = Field(description="most characters of a chunk")
    roots: dict[str, str] = Field(default_factory=dict, description="name → place of what is followed")


@dataclass(frozen=True)
class FileRecord:
    """What is known of a file.

    Attributes:
        path: its name in the store.
        root: name of the root that it was found below.
        version: of the chunks that are searched; "" if none are.
        chunks: how many they are.
        clean: whether no rows of other versions can be there.
    """

    path: str
    root: str
    version: str
    chunks: int
    clean: bool


@dataclass(frozen=True, eq=False)
class Row:
    """A chunk in a store; `number` counts within its file, `vector` is (d,) float32 of unit length."""

    path: str
    version: str
    number: int
    kind: str
    text: str
    heading: str
    first: int
    last: int
    page: bool
    vector: np.ndarray


class Found(NamedTuple):
    """A row that a search came upon, with the score that the store gave it."""

    row: Row
    score: float


@dataclass(frozen=True)
class Filter:
    """Which rows may be found: of these files and of these kinds; None: any."""

    paths: Collection[str] | None = None
    kinds: Collection[str] | None = None


class Store(Protocol):
    """Chunks with vectors and words, and a record of each file. One writer at a time, any number of readers.

    Every call is whole or not there at all for a file's record, and may be repeated.
    """

    name: str

    def facts(self) -> Facts | None:
        """What it remembers; None if it is new."""

    def remember(self, facts: Facts) -> None:
        """Keep these facts; a new store is made by this."""

    def writing(self) -> AbstractContextManager[Callable[[], None]]:
        """Keep other writers out. SearchR3Error: one is at work.

        Gives what is called now and then while nothing is written, as a sign of life.
        """

    def files(self, paths: Collection[str] | None = None) -> dict[str, FileRecord]:
        """Records by path: of these, or of all."""

    def put(self, records: Sequence[FileRecord]) -> None:
        """Write records over those of the same paths, each at once."""

    def drop(self, paths: Sequence[str]) -> None:
        """Remove records."""

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows that are not there."""

    def rows(self, versions: Mapping[str, str]) -> list[Row]:
        """The rows of path → version, by path and number."""

    def remove(self, versions: Mapping[str, str]) -> None:
        """Remove the rows of these paths (path → version) but those of that version."""

    def nearest(self, vector: np.ndarray, k: int, among: Filter) -> list[Found]:
        """The rows with the highest inner product with (d,), best first, rows of any version."""

    def matching(self, words: Sequence[str], k: int, among: Filter) -> list[Found]:
        """The rows that hold any of these words, by BM25, best first, rows of any version."""

    def settle(self) -> None:
        """After a change: whatever makes searching quick."""

    def count(self) -> int:
        """Number of rows, of any version."""

    def close(self) -> None:
        """Let go of files and connections."""
