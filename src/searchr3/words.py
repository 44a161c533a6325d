"""Words of a text or of code: identifiers split, all lower case; and texts cut, to be learnt or shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

_RUN = re.compile(r"[^\W_]+")
_ASCII_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
_OTHER_PART = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


def split_identifiers(text: str) -> list[str]:
    """Words in order of appearance: split at case changes, underscores and punctuation, lower-cased.

    A number stays with the letters before it. Chinese and Japanese characters, which no space separates, are
    words of their own.

    >>> split_identifiers("getFileName_v2(HTTPServer)")
    ['get', 'file', 'name', 'v2', 'http', 'server']
    """
    if text.isascii():  # the pattern itself never crosses from one run to the next
        return [part.lower() for part in _ASCII_PART.findall(text)]
    words: list[str] = []
    for run in _RUN.findall(text):
        words.extend(part.lower() for part in _part(run).findall(run))
    return words


def beginning(text: str, words: int) -> str:
    """The text up to the end of its first `words` words, counted as `split_identifiers` splits them.

    >>> beginning("def getFileName(self): ...", 3)
    'def getFile'
    """
    ends = [0, *islice(_ends(text), words + 1)]
    if len(ends) <= words + 1:
        return text.strip()
    return beginning(text[: ends[words]], words)  # what is cut off may change how the last run is split


def _part(run: str) -> re.Pattern[str]:
    return _ASCII_PART if run.isascii() else _OTHER_PART


def _ends(text: str) -> Iterator[int]:
    """Where each word ends."""
    for run in _RUN.finditer(text):
        for part in _part(run.group()).finditer(run.group()):
            yield run.start() + part.end()


def shortened(text: str, most: int) -> str:
    """The text on one line, of at most `most` characters.

    >>> shortened("one\\n two three", 9)
    'one two…'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def printable(text: str) -> str:
    """Text from a model or a document on one line, without anything that could steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
