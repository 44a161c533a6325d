"""Files in chunks along their own structure: sections of Markdown, definitions of code, sentences of prose.

The splitter is semantic-text-splitter: one library for prose, Markdown and code (by tree-sitter), in Rust,
whose parts put together are the text again. It counts characters: counting tokens, it would tokenize each
part some ten times. What then has too many tokens is split once more, see `fitted`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

from searchr3.errors import SearchR3Error
from searchr3.search.headings import grammar, headings
from searchr3.search.kinds import Kind
from searchr3.search.readers import Section

SIZE = 1000  # characters of a chunk, unless told otherwise
SMALL = 4  # a part of less than a fourth of that goes with its neighbour
MOST_HEADING = 120  # characters of a heading; of a longer one the end is kept, which is nearest to the text
_WORD = re.compile(r"\w")
_LEADING = re.compile(r"(?:[^\S\n]*\n)*")  # blank lines; the indentation of the first other one stays

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """A part of a file.

    Attributes:
        text: its characters, but for blank lines around them.
        heading: what it stands under, see `headings.headings`; "" if nothing.
        first, last: its first and last line in the file, or its page, from 1.
        page: whether these are pages.
        start: offset of `text` in its section.
    """

    text: str
    heading: str
    first: int
    last: int
    page: bool
    start: int

    @property
    def passage(self) -> str:
        """What is encoded: heading and text, one below the other, as title and text of a document are."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def chunks_of(section: Section, kind: Kind, size: int = SIZE) -> Iterator[Chunk]:
    """The chunks of a section, in order: every character that is no white space is in exactly one.

    Args:
        size: most characters of a chunk's text, at least 1.
    """
    under = headings(section.text, kind)
    for start, text in _pieces(section.text, kind, size):
        heading = under(start, start + len(text))
        if len(heading) > MOST_HEADING:
            heading = "…" + heading[1 - MOST_HEADING :]
        yield _chunk(section, start, text, heading)


def fitted(
    section: Section, kind: Kind, size: int, render: Callable[[Sequence[str]], Sequence[T | None]]
) -> list[tuple[Chunk, T]]:
    """The chunks of a section with what `render` makes of their passages, for an encoder.

    Args:
        render: texts → what the encoder takes; None of a text that is too long for it. Such a chunk loses its
            heading, then it is split in two.

    Raises:
        SearchR3Error: not even one character fits.
    """
    asked = list(chunks_of(section, kind, size))
    done: list[tuple[Chunk, T]] = []
    while asked:
        rendered = render([chunk.passage for chunk in asked])
        again: list[Chunk] = []
        for chunk, one in zip(asked, rendered, strict=True):
            if one is not None:
                done.append((chunk, one))
            elif chunk.heading:
                again.append(replace(chunk, heading=""))
            elif len(chunk.text) > 1:
                half = (len(chunk.text) + 1) // 2
                for start, text in _pieces(chunk.text, Kind("txt", "text"), half):
                    again.append(_chunk(section, chunk.start + start, text, ""))
            else:
                raise SearchR3Error(
                    "the model's max_length leaves no room for a text; index with a larger --max-length"
                )
        asked = again
    return sorted(done, key=lambda pair: pair[0].start)


def _pieces(text: str, kind: Kind, size: int) -> Iterator[tuple[int, str]]:
    """Offset and text of each part, without the blank lines around it."""
    for start, piece in _merged(_split(text, kind, max(1, size - size // SMALL)), size):
        if not piece.strip():
            continue
        blank = _LEADING.match(piece)
        skip = blank.end() if blank else 0
        yield start + skip, piece[skip:].rstrip()


def _merged(pieces: Iterable[tuple[int, str]], size: int) -> list[tuple[int, str]]:
    """What is left over goes with a neighbour: the first line of a class with the next, a brace before."""
    made: list[tuple[int, str]] = []
    for start, piece in pieces:
        small = bool(made) and (len(made[-1][1]) <= size // SMALL or not _WORD.search(piece))
        if small and len(made[-1][1]) + len(piece) <= size:
            made[-1] = made[-1][0], made[-1][1] + piece
        else:
            made.append((start, piece))
    if len(made) > 1 and len(made[-1][1]) <= size // SMALL and len(made[-2][1]) + len(made[-1][1]) <= size:
        last = made.pop()[1]
        made[-1] = made[-1][0], made[-1][1] + last
    return made


def _split(text: str, kind: Kind, size: int) -> Iterable[tuple[int, str]]:
    """Parts of at most `size` characters, which put together are `text`."""
    splitter: Any
    if kind.grammar:
        splitter = CodeSplitter(grammar(*kind.grammar), size, trim=False)
    elif kind.form in ("markdown", "html"):
        splitter = MarkdownSplitter(size, trim=False)
    else:
        splitter = TextSplitter(size, trim=False)
    return splitter.chunk_indices(text)


def _chunk(section: Section, start: int, text: str, heading: str) -> Chunk:
    before = section.text.count("\n", 0, start)
    first, last = section.number(before), section.number(before + text.count("\n"))
    return Chunk(text, heading, first, last, section.page, start)
