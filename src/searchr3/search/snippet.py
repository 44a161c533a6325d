"""The part of a chunk that is shown, and the words in it that speak for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache

from searchr3.search.words import LONGEST, index_words

LENGTH = 240  # characters
_WORD = re.compile(r"\w+")


def marked(text: str, words: Collection[str]) -> Iterator[tuple[int, int]]:
    """Where words of `text` stand that have one of these index words in them: start and end offsets.

    >>> list(marked("reads all lines", ["line"]))
    [(10, 15)]
    """
    wanted = set(words)
    for found in _WORD.finditer(text):
        words_of = _known if len(found[0]) <= LONGEST else index_words
        if not wanted.isdisjoint(words_of(found[0])):
            yield found.span()


@lru_cache(maxsize=1 << 16)
def _known(word: str) -> tuple[str, ...]:
    """Hits are full of the same words."""
    return tuple(index_words(word))


def snippet(text: str, words: Collection[str], length: int = LENGTH) -> str:
    """At most `length` characters of `text` on one line: its beginning, or what holds most different words.

    >>> snippet("one two three four five six", ["five"], 12)
    '…five six'
    """
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    spans = [*marked(flat, words)]
    best, most = 0, 0
    for start, _ in spans:
        begin = max(0, start - length // 4) if start >= length * 3 // 4 else 0
        held = {flat[a:b].lower() for a, b in spans if begin <= a and b <= begin + length - 2}
        if len(held) > most:
            best, most = begin, len(held)
    if best:
        best = flat.find(" ", best, best + length // 4) + 1 or best
    shown = flat[best : best + length - 2]
    if best + len(shown) < len(flat):
        shown = (shown[: shown.rfind(" ")] if " " in shown[length // 2 :] else shown).rstrip() + "…"
    return "…" * (best > 0) + shown
